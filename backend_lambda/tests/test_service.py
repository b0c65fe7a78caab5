"""The backend on its loop: slots, observers and ends of a generation, with a provider in a thread and one without."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any

import pytest

from backend_lambda.inference import Inference
from backend_lambda.interactions import InteractionsConfig, open_log
from backend_lambda.providers.base import Provider
from backend_lambda.providers.scripted import ScriptedProvider
from backend_lambda.service import Backend
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import Finished, Started, StreamEvent, TextDelta
from lambdalm.testing import scripted

from .conftest import WAIT, new_call


class InThread:
    """The scripted provider as one that blocks."""

    name = "scripted"

    def __init__(self) -> None:
        whole = ScriptedProvider()
        self.health, self.models, self.close = whole.health, whole.models, whole.close
        self.threads: set[str] = set()

    def stream(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
        self.threads.add(threading.current_thread().name)
        yield from scripted.play(request, call)


class Served:
    """A backend with one slot and room for one in line, whose interactions go to a file."""

    def __init__(self, provider: Provider, path: Path) -> None:
        self._path = path
        self.backend = Backend(Inference(provider, open_log(InteractionsConfig(path=str(path)))), 1, 1)

    async def lines(self) -> list[dict[str, Any]]:
        """What was logged; closes it."""
        await self.backend.close()
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]

    async def all_of(self, **request: Any) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        await self.read(events, **request)
        return events

    async def read(self, events: list[StreamEvent], **request: Any) -> None:
        """Into `events`, so that they stay when it raises."""
        async for batch in self.backend.stream(ask(**request), new_call()):
            events += batch

    async def idle(self) -> bool:
        """Wait until no slot is held; whether nothing waits for one either."""
        async with asyncio.timeout(WAIT):
            while (found := await self.backend.health()).in_flight:  # noqa: ASYNC110  # no event says so
                await asyncio.sleep(0)
        return found.waiting == 0


def ask(**request: Any) -> ChatRequest:
    return ChatRequest(**{"prompt": "hi", **request})


@pytest.fixture(params=[ScriptedProvider, InThread], ids=["on the loop", "in a thread"])
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Served]:
    made = Served(request.param(), tmp_path / "log.jsonl")
    yield made
    await made.backend.close()


async def test_an_answer_is_its_stream_collected(served: Served) -> None:
    call = new_call()
    answer = await served.backend.answer(ask(prompt="one two three four"), call)
    assert (answer.id, answer.model, answer.text) == ("r1", "echo", "one two three four")
    events = await served.all_of(prompt="one two three four")
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == answer.text
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert events[-1].usage == answer.usage
    times = call.clock.timings()["backend"]
    assert times.queue_ms is not None
    assert times.first_token_ms is not None
    assert await served.idle()


async def test_a_blocking_provider_runs_in_the_threads_of_its_slots(tmp_path: Path) -> None:
    provider = InThread()
    made = Served(provider, tmp_path / "log.jsonl")
    for _ in range(5):
        await made.all_of()
    await made.backend.close()
    assert len(provider.threads) == 1
    assert provider.threads.pop().startswith("engine")


async def test_a_provider_that_never_blocks_runs_on_the_loop(tmp_path: Path) -> None:
    class OnLoop(ScriptedProvider):
        def stream(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
            raise AssertionError("it needs no thread")

    made = Served(OnLoop(), tmp_path / "log.jsonl")
    assert isinstance((await made.all_of())[-1], Finished)
    await made.backend.close()


class SlowToStop(InThread):
    """An engine that works on until `may_stop`."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_to_stop = threading.Event()
        self.may_stop = threading.Event()

    def stream(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
        try:
            yield from super().stream(request, call)
        finally:
            self.asked_to_stop.set()
            self.may_stop.wait(WAIT)


async def test_engine_that_does_not_stop_holds_its_slot_only(tmp_path: Path) -> None:
    provider = SlowToStop()
    made = Served(provider, tmp_path / "log.jsonl")
    await made.backend.health()
    batches = made.backend.stream(ask(model="stall"), new_call())
    await anext(batches)
    await asyncio.wait_for(batches.aclose(), WAIT)
    assert provider.asked_to_stop.is_set()
    assert (await made.backend.health()).in_flight == 1
    waiting = asyncio.create_task(made.all_of())
    await asyncio.sleep(0)
    assert not waiting.done()
    provider.may_stop.set()
    assert isinstance((await asyncio.wait_for(waiting, WAIT))[-1], Finished)
    assert await made.idle()
    await made.backend.close()


async def test_a_session_is_refused_without_a_slot(served: Served) -> None:
    with pytest.raises(LlmError, match="session_id: the backend keeps no sessions"):
        await served.backend.answer(ask(session_id="s1"), new_call())
    (line,) = await served.lines()
    assert line["error"]["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("model", "code"), [("cut", Code.UNAVAILABLE), ("garbage", Code.INTERNAL), ("error-in-stream", Code.UNAVAILABLE)]
)
async def test_what_came_before_a_failure_goes_out_and_is_logged(served: Served, model: str, code: Code) -> None:
    events: list[StreamEvent] = []
    with pytest.raises(LlmError) as raised:
        await served.read(events, model=model)
    assert raised.value.code is code
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "once upon a "
    assert await served.idle()
    (line,) = await served.lines()
    assert (line["response"], line["error"]["code"]) == ("once upon a ", code)


@contextlib.asynccontextmanager
async def stalling(served: Served, call: Call) -> AsyncIterator[asyncio.Task[None]]:
    """A task that reads a stream that has stalled."""
    has_come = asyncio.Event()

    async def read() -> None:
        async with contextlib.aclosing(served.backend.stream(ask(model="stall"), call)) as batches:
            async for batch in batches:
                if any(isinstance(event, TextDelta) for event in batch):
                    has_come.set()

    reading = asyncio.create_task(read())
    await asyncio.wait_for(has_come.wait(), WAIT)
    yield reading
    await asyncio.wait_for(asyncio.wait([reading]), WAIT)


async def test_a_client_that_hangs_up_frees_the_slot_and_is_logged(served: Served) -> None:
    call = new_call()
    async with stalling(served, call) as reading:
        assert (await served.backend.health()).in_flight == 1
        call.cancel("the client hung up")
        reading.cancel()
    assert await served.idle()
    (line,) = await served.lines()
    assert line["response"].startswith("once")
    assert line["error"] == {"code": "CANCELLED", "message": "the client hung up", "origin": "backend"}


async def test_a_waiting_request_is_served_when_the_slot_is_free(served: Served) -> None:
    async with stalling(served, new_call()) as reading:
        waiting = asyncio.create_task(served.all_of())
        await asyncio.sleep(0)
        assert (await served.backend.health()).waiting == 1
        with pytest.raises(LlmError) as refused:
            await served.backend.answer(ask(), new_call())
        assert refused.value.code is Code.RESOURCE_EXHAUSTED
        reading.cancel()
    assert await asyncio.wait_for(waiting, WAIT)
    assert await served.idle()


async def test_a_reader_that_closes_the_stream_early_frees_the_slot(served: Served) -> None:
    batches = served.backend.stream(ask(model="stall"), new_call())
    await anext(batches)
    await batches.aclose()
    assert await served.idle()
    (line,) = await served.lines()
    assert line["error"] == {"code": "CANCELLED", "message": "the reader closed the stream before its end"}


async def test_models_are_those_of_the_provider(served: Served) -> None:
    assert [model.id for model in (await served.backend.models()).models] == list(scripted.BEHAVIOURS)


async def test_health_says_that_the_server_is_stopping(served: Served) -> None:
    found = await served.backend.health(draining=True)
    assert (found.status, found.http_status) == ("draining", 503)
