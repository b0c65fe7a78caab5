"""Looks at the upstreams, and what they mean for this server: for grpc.health.v1, and whoever asks if it is ready.

A look is a cheap request that spends no model time. Each upstream has its own, every so many seconds, so that one that
hangs holds no other up; whoever asks for the health is told what was seen last and waits for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio  # type: ignore[attr-defined]  # the stubs lack it

from grpc_proxy.dialects import Look
from grpc_proxy.member import Member
from grpc_proxy.pool import Pool
from lambdalm import logs
from lambdalm.errors import LlmError

SERVICE = "lambdalm.v1.LlmService"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_LIST_SECONDS = 30.0  # between lists of an upstream's models

_log = logs.get(__name__)


class _Servicer(aio.HealthServicer):  # type: ignore[misc]  # the stubs lack it
    """Its watches end when the server stops; else they would hold it up for all of its grace."""

    def __init__(self) -> None:
        super().__init__()
        self.over = asyncio.Event()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        watching = asyncio.create_task(super().Watch(request, context))
        over = asyncio.create_task(self.over.wait())
        try:
            await asyncio.wait({watching, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            watching.cancel()
            await asyncio.wait({watching})


class Health:
    """Whether requests would be answered: while some upstream can, and the server is not stopping."""

    def __init__(self, pool: Pool, every: Mapping[str, float], looked: Callable[[], None]) -> None:
        """`every` has for each upstream the seconds between looks; `looked` is told of each."""
        self.servicer = _Servicer()
        self._pool = pool
        self._every = every
        self._looked = looked
        self._seen: set[str] = set()
        self.stopping: str | None = None
        self._said: bool | None = None

    def why_not(self) -> str | None:
        """None while it is ready; else why it is not."""
        if self.stopping is not None:
            return self.stopping
        if not self._seen:
            return "no backend has been looked at yet"
        return self._pool.why_not(self._seen)

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """While inside, the upstreams are looked at. Nobody is told SERVING before one has been seen."""
        await self._tell()
        tasks = [asyncio.create_task(self._watch(name, member)) for name, member in self._pool.members.items()]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stop(self) -> None:
        """Not ready any more, whatever the upstreams do."""
        self.stopping = "shutting down"
        await self.servicer.enter_graceful_shutdown()

    def let_go(self) -> None:
        """End the watches; who watches has been told that it stops."""
        self.servicer.over.set()

    async def _watch(self, name: str, member: Member) -> None:
        listed = -_LIST_SECONDS
        loop = asyncio.get_running_loop()
        while True:
            was = member.target.down if name in self._seen else ""
            look = await self._look(member)
            self._pool.looked(name, look)
            self._seen.add(name)
            self._looked()
            await self._tell()
            if look.why != was:
                _log_change(name, look)
                listed = -_LIST_SECONDS
            if look.why is None and loop.time() - listed >= _LIST_SECONDS and await _list(member):
                listed = loop.time()
            await asyncio.sleep(self._every[name])

    async def _look(self, member: Member) -> Look:
        try:
            return await member.upstream.look()
        except Exception as error:  # noqa: BLE001  # the task's edge: without it the last look would count for ever
            _log.error("a bug: the look at a backend raised", exc_info=error)
            return Look("the look at it failed: the log has it")

    async def _tell(self) -> None:
        ready = self.why_not() is None
        if ready != self._said:
            self._said = ready
            for service in ("", SERVICE):
                await self.servicer.set(service, _SERVING if ready else _NOT_SERVING)


def _log_change(name: str, look: Look) -> None:
    if look.why is None:
        _log.info("the backend is healthy", upstream=name, runs=look.detail)
    else:
        _log.warning("the backend is not healthy", upstream=name, why=look.why)


async def _list(member: Member) -> bool:
    """Learn what it offers; a backend that cannot say so now is asked again at the next look."""
    try:
        await member.list_models()
    except LlmError as error:
        _log.debug("the backend does not list its models", why=error.message)
        return False
    except Exception as error:  # noqa: BLE001  # the task's edge, as above
        _log.error("a bug: the list of a backend's models raised", exc_info=error)
    return True
