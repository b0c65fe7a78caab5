"""Real stores for tests: a Valkey server (which is Redis's protocol), DynamoDB's API by moto, and a clock to move."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from moto.server import ThreadedMotoServer

from grpc_proxy.store.table import DynamoDbConfig
from lambdalm.testing.valkey import RedisServer, redis_server

__all__ = ["Clock", "RedisServer", "redis_server"]

LATER = 900.0  # seconds that a test's records have


class Clock:
    """Seconds since 1970, as a test wants them."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@contextlib.contextmanager
def dynamodb_server() -> Iterator[DynamoDbConfig]:
    """Where it is; the table is not made yet."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ACCESS_KEY_ID", "test")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
            # One thread: moto does not keep others out between a condition and its write.
            yield DynamoDbConfig(region="us-east-1", endpoint=f"http://{host}:{port}", threads=1)
    finally:
        server.stop()


class Relay:
    """Passes bytes on to a server of this machine, and its answers back, but holds them while `answering` is not set.

    `asked` gets an item for each piece that came; `connections` counts what was accepted.
    """

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.asked: asyncio.Queue[bytes] = asyncio.Queue()
        self.answering = asyncio.Event()
        self.answering.set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def pass_on(self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter, port: int) -> None:
        """One connection, until either end is closed."""
        self.connections += 1
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(_close, near_out)
            stack.enter_context(contextlib.suppress(OSError))  # a server that is gone closes the connection
            far, far_out = await asyncio.open_connection("127.0.0.1", port)
            stack.push_async_callback(_close, far_out)
            ways = [asyncio.create_task(self._ask(near, far_out)), asyncio.create_task(self._answer(far, near_out))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    async def _ask(self, near: asyncio.StreamReader, far_out: asyncio.StreamWriter) -> None:
        while data := await near.read(65536):
            self.asked.put_nowait(data)
            far_out.write(data)

    async def _answer(self, far: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        while data := await far.read(65536):
            await self.answering.wait()
            near_out.write(data)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):  # the other end has gone first
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def relay_to(port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Relay]:
    """With `tls` it wants that of those who come."""
    relay = Relay()
    passing: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(relay.pass_on(reader, writer, port))
        passing.add(task)
        task.add_done_callback(passing.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        for task in passing:
            task.cancel()
        await asyncio.gather(*passing, return_exceptions=True)
        await server.wait_closed()
