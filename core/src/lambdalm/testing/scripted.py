"""A model that plays a part: its model names are behaviours and faults, so that one can try clients and hops on them.

It speaks the events of `lambdalm.events`, waits and stops as a real engine does (a cancelled call wakes it within a
millisecond), and never uses the clock for anything but its pace. `BEHAVIOURS` is the list of its models;
docs/scripted.md shows what each looks like from outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator

from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import (
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    Usage,
)

Events = Generator[StreamEvent, None, None]
Play = Callable[["Part"], Iterator[StreamEvent]]

TOKEN_SECONDS = 0.05
"""The pace of `slow`: 20 tokens a second."""

_CUT = 7  # characters of a delta of `echo`
_GUSH = 20  # tokens of a delta of `flood`
_STORY = "once upon a time a small model counted its own words and found that there was always one more to say "
_WORDS = [f"{word} " for word in _STORY.split()]


class Part:
    """One request as a behaviour plays it."""

    def __init__(self, request: ChatRequest, call: Call) -> None:
        self.prompt = request.conversation()[-1].content
        self.max_tokens = request.max_tokens
        self.call = call

    def stall(self) -> None:
        """Wait for the call to be stopped."""
        while True:
            self.call.sleep(3600)


def _word(index: int) -> str:
    return _WORDS[index % len(_WORDS)]


def _end(part: Part, tokens: int, reason: FinishReason = FinishReason.STOP) -> Iterator[StreamEvent]:
    yield Usage(prompt_tokens=len(part.prompt.split()), completion_tokens=tokens)
    yield Finished(reason)


def _echo(part: Part) -> Iterator[StreamEvent]:
    """says the last message back, byte for byte"""
    pieces = [part.prompt[at : at + _CUT] for at in range(0, len(part.prompt), _CUT)]
    yield from map(TextDelta, pieces)
    yield from _end(part, len(pieces))


def _slow(part: Part) -> Iterator[StreamEvent]:
    """20 tokens a second, max_tokens of them (default 40)"""
    start, said, most = time.monotonic(), 0, part.max_tokens or 40
    while said < most:
        part.call.sleep(start + (said + 1) * TOKEN_SECONDS - time.monotonic())
        due = min(most, max(said + 1, int((time.monotonic() - start) / TOKEN_SECONDS)))
        # Whoever is late says all that is due at once, as an engine does whose reader is late.
        yield TextDelta("".join(_word(index) for index in range(said, due)))
        said = due
    yield from _end(part, said, FinishReason.LENGTH)


def _flood(part: Part) -> Iterator[StreamEvent]:
    """tokens as fast as they are read, max_tokens of them (default: without end)"""
    most = part.max_tokens or 2**31
    for said in range(0, most, _GUSH):
        part.call.check()
        yield TextDelta("".join(map(_word, range(said, min(most, said + _GUSH)))))
    yield from _end(part, most, FinishReason.LENGTH)


def _huge(part: Part) -> Iterator[StreamEvent]:
    """one delta of 1 MiB of text"""
    yield TextDelta("λ" * 2**19)
    yield from _end(part, 1)


def _thinking(part: Part) -> Iterator[StreamEvent]:
    """reasoning first, then the text"""
    yield ReasoningDelta("The user said something; ")
    yield ReasoningDelta("I shall greet them.")
    yield TextDelta("Hello!")
    yield from _end(part, 3)


def _empty(part: Part) -> Iterator[StreamEvent]:
    """an answer without text"""
    yield from _end(part, 0)


def _filtered(part: Part) -> Iterator[StreamEvent]:
    """a content filter ends the answer"""
    yield TextDelta("I would rather ")
    yield from _end(part, 1, FinishReason.CONTENT_FILTER)


def _no_usage(part: Part) -> Iterator[StreamEvent]:
    """an engine that does not count tokens"""
    yield TextDelta("Uncounted.")
    yield Finished(FinishReason.STOP)


def _stall_first(part: Part) -> Iterator[StreamEvent]:
    """never says its first word"""
    part.stall()
    yield Finished(FinishReason.STOP)


def _stall(part: Part) -> Iterator[StreamEvent]:
    """three words, then silence"""
    yield from map(TextDelta, _WORDS[:3])
    part.stall()


def _error_before(part: Part) -> Iterator[StreamEvent]:
    """fails before the first word: UNAVAILABLE"""
    raise LlmError(Code.UNAVAILABLE, "the scripted engine fails before its first word", origin="scripted")
    yield


def _error_in_stream(part: Part) -> Iterator[StreamEvent]:
    """fails after three words: UNAVAILABLE"""
    yield from map(TextDelta, _WORDS[:3])
    raise LlmError(Code.UNAVAILABLE, "the scripted engine fails in the middle of its answer", origin="scripted")


def _throttle(part: Part) -> Iterator[StreamEvent]:
    """has no room: RESOURCE_EXHAUSTED, come back in 2 s"""
    raise LlmError(Code.RESOURCE_EXHAUSTED, "the scripted engine has no room", retry_after=2, origin="scripted")
    yield


def _cut(part: Part) -> Iterator[StreamEvent]:
    """three words, and the stream just stops"""
    yield from map(TextDelta, _WORDS[:3])


def _garbage(part: Part) -> Iterator[StreamEvent]:
    """three words, and then an event that cannot come there"""
    yield from map(TextDelta, _WORDS[:3])
    yield Started("again", "garbage")


BEHAVIOURS: dict[str, Play] = {
    function.__name__.removeprefix("_").replace("_", "-"): function
    for function in (
        _echo,
        _slow,
        _flood,
        _huge,
        _thinking,
        _empty,
        _filtered,
        _no_usage,
        _stall_first,
        _stall,
        _error_before,
        _error_in_stream,
        _throttle,
        _cut,
        _garbage,
    )
}
"""Model name → how it plays; the docstring of each says what it does."""


def play(request: ChatRequest, call: Call) -> Events:
    """The stream of the behaviour that `request.model` names (default `echo`).

    Raises `LlmError(NOT_FOUND)` for a name that is none.
    """
    model = request.model or "echo"
    if model not in BEHAVIOURS:
        known = ", ".join(BEHAVIOURS)
        raise LlmError(Code.NOT_FOUND, f"model: there is no {model!r}; there are {known}", origin="scripted")
    part = Part(request, call)
    events = BEHAVIOURS[model](part)
    first = next(events)  # an engine says that it has started when it has something to say
    yield Started(call.id, model)
    yield first
    yield from events
