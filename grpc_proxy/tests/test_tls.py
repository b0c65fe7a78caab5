"""The server's certificate: who is refused, and what happens when its files change."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import msgspec
import pytest
import structlog
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from grpc_proxy import alb, bridge, tls
from grpc_proxy.tls import TlsConfig
from lambdalm.errors import Code, LlmError
from lambdalm.listen import Listen

from .conftest import SOON, WAIT

NEVER = 86400


class Files:
    """A server's certificate and key on disk, signed by an authority of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.certificate = folder / "server.pem"
        self.key = folder / "server.key"
        self.client_ca = folder / "clients.pem"
        self.client_ca.write_bytes(self.ca.cert_pem.bytes())
        self.put(self.issue())

    def issue(self, days: float = 365, kind: trustme.KeyType = trustme.KeyType.ECDSA) -> trustme.LeafCert:
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        start = end - datetime.timedelta(days=400)
        return self.ca.issue_cert("localhost", "127.0.0.1", not_before=start, not_after=end, key_type=kind)

    def put(self, leaf: trustme.LeafCert) -> int:
        """Its serial number."""
        pem = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        self.certificate.write_bytes(pem)
        self.key.write_bytes(leaf.private_key_pem.bytes())
        return x509.load_pem_x509_certificate(pem).serial_number

    def config(self, **more: object) -> TlsConfig:
        paths = {"cert_path": str(self.certificate), "key_path": str(self.key)}
        return msgspec.convert({"enabled": True, "reload_seconds": NEVER, **paths, **more}, TlsConfig)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@contextlib.asynccontextmanager
async def serving(certificate: tls.Certificate) -> AsyncIterator[int]:
    """A gRPC server with this certificate; gives its port."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((alb.handler(lambda: None),))
    port = server.add_secure_port("127.0.0.1:0", certificate.grpc_credentials())
    await server.start()
    yield port
    await server.stop(0)


async def ask(port: int, credentials: grpc.ChannelCredentials | None) -> None:
    """One call over a connection of its own; raises AioRpcError."""
    target, own = f"localhost:{port}", [("grpc.use_local_subchannel_pool", 1)]
    channel = (
        grpc.aio.insecure_channel(target, own)
        if credentials is None
        else grpc.aio.secure_channel(target, credentials, own)
    )
    async with channel:
        await channel.unary_unary("/AWS.ALB/healthcheck", None, None)(b"", timeout=WAIT)


def trusting(files: Files, leaf: trustme.LeafCert | None = None) -> grpc.ChannelCredentials:
    root = files.ca.cert_pem.bytes()
    if leaf is None:
        return grpc.ssl_channel_credentials(root)
    return grpc.ssl_channel_credentials(root, leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes())


async def serial(port: int, files: Files) -> int:
    """Of the certificate that a new connection is shown."""

    def look() -> int:
        context = ssl.create_default_context(cadata=files.ca.cert_pem.bytes().decode())
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(("127.0.0.1", port), WAIT) as sock,
            context.wrap_socket(sock, server_hostname="localhost") as connection,
        ):
            shown = connection.getpeercert()
            assert shown is not None
            return int(str(shown["serialNumber"]), 16)

    return await asyncio.to_thread(look)


async def test_a_client_that_trusts_the_authority_is_answered_and_plaintext_is_not(files: Files) -> None:
    async with serving(tls.Certificate(files.config())) as port:
        await ask(port, trusting(files))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(port, None)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_new_files_are_served_to_new_connections_without_a_restart(files: Files) -> None:
    before = files.put(files.issue())
    certificate = tls.Certificate(files.config(reload_seconds=SOON))
    async with serving(certificate) as port, certificate.followed(), asyncio.timeout(WAIT):
        assert await serial(port, files) == before
        for _ in range(2):
            now = files.put(files.issue())
            while (shown := await serial(port, files)) != now:
                assert shown == before
            before = now
        await ask(port, trusting(files))


async def test_the_https_bridge_serves_the_new_files_too_also_with_a_key_of_another_kind(files: Files) -> None:
    first = files.put(files.issue(kind=trustme.KeyType.RSA))
    certificate = tls.Certificate(files.config())
    config = bridge.BridgeConfig(http=Listen("127.0.0.1", 0), https=Listen("127.0.0.1", 0))
    probes = bridge.Probes("llm", lambda: None)
    async with bridge.serving(config, probes, certificate.https_context()) as (_, url):
        port = int(url.rpartition(":")[2])
        assert await serial(port, files) == first
        for kind in (trustme.KeyType.ECDSA, trustme.KeyType.RSA):
            now = files.put(files.issue(kind=kind))
            certificate.look()
            assert await serial(port, files) == now


def half_a_certificate(files: Files) -> str:
    whole = files.certificate.read_bytes()
    files.certificate.write_bytes(files.issue().cert_chain_pems[0].bytes() + whole[: len(whole) // 2])
    return f"tls.cert_path: {files.certificate} holds no whole certificates in PEM"


def half_a_key(files: Files) -> str:
    files.key.write_bytes(files.issue().private_key_pem.bytes()[:100])
    return f"tls.key_path: {files.key} holds no whole private key in PEM"


def another_key(files: Files) -> str:
    files.key.write_bytes(files.issue().private_key_pem.bytes())
    return f"tls.key_path: {files.key} is not the key of the certificate in {files.certificate}"


def a_key_with_a_password(files: Files) -> str:
    secret = serialization.BestAvailableEncryption(b"canary")
    kind = serialization.PrivateFormat.PKCS8
    key = ec.generate_private_key(ec.SECP256R1())
    files.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, secret))
    return f"tls.key_path: {files.key} has a password: give a key without one"


def no_key(files: Files) -> str:
    files.key.unlink()
    return f"tls.key_path: {files.key} cannot be read: No such file or directory"


def half_an_authority(files: Files) -> str:
    files.client_ca.write_bytes(files.client_ca.read_bytes()[:-30])
    return f"tls.client_ca_path: {files.client_ca} holds no whole certificates in PEM"


Trouble = Callable[[Files], str]
TROUBLES: list[Trouble] = [
    half_a_certificate,
    half_a_key,
    another_key,
    a_key_with_a_password,
    no_key,
    half_an_authority,
]


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_files_that_cannot_be_served_leave_the_old_ones_and_are_told_once(files: Files, trouble: Trouble) -> None:
    before = files.put(files.issue())
    certificate = tls.Certificate(files.config(client_ca_path=str(files.client_ca)))
    leaf = files.issue()
    async with serving(certificate) as port:
        with structlog.testing.capture_logs() as logged:
            why = trouble(files)
            certificate.look()
            certificate.look()
        await ask(port, trusting(files, leaf))
        assert [(line["log_level"], line["why"]) for line in logged] == [("warning", why)]
        files.client_ca.write_bytes(files.ca.cert_pem.bytes())
        after = files.put(files.issue())
        certificate.look()
        assert after != before
        await ask(port, trusting(files, leaf))


@pytest.mark.parametrize("trouble", TROUBLES)
def test_the_server_does_not_start_with_files_that_cannot_be_served(files: Files, trouble: Trouble) -> None:
    why = trouble(files)
    with pytest.raises(LlmError) as refused:
        tls.Certificate(files.config(client_ca_path=str(files.client_ca)))
    assert (refused.value.code, refused.value.message) == (Code.FAILED_PRECONDITION, why)


async def test_with_an_authority_for_clients_strangers_are_refused_and_its_own_are_admitted(files: Files) -> None:
    stranger = trustme.CA().issue_cert("localhost")
    async with serving(tls.Certificate(files.config(client_ca_path=str(files.client_ca)))) as port:
        await ask(port, trusting(files, files.issue()))
        for leaf in (None, stranger):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(port, trusting(files, leaf))
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_new_authority_for_clients_counts_without_a_restart(files: Files) -> None:
    other = trustme.CA()
    leaf = other.issue_cert("localhost")
    certificate = tls.Certificate(files.config(client_ca_path=str(files.client_ca)))
    async with serving(certificate) as port:
        files.client_ca.write_bytes(other.cert_pem.bytes())
        certificate.look()
        await ask(port, trusting(files, leaf))
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(port, trusting(files, files.issue()))


async def test_an_expired_certificate_is_refused_by_clients_and_named_in_the_log(files: Files) -> None:
    files.put(files.issue(days=-1))
    with structlog.testing.capture_logs() as logged:
        certificate = tls.Certificate(files.config())
    (line,) = logged
    assert line["event"] == "the certificate has expired: clients refuse it"
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    assert (line["log_level"], line["file"]) == ("warning", str(files.certificate))
    assert abs(datetime.date.fromisoformat(line["expired"]) - yesterday.date()) <= datetime.timedelta(days=1)
    async with serving(certificate) as port:
        with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
            await serial(port, files)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(port, trusting(files))
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "certificate has expired" in str(refused.value.details())


@pytest.mark.parametrize(("days", "warned"), [(13.9, ["the certificate expires soon"]), (14.1, [])])
def test_the_log_warns_two_weeks_before_the_end_at_the_start_and_of_new_files(
    files: Files, days: float, warned: list[str]
) -> None:
    files.put(files.issue(days=days))
    with structlog.testing.capture_logs() as logged:
        certificate = tls.Certificate(files.config())
        files.put(files.issue(days=days))
        certificate.look()
    assert [line["event"] for line in logged if line["log_level"] == "warning"] == warned * 2


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"enabled": True}, "cert_path is missing (TLS_CERT_PATH)"),
        ({"enabled": True, "cert_path": "c"}, "key_path is missing (TLS_KEY_PATH)"),
        ({"key_path": "k"}, "cert_path is missing (TLS_CERT_PATH)"),
        ({"client_ca_path": "a"}, "client_ca_path is given, but enabled is false (USE_TLS)"),
    ],
)
def test_a_config_that_would_serve_less_than_was_asked_is_refused(given: dict[str, object], why: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.convert(given, TlsConfig)
    assert str(refused.value).startswith(why)


def test_without_tls_nothing_is_needed() -> None:
    assert not TlsConfig().enabled
