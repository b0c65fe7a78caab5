"""The gRPC server: what is served, with which settings, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]  # the stubs lack it
from grpc_reflection.v1alpha import reflection

from grpc_proxy import health
from grpc_proxy.config import Config
from grpc_proxy.service import LlmService
from grpc_proxy.upstream import Upstream
from lambdalm import logs
from lambdalm.descriptors import raise_limit
from lambdalm_proto.v1 import llm_pb2, llm_pb2_grpc

_log = logs.get(__name__)


def options(config: Config) -> list[tuple[str, int]]:
    """gRPC channel arguments. The smallest ping interval allowed is that of the clients, or they get GOAWAY."""
    keepalive = config.keepalive
    return [
        ("grpc.http2.bdp_probe", 0),  # measures bandwidth with pings among the messages; tokens need little
        ("grpc.so_reuseport", 0),  # else a second server on the same port starts without a word
        ("grpc.max_receive_message_length", config.limits.max_message_bytes),
        ("grpc.max_send_message_length", config.limits.max_message_bytes),
        ("grpc.keepalive_time_ms", keepalive.time_ms),
        ("grpc.keepalive_timeout_ms", keepalive.timeout_ms),
        ("grpc.keepalive_permit_without_calls", int(keepalive.permit_without_calls)),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", keepalive.min_ping_interval_ms),
        ("grpc.http2.min_ping_interval_without_data_ms", keepalive.min_ping_interval_ms),
        ("grpc.http2.max_pings_without_data", keepalive.max_pings_without_data),
    ]


_KEPT_SECONDS = 4.0  # that an idle connection is kept: less than servers do, of which uvicorn's 5 s are the shortest


def session(config: Config) -> aiohttp.ClientSession:
    """The process's HTTP client: no total timeout, since each call has its own budget, and no retries."""
    upstream = config.upstream
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=upstream.max_connections, keepalive_timeout=_KEPT_SECONDS),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=upstream.connect_seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; then not ready, no new calls, and up to `grace` seconds for those in flight.

    Raises OSError when the address cannot be had.
    """
    raise_limit()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with session(config) as http:
        upstream = Upstream(http, config.upstream, config.stream.heartbeat_seconds)
        servicer = health_aio.HealthServicer()
        server = grpc.aio.server(options=options(config))
        llm_pb2_grpc.add_LlmServiceServicer_to_server(LlmService(upstream, config), server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        services = [
            llm_pb2.DESCRIPTOR.services_by_name["LlmService"].full_name,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        ]
        reflection.enable_server_reflection(services, server)
        await health.not_looked_yet(servicer)
        port = _bind(server, config)
        await server.start()
        watching = asyncio.create_task(health.watch(upstream, servicer, config.upstream.check_seconds))
        _log.info("ready", listen=f"{config.listen.host}:{port}", upstream=config.upstream.url)
        await stopping.wait()
        _log.info("stopping", grace_seconds=config.limits.grace)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await servicer.enter_graceful_shutdown()
        await server.stop(config.limits.grace)


def _bind(server: grpc.aio.Server, config: Config) -> int:
    try:
        return server.add_insecure_port(config.listen.address)
    except RuntimeError:
        raise OSError(f"cannot listen on {config.listen.address}: is another server running there?") from None
