"""The health bridge: HTTP and HTTPS for whoever cannot ask by gRPC, such as load balancers and Prometheus.

    /health    200 or 503, and the sticky cookie (a balancer's client keeps to one target by it)
    /healthz   200 as long as the process works at all
    /readyz    200 when a call would be answered, else 503 and why
    /metrics   what Prometheus reads

It runs in the server's event loop: if that hangs, so does the bridge. Nothing here waits or does I/O of its own; all
answers are there already.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import ssl
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import msgspec
from aiohttp import http_exceptions, web

from lambdalm import ports
from lambdalm.listen import Listen

_PATIENCE = 10.0  # seconds: for a TLS handshake, for a request to be there, and between two of a connection
_TOKEN = re.compile(r"[A-Za-z0-9._-]{1,128}")
_COOKIE_SECONDS = 900  # as the balancer's stickiness


class BridgeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `bridge`."""

    enabled: bool = True
    http: Listen = Listen("127.0.0.1", 8081)
    https: Listen = Listen("127.0.0.1", 8443)


class Probes(NamedTuple):
    """What the bridge tells. `why_not` says why calls would not be answered, None if they would; `metrics` gives a
    content type and a body; `cookie` is the name of the sticky cookie, None where there is none."""

    service: str
    why_not: Callable[[], str | None]
    metrics: Callable[[], tuple[str, bytes]] | None = None
    cookie: str | None = None


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every answer but that of `/metrics`."""

    status: str
    service: str
    detail: str = ""


@contextlib.asynccontextmanager
async def serving(
    config: BridgeConfig, probes: Probes, context: ssl.SSLContext, reuse_port: bool = False, patience: float = _PATIENCE
) -> AsyncIterator[list[str]]:
    """The bridge, as long as this lasts; gives the URLs where it is.

    `patience` is how many seconds a client may take to send its request. Raises OSError where a port is not to be had.
    """
    if not config.enabled:
        yield []
        return
    # Headers are all that anybody has to say here, and not many of them.
    runner = web.AppRunner(
        _application(probes),
        access_log=None,
        logger=_own_troubles(),
        keepalive_timeout=patience,
        lingering_time=1,
        shutdown_timeout=1,
        max_line_size=4096,
        max_field_size=4096,
        max_headers=64,
    )
    await runner.setup()
    with contextlib.ExitStack() as listening:
        try:
            plain = await _listen(runner, config.http, None, reuse_port, patience)
            listening.callback(plain.close)
            secure = await _listen(runner, config.https, context, reuse_port, patience)
            listening.callback(secure.close)
            yield [_url("http", config.http, plain), _url("https", config.https, secure)]
        finally:
            listening.close()
            await runner.cleanup()


def _own_troubles() -> logging.Logger:
    """aiohttp's log without what is its clients' fault: it would quote the headers of each broken request."""

    def is_ours(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], http_exceptions.HttpProcessingError))

    logger = logging.getLogger(__name__)
    logger.filters[:] = [is_ours]
    return logger


async def _listen(
    runner: web.AppRunner, listen: Listen, context: ssl.SSLContext | None, reuse_port: bool, patience: float
) -> asyncio.Server:
    """aiohttp's own sites do the same, but would wait a minute for a handshake."""
    assert runner.server is not None
    handshake = None if context is None else patience
    try:
        return await asyncio.get_running_loop().create_server(
            runner.server,
            listen.host,
            listen.port,
            ssl=context,
            reuse_port=reuse_port,
            ssl_handshake_timeout=handshake,
        )
    except OSError as error:
        advice = "HEALTH_HTTP_PORT and HEALTH_HTTPS_PORT set others, HEALTH_ENABLED=false does without"
        raise OSError(f"{ports.refused(listen, error)} ({advice})") from None


def _url(scheme: str, listen: Listen, server: asyncio.Server) -> str:
    """With the port that was taken where 0 was asked for."""
    return f"{scheme}://{msgspec.structs.replace(listen, port=server.sockets[0].getsockname()[1]).address}"


def _application(probes: Probes) -> web.Application:
    async def health(request: web.Request) -> web.Response:
        why = probes.why_not()
        answer = _answer(probes, "healthy" if why is None else "unhealthy", why)
        if probes.cookie is not None:
            answer.headers["Set-Cookie"] = _sticky(probes.cookie, request.cookies.get(probes.cookie))
        return answer

    async def live(request: web.Request) -> web.Response:
        return _answer(probes, "ok", None)

    async def ready(request: web.Request) -> web.Response:
        why = probes.why_not()
        return _answer(probes, "ready" if why is None else "not ready", why)

    async def metrics(request: web.Request) -> web.Response:
        if probes.metrics is None:
            raise web.HTTPNotFound
        kind, body = probes.metrics()
        return web.Response(body=body, headers={"Content-Type": kind})

    application = web.Application()
    application.router.add_get("/health", health)
    application.router.add_get("/healthz", live)
    application.router.add_get("/readyz", ready)
    application.router.add_get("/metrics", metrics)
    return application


def _answer(probes: Probes, status: str, why_not: str | None) -> web.Response:
    return web.Response(
        status=200 if why_not is None else 503,
        body=msgspec.json.encode(Status(status, probes.service, why_not or "")),
        headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
    )


def _sticky(name: str, given: str | None) -> str:
    """The cookie for this answer: the one that the request has, if it is one that could be ours, else a new one."""
    token = given if given is not None and _TOKEN.fullmatch(given) else secrets.token_urlsafe(24)
    return f"{name}={token}; Path=/; Max-Age={_COOKIE_SECONDS}; HttpOnly"
