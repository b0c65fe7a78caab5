"""The gRPC server: what is served, with which settings, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

import grpc

from grpc_proxy import bridge, health, tls
from grpc_proxy.clients import Clients
from grpc_proxy.config import Config, ConnectionsConfig, KeepaliveConfig, LimitsConfig
from grpc_proxy.wiring import Proxy, make_proxy
from lambdalm import logs
from lambdalm.descriptors import raise_limit

_LAST_WORDS_SECONDS = 2.0  # for calls that are told that the server stops
_LAST_CALL_SECONDS = 30.0  # after a connection's age, for a client to have heard that it shall open another

_log = logs.get(__name__)


def options(config: Config) -> list[tuple[str, int]]:
    """gRPC channel arguments."""
    limits = config.limits
    return [
        ("grpc.http2.bdp_probe", 0),  # measures bandwidth with pings among the messages; tokens need little
        # Only among workers, whose parent holds the port: else a second server on it starts without a word.
        ("grpc.so_reuseport", int(config.workers > 1)),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        *_connection_options(config.connections, limits),
        *_keepalive_options(config.keepalive),
    ]


def _connection_options(connections: ConnectionsConfig, limits: LimitsConfig) -> list[tuple[str, int]]:
    """Calls that come faster than they are let in wait inside gRPC, which cancels some at random above 1,000 of them.

    The line has room for those in progress and for all of one connection: what is too much is then refused by us, with
    an error that says so. Streams that a client resets count until it has answered a ping ("rapid reset").
    """
    waiting = limits.max_in_flight + connections.max_streams
    return [
        ("grpc.max_allowed_incoming_connections", connections.max),
        ("grpc.max_concurrent_streams", connections.max_streams),
        ("grpc.http2.ping_on_rst_stream_percent", 100),
        ("grpc.server.max_pending_requests", waiting),
        ("grpc.server.max_pending_requests_hard_limit", 2 * waiting),
        ("grpc.server_handshake_timeout_ms", int(connections.handshake_seconds * 1000)),
        ("grpc.http2.settings_timeout", int(connections.handshake_seconds * 1000)),
        ("grpc.max_connection_age_ms", int(connections.max_age_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", int((limits.max_timeout + _LAST_CALL_SECONDS) * 1000)),
    ]


def _keepalive_options(keepalive: KeepaliveConfig) -> list[tuple[str, int]]:
    """The smallest ping interval allowed is that of the clients, or they get GOAWAY.

    gRPC makes the keepalive timeout its sockets' TCP_USER_TIMEOUT, which notices a host that is gone; a process that
    hangs there is noticed by the ping's own timeout.
    """
    return [
        ("grpc.keepalive_time_ms", keepalive.time_ms),
        ("grpc.keepalive_timeout_ms", keepalive.timeout_ms),
        ("grpc.http2.ping_timeout_ms", keepalive.timeout_ms),
        ("grpc.keepalive_permit_without_calls", int(keepalive.permit_without_calls)),
        ("grpc.http2.min_ping_interval_without_data_ms", keepalive.min_ping_interval_ms),
        ("grpc.http2.max_pings_without_data", keepalive.max_pings_without_data),
    ]


async def serve(config: Config, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM; then not ready, after `drain_pause` no new calls, and up to `grace` seconds for those in
    progress. What is left then ends with an error that says so. SIGINT (Ctrl-C) does not wait, also after SIGTERM.

    `ready` is called when it serves.

    Raises OSError when an address cannot be had, LlmError when the store or a file that the config names cannot.
    """
    raise_limit()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    at_once = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_signal_handler(signal.SIGINT, _both(stopping, at_once))
    if config.is_open:
        _log.warning("anybody who reaches this port may call: set keys.file", listen=config.listen.address)
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(Clients())
        proxy = await make_proxy(config, http)
        stack.push_async_callback(proxy.close)
        certificate = tls.Certificate(config.tls) if config.tls.cert_path is not None else None
        server = proxy.server(options(config))
        port = _bind(server, config, certificate)
        bridges = await stack.enter_async_context(_bridge(config, proxy, certificate))
        if certificate is not None:
            await stack.enter_async_context(certificate.followed())
        if proxy.ring is not None:
            await stack.enter_async_context(proxy.ring.followed())
        await stack.enter_async_context(proxy.health.watched())
        await server.start()
        ready()
        _log.info("ready", listen=f"{config.listen.host}:{port}", tls=config.tls.enabled, health=bridges)
        await stopping.wait()
        await _stop(proxy, server, config.limits, at_once)


def _both(*events: asyncio.Event) -> Callable[[], None]:
    def set_all() -> None:
        for event in events:
            event.set()

    return set_all


async def _stop(proxy: Proxy, server: grpc.aio.Server, limits: LimitsConfig, at_once: asyncio.Event) -> None:
    """`at_once` ends the pause and the grace."""
    _log.info("stopping", drain_pause=limits.drain_pause, grace=limits.grace)
    hurry = asyncio.create_task(at_once.wait())
    await proxy.health.stop()
    await asyncio.wait({hurry}, timeout=limits.drain_pause)
    proxy.health.let_go()
    ended = asyncio.create_task(server.stop(limits.grace + _LAST_WORDS_SECONDS))
    drained = asyncio.create_task(proxy.service.finish(limits.grace))
    await asyncio.wait({ended, hurry}, timeout=limits.grace, return_when=asyncio.FIRST_COMPLETED)
    proxy.door.stop_all()
    if at_once.is_set():
        await proxy.service.finish(0)
    hurry.cancel()
    await asyncio.gather(ended, drained)


def _bind(server: grpc.aio.Server, config: Config, certificate: tls.Certificate | None) -> int:
    try:
        if config.tls.enabled and certificate is not None:
            return server.add_secure_port(config.listen.address, certificate.grpc_credentials())
        return server.add_insecure_port(config.listen.address)
    except RuntimeError:
        raise OSError(f"cannot listen on {config.listen.address}: is another server running there?") from None


def _bridge(
    config: Config, proxy: Proxy, certificate: tls.Certificate | None
) -> contextlib.AbstractAsyncContextManager[list[str]]:
    cookie = config.sticky.cookie if config.sticky.enabled else None
    probes = bridge.Probes(health.SERVICE, proxy.health.why_not, proxy.metrics.exposition, cookie)
    context = tls.server_context(tls.self_signed()) if certificate is None else certificate.https_context()
    return bridge.serving(config.bridge, probes, context, reuse_port=config.workers > 1)
