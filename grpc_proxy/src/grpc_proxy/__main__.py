"""The command `grpc-proxy`: wires config and server together."""

from __future__ import annotations

import asyncio
from pathlib import Path

import uvloop

from grpc_proxy import server
from grpc_proxy.config import Config
from grpc_proxy.service import HOP
from grpc_proxy.upstream import Upstream
from lambdalm import logs
from lambdalm.commands import LOG_LEVEL, PORT, Flag, Service, service_cli
from lambdalm.errors import Code, LlmError
from lambdalm.runtime import settle


def serve(config: Config) -> None:
    logs.configure(HOP, config.log)
    settle()
    uvloop.run(server.serve(config))


def test(config: Config) -> str:
    """Look at the backend's health and models."""

    async def look() -> str:
        async with server.session(config) as http:
            upstream = Upstream(http, config.upstream, config.stream.heartbeat_seconds)
            why = await upstream.healthy()
            if why is not None:
                raise LlmError(Code.UNAVAILABLE, why, origin=upstream.origin)
            models = ", ".join(model.id for model in await upstream.models())
            return f"the backend at {config.upstream.url} is healthy; its models: {models}"

    return asyncio.run(look())


main = service_cli(
    Service(
        "grpc-proxy",
        "The gRPC proxy of λλM: LlmService in front of the LLM backends.",
        Config,
        Path(__file__).with_name("config.yaml"),
        serve,
        test,
        [PORT, Flag("upstream", "upstream.url", "the upstream's URL, as upstream.dialect wants it"), LOG_LEVEL],
    )
)

if __name__ == "__main__":
    main()
