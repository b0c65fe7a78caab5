"""The real chain, as processes on free ports, and clients for it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import grpc
import pytest
import requests

from lambdalm.testing.chain import Chain, free_ports

WAIT = 45  # seconds until a test that waits has failed


@pytest.fixture(scope="session")
def scripted() -> Iterator[Chain]:
    """The chain on the scripted provider, with few slots."""
    with Chain(free_ports(), {"PROVIDER": "scripted"}) as chain:
        yield chain


@pytest.fixture
def own_scripted() -> Iterator[Chain]:
    """A chain of the test's own, to be broken."""
    with Chain(free_ports(), {"PROVIDER": "scripted"}) as chain:
        yield chain


@pytest.fixture(scope="session")
def llamacpp() -> Iterator[Chain]:
    """The chain on llama.cpp and the built-in model."""
    with Chain(free_ports(), {"PROVIDER": "llamacpp"}) as chain:
        yield chain


def post(url: str, body: dict[str, Any], **options: Any) -> requests.Response:
    """POST /query; streamed answers are left unread."""
    headers = options.pop("headers", {})
    return requests.post(
        f"{url}/query", json=body, headers=headers, timeout=30, stream=body.get("stream", False), **options
    )


def events_of(response: requests.Response) -> Iterator[dict[str, Any]]:
    """The events of a streamed answer as JSON, as they come, the terminal error included."""
    for line in response.iter_lines(chunk_size=None):
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))


def frames(response: requests.Response) -> list[dict[str, Any]]:
    """All of them."""
    return list(events_of(response))


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["text"] for event in events if event["type"] == "text_delta")


def pass_first_delta(events: Iterator[dict[str, Any]]) -> None:
    """Return when the first delta has come."""
    next(event for event in events if event["type"].endswith("_delta"))


def health(chain: Chain) -> dict[str, Any]:
    """The backend's own word on itself."""
    answer: dict[str, Any] = requests.get(f"{chain.backend_url}/health", timeout=5).json()
    return answer


def until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    """Return as soon as the condition holds; what other processes do sends no event that one could wait for."""
    deadline = time.monotonic() + seconds
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        tick.wait(0.005)


def idle(chain: Chain) -> bool:
    now = health(chain)
    return bool(now["in_flight"] == 0 and now["waiting"] == 0)


def bedrest(chain: Chain, *arguments: str) -> subprocess.CompletedProcess[str]:
    """BedREST's command line against a chain."""
    command = [sys.executable, "-m", "bedrest_client", arguments[0], "--port", str(chain.ports.edge), *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)


@pytest.fixture
def channel(scripted: Chain) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(scripted.grpc_target) as made:
        yield made


class Outcome(NamedTuple):
    """A streamed answer, read to its end. `end` is its last event, or what was answered in place of a stream."""

    status: int
    text: str
    end: dict[str, Any]

    @property
    def finished(self) -> bool:
        return self.end.get("type") == "finished"


class Load:
    """Streamed requests to a chain, each in a thread of its own, at most `at_once` at a time; for `with`.

    `begun` is released by each first delta, `done` by each end.
    """

    def __init__(self, url: str, at_once: int) -> None:
        self.begun = threading.Semaphore(0)
        self.done = threading.Semaphore(0)
        self._url = url
        self._threads = ThreadPoolExecutor(at_once)
        self._outcomes: list[Future[Outcome]] = []

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def ask(self, number: int, **body: Any) -> None:
        """So many requests more."""
        self._outcomes += [self._threads.submit(self._ask, body) for _ in range(number)]

    def outcomes(self) -> list[Outcome]:
        """Of all requests, when they have ended."""
        return [outcome.result(WAIT) for outcome in self._outcomes]

    def _ask(self, body: dict[str, Any]) -> Outcome:
        """One request."""
        try:
            return self._read(body)
        finally:
            self.done.release()

    def _read(self, body: dict[str, Any]) -> Outcome:
        text: list[str] = []
        with post(self._url, {"prompt": "x", "stream": True, **body}) as response:
            if response.status_code != 200:
                return Outcome(response.status_code, "", response.json())
            for event in events_of(response):
                if event["type"] == "text_delta":
                    if not text:
                        self.begun.release()
                    text.append(event["text"])
        return Outcome(200, "".join(text), event)


def wait_for(semaphore: threading.Semaphore, number: int) -> None:
    """Return when it has been released so often."""
    for _ in range(number):
        assert semaphore.acquire(timeout=WAIT)


def chain_seen(chain: Chain) -> dict[str, Any]:
    """What `GET /chain` says."""
    found: dict[str, Any] = requests.get(f"{chain.url}/chain", timeout=5).json()
    return found


def all_ok(chain: Chain) -> bool:
    """Whether no hop of the chain is broken, and of several none."""
    return all(hop["ok"] for hop in chain_seen(chain)["hops"])
