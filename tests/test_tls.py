"""TLS between the edge and the gRPC proxy, the whole chain: which cause is named, new files, strangers."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
import trustme
from cryptography import x509

from lambdalm.testing.chain import Chain, free_ports
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc

from .conftest import post, until

LONG_AGO = datetime.datetime(2020, 2, 1, tzinfo=datetime.UTC)
ASK = {"prompt": "hello", "model": "echo"}


class Files:
    """The certificates of one chain, as its config names them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        (folder / "ca.pem").write_bytes(self.ca.cert_pem.bytes())

    def issue(self, name: str, **options: Any) -> None:
        """Write a certificate and its key, the pair replaced as a whole."""
        leaf = self.ca.issue_cert("127.0.0.1", "localhost", **options)
        for suffix, pem in (("key", leaf.private_key_pem.bytes()), ("pem", leaf.cert_chain_pems[0].bytes())):
            new = self.folder / f"{name}.{suffix}.new"
            new.write_bytes(pem)
            new.replace(self.folder / f"{name}.{suffix}")

    def environ(self, clients: bool = False) -> dict[str, str]:
        at = self.folder
        found = {"USE_TLS": "true", "TLS_CERT_PATH": f"{at}/proxy.pem", "TLS_KEY_PATH": f"{at}/proxy.key"}
        found |= {"PROVIDER": "scripted", "GRPC_USE_TLS": "true", "GRPC_CA_PATH": f"{at}/ca.pem"}
        if clients:
            found["TLS_CLIENT_CA_PATH"] = f"{at}/ca.pem"
            found |= {"GRPC_CLIENT_CERT_PATH": f"{at}/edge.pem", "GRPC_CLIENT_KEY_PATH": f"{at}/edge.key"}
        return found


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_an_expired_certificate_is_refused_and_named_and_a_new_one_is_taken_without_a_restart(files: Files) -> None:
    files.issue("proxy")
    with Chain(free_ports(), files.environ()) as chain:
        assert post(chain.url, ASK).json()["text"] == "hello"
        processes = [hop.process.pid for hop in chain.hops.values()]
        files.issue("proxy", not_after=LONG_AGO)
        chain.hops["edge"].stop()  # it has a connection with the good one
        until(lambda: _served_ends(chain) < datetime.datetime.now(datetime.UTC), "the expired one is served")
        chain.start("edge")
        until(lambda: "expired on 2020-02-01" in _why(chain), "the edge names the cause")
        answer = post(chain.url, ASK)
        assert answer.status_code == 503
        assert answer.json()["error"]["origin"] == "proxy"
        seen = requests.get(f"{chain.url}/chain", timeout=10).json()
        assert seen["first_broken"] == "proxy"
        assert "expired" in str(seen)
        files.issue("proxy")
        until(lambda: _ok(chain), "the new one is trusted")
        assert [hop.process.pid for hop in chain.hops.values()][:2] == processes[:2]


def test_a_stranger_is_refused_by_mtls_and_the_edge_with_its_certificate_is_not(files: Files) -> None:
    files.issue("proxy")
    files.issue("edge")
    with Chain(free_ports(), files.environ(clients=True)) as chain:
        assert post(chain.url, ASK).json()["text"] == "hello"
        roots = (files.folder / "ca.pem").read_bytes()
        for credentials in (
            grpc.ssl_channel_credentials(roots),
            grpc.ssl_channel_credentials(roots, *_identity_of_somebody_else()),
        ):
            with grpc.secure_channel(chain.grpc_target, credentials) as channel:
                stub = llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]
                with pytest.raises(grpc.RpcError) as raised:
                    stub.Generate(pb.LLMRequest(prompt="hello", model="echo"), timeout=10)
                assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        with grpc.insecure_channel(chain.grpc_target) as channel:
            stub = llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]
            with pytest.raises(grpc.RpcError):
                stub.Generate(pb.LLMRequest(prompt="hello", model="echo"), timeout=10)


def _identity_of_somebody_else() -> tuple[bytes, bytes]:
    leaf = trustme.CA().issue_cert("127.0.0.1")
    return leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes()


def _served_ends(chain: Chain) -> datetime.datetime:
    """When the certificate ends that the proxy shows now."""
    pem = ssl.get_server_certificate(("127.0.0.1", chain.ports.proxy), timeout=5)
    return x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc


def _why(chain: Chain) -> str:
    try:
        response = post(chain.url, ASK)
    except requests.ConnectionError:  # it is not up yet
        return ""
    return "" if response.ok else str(response.json()["error"]["message"])


def _ok(chain: Chain) -> bool:
    return post(chain.url, ASK).ok
