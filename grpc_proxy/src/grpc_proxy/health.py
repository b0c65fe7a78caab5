"""grpc.health.v1, truthful about the backend: SERVING only while the backend says that it can answer."""

from __future__ import annotations

import asyncio

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio  # type: ignore[attr-defined]  # the stubs lack it

from grpc_proxy.upstream import Upstream
from lambdalm import logs

SERVICE = "lambdalm.v1.LlmService"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

_log = logs.get(__name__)


async def not_looked_yet(servicer: aio.HealthServicer) -> None:
    """Nobody is told SERVING before the backend has been seen."""
    for service in ("", SERVICE):
        await servicer.set(service, _NOT_SERVING)


async def watch(upstream: Upstream, servicer: aio.HealthServicer, every: float) -> None:
    """Look at the backend every so many seconds, for ever, and set the health of the service and the server."""
    before: str | None = "not looked at yet"
    while True:
        try:
            why = await upstream.healthy()
        except Exception as error:  # noqa: BLE001  # the task's edge: without it the last health would stay for ever
            _log.error("a bug: the look at the backend raised", exc_info=error)
            why = "the look at it failed: the log has it"
        if why != before:
            _log.info("the backend is healthy") if why is None else _log.warning("the backend is not healthy", why=why)
            for service in ("", SERVICE):
                await servicer.set(service, _SERVING if why is None else _NOT_SERVING)
            before = why
        await asyncio.sleep(every)
