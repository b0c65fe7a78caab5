"""A hop that wants a bearer token, as a real server."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import requests

from lambdalm import timings

from .hop import WAIT

TOKEN = "canary-token-7f3a"  # a test's
WRONG = [
    None,
    "",
    "Bearer",
    "Bearer ",
    TOKEN,
    f"Basic {TOKEN}",
    f"Bearer {TOKEN}x",
    f"Bearer {TOKEN[:-1]}",
    f"Bearer {TOKEN.upper()}",
    f"Bearer x, Bearer {TOKEN}",
    "Bearer ümläut",
]


class Guarded(NamedTuple):
    url: str
    log: Path

    def ask(self, method: str, path: str, authorization: str | None = None, body: bytes = b"") -> requests.Response:
        headers = {"X-Request-Id": "r1", "Content-Type": "application/json"}
        if authorization is not None:
            headers["Authorization"] = authorization.encode("utf-8").decode("latin-1")
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, self.url + path, data=body, headers=headers, timeout=WAIT)


@pytest.fixture(scope="module")
def hop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    log = tmp_path_factory.mktemp("bearer") / "log"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    program = [sys.executable, str(Path(__file__).with_name("bearer_app.py")), str(port), TOKEN]
    with contextlib.ExitStack() as stack:
        stderr = stack.enter_context(log.open("wb"))
        process = stack.enter_context(subprocess.Popen(program, stdout=subprocess.PIPE, stderr=stderr))
        stack.callback(process.kill)
        assert process.stdout is not None
        process.stdout.readline()  # the process's id: it is ready
        yield Guarded(f"http://127.0.0.1:{port}", log)


def test_who_has_the_token_is_answered(hop: Guarded) -> None:
    for authorization in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Bearer  {TOKEN} "):
        assert hop.ask("GET", "/things", authorization).json() == {"things": []}
    answer = hop.ask("POST", "/query", f"Bearer {TOKEN}", b'{"prompt": "hello"}')
    assert (answer.status_code, answer.json()["id"]) == (200, "r1")


@pytest.mark.parametrize("authorization", WRONG)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/query"), ("GET", "/things"), ("GET", "/health/"), ("GET", "/nowhere")]
)
def test_who_has_not_is_refused_in_the_shape_of_all_errors(
    hop: Guarded, method: str, path: str, authorization: str | None
) -> None:
    answer = hop.ask(method, path, authorization, b'{"prompt": "hello"}')
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["X-Request-Id"] == "r1"
    assert timings.decode(answer.headers["Server-Timing"])["hop"].total_ms >= 0
    error = answer.json()["error"]
    assert (error["code"], error["origin"]) == ("UNAUTHENTICATED", "hop")
    assert "Authorization: Bearer" in error["message"]
    assert TOKEN not in answer.text


def test_health_is_open(hop: Guarded) -> None:
    for path in ("/health", "/healthz", "/readyz"):
        for authorization in (None, "Bearer wrong"):
            answer = hop.ask("GET", path, authorization)
            assert (answer.status_code, answer.text) == (200, "fine")
            assert "WWW-Authenticate" not in answer.headers


def test_other_refusals_are_no_challenge(hop: Guarded) -> None:
    answer = hop.ask("GET", "/nowhere", f"Bearer {TOKEN}")
    assert answer.status_code == 404
    assert "WWW-Authenticate" not in answer.headers


def test_a_body_that_was_refused_does_not_spoil_the_connection(hop: Guarded) -> None:
    with requests.Session() as session:
        session.trust_env = False
        asked = {"data": b'{"prompt": "hello"}', "headers": {"Content-Type": "application/json"}, "timeout": WAIT}
        assert session.post(f"{hop.url}/query", **asked).status_code == 401  # type: ignore[arg-type]
        assert session.get(f"{hop.url}/health", timeout=WAIT).text == "fine"


def test_no_token_is_logged(hop: Guarded) -> None:
    hop.ask("GET", "/things", f"Bearer {TOKEN}")
    hop.ask("GET", "/things", f"Bearer {TOKEN}-wrong")
    log = hop.log.read_text(encoding="utf-8")
    assert "UNAUTHENTICATED" in log
    assert "canary" not in log
