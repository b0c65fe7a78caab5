"""What the gRPC proxy's tests share: the bytes of a backend's stream, and the proxy, in this process or as its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import msgspec

from lambdalm.call import Call
from lambdalm.errors import LlmError
from lambdalm.events import Finished, FinishReason, Started, TextDelta, Usage
from lambdalm.stream import encode_error, encode_event
from lambdalm.testing.chain import Chain, free_ports
from lambdalm.timings import HopClock, HopTiming, Timings

if TYPE_CHECKING:
    from grpc_proxy.clients import Clients
    from grpc_proxy.config import Config
    from grpc_proxy.upstream import Upstream
    from grpc_proxy.wiring import Proxy
    from lambdalm.chat import ChatRequest
    from lambdalm.events import StreamEvent

WAIT = 45  # seconds until a test that waits has failed
SOON = 0.05  # seconds: heartbeats and health checks, where a test waits for them

TIMINGS: Timings = {"backend": HopTiming(total_ms=7.5, queue_ms=0.25, own_ms=0.5)}
STARTED = encode_event(Started("r1", "tiny"))
DELTAS = [encode_event(TextDelta(text)) for text in ("Par", "is λ", "\u2028.\r\n")]
TEXT = "Paris λ\u2028.\r\n"
USAGE = encode_event(Usage(3, 4))
END = encode_event(Finished(FinishReason.STOP, timings=TIMINGS))
WHOLE = b"".join([STARTED, *DELTAS, USAGE, END])


def failure(error: LlmError) -> bytes:
    """The end of a stream that failed, as the backend sends it."""
    return encode_error(error, TIMINGS)


def new_call(budget: float = WAIT) -> Call:
    return Call("r1", budget, HopClock("proxy"))


def new_config(url: str, **parts: Any) -> Config:
    """A config with this upstream; `parts` as in the file: `limits={"max_in_flight": 1}`."""
    from grpc_proxy.config import Config

    upstream = {"url": url, "check_timeout": 1, **parts.pop("upstream", {})}
    here = {"listen": {"host": "127.0.0.1", "port": 0}, "upstreams": {"main": upstream}, "store": {"kind": "memory"}}
    return msgspec.convert(here | parts, Config)


def one_upstream(http: Clients, config: Config) -> Upstream:
    """The only upstream of this config."""
    from grpc_proxy.upstream import Upstream

    return Upstream(http, config.upstreams["main"])


async def streamed(upstream: Upstream, request: ChatRequest, call: Call) -> AsyncGenerator[list[StreamEvent], None]:
    """The batches of an answer, as the pool reads them."""
    incoming = upstream.stream(request, call)
    try:
        batch: list[StreamEvent] = []
        while not (batch and isinstance(batch[-1], Finished)):
            batch = await incoming.next()
            yield batch
    finally:
        incoming.close()


class Here(NamedTuple):
    """A proxy in this process, a channel to it, and its port."""

    proxy: Proxy
    channel: grpc.aio.Channel
    port: int


@contextlib.asynccontextmanager
async def whole_proxy_here(config: Config) -> AsyncIterator[Here]:
    """All of the proxy's services on a port of this process; nobody looks at its upstreams."""
    from grpc_proxy import server
    from grpc_proxy.clients import Clients
    from grpc_proxy.wiring import make_proxy

    async with Clients() as http:
        proxy = await make_proxy(config, http)
        serving = proxy.server(server.options(config))
        port = serving.add_insecure_port("127.0.0.1:0")
        await serving.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield Here(proxy, channel, port)
        finally:
            await serving.stop(0)
            await proxy.close()


@contextlib.asynccontextmanager
async def proxy_here(config: Config) -> AsyncIterator[grpc.aio.Channel]:
    """The same; gives only the channel."""
    async with whole_proxy_here(config) as here:
        yield here.channel


@contextlib.contextmanager
def proxy_process(url: str, **environ: str) -> Iterator[Chain]:
    """`grpc-proxy serve` in front of this backend; `chain.grpc_target` is where. What is left of it is killed."""
    ready = threading.Event()

    def on_line(hop: str, line: str) -> None:
        if "ready" in line:
            ready.set()

    chain = Chain(free_ports(), {"BACKEND_URL": url, **environ}, on_line)
    chain.start("proxy")
    hop = chain.hops["proxy"]
    try:
        assert ready.wait(WAIT), hop.tail
        yield chain
    finally:
        if hop.alive:
            hop.kill()
        hop.stop()  # its log has been read to the end


async def all_ended(proxy: Proxy) -> None:
    """Every call has ended for the proxy, too, which is a moment after it has for its caller."""
    async with asyncio.timeout(WAIT):
        while proxy.metrics.active:  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0)


class Jar:
    """A client's cookie jar: what was set comes back with the next call."""

    def __init__(self) -> None:
        self.cookies: dict[str, str] = {}
        self.set: list[str] = []
        """The Set-Cookie values of the last call."""

    def metadata(self, *more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
        if not self.cookies:
            return more
        return (("cookie", "; ".join(f"{name}={value}" for name, value in self.cookies.items())), *more)

    def keep(self, metadata: Any) -> None:
        """What the initial or the trailing metadata of an answer sets."""
        self.set = [value for name, value in metadata or () if name == "set-cookie"]
        for cookie in self.set:
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
