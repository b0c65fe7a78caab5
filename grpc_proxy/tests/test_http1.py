"""The light HTTP/1.1 client, in front of servers that keep to HTTP and of those that do not."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop
from yarl import URL

from grpc_proxy import http1
from grpc_proxy.http1 import Http1, Http1Response
from grpc_proxy.http_aiohttp import Aiohttp
from grpc_proxy.http_client import BrokenOffError, UnreachableError
from lambdalm.testing.raw_http import Peer, Play, RawServer, answer, chunk

from .conftest import SOON, WAIT

BODY = b'{"text": "Paris"}'
KEPT = b"HTTP/1.1 200 OK\r\nContent-Type: Application/JSON; charset=utf-8\r\nContent-Length: 17\r\n\r\n" + BODY
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TO_ITS_END = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The test with a client of its own, on asyncio's loop and on uvloop, whose transports differ."""

    @functools.wraps(test)
    def runs(run: Callable[[Coroutine[Any, Any, None]], None], **parts: Any) -> None:
        async def with_client() -> None:
            client = Http1()
            try:
                await test(client, **parts)
            finally:
                client.close()

        run(with_client())

    own = [one for name, one in inspect.signature(test).parameters.items() if name != "client"]
    del runs.__wrapped__
    runs.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("run", inspect.Parameter.KEYWORD_ONLY),
            *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own),
        ]
    )
    found: Callable[..., None] = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])(
        runs
    )
    return found


def sends(*pieces: bytes, reset: bool = False) -> Play:
    async def play(peer: Peer) -> None:
        await peer.send(*pieces)
        if reset:
            peer.reset()

    return play


class Keeping:
    """A server that keeps its connections: it sends one of these answers for each request."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.left = asyncio.Event()

    async def play(self, peer: Peer) -> None:
        self.connections += 1
        while self.answers:
            await peer.send(self.answers.pop(0))
            if await peer.next_request() is None:
                break
        self.left.set()


async def ask(client: Http1, server: RawServer, body: bytes = b"{}") -> Http1Response:
    return await client.ask("POST", URL(server.url), {"Content-Type": "application/json"}, body, WAIT)


async def whole(response: Http1Response) -> bytes:
    pieces = []
    async with asyncio.timeout(WAIT):
        while piece := await response.some():
            pieces.append(piece)
    response.close()
    return b"".join(pieces)


@pytest.mark.parametrize(
    "pieces",
    [
        [KEPT],
        [KEPT[at : at + 1] for at in range(len(KEPT))],
        [CHUNKED, chunk(BODY[:5]), chunk(BODY[5:]), chunk(b"")],
        [CHUNKED, chunk(BODY), b"0\r\nX-Trailer: a\r\nContent-Type: b\r\n\r\n"],
        [TO_ITS_END, BODY],
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n" + KEPT],
        [b"HTTP/1.0 200 OK\r\nContent-Length: 17\r\n\r\n", BODY],
    ],
    ids=["at once", "byte by byte", "chunked", "with a trailer", "to its end", "informational", "HTTP/1.0"],
)
@on_both_loops
async def test_a_body_comes_whole_however_it_is_framed(client: Http1, pieces: list[bytes]) -> None:
    async with RawServer(sends(*pieces)) as server:
        response = await ask(client, server)
        assert (response.status, await whole(response)) == (200, BODY)


@on_both_loops
async def test_status_and_headers_are_what_was_sent(client: Http1) -> None:
    async with RawServer(sends(KEPT.replace(b"200 OK", b"503 No\r\nretry-after: 7"))) as server:
        response = await ask(client, server)
        assert (response.status, response.content_type) == (503, "application/json")
        assert response.headers["Retry-After"] == "7"
        response.close()


@on_both_loops
async def test_the_request_is_what_was_to_be_sent(client: Http1) -> None:
    async with RawServer(sends(KEPT)) as server:
        await whole(await ask(client, server, b"x" * 1_000_000))
        (request,) = server.requests
    assert (request.target, request.body) == ("/query", b"x" * 1_000_000)
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "content-type": "application/json",
        "content-length": "1000000",
    }


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 2", KEPT[:40], b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"]
)
@on_both_loops
async def test_an_answer_without_its_headers_has_broken_off(client: Http1, sent: bytes, reset: bool) -> None:
    async with RawServer(sends(sent, reset=reset)) as server:
        with pytest.raises(BrokenOffError):
            await asyncio.wait_for(ask(client, server), WAIT)


@pytest.mark.parametrize(
    ("sent", "came"),
    [
        (KEPT[:-1], BODY[:-1]),
        (CHUNKED + chunk(BODY), BODY),
        (CHUNKED + chunk(BODY)[:-4], BODY[:-2]),
        (CHUNKED + chunk(BODY) + b"zz\r\nwhat?", BODY),
    ],
    ids=["short", "without its last chunk", "inside a chunk", "no chunk"],
)
@on_both_loops
async def test_a_body_that_is_cut_has_broken_off_after_what_came(client: Http1, sent: bytes, came: bytes) -> None:
    async with RawServer(sends(sent)) as server:
        response = await ask(client, server)
        got: list[bytes] = []

        async def read() -> None:
            while True:
                got.append(await asyncio.wait_for(response.some(), WAIT))

        with pytest.raises(BrokenOffError):
            await read()
        response.close()
        assert b"".join(got) == came


@on_both_loops
async def test_a_connection_that_is_reset_is_no_end_of_a_body(client: Http1) -> None:
    seen = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.send(TO_ITS_END, BODY)
        await seen.wait()
        peer.reset()

    async with RawServer(play) as server:
        response = await ask(client, server)
        assert await response.some() == BODY
        seen.set()
        with pytest.raises(BrokenOffError):
            await asyncio.wait_for(response.some(), WAIT)
        response.close()


@pytest.mark.parametrize("size", [70_000, 10_000_000])
@on_both_loops
async def test_headers_without_end_have_broken_off(client: Http1, size: int) -> None:
    async with RawServer(sends(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * size + b"\r\n\r\n")) as server:
        with pytest.raises(BrokenOffError):
            await asyncio.wait_for(whole(await ask(client, server)), WAIT)


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nX-Long: ",
        CHUNKED + chunk(BODY) + b"0\r\nX-Long: ",
        CHUNKED + b"1;long=",
        b"HTTP/1.1 200 ",
    ],
    ids=["a header", "a trailer", "a chunk's extension", "a reason"],
)
@on_both_loops
async def test_a_line_without_end_is_not_read_on(client: Http1, start: bytes) -> None:
    async def play(peer: Peer) -> None:
        await peer.send(start)
        with contextlib.suppress(ConnectionError):
            while True:
                await peer.send(b"x" * 65536)
        left.set()

    left = asyncio.Event()
    async with RawServer(play) as server:
        with pytest.raises(BrokenOffError):
            await asyncio.wait_for(whole(await ask(client, server)), WAIT)
        await asyncio.wait_for(left.wait(), WAIT)


@on_both_loops
async def test_many_small_headers_have_broken_off(client: Http1) -> None:
    lines = b"".join(b"X-%d: %d\r\n" % (number, number) for number in range(10_000))
    async with RawServer(sends(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n")) as server:
        with pytest.raises(BrokenOffError):
            await asyncio.wait_for(ask(client, server), WAIT)


@on_both_loops
async def test_another_protocol_has_broken_off(client: Http1) -> None:
    sent = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello"
    async with RawServer(sends(sent)) as server:
        with pytest.raises(BrokenOffError):
            await asyncio.wait_for(ask(client, server), WAIT)


@on_both_loops
async def test_a_connection_is_used_again(client: Http1) -> None:
    keeping = Keeping(KEPT, CHUNKED + chunk(BODY) + chunk(b""), KEPT)
    async with RawServer(keeping.play) as server:
        for _ in range(3):
            assert await whole(await ask(client, server)) == BODY
    assert keeping.connections == 1


@on_both_loops
async def test_two_requests_at_a_time_have_two_connections(client: Http1) -> None:
    keeping = Keeping(KEPT, KEPT, KEPT, KEPT)
    async with RawServer(keeping.play) as server:
        responses = await asyncio.gather(ask(client, server), ask(client, server))
        assert [await whole(response) for response in responses] == [BODY, BODY]
    assert keeping.connections == 2


@pytest.mark.parametrize(
    "first",
    [
        KEPT.replace(b"200 OK", b"200 OK\r\nConnection: close"),
        KEPT.replace(b"HTTP/1.1", b"HTTP/1.0"),
        KEPT + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        KEPT + b"junk",
    ],
    ids=["close", "HTTP/1.0", "a second answer", "junk"],
)
@on_both_loops
async def test_a_connection_in_doubt_is_not_used_again(client: Http1, first: bytes) -> None:
    keeping = Keeping(first, KEPT)
    async with RawServer(keeping.play) as server:
        assert await whole(await ask(client, server)) == BODY
        await asyncio.wait_for(keeping.left.wait(), WAIT)
        assert await whole(await ask(client, server)) == BODY
    assert keeping.connections == 2


@on_both_loops
async def test_what_comes_between_two_requests_is_no_answer(client: Http1) -> None:
    async def play(peer: Peer) -> None:
        await peer.send(KEPT)
        await go.wait()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        sent.set()
        await peer.gone()

    go, sent = asyncio.Event(), asyncio.Event()
    async with RawServer(play) as server:
        assert await whole(await ask(client, server)) == BODY
        go.set()
        await sent.wait()
        assert await whole(await ask(client, server)) == BODY
        assert len(server.requests) == 2


@on_both_loops
async def test_a_kept_connection_that_the_server_has_closed_is_not_used(client: Http1) -> None:
    def serves() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(KEPT)

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = URL(f"http://127.0.0.1:{server.getsockname()[1]}/query")
        for _ in range(5):
            thread = threading.Thread(target=serves)
            thread.start()
            assert await whole(await client.ask("GET", url, {}, b"", WAIT)) == BODY
            thread.join()  # the connection has ended, and the loop has not heard of it


@on_both_loops
async def test_a_request_is_never_sent_twice(client: Http1) -> None:
    asked = 0

    async def play(peer: Peer) -> None:
        nonlocal asked
        asked += 1
        await peer.send(KEPT)
        if await peer.next_request() is not None:
            asked += 1

    async with RawServer(play) as server:
        await whole(await ask(client, server))
        with pytest.raises(BrokenOffError):
            await ask(client, server)
        assert asked == 2


@on_both_loops
async def test_an_idle_connection_is_closed_after_a_while(client: Http1, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "KEPT_SECONDS", SOON)
    keeping = Keeping(KEPT, KEPT)
    async with RawServer(keeping.play) as server:
        await whole(await ask(client, server))
        await asyncio.wait_for(keeping.left.wait(), WAIT)
    assert not any(client._idle.values())


@on_both_loops
async def test_an_answer_before_the_end_of_its_request_ends_the_connection(client: Http1) -> None:
    connections = 0

    async def serves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(KEPT)
        await over.wait()  # and reads no more
        writer.close()

    over = asyncio.Event()
    async with await asyncio.start_server(serves, "127.0.0.1", 0) as server:
        url = URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/query")
        for _ in range(2):
            response = await client.ask("POST", url, {}, b"x" * 20_000_000, WAIT)
            assert await whole(response) == BODY
        over.set()
    assert connections == 2


@on_both_loops
async def test_an_old_connection_is_not_used(client: Http1, monkeypatch: pytest.MonkeyPatch) -> None:
    keeping = Keeping(KEPT, KEPT)
    async with RawServer(keeping.play) as server:
        await whole(await ask(client, server))  # which starts a sweep that comes too late
        monkeypatch.setattr(http1, "KEPT_SECONDS", 0)
        await whole(await ask(client, server))
    assert keeping.connections == 2


@on_both_loops
async def test_the_end_of_a_finished_answer_may_come_late(client: Http1) -> None:
    connections, end = 0, asyncio.Event()

    async def play(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        for _ in range(2):
            await peer.send(CHUNKED + chunk(BODY))
            await end.wait()
            await peer.send(chunk(b""))
            if await peer.next_request() is None:
                return

    async with RawServer(play) as server:
        response = await ask(client, server)
        assert await response.some() == BODY
        response.finished()
        response.close()
        end.set()
        async with asyncio.timeout(WAIT):
            while not any(client._idle.values()):  # noqa: ASYNC110  # it has no event
                await asyncio.sleep(0)
        assert await whole(await ask(client, server)) == BODY
    assert connections == 1


@on_both_loops
async def test_a_finished_answer_without_an_end_is_closed(client: Http1, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "FAREWELL_SECONDS", SOON)
    left = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.send(CHUNKED + chunk(BODY))
        await peer.gone()
        left.set()

    async with RawServer(play) as server:
        response = await ask(client, server)
        assert await response.some() == BODY
        response.finished()
        response.close()
        await asyncio.wait_for(left.wait(), WAIT)


@pytest.mark.parametrize("sent", [b"", TO_ITS_END, CHUNKED + chunk(BODY)], ids=["nothing", "headers", "a chunk"])
@on_both_loops
async def test_a_task_that_is_cancelled_closes_the_connection(client: Http1, sent: bytes) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.send(sent)
        asked.set()
        await peer.gone()
        left.set()

    async def read() -> None:
        response = await ask(client, server)
        try:
            while await response.some():
                pass
        finally:
            response.close()

    async with RawServer(play) as server:
        reading = asyncio.create_task(read())
        await asked.wait()
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.wait_for(left.wait(), WAIT)


@on_both_loops
async def test_a_slow_reader_pauses_the_server(client: Http1) -> None:
    total, sent, waits = 64 * 1024 * 1024, 0, asyncio.Event()

    async def play(peer: Peer) -> None:
        nonlocal sent
        await peer.send(CHUNKED)
        while sent < total:
            sending = asyncio.ensure_future(peer.send(chunk(b"x" * 65536)))
            if not (await asyncio.wait({sending}, timeout=0.2))[0]:
                waits.set()
            await sending
            sent += 65536
        await peer.send(chunk(b""))

    async with RawServer(play) as server:
        response = await ask(client, server)
        await asyncio.wait_for(waits.wait(), WAIT)
        assert sent < total / 2
        assert response._waiting < 1024 * 1024
        assert len(await whole(response)) == total


@on_both_loops
async def test_what_cannot_be_reached_says_why(client: Http1) -> None:
    async with RawServer(sends()) as server:
        pass
    with pytest.raises(UnreachableError, match="Connection refused"):
        await ask(client, server)
    with pytest.raises(UnreachableError, match=r"[Nn]ame|address"):
        await client.ask("GET", URL("http://nowhere.invalid/query"), {}, b"", WAIT)


@contextlib.contextmanager
def deaf() -> Iterator[URL]:
    """A server whose queue of connections is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as stack:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield URL(f"http://127.0.0.1:{server.getsockname()[1]}/query")


@on_both_loops
async def test_a_connection_that_does_not_come_about_in_time_says_so(client: Http1) -> None:
    with deaf() as url, pytest.raises(UnreachableError, match="no answer in time"):
        await client.ask("GET", url, {}, b"", SOON)


@on_both_loops
async def test_an_address_that_is_silent_does_not_hold_up_the_next(
    client: Http1, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def found(host: str, *port: Any, **parts: Any) -> list[Any]:
        if host != "backend":
            return await resolve(host, *port, **parts)
        ports = (silent.port, server.port)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port)) for port in ports]

    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo
    monkeypatch.setattr(loop, "getaddrinfo", found)
    with deaf() as silent:
        async with RawServer(sends(KEPT)) as server:
            assert (
                await whole(await client.ask("GET", URL("http://backend/query"), {}, b"", 5)) == BODY
            )  # seconds: the default


@pytest.mark.parametrize("line", ["a\r\nX-Evil: 1", "a\nb", "\r"])
@on_both_loops
async def test_no_header_has_a_line_break(client: Http1, line: str) -> None:
    async with RawServer(sends(KEPT)) as server:
        with pytest.raises(ValueError, match="line break"):
            await client.ask("GET", URL(server.url), {"X-Id": line}, b"", WAIT)
        assert server.requests == []


@on_both_loops
async def test_sockets_of_both_clients_ask_whether_the_host_is_there(client: Http1) -> None:
    general = Aiohttp()
    held = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.send(answer("200 OK", "text/plain", b"x")[:-1])
        await held.wait()

    try:
        async with RawServer(play) as server:
            light = await ask(client, server)
            other = await general.ask("GET", URL(server.url), {}, b"", WAIT)
            connection = other._response.connection  # type: ignore[attr-defined]
            for sock in (light._connection._sock, connection.transport.get_extra_info("socket")):
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
                assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [5, 2, 3, 11_000]
            held.set()
            light.close()
            other.close()
    finally:
        await general.close()


@on_both_loops
async def test_what_comes_until_the_gate_opens_is_read_together(client: Http1) -> None:
    go = asyncio.Event()
    held: list[asyncio.Future[None]] = []

    async def play(peer: Peer) -> None:
        await peer.send(CHUNKED, chunk(BODY[:5]))
        await go.wait()
        await peer.send(chunk(BODY[5:9]))
        await peer.send(chunk(BODY[9:]))
        await peer.gone()

    async with RawServer(play) as server:
        response = await ask(client, server)
        reading = asyncio.create_task(response.some(held.append))
        async with asyncio.timeout(WAIT):
            while not held:  # noqa: ASYNC110  # it has no event
                await asyncio.sleep(0)
            go.set()
            while response._waiting < len(BODY):  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert not reading.done()
        (gate,) = held
        gate.set_result(None)
        assert await reading == BODY
        response.close()


@on_both_loops
async def test_the_end_of_a_body_passes_every_gate(client: Http1) -> None:
    go = asyncio.Event()
    held: list[asyncio.Future[None]] = []

    async def play(peer: Peer) -> None:
        await peer.send(CHUNKED, chunk(BODY[:5]))
        await go.wait()
        await peer.send(chunk(BODY[5:]) + chunk(b""))

    async with RawServer(play) as server:
        response = await ask(client, server)
        reading = asyncio.create_task(response.some(held.append))
        async with asyncio.timeout(WAIT):
            while not held:  # noqa: ASYNC110  # it has no event
                await asyncio.sleep(0)
            go.set()
            assert await reading == BODY
        response.close()
