"""The proxy straight on an OpenAI-style server, beside the proxy on a backend on that server: who asks cannot tell.

Whatever the server does, the same events and the same error come out. Origins are equal, too, but where the time is up:
the backend, which has a little less of it, says so first, and the proxy where there is no backend.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import grpc
import msgspec
import pytest

from lambdalm.errors import Code, ErrorBody
from lambdalm.events import Finished, Heartbeat, StreamEvent, TextDelta, join
from lambdalm.rpc import messages, status
from lambdalm.testing.chain import Chain, free_ports
from lambdalm.testing.fake_engine import BEHAVIOURS, WORDS
from lambdalm.testing.fake_openai import FakeOpenAI
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc

WAIT = 45  # seconds until a test that waits has failed
BUDGET = 2  # seconds, where a request brings no deadline
PROMPT = "Say «λλM 🦊» and\nnothing else."
CONFIG = Path(__file__).parents[1] / "grpc_proxy" / "config.yaml"


class Ways(NamedTuple):
    """Two proxies in front of one server: `direct` speaks to it, `behind` to the backend before it."""

    fake: FakeOpenAI
    direct: Any
    behind: Any


class Outcome(NamedTuple):
    """What a stream has given, in as few events as possible and without timings; and how it failed."""

    events: list[StreamEvent]
    error: ErrorBody | None


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    folder = tmp_path_factory.mktemp("proxies")
    with contextlib.ExitStack() as stack:
        fake = stack.enter_context(FakeOpenAI())
        direct = stack.enter_context(proxy(folder / "direct.yaml", "openai", f"{fake.url}/v1"))
        backend = stack.enter_context(backend_on(f"{fake.url}/v1"))
        behind = stack.enter_context(proxy(folder / "behind.yaml", "query", f"{backend.backend_url}/query"))
        yield Ways(fake, direct, behind)


@contextlib.contextmanager
def backend_on(base_url: str) -> Iterator[Chain]:
    """A backend, as a process, whose provider is this server."""
    listens = threading.Event()

    def on_line(hop: str, line: str) -> None:
        if "listening" in line:
            listens.set()

    chain = Chain(free_ports(), {"PROVIDER": "openai", "OPENAI_BASE_URL": base_url}, on_line)
    chain.start("backend")
    try:
        assert listens.wait(WAIT), chain.hops["backend"].tail
        yield chain
    finally:
        chain.stop()


@contextlib.contextmanager
def proxy(file: Path, dialect: str, url: str) -> Iterator[Any]:
    """A proxy, as a process, whose requests have BUDGET seconds; gives a stub for it."""
    text = CONFIG.read_text(encoding="utf-8")
    assert "default_timeout: 120" in text
    file.write_text(text.replace("default_timeout: 120", f"default_timeout: {BUDGET}"), encoding="utf-8")
    port = str(free_ports().proxy)
    command = [sys.executable, "-m", "grpc_proxy", "serve", "--config", str(file), "--port", port]
    with subprocess.Popen(command, env={**os.environ, "BACKEND_DIALECT": dialect, "BACKEND_URL": url}) as running:
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                grpc.channel_ready_future(channel).result(WAIT)
                yield llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]
        finally:
            running.terminate()


def outcome(stub: Any, model: str, **options: Any) -> Outcome:
    """Ask for this behaviour."""
    call = stub.GenerateStream(asked(model), metadata=(("x-request-id", "the-same"),), **options)
    events: list[StreamEvent] = []
    error = None
    try:
        events.extend(messages.event_from_proto(message) for message in call)
    except grpc.RpcError as failed:
        trailing = cast(status.Metadata, tuple(call.trailing_metadata()))
        error = ErrorBody.of(status.from_rpc_error(failed, trailing, "nobody"))
    told = join(event for event in events if not isinstance(event, Heartbeat))
    return Outcome([without_timings(event) for event in told], error)


def asked(model: str) -> pb.LLMRequest:
    parameters = pb.LLMRequest.Parameters(max_tokens=8, temperature=0.5, stop=["λλλ"], seed=3)
    return pb.LLMRequest(prompt=PROMPT, memory=pb.MEMORY_OFF, model=model, parameters=parameters)


def without_timings(event: StreamEvent) -> StreamEvent:
    return msgspec.structs.replace(event, timings={}) if isinstance(event, Finished) else event


def has_been_left(fake: FakeOpenAI) -> None:
    """One answer had fallen silent, and whoever waited for it has hung up."""
    assert fake.stalling.acquire(timeout=WAIT)
    assert fake.hung_up.acquire(timeout=WAIT)


def both(ways: Ways, model: str) -> tuple[Outcome, Outcome]:
    """The same, asked of both at the same time."""
    with ThreadPoolExecutor(2) as threads:
        direct, behind = threads.map(lambda stub: outcome(stub, model), (ways.direct, ways.behind))
    return direct, behind


def without_seconds(error: ErrorBody) -> tuple[Code, str, float | None]:
    return error.code, re.sub(r"[\d.]+ s ", "… s ", error.message), error.retry_after


@pytest.mark.parametrize("model", [*BEHAVIOURS, "unknown"])
def test_the_same_comes_out_whether_the_server_or_a_backend_on_it_is_asked(ways: Ways, model: str) -> None:
    direct, behind = both(ways, model)
    assert direct.events == behind.events
    assert direct.events or direct.error
    if direct.error is None or behind.error is None:
        assert direct.error == behind.error
    elif direct.error.code is Code.DEADLINE_EXCEEDED:
        assert without_seconds(direct.error) == without_seconds(behind.error)
        assert direct.error.origin == "proxy"
        assert behind.error.origin in ("backend", "proxy")
        for _ in range(2):
            has_been_left(ways.fake)
    else:
        assert direct.error == behind.error
        assert direct.error.origin == "openai"


def test_the_faults_are_those_that_they_are_meant_to_be(ways: Ways) -> None:
    """Equal could also be equally wrong."""
    said = "".join(WORDS)
    expected = {
        "echo": (PROMPT, None),
        "error-before": ("", Code.INTERNAL),
        "throttle": ("", Code.RESOURCE_EXHAUSTED),
        "unknown": ("", Code.NOT_FOUND),
        "error-in-stream": (said, Code.INTERNAL),
        "cut": (said, Code.UNAVAILABLE),
        "ends-early": (said, Code.UNAVAILABLE),
        "garbage": (said, Code.INTERNAL),
        "stall": (said, Code.DEADLINE_EXCEEDED),
    }
    found = {}
    for model in expected:
        events, error = outcome(ways.direct, model)
        text = "".join(event.text for event in events if isinstance(event, TextDelta))
        found[model] = (text, error and error.code)
    has_been_left(ways.fake)
    assert found == expected


def test_the_server_is_asked_the_same_either_way(ways: Ways) -> None:
    ways.fake.asked.clear()
    for stub in (ways.direct, ways.behind):
        outcome(stub, "echo")
    direct, behind = (msgspec.json.decode(asked.body) for asked in ways.fake.asked if asked.method == "POST")
    assert direct == behind
    assert (direct["model"], direct["max_tokens"], direct["temperature"]) == ("echo", 8, 0.5)


def test_the_same_models_are_listed(ways: Ways) -> None:
    direct, behind = (list(stub.ListModels(pb.ListModelsRequest()).models) for stub in (ways.direct, ways.behind))
    assert direct == behind
    assert [model.id for model in direct] == list(BEHAVIOURS)


@pytest.mark.parametrize("model", ["stall-headers", "stall-first", "stall"])
def test_leaving_reaches_the_server_either_way(ways: Ways, model: str) -> None:
    for stub in (ways.direct, ways.behind):
        call = stub.GenerateStream(asked(model), timeout=WAIT)
        assert ways.fake.stalling.acquire(timeout=WAIT)
        call.cancel()
        assert ways.fake.hung_up.acquire(timeout=WAIT)
