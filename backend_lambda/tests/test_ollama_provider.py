"""What is Ollama's own; what all providers have in common is in test_provider_contract.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend_lambda.providers import engine_http, ollama
from backend_lambda.providers.engine_http import EngineHttp, Reply
from backend_lambda.providers.ollama import Config, OllamaProvider, PullProgress
from backend_lambda.providers.ollama_chat import events_of
from lambdalm.chat import ChatRequest, Message, Role
from lambdalm.errors import Code, LlmError
from lambdalm.events import (
    Answer,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
    Usage,
    collect,
    join,
)
from lambdalm.models import ModelInfo
from lambdalm.testing import fake_http
from lambdalm.testing.fake_engine import BEHAVIOURS, THOUGHT
from lambdalm.testing.fake_http import Exchange
from lambdalm.testing.fake_ollama import LAYER_BYTES, FakeOllama
from lambdalm.timings import HopTiming

from .conftest import WAIT, new_call

BEGUN = Started("r1", "m")


class Rude(FakeOllama):
    """Says whatever a test wants to each request: a whole answer, or chunks of a stream, after which it stalls."""

    def __init__(self, said: fake_http.Reply | list[bytes], stalls: bool = False) -> None:
        super().__init__()
        self._said = said
        self._stalls = stalls

    def answer(self, exchange: Exchange) -> None:
        if isinstance(self._said, fake_http.Reply):
            return exchange.reply(self._said)
        exchange.begin(self.stream_type)
        for chunk in self._said:
            exchange.send(chunk)
        if self._stalls:
            self.stalling.release()
            exchange.pause(None)
        return exchange.end()


@pytest.fixture
def fake() -> Iterator[FakeOllama]:
    with FakeOllama() as running:
        yield running


def provider(fake: FakeOllama, **config: Any) -> OllamaProvider:
    return ollama.make(Config(base_url=fake.url, **config), 4)


def asked(fake: FakeOllama, request: ChatRequest, **config: Any) -> Any:
    """What goes over the wire for this request."""
    collect(provider(fake, **config).stream(request, new_call()))
    return json.loads(fake.asked[-1].body)


def failure(act: Callable[[], Any]) -> LlmError:
    with pytest.raises(LlmError) as caught:
        act()
    return caught.value


def refused(status: int, body: bytes, headers: tuple[tuple[str, str], ...] = ()) -> LlmError:
    """How such an answer comes out."""
    with Rude(fake_http.Reply(status, body, headers=headers)) as fake:
        return failure(lambda: list(provider(fake).stream(ChatRequest(prompt="hi", model="m"), new_call())))


def line(content: str | None = None, **more: Any) -> bytes:
    message: dict[str, Any] = {name: more.pop(name) for name in ("thinking", "tool_calls") if name in more}
    said = {"model": "m", "message": {"role": "assistant", "content": content, **message}, "done": False, **more}
    return json.dumps(said).encode() + b"\n"


DONE = line("", done=True, done_reason="stop")


def read(*chunks: bytes) -> list[StreamEvent]:
    return list(events_of(chunks, "r1", "asked"))


def whole(*lines: bytes) -> Answer:
    return collect(events_of(lines, "r1", "asked"))


# The request


def test_a_bare_request_takes_its_values_from_the_defaults(fake: FakeOllama) -> None:
    assert asked(fake, ChatRequest(prompt="hi"), model="echo") == {
        "model": "echo",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "keep_alive": "5m",
        "options": {
            "num_ctx": 8192,
            "num_predict": 2048,
            "temperature": 0.7,
            "top_p": 0.95,
            "presence_penalty": 0,
            "frequency_penalty": 0,
        },
    }
    assert (fake.asked[-1].method, fake.asked[-1].path) == ("POST", "/api/chat")
    assert Config().model == "llama3.2"


def test_the_config_has_the_values_of_requests_that_have_none(fake: FakeOllama) -> None:
    config = {"temperature": 0.1, "top_p": 0.2, "presence_penalty": 0.3, "frequency_penalty": -0.4}
    body = asked(
        fake, ChatRequest(prompt="hi"), model="echo", max_tokens=5, context_window=1024, keep_alive="-1s", **config
    )
    assert body["options"] == {"num_ctx": 1024, "num_predict": 5, **config}
    assert body["keep_alive"] == "-1s"


def test_what_a_request_says_beats_the_defaults_also_where_it_is_zero(fake: FakeOllama) -> None:
    said = {"temperature": 0.0, "top_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "seed": 0}
    config = {"temperature": 0.1, "top_p": 0.2, "presence_penalty": 0.3, "frequency_penalty": -0.4}
    request = ChatRequest(prompt="hi", model="echo", max_tokens=7, stop=("a", "b"), **said)  # type: ignore[arg-type]
    options = asked(fake, request, **config)["options"]
    assert options == {"num_ctx": 8192, "num_predict": 7, "stop": ["a", "b"], **said}


def test_a_conversation_goes_over_turn_by_turn_and_a_developer_is_the_system(fake: FakeOllama) -> None:
    roles: tuple[Role, ...] = ("developer", "system", "user", "assistant", "tool")
    turns = tuple(Message(role, f"{role}'s") for role in roles)
    messages = asked(fake, ChatRequest(messages=turns, model="echo"))["messages"]
    assert [turn["role"] for turn in messages] == ["system", "system", "user", "assistant", "tool"]
    assert [turn["content"] for turn in messages] == [turn.content for turn in turns]


@pytest.mark.parametrize(
    "values",
    [
        {"base_url": "http://user:hunter2@127.0.0.1"},
        {"keep_alive": "5"},
        {"context_window": 0},
        {"request_timeout": 0},
        {"temprature": 1},
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_without_repeating_it(values: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(values, Config)
    assert "hunter2" not in str(caught.value)


# The answer


def test_the_model_is_the_one_that_the_engine_names() -> None:
    assert whole(line("a", model="m:1b"), DONE).model == "m:1b"
    assert whole(b'{"message": {"content": "a"}}\n', b'{"done": true}').model == "asked"


def test_thinking_is_reasoning() -> None:
    assert read(line("", thinking="So"), line("Hi"), DONE)[:3] == [BEGUN, ReasoningDelta("So"), TextDelta("Hi")]


def test_a_think_block_in_the_text_is_reasoning() -> None:
    answer = whole(line("<th"), line("ink>So"), line("</think>\n"), line("\nHi"), DONE)
    assert (answer.reasoning, answer.text) == ("So", "Hi")


def test_a_think_block_in_the_text_is_text_where_the_engine_itself_tells_the_thinking() -> None:
    answer = whole(line("", thinking="So"), line("<think>a</think>"), DONE)
    assert (answer.reasoning, answer.text) == ("So", "<think>a</think>")


def test_text_that_was_held_back_comes_before_what_follows_it() -> None:
    assert read(line("<thi"), DONE)[1] == TextDelta("<thi")
    assert read(line(" "), line("", thinking="So"), DONE)[1:3] == [TextDelta(" "), ReasoningDelta("So")]


def test_a_tool_call_is_whole_and_its_arguments_are_the_json_as_it_was_sent() -> None:
    calls = [{"id": "c1", "function": {"name": "f", "arguments": {"a": 1e5, "b": "λ"}}}, {"function": {"name": "g"}}]
    events = read(line("", tool_calls=calls), line("", tool_calls=[{"function": {"name": "h"}}]), DONE)
    assert events[1:4] == [
        ToolCallDelta(0, "c1", "f", json.dumps({"a": 1e5, "b": "λ"})),
        ToolCallDelta(1, None, "g", "{}"),
        ToolCallDelta(2, None, "h", "{}"),
    ]
    assert events[-1] == Finished(FinishReason.TOOL_CALLS)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ({"done_reason": "stop"}, FinishReason.STOP),
        ({"done_reason": "length"}, FinishReason.LENGTH),
        ({"done_reason": "load"}, FinishReason.STOP),
        ({"done_reason": "unload"}, FinishReason.STOP),
        ({}, FinishReason.STOP),
    ],
)
def test_an_answer_ends_for_ollamas_reasons(end: dict[str, str], reason: FinishReason) -> None:
    assert whole(line("", done=True, **end)).finish_reason is reason


def test_counts_that_are_left_out_are_unknown() -> None:
    durations = {"total_duration": 9, "eval_duration": 3}
    cached = read(line("", done=True, eval_count=4, **durations))
    assert cached[1] == Usage(prompt_tokens=None, completion_tokens=4)
    assert read(line("", done=True, prompt_eval_count=4, eval_count=0))[1] == Usage(4, None)
    assert not any(isinstance(event, Usage) for event in read(line("", done=True, **durations)))


def test_the_engines_durations_are_a_hop_of_its_own() -> None:
    end = line(
        "", done=True, total_duration=50_000_000, load_duration=4_000_000, prompt_eval_duration=11_000_000,
        eval_duration=32_123_456,
    )  # fmt: skip
    assert whole(end).timings == {"ollama": HopTiming(total_ms=50, queue_ms=4, first_token_ms=15, generation_ms=32.123)}


def test_durations_that_are_left_out_are_unknown() -> None:
    assert whole(line("", done=True, total_duration=10**6)).timings == {"ollama": HopTiming(total_ms=1)}
    assert whole(line("", done=True, eval_duration=10**6)).timings == {}


def test_what_came_in_one_chunk_goes_out_joined() -> None:
    chunk = line("a") + line("b") + line("c") + DONE
    assert read(chunk) == [BEGUN, TextDelta("abc"), Finished(FinishReason.STOP)]
    assert read(line("a"), line("b") + DONE)[1:3] == [TextDelta("a"), TextDelta("b")]


def test_nothing_is_read_after_the_end() -> None:
    assert read(DONE + b"garbage\n", b"more")[-1] == Finished(FinishReason.STOP)


def test_the_last_line_needs_no_end_of_line() -> None:
    assert read(line("a"), DONE.rstrip())[-1] == Finished(FinishReason.STOP)


def test_an_end_without_done_is_no_end() -> None:
    # Ollama's runner stops so when a model says the same token again and again.
    error = failure(lambda: read(line("la "), line("la ")))
    assert error.code is Code.UNAVAILABLE
    assert "incomplete" in error.message


def test_an_error_before_the_first_line_is_not_a_beginning() -> None:
    stream = events_of([b'{"error": "out of memory"}\n'], "r1", "m")
    error = failure(lambda: next(stream))
    assert (error.code, error.origin) == (Code.INTERNAL, "ollama")
    assert "out of memory" in error.message


def test_what_came_before_an_error_in_the_same_chunk_is_given() -> None:
    stream = events_of([line("a") + line("b") + b'{"error": "dead"}\n'], "r1", "m")
    assert [next(stream), next(stream)] == [BEGUN, TextDelta("ab")]
    assert "dead" in failure(lambda: next(stream)).message


@pytest.mark.parametrize(
    "bad",
    [
        b"<html>\n",
        b"[]\n",
        b'{"message": 1}\n',
        b'{"done": "yes"}\n',
        b'{"message": {"content": "\xff"}}\n',
        b'{"message": {"tool_calls": [{"function": {"name": "f", "arguments": {"a": "\xff"}}}]}}\n',
        b'{"done": true, "eval_count": -1}\n',
        b'{"a":' * 5000 + b"\n",
        b"x" * (4 * 1024 * 1024 + 1),
    ],
    ids=lambda bad: repr(bad[:40]),
)
def test_what_is_not_ollamas_protocol_is_an_internal_error_of_its(bad: bytes) -> None:
    with Rude([bad]) as fake:
        error = failure(lambda: list(provider(fake).stream(ChatRequest(prompt="hi"), new_call())))
    assert (error.code, error.origin) == (Code.INTERNAL, "ollama")


_words = st.sampled_from(["", "a", "λ", "<think>", "</think>", "<", "\n", " ", "\u2028", "\U0001f98a"])
_numbers = st.dictionaries(
    st.sampled_from(["total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count"]),
    st.integers(0, 2**63 - 1),
)
_lines = st.one_of(
    st.builds(line, _words),
    st.builds(lambda text: line("", thinking=text), _words),
    st.builds(lambda text: line("", tool_calls=[{"function": {"name": text, "arguments": {"a": text}}}]), _words),
    st.builds(lambda more: line("", done=True, done_reason="length", **more), _numbers),
    st.sampled_from([b"\n", b"\r\n", b'{"error": "dead"}\n', b"{}\n", b"{\n", b'{"message": null}\r\n', b"\xff\n"]),
)
_cuts = st.lists(st.integers(0, 2**16), max_size=12)


def told(*chunks: bytes) -> tuple[list[StreamEvent], LlmError | None]:
    """The events, and the error in which they end."""
    events: list[StreamEvent] = []
    try:
        events.extend(events_of(chunks, "r1", "asked"))
    except LlmError as error:
        return list(join(events)), error
    return list(join(events)), None


@given(st.lists(_lines, max_size=8).map(b"".join), _cuts)
def test_however_the_bytes_are_cut_the_events_are_the_same(stream: bytes, cuts: list[int]) -> None:
    places = sorted(cut % (len(stream) + 1) for cut in cuts)
    pieces = [stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True)]
    events, error = told(stream)
    for cut in (pieces, [stream[at : at + 1] for at in range(len(stream))]):
        found, failed = told(*cut)
        assert found == events
        assert repr(failed) == repr(error)
    assert (error is None) == any(isinstance(event, Finished) for event in events)


_keys = st.sampled_from(["model", "message", "content", "thinking", "tool_calls", "function", "arguments", "error"])
_keys |= st.sampled_from(["done", "done_reason", "total_duration", "eval_count", "name", "id"])
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=8,
)


@given(st.lists(st.binary(max_size=40) | _json.map(lambda value: json.dumps(value).encode() + b"\n"), max_size=6))
def test_any_bytes_give_events_or_an_llm_error(chunks: list[bytes]) -> None:
    events, error = told(*chunks)
    assert error is None or error.code in (Code.INTERNAL, Code.UNAVAILABLE) or b'"error"' in b"".join(chunks)
    assert events[:1] == [] or isinstance(events[0], Started)


# Errors over HTTP


def test_a_model_that_there_is_not_is_not_found_and_the_error_says_how_to_get_it(fake: FakeOllama) -> None:
    error = failure(lambda: list(provider(fake).stream(ChatRequest(prompt="hi", model="nope"), new_call())))
    assert (error.code, error.origin) == (Code.NOT_FOUND, "ollama")
    assert "`ollama pull nope`" in error.message
    assert "`backend-lambda pull --provider ollama nope`" in error.message


def test_a_404_of_something_else_does_not_send_one_to_pull_a_model() -> None:
    error = refused(404, b"404 page not found")
    assert error.code is Code.NOT_FOUND
    assert "pull" not in error.message


def test_a_busy_engine_is_exhausted_and_says_when_to_come_back(fake: FakeOllama) -> None:
    error = failure(lambda: list(provider(fake).stream(ChatRequest(prompt="hi", model="throttle"), new_call())))
    assert (error.code, error.retry_after, error.origin) == (Code.RESOURCE_EXHAUSTED, 1, "ollama")
    assert refused(503, b'{"error": "server busy"}', (("Retry-After", "7"),)).retry_after == 7


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (302, Code.UNAVAILABLE),
        (400, Code.INVALID_ARGUMENT),
        (401, Code.UNAUTHENTICATED),
        (405, Code.INVALID_ARGUMENT),
        (499, Code.CANCELLED),
        (500, Code.INTERNAL),
        (502, Code.UNAVAILABLE),
        (503, Code.UNAVAILABLE),
    ],
)
def test_any_other_status_has_its_code_and_ollamas_words(status: int, code: Code) -> None:
    error = refused(status, b'{"error": "\\"m\\" does not support chat"}')
    assert (error.code, error.origin) == (code, "ollama")
    assert '"m" does not support chat' in error.message
    assert refused(status, b"<html>").code is code


# Models and health


def test_the_default_model_is_first_and_named_once(fake: FakeOllama) -> None:
    for default in ("slow", "slow:latest"):
        found = provider(fake, model=default, context_window=1024).models()
        assert found[0] == ModelInfo(default, "ollama", 1024)
        assert {info.id.removesuffix(":latest") for info in found} == set(BEHAVIOURS)
        assert len(found) == len(BEHAVIOURS)


def test_each_model_that_is_named_can_be_asked(fake: FakeOllama) -> None:
    engine = provider(fake, model="length")
    for info in engine.models()[:2]:
        assert collect(engine.stream(ChatRequest(prompt="hi", model=info.id), new_call())).model == info.id


def test_an_engine_that_answers_is_well(fake: FakeOllama) -> None:
    assert provider(fake).health().ok
    assert [asked.path for asked in fake.asked] == ["/api/version"]


def test_an_engine_that_is_down_has_its_default_model_and_says_what_to_do() -> None:
    with FakeOllama() as fake:
        engine = provider(fake)
    found = engine.health()
    assert not found.ok
    for words in (fake.url, "ollama serve", "OLLAMA_URL"):
        assert words in found.detail
    assert engine.models() == [ModelInfo("llama3.2", "ollama", 8192)]


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[1]", b'{"models": [{}], "version": 1}', b"\xff"])
@pytest.mark.parametrize("status", [200, 404, 500])
def test_something_that_is_not_ollama_is_not_well(status: int, body: bytes) -> None:
    with Rude(fake_http.Reply(status, body)) as fake:
        engine = provider(fake)
        assert not engine.health().ok
        assert "OLLAMA_URL" in engine.health().detail
        assert [info.id for info in engine.models()] == ["llama3.2"]


def test_an_engine_that_answers_with_an_error_is_not_well() -> None:
    with Rude(fake_http.Reply(500, b'{"version": "0.33.0"}')) as fake:
        assert not provider(fake).health().ok


def test_an_engine_that_hangs_is_given_up_by_those_who_only_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_http, "_CHECK_SECONDS", 0.1)
    with Rude([], stalls=True) as fake:
        engine = provider(fake)
        found = engine.health()
        assert [info.id for info in engine.models()] == ["llama3.2"]
    assert not found.ok
    assert "X-Request-Timeout" not in found.detail  # nobody has asked anything


# Pulling a model


def test_pulling_a_model_tells_how_far_it_is(fake: FakeOllama) -> None:
    progress = list(provider(fake).pull("smollm", new_call()))
    assert json.loads(fake.asked[-1].body) == {"model": "smollm", "stream": True}
    assert progress[0] == PullProgress("pulling manifest")
    assert [(step.completed, step.total) for step in progress if step.digest] == [
        (None, LAYER_BYTES),
        (LAYER_BYTES // 2, LAYER_BYTES),
        (LAYER_BYTES, LAYER_BYTES),
    ]
    assert progress[-1] == PullProgress("success")


def test_a_model_that_the_registry_does_not_have_cannot_be_pulled(fake: FakeOllama) -> None:
    pulling = provider(fake).pull("unknown-model", new_call())
    assert next(pulling) == PullProgress("pulling manifest")
    error = failure(lambda: next(pulling))
    assert (error.code, error.origin) == (Code.NOT_FOUND, "ollama")
    assert "'unknown-model'" in error.message


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ([b'{"error": "lookup registry.ollama.ai: no such host"}\n'], Code.UNAVAILABLE),
        ([b'{"status": "pulling manifest"}\n'], Code.UNAVAILABLE),
        ([b"<html>\n"], Code.INTERNAL),
        ([], Code.UNAVAILABLE),
    ],
)
def test_a_pull_that_does_not_end_in_success_has_failed(said: list[bytes], code: Code) -> None:
    with Rude(said) as fake:
        error = failure(lambda: list(provider(fake).pull("m", new_call())))
    assert (error.code, error.origin) == (code, "ollama")


def test_a_pull_that_is_closed_or_stopped_reaches_the_engine() -> None:
    with Rude([b'{"status": "pulling manifest"}\n'], stalls=True) as fake:
        pulling = provider(fake).pull("m", new_call())
        next(pulling)
        pulling.close()
        assert fake.hung_up.acquire(timeout=WAIT)
        call = new_call()
        pulling = provider(fake).pull("m", call)
        next(pulling)
        call.cancel("enough")
        assert failure(lambda: next(pulling)).code is Code.CANCELLED
        assert fake.hung_up.acquire(timeout=WAIT)


# The fake, where the provider does not try it


def post(fake: FakeOllama, path: str, body: dict[str, Any]) -> list[Any]:
    """The lines of the answer, or its one."""
    http = EngineHttp("fake", fake.url, {}, WAIT, WAIT)
    with http.post(path, json.dumps(body).encode(), new_call()) as answer:
        data = answer.body if isinstance(answer, Reply) else b"".join(answer.chunks)
    return [json.loads(said) for said in data.splitlines()]


def test_the_fake_streams_unless_it_is_asked_not_to(fake: FakeOllama) -> None:
    turn = {"role": "user", "content": "hi there"}
    streamed = post(fake, "/api/chat", {"model": "echo:latest", "messages": [turn]})
    assert "".join(said["message"]["content"] for said in streamed) == "hi there"
    assert [said["done"] for said in streamed] == [False, False, True]
    [answer] = post(fake, "/api/chat", {"model": "echo", "messages": [turn], "stream": False})
    assert (answer["message"]["content"], answer["prompt_eval_count"], answer["done"]) == ("hi there", 2, True)


def test_the_fake_leaves_out_what_is_zero(fake: FakeOllama) -> None:
    *_, end = post(fake, "/api/chat", {"model": "echo", "messages": []})
    assert not {"prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"} & set(end)
    assert end["total_duration"] > 0


def test_the_fake_generates_in_another_place(fake: FakeOllama) -> None:
    said = post(fake, "/api/generate", {"model": "thinking", "prompt": "hi"})
    assert "".join(part["response"] for part in said) == "Hello!"
    assert "".join(part.get("thinking", "") for part in said) == "".join(THOUGHT)


def test_the_fake_shows_what_it_has_and_refuses_what_it_cannot_read(fake: FakeOllama) -> None:
    assert post(fake, "/api/show", {"model": "echo"})[0]["details"]["format"] == "gguf"
    assert post(fake, "/api/show", {"model": "nope"}) == [{"error": "model 'nope' not found"}]
    assert "error" in post(fake, "/api/chat", {"model": 7})[0]
    assert post(fake, "/api/pull", {"model": "m", "stream": False}) == [{"status": "success"}]
