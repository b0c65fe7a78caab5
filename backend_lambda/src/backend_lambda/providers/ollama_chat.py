"""What Ollama says in answer to `/api/chat`, as our events; without I/O.

An answer is lines of JSON; the one with `done: true` is its end, and an answer without it is incomplete (Ollama's
runner just stops when a model says the same token again and again). An error in the middle is a line of its own, at
HTTP 200. Values that are zero are left out, so a count that is not there is unknown: a prompt that was cached has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from backend_lambda.providers.think_tags import ThinkTags
from lambdalm import ndjson
from lambdalm.errors import Code, LlmError
from lambdalm.events import (
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
    Usage,
    join,
)
from lambdalm.foreign_errors import error_event
from lambdalm.timings import HopTiming, Timings

NAME = "ollama"

Number = Annotated[int, Meta(ge=0, le=2**63 - 1)] | None
"""A number that may be left out."""

_T = TypeVar("_T")


def events_of(chunks: Iterable[bytes], id: str, model: str) -> Iterator[StreamEvent]:
    """The events of one answer of `/api/chat`, joined for each chunk; raises LlmError for one that fails.

    `model` is the one that was asked for, where the answer does not name it.
    """
    translation = _Translation(id, model)
    for lines in _batches(chunks):
        yield from join(translation.events(lines))
        if translation.finished:
            return
    why = "Ollama broke off without saying that it was done: the answer is incomplete"
    raise LlmError(Code.UNAVAILABLE, why, origin=NAME)


# What Ollama says, as far as it is read. Any of it may be left out, or null.


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _ToolCall(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Line(msgspec.Struct):
    """A line of an answer; durations are in nanoseconds."""

    model: str | None = None
    message: _Message | None = None
    error: Any = None
    done: bool = False
    done_reason: str | None = None
    total_duration: Number = None
    load_duration: Number = None
    prompt_eval_count: Number = None
    prompt_eval_duration: Number = None
    eval_count: Number = None
    eval_duration: Number = None


_line_decoder = msgspec.json.Decoder(_Line)


class _Translation:
    """Ollama's lines as our events; one for each answer."""

    def __init__(self, id: str, model: str) -> None:
        self.finished = False
        self._id = id
        self._model = model
        self._started = False
        self._tags: ThinkTags | None = ThinkTags()  # until the engine itself tells the reasoning apart
        self._tool_calls = 0

    def events(self, lines: Iterable[bytes]) -> Iterator[StreamEvent]:
        """What these lines say, up to the one that is the end."""
        for line in lines:
            said = decoded(_line_decoder, line)
            if said.error is not None:
                raise error_event(said.error, "Ollama").at(NAME)
            if not self._started:
                self._started = True
                yield Started(self._id, said.model or self._model)
            if said.message is not None:
                yield from self._message(said.message)
            if said.done:
                yield from self._end(said)
                return

    def _message(self, message: _Message) -> Iterator[StreamEvent]:
        if message.thinking:
            yield from self._untagged()
            yield ReasoningDelta(message.thinking)
        if message.content:
            yield from self._tags.feed(message.content) if self._tags else [TextDelta(message.content)]
        for call in message.tool_calls or ():
            yield from self._untagged()
            function = call.function
            yield ToolCallDelta(self._tool_calls, call.id, function.name, _json_text(function.arguments))
            self._tool_calls += 1

    def _untagged(self) -> Iterator[StreamEvent]:
        """Look for tags no longer."""
        if self._tags is not None:
            yield from self._tags.close()
            self._tags = None

    def _end(self, line: _Line) -> Iterator[StreamEvent]:
        yield from self._untagged()
        if line.prompt_eval_count or line.eval_count:
            yield Usage(line.prompt_eval_count or None, line.eval_count or None)
        self.finished = True
        yield Finished(self._reason(line.done_reason), timings=_timings(line))

    def _reason(self, done_reason: str | None) -> FinishReason:
        """Ollama's other reasons (`load`, `unload`, none) are no reason to call an answer anything but whole."""
        if done_reason == "length":
            return FinishReason.LENGTH
        return FinishReason.TOOL_CALLS if self._tool_calls else FinishReason.STOP


def _timings(line: _Line) -> Timings:
    """The engine as a hop of its own. Its `load_duration` begins with the request and so has the wait in it."""
    if not line.total_duration:
        return {}
    load, prompt = line.load_duration, line.prompt_eval_duration
    share = HopTiming(
        total_ms=_ms(line.total_duration),
        queue_ms=_ms(load) if load else None,
        first_token_ms=_ms((load or 0) + prompt) if prompt else None,
        generation_ms=_ms(line.eval_duration) if line.eval_duration else None,
    )
    return {NAME: share}


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 3)


def _batches(chunks: Iterable[bytes]) -> Iterator[Iterator[bytes]]:
    """The lines that came together, and at last what had no end of line. Iterate each to its end before the next."""
    decoder = ndjson.Decoder()
    for chunk in chunks:
        yield decoder.feed(chunk)
    yield decoder.close()


def lines_of(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of an answer."""
    for lines in _batches(chunks):
        yield from lines


def decoded(decoder: msgspec.json.Decoder[_T], data: bytes) -> _T:
    """What a line or a body says; raises LlmError(INTERNAL) where it makes no sense."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LlmError(Code.INTERNAL, f"Ollama said something that makes no sense: {error}", origin=NAME) from None


def _json_text(raw: msgspec.Raw) -> str:
    """The JSON as it was sent. Raw is not looked at when it is decoded, so that this is where bad UTF-8 shows."""
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError:
        raise LlmError(Code.INTERNAL, "Ollama sent a tool call that is not UTF-8", origin=NAME) from None
