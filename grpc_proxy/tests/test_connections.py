"""Limits on gRPC connections: their number, their age, and what one client may do to others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from grpc_proxy.config import Config
from lambdalm.testing.raw_http import OK_SSE, Peer, RawServer
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc

from .conftest import DELTAS, END, STARTED, TEXT, USAGE, WAIT, Here, new_config, whole_proxy_here
from .stores import Relay, relay_to
from .test_service import held, said, soon

NOWHERE = "http://127.0.0.1:1/query"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, SETTINGS = 1, 3, 4
CANCEL = 8
END_HEADERS = 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def call_headers() -> bytes:
    """Of a call of GetStats, in HPACK without its tables."""
    named = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/lambdalm.v1.LlmService/GetStats",
        ":authority": "x",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    texts = [text.encode() for pair in named.items() for text in pair]
    lengths = [bytes([len(text)]) + text for text in texts]
    return b"".join(b"\x00" + name + value for name, value in zip(lengths[::2], lengths[1::2], strict=True))


class Raw:
    """A connection to the proxy as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def is_closed(self) -> bool:
        """Waits until it is; what comes before is dropped."""
        with contextlib.suppress(ConnectionError):
            while await asyncio.wait_for(self.reader.read(65536), WAIT):
                pass
        return True

    async def frame(self) -> tuple[int, bytes]:
        """Kind and payload of the next frame that comes."""
        head = await asyncio.wait_for(self.reader.readexactly(9), WAIT)
        return head[3], await self.reader.readexactly(int.from_bytes(head[:3], "big"))


@contextlib.asynccontextmanager
async def raw(here: Here, first: bytes = b"") -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
    try:
        writer.write(first)
        yield Raw(reader, writer)
    finally:
        writer.close()


async def opened(here: Here) -> Raw:
    """A connection that the server has answered, so that it is one of those counted."""
    connection = Raw(*await asyncio.open_connection("127.0.0.1", here.port))
    connection.writer.write(PREFACE + frame(SETTINGS, 0, 0))
    assert (await connection.frame())[0] == SETTINGS
    return connection


def stub_of(channel: grpc.aio.Channel) -> Any:
    return llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]


@contextlib.asynccontextmanager
async def relayed(config: Config) -> AsyncIterator[tuple[Relay, grpc.aio.Channel]]:
    """A channel to a proxy, through something that counts its connections and can cut them off."""
    async with whole_proxy_here(config) as here, relay_to(here.port) as relay:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{relay.port}") as channel:
            yield relay, channel
        relay.answering.set()


async def test_connections_above_the_limit_are_closed() -> None:
    async with whole_proxy_here(new_config(NOWHERE, connections={"max": 3})) as here:
        kept = [await opened(here) for _ in range(3)]
        async with raw(here, PREFACE) as one_more:
            assert await one_more.is_closed()
        kept[0].writer.close()
        await kept[0].writer.wait_closed()
        async with asyncio.timeout(WAIT):
            while not await _can_open(here):
                pass
        for connection in kept[1:]:
            connection.writer.close()


async def _can_open(here: Here) -> bool:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        (await opened(here)).writer.close()
        return True
    return False


async def test_silent_connection_is_closed_after_the_handshake_limit() -> None:
    config = new_config(NOWHERE, connections={"handshake_seconds": 0.1})
    async with whole_proxy_here(config) as here, raw(here) as silent, raw(here, PREFACE[:10]) as half:
        assert await silent.is_closed()
        assert await half.is_closed()


async def test_rapid_reset_gets_no_further_than_its_connection() -> None:
    streams = 10
    config = new_config(NOWHERE, connections={"max_streams": streams})
    async with whole_proxy_here(config) as here, raw(here, PREFACE + frame(SETTINGS, 0, 0)) as attacker:
        headers, reset = call_headers(), struct.pack(">I", CANCEL)
        for stream in range(1, 2001, 2):
            attacker.writer.write(frame(HEADERS, END_HEADERS, stream, headers) + frame(RST_STREAM, 0, stream, reset))
        refused = 0
        while refused < 900:
            refused += (await attacker.frame())[0] == RST_STREAM
        assert (await stub_of(here.channel).GetStats(pb.GetStatsRequest(), timeout=WAIT)).total_calls <= streams + 1


async def test_burst_of_calls_is_answered_or_refused_with_a_reason() -> None:
    async with whole_proxy_here(new_config(NOWHERE)) as here:
        stub = stub_of(here.channel)

        async def ask() -> str:
            try:
                await stub.GetStats(pb.GetStatsRequest(), timeout=WAIT)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

        assert Counter(await asyncio.gather(*(ask() for _ in range(3000)))).keys() <= {"OK", "RESOURCE_EXHAUSTED"}


async def test_old_connection_is_replaced_and_its_stream_finished() -> None:
    go_on = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.send(OK_SSE + STARTED + DELTAS[0])
        await go_on.wait()
        await peer.send(*DELTAS[1:], USAGE, END)

    async with (
        RawServer(play) as backend,
        relayed(new_config(backend.url, connections={"max_age_seconds": 1})) as (relay, channel),
    ):
        stub = stub_of(channel)
        call = stub.GenerateStream(pb.LLMRequest(prompt="hi"))
        events = [await call.read(), await call.read()]
        while relay.connections < 2:
            await stub.GetStats(pb.GetStatsRequest(), timeout=WAIT)
        go_on.set()
        while event := await call.read():
            events.append(event)
        assert said(events) == TEXT
        assert events[-1].WhichOneof("event") == "finished"


async def test_generation_stops_when_its_callers_machine_hangs() -> None:
    play, left = held(OK_SSE + STARTED + DELTAS[0])
    async with (
        RawServer(play) as backend,
        relayed(new_config(backend.url, keepalive={"time_ms": 100, "timeout_ms": 100})) as (relay, channel),
    ):
        call = stub_of(channel).GenerateStream(pb.LLMRequest(prompt="hi"))
        await call.read()
        relay.answering.clear()  # pings do not arrive any more, and no answer to them comes
        await soon(left)
        call.cancel()


async def test_unsent_bytes_are_given_up_with_the_keepalive() -> None:
    async with whole_proxy_here(new_config(NOWHERE)) as here, raw(here, PREFACE + frame(SETTINGS, 0, 0)) as connection:
        await connection.frame()
        own = connection.writer.get_extra_info("sockname")
        with contextlib.ExitStack() as stack:
            (accepted,) = [sock for sock in _sockets(stack) if _peer(sock) == own]
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000


def _sockets(stack: contextlib.ExitStack) -> list[socket.socket]:
    """Copies of all of this process's, which the stack closes."""
    found = []
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(stack.enter_context(socket.socket(fileno=os.dup(int(file.name)))))
    return found


def _peer(sock: socket.socket) -> Any:
    """Its address; that of a gRPC server is IPv6, for IPv4 too."""
    with contextlib.suppress(OSError, ValueError):  # it has none, or no port
        host, port, *_ = sock.getpeername()
        return host.removeprefix("::ffff:"), port
    return None
