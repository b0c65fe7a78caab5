"""The command `restful-proxy`: wires config, gRPC channel and server together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from lambdalm import logs, tracing
from lambdalm.commands import LOG_LEVEL, PORT, Flag, Service, service_cli
from lambdalm.errors import Code, LlmError
from lambdalm.http.admission import Lifecycle
from lambdalm.http.app import HttpHop
from lambdalm.http.server import serve as serve_http
from restful_proxy import tls
from restful_proxy.app import add_routes
from restful_proxy.config import Config
from restful_proxy.link import PROXY
from restful_proxy.upstream import GrpcProxy

HOP = "edge"

_HEALTH_SECONDS = 5.0


@contextlib.asynccontextmanager
async def open_hop(config: Config, lifecycle: Lifecycle) -> AsyncIterator[HttpHop]:
    """The edge's app and its channel to the gRPC proxy, made on the loop that serves."""
    tracing.start(HOP)
    proxy = GrpcProxy(config.grpc)
    try:
        hop = HttpHop(HOP, config.limits, lifecycle)
        add_routes(hop, proxy)
        logs.get(__name__).info("ready", grpc=config.grpc.target)
        yield hop
    finally:
        await proxy.close()


def serve(config: Config) -> None:
    logs.configure(HOP, config.log)
    tls.check(config.grpc.tls)
    serve_http(partial(open_hop, config), config.listen, config.limits, config.workers)


def test(config: Config) -> str:
    """Ask for the gRPC proxy's health."""
    why = asyncio.run(_health(config))
    if why is not None:
        raise LlmError(Code.UNAVAILABLE, why, origin=PROXY)
    return f"the gRPC proxy at {config.grpc.target} is serving, and so is the backend behind it"


async def _health(config: Config) -> str | None:
    proxy = GrpcProxy(config.grpc)
    try:
        return await proxy.healthy(_HEALTH_SECONDS)
    finally:
        await proxy.close()


main = service_cli(
    Service(
        "restful-proxy",
        "The RESTful proxy of λλM: HTTP with clients, gRPC with the proxy behind it.",
        Config,
        Path(__file__).with_name("config.yaml"),
        serve,
        test,
        [PORT, Flag("grpc", "grpc.target", "host:port of the gRPC proxy"), LOG_LEVEL],
    )
)

if __name__ == "__main__":
    main()
