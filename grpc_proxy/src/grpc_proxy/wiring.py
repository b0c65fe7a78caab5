"""The parts of the proxy, put together: for the server, for the commands and for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from grpc_proxy import alb, chain, handlers
from grpc_proxy.answering import Answering
from grpc_proxy.callers import Callers
from grpc_proxy.clients import Clients
from grpc_proxy.config import Config
from grpc_proxy.detached import DetachedRuns
from grpc_proxy.door import Door
from grpc_proxy.health import Health
from grpc_proxy.keys import KeyRing, make_ring
from grpc_proxy.metrics import Metrics
from grpc_proxy.pool import Pool
from grpc_proxy.quotas import Quotas
from grpc_proxy.service import LlmService
from grpc_proxy.sessions import Sessions
from grpc_proxy.store.guard import Guarded
from grpc_proxy.store.table import make_store
from grpc_proxy.upstream import Upstream
from lambdalm_proto.v1 import llm_pb2


class Proxy(NamedTuple):
    """All parts, in one process and one event loop."""

    service: LlmService
    door: Door
    pool: Pool
    health: Health
    metrics: Metrics
    quotas: Quotas
    store: Guarded
    ring: KeyRing | None

    def server(self, options: Sequence[tuple[str, int]]) -> grpc.aio.Server:
        """A gRPC server of all services, not started and without a port."""
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((handlers.handler(self.service, self.door), alb.handler(self.health.why_not)))
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, server)
        services = [
            llm_pb2.DESCRIPTOR.services_by_name["LlmService"].full_name,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        ]
        reflection.enable_server_reflection(services, server)
        return server

    async def close(self) -> None:
        """No call comes any more: what was begun is finished, and the store closed."""
        await self.service.finish(0)
        await self.quotas.close()
        await self.store.close()


async def make_proxy(config: Config, http: Clients) -> Proxy:
    """The proxy of this config, its store open; raises LlmError for what the config names and cannot be had."""
    store = make_store(config.store)
    ring = make_ring(config.keys)
    metrics = Metrics(config.sessions.seconds)
    configs = config.each_upstream()
    upstreams = {name: Upstream(http, one, name) for name, one in configs.items()}
    detached = DetachedRuns(config.limits.max_detached_per_owner)
    pool = Pool(upstreams, configs, config.routing, metrics, detached)
    looks = {name: one.check_seconds for name, one in configs.items()}
    health = Health(pool, looks, lambda: metrics.looked(pool, store.trouble is None))
    callers = Callers(config.sticky, ring, config.sessions.seconds)
    sessions = Sessions(store, config.sessions, trouble=lambda: store.trouble)
    quotas = Quotas(store, config.quotas)
    answering = Answering(pool, callers, sessions, quotas, metrics, config.limits.max_message_bytes)
    door = Door(config.limits, config.log.prompt_chars, callers, detached, metrics)

    def look() -> Sequence[chain.Hop]:
        return chain.hops(pool, store.name, store.trouble, health.stopping)

    service = LlmService(config.stream, door, answering, sessions, pool, detached, look, metrics)
    await store.open()
    return Proxy(service, door, pool, health, metrics, quotas, store, ring)
