"""TLS with the gRPC proxy: a good certificate, each kind of bad one by its name, and new files without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
import trustme

from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import Finished, FinishReason, Started, StreamEvent, TextDelta
from lambdalm.rpc import messages
from lambdalm.timings import HopClock
from lambdalm_proto.v1 import llm_pb2 as pb
from restful_proxy import tls
from restful_proxy.caller import Caller
from restful_proxy.config import GrpcConfig
from restful_proxy.handshake import Inspector
from restful_proxy.tls import TlsConfig
from restful_proxy.upstream import GrpcProxy

from .conftest import WAIT, Proxy

LONG_AGO = datetime.datetime(2020, 2, 1, tzinfo=datetime.UTC)
FAR_OFF = datetime.datetime(2999, 2, 1, tzinfo=datetime.UTC)
EVENTS: list[StreamEvent] = [Started("r1", "tiny"), TextDelta("Par"), TextDelta("is"), Finished(FinishReason.STOP)]


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def other_ca() -> trustme.CA:
    return trustme.CA()


class Files:
    """PEM files as the config names them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def authority(self, ca: trustme.CA) -> str:
        """Replaced in one step, as it should be done."""
        path, new = self._folder / "ca.pem", self._folder / "ca.new"
        new.write_bytes(ca.cert_pem.bytes())
        new.replace(path)
        return str(path)

    def spoil(self, path: str) -> None:
        Path(path).write_text("no certificate", encoding="utf-8")

    def identity(self, leaf: trustme.LeafCert, name: str = "edge") -> dict[str, str]:
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        key.write_bytes(leaf.private_key_pem.bytes())
        return {"cert_path": str(cert), "key_path": str(key)}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def server_credentials(leaf: trustme.LeafCert, client_ca: trustme.CA | None = None) -> grpc.ServerCredentials:
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    roots = None if client_ca is None else client_ca.cert_pem.bytes()
    return grpc.ssl_server_credentials([(leaf.private_key_pem.bytes(), chain)], roots, client_ca is not None)


@contextlib.contextmanager
def serving(leaf: trustme.LeafCert, client_ca: trustme.CA | None = None) -> Iterator[Proxy]:
    with Proxy(server_credentials(leaf, client_ca)).running() as proxy:
        proxy.play = lambda request, context: map(messages.event_to_proto, EVENTS)
        yield proxy


@contextlib.asynccontextmanager
async def edge(proxy: Proxy, **section: Any) -> AsyncIterator[GrpcProxy]:
    made = GrpcProxy(GrpcConfig(target=proxy.target, tls=TlsConfig(enabled=True, **section)))
    try:
        yield made
    finally:
        await made.close()


async def stream(made: GrpcProxy) -> AsyncIterator[StreamEvent]:
    async for batch in made.stream(ChatRequest(prompt="hi"), Call("r1", 10 * WAIT, HopClock("edge")), Caller()):
        for event in batch:
            yield event


async def text(made: GrpcProxy) -> str:
    return "".join([event.text async for event in stream(made) if isinstance(event, TextDelta)])


async def refusal(made: GrpcProxy) -> LlmError:
    with pytest.raises(LlmError) as raised:
        await anext(stream(made))
    assert raised.value.code is Code.UNAVAILABLE
    return raised.value


async def test_with_a_good_certificate_it_works(ca: trustme.CA, files: Files) -> None:
    with serving(ca.issue_cert("127.0.0.1")) as proxy:
        async with edge(proxy, ca_path=files.authority(ca)) as made:
            assert await text(made) == "Paris"
            assert await made.healthy(WAIT) is None


async def test_the_name_to_expect_can_be_said(ca: trustme.CA, files: Files) -> None:
    with serving(ca.issue_cert("proxy.example")) as proxy:
        async with edge(proxy, ca_path=files.authority(ca), server_name="proxy.example") as made:
            assert await text(made) == "Paris"


BAD: dict[str, tuple[Callable[[trustme.CA, trustme.CA], trustme.LeafCert], str]] = {
    "expired": (
        lambda ca, other: ca.issue_cert("127.0.0.1", not_before=datetime.datetime(2019, 1, 1), not_after=LONG_AGO),
        "the certificate of the gRPC proxy at {target} expired on 2020-02-01 00:00 UTC",
    ),
    "not yet valid": (
        lambda ca, other: ca.issue_cert("127.0.0.1", not_before=FAR_OFF),
        "the certificate of the gRPC proxy at {target} is not valid before 2999-02-01 00:00 UTC: are the clocks right?",
    ),
    "of an unknown authority": (
        lambda ca, other: other.issue_cert("127.0.0.1"),
        "the certificate of the gRPC proxy at {target} is not signed by an authority in {ca_path} (grpc.tls.ca_path)",
    ),
    "for another host": (
        lambda ca, other: ca.issue_cert("proxy.example", "10.9.8.7"),
        "the certificate of the gRPC proxy at {target} is for another name (proxy.example, 10.9.8.7) than 127.0.0.1: "
        "grpc.tls.server_name says which to expect",
    ),
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_certificate_is_refused_and_the_cause_named(
    ca: trustme.CA, other_ca: trustme.CA, files: Files, kind: str
) -> None:
    issue, says = BAD[kind]
    path = files.authority(ca)
    with serving(issue(ca, other_ca)) as proxy:
        async with edge(proxy, ca_path=path) as made:
            says = says.format(target=proxy.target, ca_path=path)
            error = await refusal(made)
            assert (error.message, error.origin, error.retry_after) == (says, "proxy", 1)
            assert await made.healthy(WAIT) == says
        assert proxy.requests == []


async def test_a_proxy_without_tls_gets_nothing_in_the_clear(ca: trustme.CA, files: Files, proxy: Proxy) -> None:
    async with edge(proxy, ca_path=files.authority(ca)) as made:
        assert "does not speak TLS" in (await refusal(made)).message
    assert proxy.requests == []


async def test_a_proxy_that_is_gone_is_no_tls_fault(ca: trustme.CA, files: Files) -> None:
    with serving(ca.issue_cert("127.0.0.1")) as gone:
        pass
    async with edge(gone, ca_path=files.authority(ca)) as made:
        assert "cannot be reached" in (await refusal(made)).message


async def test_mtls_refuses_a_stranger_and_says_what_is_missing(
    ca: trustme.CA, other_ca: trustme.CA, files: Files
) -> None:
    path = files.authority(ca)
    known = files.identity(ca.issue_cert("edge.example"))
    stranger = files.identity(other_ca.issue_cert("edge.example"), "stranger")
    not_accepted = f"it does not accept the client certificate in {stranger['cert_path']}"
    with serving(ca.issue_cert("127.0.0.1"), client_ca=ca) as proxy:
        async with edge(proxy, ca_path=path) as made:
            assert "it wants a client certificate" in (await refusal(made)).message
        async with edge(proxy, ca_path=path, **stranger) as made:
            assert not_accepted in (await refusal(made)).message
        assert proxy.requests == []
        async with edge(proxy, ca_path=path, **known) as made:
            assert await text(made) == "Paris"


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """The files are examined once a second."""
    async with asyncio.timeout(WAIT):
        while not await holds():  # noqa: ASYNC110  # files send no event
            await asyncio.sleep(0.05)


async def test_new_files_count_and_begun_streams_go_on(ca: trustme.CA, other_ca: trustme.CA, files: Files) -> None:
    go_on = threading.Event()

    def play(request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:
        for event in EVENTS:
            yield messages.event_to_proto(event)
            if event == TextDelta("Par") and len(proxy.requests) == 1:
                go_on.wait(WAIT)

    with serving(ca.issue_cert("127.0.0.1")) as proxy:
        async with edge(proxy, ca_path=files.authority(ca)) as made:

            async def refused() -> bool:
                return "not signed by" in (await made.healthy(WAIT) or "")

            async def healthy() -> bool:
                return await made.healthy(WAIT) is None

            proxy.play = play
            begun = stream(made)
            assert [await anext(begun), await anext(begun)] == EVENTS[:2]
            files.authority(other_ca)
            await until(refused)
            files.authority(ca)
            await until(healthy)
            go_on.set()
            assert [event async for event in begun] == EVENTS[2:]
            assert await text(made) == "Paris"


async def test_unusable_files_leave_the_old_ones_in_use(
    ca: trustme.CA, files: Files, capfd: pytest.CaptureFixture[str]
) -> None:
    path = files.authority(ca)
    with serving(ca.issue_cert("127.0.0.1")) as proxy:
        async with edge(proxy, ca_path=path) as made:

            async def examined() -> bool:
                await made.healthy(WAIT)
                return made._link._stamps == tls.stamps(TlsConfig(enabled=True, ca_path=path))

            files.spoil(path)
            await until(examined)
            assert await text(made) == "Paris"
    capfd.readouterr()  # the warning


async def test_many_failures_at_once_are_examined_once(ca: trustme.CA, files: Files) -> None:
    config = TlsConfig(enabled=True, ca_path=files.authority(ca))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        inspector = Inspector(f"127.0.0.1:{silent.getsockname()[1]}", config)
        found = await asyncio.gather(*(inspector.fault() for _ in range(20)))
        assert found == [None] * 20
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


async def test_the_loop_goes_on_while_tls_is_examined(ca: trustme.CA, files: Files) -> None:
    config = TlsConfig(enabled=True, ca_path=files.authority(ca))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        inspector = Inspector(f"127.0.0.1:{silent.getsockname()[1]}", config)
        examination = asyncio.create_task(inspector.fault())
        connection, _ = await asyncio.get_running_loop().sock_accept(silent)
        assert not examination.done()
        connection.close()
        await examination


def test_a_section_that_cannot_be_meant_is_refused_by_its_key(ca: trustme.CA, files: Files, tmp_path: Path) -> None:
    path, pair = files.authority(ca), files.identity(ca.issue_cert("edge.example"))
    other = files.identity(ca.issue_cert("edge.example"), "other")
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("no certificate", encoding="utf-8")
    good = TlsConfig(enabled=True, ca_path=path, **pair)
    tls.check(good)
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"ca_path": "no/such.pem"}, "grpc.tls.ca_path: no/such.pem cannot be used: No such file or directory"),
        ({"ca_path": str(rubbish)}, f"grpc.tls.ca_path: {rubbish} cannot be used: no certificate or crl found"),
        (
            {"key_path": other["key_path"]},
            "grpc.tls.cert_path: ",
        ),
    ]
    for change, says in refusals:
        with pytest.raises(LlmError) as raised:
            tls.check(msgspec.structs.replace(good, **change))
        assert raised.value.message.startswith(says)
        assert raised.value.code is Code.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"enabled": True, "cert_path": "x"}, "cert_path and key_path go together"),
        ({"enabled": True, "key_path": "x"}, "cert_path and key_path go together"),
        ({"ca_path": "x"}, "ca_path is set and enabled is not"),
        ({"cert_path": "x", "key_path": "y"}, "cert_path is set and enabled is not"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(section: dict[str, Any], says: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=says):
        msgspec.convert(section, TlsConfig)


def test_such_a_section_stops_the_start_with_one_line() -> None:
    command = [sys.executable, "-m", "restful_proxy", "serve", "--port", "0"]
    environ = {**os.environ, "GRPC_USE_TLS": "true", "GRPC_CA_PATH": "no/such.pem"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False, env=environ)
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert "grpc.tls.ca_path: no/such.pem cannot be used" in line
