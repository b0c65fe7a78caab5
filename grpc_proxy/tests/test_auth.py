"""How the proxy proves to its upstream who asks, and that no secret is told to anybody else."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import hmac
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from grpc_proxy.clients import Clients
from grpc_proxy.upstream import Upstream
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.testing.fake_openai import FakeOpenAI
from lambdalm.testing.raw_http import OK_SSE, Peer, Play, RawServer, Request, answer

from .conftest import WAIT, WHOLE, new_call, new_config, streamed

TOKEN = "canary/token+7f3a=="
REQUEST = ChatRequest(prompt="What is λ?")
SIGV4 = {"kind": "aws_sigv4", "region": "eu-west-1"}


@contextlib.asynccontextmanager
async def upstream_of(url: str, auth: dict[str, Any], dialect: str = "query") -> AsyncIterator[Upstream]:
    config = new_config(url, upstream={"auth": auth, "dialect": dialect})
    async with Clients() as http:
        yield Upstream(http, config.upstreams["main"])


async def plays(peer: Peer) -> None:
    """Whatever is asked of a backend."""
    answers = {
        "/health": answer("200 OK", "application/json", b"{}"),
        "/models": answer("200 OK", "application/json", b'{"models": []}'),
    }
    name = "/" + peer.request.target.rpartition("/")[2]
    await peer.send(answers.get(name, OK_SSE + WHOLE))


async def ask_everything(upstream: Upstream) -> None:
    async for _ in streamed(upstream, REQUEST, new_call()):
        pass
    assert (await upstream.look()).why is None
    assert await upstream.models() == []


async def failure(upstream: Upstream) -> LlmError:
    with pytest.raises(LlmError) as raised:
        async for _ in streamed(upstream, REQUEST, new_call()):
            pass
    return raised.value


@pytest.mark.parametrize(
    ("auth", "sent"),
    [
        ({}, {}),
        ({"kind": "none", "token": TOKEN}, {}),
        ({"token": TOKEN}, {"authorization": f"Bearer {TOKEN}"}),
        ({"kind": "bearer", "token": TOKEN}, {"authorization": f"Bearer {TOKEN}"}),
        ({"kind": "x-api-key", "token": TOKEN}, {"x-api-key": TOKEN}),
    ],
)
async def test_every_request_carries_the_token_as_its_kind_wants_it(auth: dict[str, Any], sent: dict[str, str]) -> None:
    async with RawServer(plays) as backend, upstream_of(backend.url, auth) as upstream:
        await ask_everything(upstream)
        assert len(backend.requests) == 3
        for request in backend.requests:
            proof = {name: request.headers[name] for name in ("authorization", "x-api-key") if name in request.headers}
            assert proof == sent


async def test_the_token_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n", encoding="utf-8")
    async with RawServer(plays) as backend:
        async with upstream_of(backend.url, {"kind": "bearer", "token_file": str(file)}) as upstream:
            await ask_everything(upstream)
        assert {request.headers["authorization"] for request in backend.requests} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("content", [None, "", "two\twords"])
async def test_a_token_that_cannot_be_read_stops_the_start(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(LlmError, match=r"auth\.token") as raised:
        async with upstream_of("http://x/query", {"kind": "bearer", "token_file": str(file)}):
            pass
    assert raised.value.code is Code.FAILED_PRECONDITION


async def test_a_server_that_wants_the_key_answers_who_has_it() -> None:
    with FakeOpenAI(key=TOKEN) as fake:
        for auth, works in (({"kind": "bearer", "token": TOKEN}, True), ({}, False)):
            async with upstream_of(f"{fake.url}/v1", auth, "openai") as upstream:
                assert ((await upstream.look()).why is None) is works
                if not works:
                    assert (await failure(upstream)).code is Code.UNAUTHENTICATED


async def test_no_redirect_carries_the_token_elsewhere() -> None:
    async with RawServer(plays) as thief, RawServer(plays) as backend:
        where = thief.url.encode()
        head = b"HTTP/1.1 307 Go\r\nLocation: %b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % where
        backend.play = lambda peer: peer.send(head)
        async with upstream_of(backend.url, {"kind": "x-api-key", "token": TOKEN}) as upstream:
            await failure(upstream)
            assert "HTTP 307" in ((await upstream.look()).why or "")
            with pytest.raises(LlmError):
                await upstream.models()
        assert thief.requests == []


def says(status: str, message: str) -> Play:
    body = json.dumps({"error": {"message": message}}).encode()
    return lambda peer: peer.send(answer(status, "application/json", body))


@pytest.mark.parametrize("before", ["", *("x" * length for length in range(300, 340, 3))])
async def test_a_server_that_repeats_the_key_is_not_repeated(before: str) -> None:
    async with RawServer(
        says("401 Unauthorized", f"{before} wrong key: {TOKEN}, and more of it {'x' * 99}")
    ) as backend:
        auth = {"kind": "bearer", "token": TOKEN}
        async with upstream_of(backend.url.replace("/query", "/v1"), auth, "openai") as upstream:
            errors = [await failure(upstream)]
            with pytest.raises(LlmError) as raised:
                await upstream.models()
            errors.append(raised.value)
    for error in errors:
        assert "canary" not in error.message
        assert error.code is Code.UNAUTHENTICATED


async def test_a_stream_that_repeats_the_key_is_not_repeated() -> None:
    body = OK_SSE + b"data: %b\n\n" % json.dumps({"error": {"message": f"bad key {TOKEN}"}}).encode()
    async with RawServer(lambda peer: peer.send(body)) as backend:
        url = backend.url.replace("/query", "/v1")
        async with upstream_of(url, {"kind": "bearer", "token": TOKEN}, "openai") as upstream:
            error = await failure(upstream)
    assert error.message.endswith("bad key ********")


# AWS Signature Version 4


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment without credentials of AWS."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def signature(request: Request, method: str, url: str, secret: str, service: str) -> str:
    """What AWS would compute; from its documentation of Signature Version 4, step by step."""
    scope, signed, _ = (
        part.partition("=")[2] for part in request.headers["authorization"].split(" ", 1)[1].split(", ")
    )
    names = signed.split(";")
    headers = "".join(f"{name}:{request.headers[name]}\n" for name in names)
    digest = hashlib.sha256(request.body).hexdigest()
    canonical = "\n".join([method, urlsplit(url).path, "", headers, signed, digest])
    when = request.headers["x-amz-date"]
    _, *rest = scope.split("/")
    assert rest == [when[:8], "eu-west-1", service, "aws4_request"]
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", when, "/".join(rest), hashed])
    key = f"AWS4{secret}".encode()
    for part in rest:
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


@pytest.mark.parametrize("service", ["execute-api", "lambda"])
@pytest.mark.parametrize("session", [None, "canary-session/+=="])
async def test_every_request_is_signed_as_a_whole(aws: pytest.MonkeyPatch, service: str, session: str | None) -> None:
    aws.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    aws.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    if session:
        aws.setenv("AWS_SESSION_TOKEN", session)
    async with RawServer(plays) as backend:
        url = backend.url.replace("/query", "/prod/query")
        async with upstream_of(url, {**SIGV4, "service": service}) as upstream:
            await ask_everything(upstream)
        asked = list(zip(("POST", "GET", "GET"), ("query", "health", "models"), backend.requests, strict=True))
    for method, name, request in asked:
        authorization = request.headers["authorization"]
        assert authorization.startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
        expected = signature(request, method, url.replace("query", name), "canary-secret", service)
        assert authorization.endswith(f"Signature={expected}")
        assert request.headers.get("x-amz-security-token") == session
        signed = authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")
        assert "host" in signed
        assert "x-amz-date" in signed
        if method == "POST":
            assert {"content-type", "x-request-id", "x-request-timeout"} <= set(signed)


async def test_credentials_that_run_out_are_fetched_anew_while_the_event_loop_goes_on(aws: pytest.MonkeyPatch) -> None:
    """The role's endpoint is served by this very loop: it would never answer, did the proxy wait for it here."""
    given = 0

    async def role(peer: Peer) -> None:
        nonlocal given
        given += 1
        soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1)
        found = {
            "AccessKeyId": f"AKID{given}",
            "SecretAccessKey": "canary-secret",
            "Token": "canary-session",
            "Expiration": soon.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        await peer.send(answer("200 OK", "application/json", json.dumps(found).encode()))

    async with RawServer(role) as metadata, RawServer(plays) as backend:
        aws.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", metadata.url)
        async with upstream_of(backend.url, SIGV4) as upstream:
            await ask_everything(upstream)
        used = [request.headers["authorization"].split("/")[0].rpartition("=")[2] for request in backend.requests]
    assert len(set(used)) == 3
    assert given >= 3


async def test_a_role_that_cannot_be_had_is_an_error_that_says_so(aws: pytest.MonkeyPatch) -> None:
    aws.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")
    async with RawServer(lambda peer: peer.send(answer("403 Forbidden", "text/plain", b"no"))) as metadata:
        aws.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", metadata.url)
        async with RawServer(plays) as backend, upstream_of(backend.url, SIGV4) as upstream:
            error = await failure(upstream)
            assert backend.requests == []
    assert (error.code, error.origin) == (Code.UNAVAILABLE, "proxy")
    assert "AWS credentials cannot be had" in error.message


async def test_a_role_whose_credentials_have_run_out_is_an_error_and_no_bug(aws: pytest.MonkeyPatch) -> None:
    """botocore then raises a RuntimeError, which is none of its own errors."""
    stale = {"AccessKeyId": "A", "SecretAccessKey": "s", "Token": "t", "Expiration": "2020-01-01T00:00:00Z"}
    body = json.dumps(stale).encode()
    async with RawServer(lambda peer: peer.send(answer("200 OK", "application/json", body))) as metadata:
        aws.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", metadata.url)
        async with RawServer(plays) as backend, upstream_of(backend.url, SIGV4) as upstream:
            error = await failure(upstream)
            assert "AWS credentials cannot be had" in ((await upstream.look()).why or "")
            assert backend.requests == []
    assert (error.code, error.origin) == (Code.UNAVAILABLE, "proxy")


async def test_where_there_are_no_credentials_they_are_not_looked_for_with_each_request(
    aws: pytest.MonkeyPatch,
) -> None:
    """A look may take seconds, and they would wait for each other."""
    looks = 0

    async def nobody(peer: Peer) -> None:
        nonlocal looks
        looks += 1
        await peer.send(answer("404 Not Found", "text/plain", b""))

    aws.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")
    aws.setenv("AWS_EC2_METADATA_DISABLED", "false")
    async with RawServer(nobody) as metadata, RawServer(plays) as backend:
        aws.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url)
        async with upstream_of(backend.url, SIGV4) as upstream:
            for _ in range(5):
                assert "there are no AWS credentials" in (await failure(upstream)).message
    assert 1 <= looks <= 3  # what one look asks for


async def test_without_credentials_nothing_is_asked_and_the_error_says_what_to_do(aws: pytest.MonkeyPatch) -> None:
    async with RawServer(plays) as backend, upstream_of(backend.url, SIGV4) as upstream:
        error = await failure(upstream)
        assert "there are no AWS credentials" in ((await upstream.look()).why or "")
        assert backend.requests == []
    assert (error.code, error.origin) == (Code.UNAVAILABLE, "proxy")
    assert "AWS_ACCESS_KEY_ID" in error.message


async def test_a_gateway_that_repeats_what_was_signed_is_not_repeated(aws: pytest.MonkeyPatch) -> None:
    session = "canary-session-" + "t" * 700
    aws.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    aws.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    aws.setenv("AWS_SESSION_TOKEN", session)
    said = f"The signature we calculated does not match: POST\n/query\n\nx-amz-security-token:{session}\n"

    async def play(peer: Peer) -> None:
        body = json.dumps({"message": said}).encode()
        head = (
            f"HTTP/1.1 403 Forbidden\r\nx-amzn-RequestId: a\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        await peer.send(head.encode() + body)

    async with RawServer(play) as backend, upstream_of(backend.url, SIGV4) as upstream:
        error = await failure(upstream)
    assert error.message.startswith("the API gateway answered HTTP 403: The signature we calculated")
    assert "canary" not in error.message


async def test_no_secret_is_logged_at_any_level(aws: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    aws.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    aws.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    aws.setenv("AWS_SESSION_TOKEN", "canary-session")
    caplog.set_level(logging.DEBUG)
    for auth in (SIGV4, {"kind": "bearer", "token": TOKEN}):
        async with RawServer(plays) as backend, upstream_of(backend.url, auth) as upstream:
            await ask_everything(upstream)
    assert "canary" not in caplog.text


def test_botocore_is_imported_only_where_it_is_used() -> None:
    program = "import sys, grpc_proxy.__main__; sys.exit('botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=WAIT, check=False).returncode == 0
