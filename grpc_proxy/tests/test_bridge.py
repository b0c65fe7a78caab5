"""The health bridge, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import AsyncIterator

import aiohttp
import pytest

from grpc_proxy import bridge, tls
from grpc_proxy.bridge import BridgeConfig, Probes
from lambdalm.listen import Listen

from .conftest import SOON, WAIT

COOKIE = "LlmServiceStickiness"
ANYWHERE = BridgeConfig(http=Listen("127.0.0.1", 0), https=Listen("127.0.0.1", 0))
HEALTHY = Probes("llm", lambda: None)
ILL = Probes("llm", lambda: "no backend is healthy")


@contextlib.asynccontextmanager
async def bridged(probes: Probes, patience: float = WAIT) -> AsyncIterator[list[str]]:
    """Its URLs: HTTP and HTTPS, with a certificate that it has made itself."""
    context = tls.server_context(tls.self_signed())
    async with bridge.serving(ANYWHERE, probes, context, patience=patience) as urls:
        yield urls


@contextlib.asynccontextmanager
async def got(url: str, **headers: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer to one request; nobody could check who made the certificate."""
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
        http.get(url, headers=headers, ssl=False) as answer,
    ):
        yield answer


async def cookie_for(url: str, **headers: str) -> str:
    async with got(f"{url}/health", **headers) as answer:
        (cookie,) = answer.headers.getall("Set-Cookie")
        found = re.fullmatch(rf"{COOKIE}=([A-Za-z0-9._-]+); Path=/; Max-Age=900; HttpOnly", cookie)
        assert found, cookie
        return found[1]


async def test_http_and_https_say_that_it_is_healthy() -> None:
    async with bridged(HEALTHY) as urls:
        assert [url.partition(":")[0] for url in urls] == ["http", "https"]
        for url in urls:
            async with got(f"{url}/health") as answer:
                assert (answer.status, await answer.json()) == (200, {"status": "healthy", "service": "llm"})
                assert "Set-Cookie" not in answer.headers


async def test_health_and_readiness_say_why_not_while_liveness_stays() -> None:
    async with bridged(ILL) as (url, _):
        for path, status in (("health", "unhealthy"), ("readyz", "not ready")):
            async with got(f"{url}/{path}") as answer:
                assert answer.status == 503
                assert await answer.json() == {"status": status, "service": "llm", "detail": "no backend is healthy"}
        async with got(f"{url}/healthz") as answer:
            assert (answer.status, (await answer.json())["status"]) == (200, "ok")


async def test_it_is_ready_when_calls_are_answered() -> None:
    async with bridged(HEALTHY) as (url, _), got(f"{url}/readyz") as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "ready", "service": "llm"})


async def test_a_client_without_the_sticky_cookie_gets_a_random_one() -> None:
    async with bridged(HEALTHY._replace(cookie=COOKIE)) as (url, _):
        given = {await cookie_for(url) for _ in range(3)}
    assert len(given) == 3
    assert min(map(len, given)) >= 22  # 128 bits


async def test_a_client_keeps_the_sticky_cookie_that_it_has_also_when_all_is_not_well() -> None:
    async with bridged(ILL._replace(cookie=COOKIE)) as (url, _):
        for token in ("abc.DEF_1-2", "x" * 128):
            assert await cookie_for(url, Cookie=f"other=1; {COOKIE}={token}; AWSALBAPP-0=2") == token


@pytest.mark.parametrize("bad", ["", "x" * 129, '"a b"', '"a\\015\\012Set-Cookie: b=1"', "a,b", "<script>"])
async def test_a_sticky_cookie_that_is_no_plain_token_is_replaced(bad: str) -> None:
    async with bridged(HEALTHY._replace(cookie=COOKIE)) as (url, _):
        token = await cookie_for(url, Cookie=f"{COOKIE}={bad}")
    assert len(token) == 32


async def test_metrics_are_what_is_given_and_not_found_where_there_are_none() -> None:
    kind = "text/plain; version=1.0.0; charset=utf-8"
    async with (
        bridged(HEALTHY._replace(metrics=lambda: (kind, b"up 1\n"))) as (url, _),
        got(f"{url}/metrics") as answer,
    ):
        assert (answer.status, answer.headers["Content-Type"], await answer.read()) == (200, kind, b"up 1\n")
    async with bridged(HEALTHY) as (url, _), got(f"{url}/metrics") as answer:
        assert answer.status == 404


async def test_a_port_that_is_taken_is_refused_with_a_line_that_names_it() -> None:
    context = tls.server_context(tls.self_signed())
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        config = BridgeConfig(http=Listen("127.0.0.1", 0), https=Listen("127.0.0.1", other.getsockname()[1]))
        why = f"^cannot listen on {address}: is another server running there\\? .*HEALTH_HTTP_PORT"
        with pytest.raises(OSError, match=why):
            async with bridge.serving(config, HEALTHY, context):
                pass


async def test_several_share_the_ports_only_where_that_is_meant() -> None:
    context = tls.server_context(tls.self_signed())
    async with bridge.serving(ANYWHERE, HEALTHY, context, reuse_port=True) as urls:
        ports = [int(url.rpartition(":")[2]) for url in urls]
        same = BridgeConfig(http=Listen("127.0.0.1", ports[0]), https=Listen("127.0.0.1", ports[1]))
        async with bridge.serving(same, HEALTHY, context, reuse_port=True) as shared:
            assert shared == urls
        with pytest.raises(OSError, match="cannot listen on"):
            async with bridge.serving(same, HEALTHY, context):
                pass


async def test_nothing_listens_where_it_is_not_enabled() -> None:
    config = BridgeConfig(enabled=False, http=ANYWHERE.http, https=ANYWHERE.https)
    async with bridge.serving(config, HEALTHY, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) as urls:
        assert urls == []


async def closed_after(url: str, sent: bytes) -> bytes:
    """What comes before the bridge closes the connection, however long this side keeps silent."""
    host, _, port = url.partition("://")[2].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(sent)
        with contextlib.suppress(ConnectionResetError):
            return await asyncio.wait_for(reader.read(), WAIT)
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "], ids=["silent", "slow"])
async def test_a_client_that_does_not_send_its_request_is_closed(sent: bytes) -> None:
    async with bridged(HEALTHY, patience=SOON) as (url, secure):
        assert await closed_after(url, sent) == b""
        assert await closed_after(secure, b"") == b""  # not even a handshake


async def test_a_client_that_promises_a_body_gets_its_answer_and_is_closed() -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    async with bridged(HEALTHY) as (url, _):
        assert (await closed_after(url, request)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "head", [b"X-Key: " + b"canary" * 999, b"\r\n".join(b"X-%d: 1" % n for n in range(100))], ids=["long", "many"]
)
async def test_headers_beyond_the_limits_are_refused_and_not_logged(
    head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with bridged(HEALTHY) as (url, _):
        answer = await closed_after(url, b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
    assert answer.split(maxsplit=2)[1] == b"400"
    assert caplog.text == ""


async def test_what_goes_wrong_here_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> tuple[str, bytes]:
        raise RuntimeError("a bug of ours")

    async with bridged(HEALTHY._replace(metrics=broken)) as (url, _), got(f"{url}/metrics") as answer:
        assert answer.status == 500
    assert "a bug of ours" in caplog.text
