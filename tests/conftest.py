"""The real chain, as processes on free ports, and clients for it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import requests

from lambdalm.testing.chain import Chain, free_ports


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
