"""What every provider does, written once and run for each; docs/providers.md has the table of what was seen.

`PROVIDER_TABLE=write pytest backend_lambda/tests/test_provider_contract.py` writes that table anew.
"""

from __future__ import annotations

import functools
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lambdalm.call import Call
from lambdalm.errors import Code, LlmError
from lambdalm.events import Answer, Finished, ReasoningDelta, Started, StreamEvent, TextDelta, Usage, checked, collect
from lambdalm.testing.fake_engine import THOUGHT, WORDS

from .conftest import WAIT, new_call
from .engines import ENGINES, MOST, PROMPT, Engine, Running

DOCS = Path(__file__).parents[2] / "docs" / "providers.md"
SEEN: dict[tuple[str, str], str] = {}
"""(provider, column) → what its test has shown, or why there is none."""
COLUMNS: list[str] = []

SAID = "".join(WORDS)


def column(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test of each provider, which fills one column of the table."""
    COLUMNS.append(name)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(engine: Engine, **fixtures: Any) -> None:
            reason = engine.without.get(name)
            if reason is not None:
                SEEN[engine.title, name] = reason
                return
            test(engine=engine, **fixtures)
            SEEN[engine.title, name] = "✓"

        marked: Callable[..., None] = pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.title)(run)
        return marked

    return decorate


@pytest.fixture
def running(engine: Engine) -> Iterator[Running]:
    with engine.start() as running:
        yield running


def events_of(running: Running, engine: Engine, model: str, call: Call | None = None) -> Iterator[StreamEvent]:
    return checked(running.provider.stream(engine.ask(model), call or new_call()))


def answer_of(running: Running, engine: Engine, model: str) -> Answer:
    return collect(events_of(running, engine, model))


def failure_of(stream: Iterator[StreamEvent]) -> tuple[list[StreamEvent], LlmError]:
    """What came before the failure, and the failure."""
    events: list[StreamEvent] = []
    with pytest.raises(LlmError) as failed:
        events.extend(stream)  # what has come before it raises stays in the list
    return events, failed.value


def text_of(events: list[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


@column("answer")
def test_an_answer_names_its_request_and_the_model_that_answers(engine: Engine, running: Running) -> None:
    answer = answer_of(running, engine, "echo")
    assert answer.id == "r1"
    assert answer.model == (engine.ask("echo").model or running.provider.models()[0].id)
    assert answer.text == PROMPT or engine.name == "llamacpp"
    assert answer.text


@column("stream")
def test_words_come_while_the_engine_has_not_finished(engine: Engine, running: Running) -> None:
    call = new_call()
    stream = events_of(running, engine, "stall", call)
    assert isinstance(next(stream), Started)
    assert isinstance(next(stream), TextDelta)
    call.cancel("enough")
    with pytest.raises(LlmError):
        list(stream)


@column("slow reader")
def test_what_the_engine_says_while_nobody_reads_comes_joined(engine: Engine, running: Running) -> None:
    assert running.fake is not None
    stream = events_of(running, engine, "echo")
    assert isinstance(next(stream), Started)
    assert running.fake.answered.acquire(timeout=WAIT)
    deltas = [event.text for event in stream if isinstance(event, TextDelta)]
    assert "".join(deltas) == PROMPT
    assert len(deltas) <= 2  # what came with Started, and the rest


@column("usage")
def test_usage_is_what_the_engine_counted_and_unknown_stays_unknown(engine: Engine, running: Running) -> None:
    *_, usage, finished = events_of(running, engine, "echo")
    assert isinstance(usage, Usage)
    assert isinstance(finished, Finished)
    assert finished.usage == usage.tokens()
    if engine.name == "llamacpp":
        assert (usage.prompt_tokens or 0) > 0
        return
    assert usage.prompt_tokens == len(PROMPT.split())
    assert usage.completion_tokens == -(-len(PROMPT) // 7)
    assert answer_of(running, engine, "no-usage").usage is None


@column("reasoning")
def test_reasoning_is_apart_from_the_text(engine: Engine, running: Running) -> None:
    events = list(events_of(running, engine, "thinking"))
    kinds = [type(event) for event in events if isinstance(event, ReasoningDelta | TextDelta)]
    assert kinds == sorted(kinds, key=lambda kind: kind is TextDelta)
    answer = answer_of(running, engine, "thinking")
    assert answer.text == "Hello!"
    assert answer.reasoning == ("".join(THOUGHT) if running.fake else "The user said something; I shall greet them.")


@column("stop reasons")
def test_an_answer_says_why_it_ended(engine: Engine, running: Running) -> None:
    assert {model: answer_of(running, engine, model).finish_reason for model in engine.reasons} == engine.reasons


@column("error before the first token")
def test_an_error_before_the_first_token_has_its_own_code(engine: Engine, running: Running) -> None:
    asked: dict[str, tuple[Code, ...]] = {"unknown": (Code.NOT_FOUND,)}
    if engine.name != "llamacpp":
        asked |= {"error-before": (Code.INTERNAL, Code.UNAVAILABLE), "throttle": (Code.RESOURCE_EXHAUSTED,)}
    for model, codes in asked.items():
        events, error = failure_of(events_of(running, engine, model))
        assert (model, events) == (model, [])
        assert error.code in codes, (model, error)
        assert error.origin == engine.name


@column("error in the stream")
def test_an_error_in_the_stream_comes_after_what_was_said(engine: Engine, running: Running) -> None:
    events, error = failure_of(events_of(running, engine, "error-in-stream"))
    assert text_of(events) == (SAID if running.fake else "once upon a ")
    assert error.code in (Code.INTERNAL, Code.UNAVAILABLE)
    assert "broke off" not in error.message
    assert error.origin == engine.name


@column("cut stream")
def test_a_stream_that_is_cut_is_not_taken_for_an_answer(engine: Engine, running: Running) -> None:
    for model in ("cut", "ends-early") if running.fake else ("cut",):
        events, error = failure_of(events_of(running, engine, model))
        assert SAID.startswith(text_of(events))
        assert (model, error.code) == (model, Code.UNAVAILABLE)
        assert "broke off" in error.message


@column("garbage")
def test_what_is_not_the_protocol_is_an_internal_error(engine: Engine, running: Running) -> None:
    events, error = failure_of(events_of(running, engine, "garbage"))
    assert SAID.startswith(text_of(events))
    assert error.code is Code.INTERNAL


@column("timeout")
def test_an_engine_that_falls_silent_is_given_up(engine: Engine) -> None:
    with engine.start(request_timeout=0.2) as running:
        assert running.fake is not None
        for model in ("stall-headers", "stall-first", "stall"):
            events, error = failure_of(events_of(running, engine, model))
            assert SAID.startswith(text_of(events))  # all of it with `stall`, unless this machine is slower than that
            assert (model, error.code) == (model, Code.UNAVAILABLE)
            assert "silent" in error.message
            assert running.fake.hung_up.acquire(timeout=WAIT)


@column("deadline")
def test_when_the_time_is_up_the_engine_stops(engine: Engine, running: Running) -> None:
    for model in ("stall-first", "stall"):
        _, error = failure_of(events_of(running, engine, model, new_call(0.4 if running.fake else 0.05)))
        assert (model, error.code) == (model, Code.DEADLINE_EXCEEDED)
        has_stopped(running, engine)


@column("cancel before headers")
def test_cancelling_reaches_an_engine_that_has_not_answered(engine: Engine, running: Running) -> None:
    assert cancelled(running, engine, "stall-headers") == []


@column("cancel before the first token")
def test_cancelling_reaches_an_engine_that_has_not_said_a_word(engine: Engine, running: Running) -> None:
    events = cancelled(running, engine, "stall-first")
    assert events == [] or engine.name == "llamacpp"


@column("cancel in the stream")
def test_cancelling_reaches_an_engine_in_the_middle_of_its_answer(engine: Engine, running: Running) -> None:
    assert text_of(cancelled(running, engine, "stall"))


@column("closed stream")
def test_closing_the_stream_stops_the_engine(engine: Engine, running: Running) -> None:
    stream = running.provider.stream(engine.ask("stall"), new_call())
    assert isinstance(next(stream), Started)
    assert isinstance(next(stream), TextDelta)
    stream.close()
    has_stopped(running, engine)


def cancelled(running: Running, engine: Engine, model: str) -> list[StreamEvent]:
    """Cancel such a request while the engine stalls; what it had said until then."""
    call, has_come = new_call(), threading.Event()

    def read() -> tuple[list[StreamEvent], LlmError]:
        def watched() -> Iterator[StreamEvent]:
            for event in events_of(running, engine, model, call):
                if isinstance(event, TextDelta):
                    has_come.set()
                yield event

        return failure_of(watched())

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read)
        if running.fake is not None:
            assert running.fake.stalling.acquire(timeout=WAIT)
        if model == "stall":
            assert has_come.wait(WAIT)
        call.cancel("the test has seen enough")
        events, error = reading.result(WAIT)
    assert error.code is Code.CANCELLED
    has_stopped(running, engine)
    return events


def has_stopped(running: Running, engine: Engine) -> None:
    """The fake has seen its client leave; the engine in this process has not talked on to nobody, and answers again."""
    if running.fake is not None:
        assert running.fake.hung_up.acquire(timeout=WAIT)
    else:
        assert answer_of(running, engine, "echo").text
        assert running.said() < MOST


def table() -> str:
    """A row for each column and a column for each provider, since there are more of the former."""
    notes: list[str] = []

    def cell(engine: Engine, name: str) -> str:
        seen = SEEN[engine.title, name]
        if seen == "✓":
            return seen
        if seen not in notes:
            notes.append(seen)
        return f"– ({notes.index(seen) + 1})"

    lines = ["| | " + " | ".join(engine.title for engine in ENGINES) + " |", "|---" * (len(ENGINES) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cell(engine, name) for engine in ENGINES) + " |" for name in COLUMNS]
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, 1))])


def test_the_table_in_the_docs_is_what_was_seen() -> None:
    if len(SEEN) < len(COLUMNS) * len(ENGINES):
        pytest.skip("the table is made of a run of all tests of this file")
    text = DOCS.read_text(encoding="utf-8")
    marks = re.compile(r"(<!-- what was seen -->\n).*?(<!-- end -->)", re.DOTALL)
    now = marks.sub(lambda found: found[1] + table() + "\n" + found[2], text)
    if os.environ.get("PROVIDER_TABLE") == "write":
        DOCS.write_text(now, encoding="utf-8")
    assert now == DOCS.read_text(encoding="utf-8"), "make provider-table writes it anew"
