"""A model that plays a part: its model names are behaviours and faults, so that one can try clients and hops on them.

A behaviour is a script: the events of `lambdalm.events`, with pauses between them. Two drivers play the same script:
`play` in a thread, which sleeps as a real engine does (a cancelled call wakes it within a millisecond), and
`play_on_loop` on an asyncio loop, which needs no thread. `BEHAVIOURS` is the list of its models; docs/scripted.md shows
what each looks like from outside.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import NamedTuple

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


class Pause(NamedTuple):
    """A step of a script at which it waits; with 0 seconds it lets others have a turn."""

    seconds: float


class Part(NamedTuple):
    """What a behaviour is asked for."""

    prompt: str
    max_tokens: int | None


Events = Generator[StreamEvent, None, None]
Script = Iterator[StreamEvent | Pause]
Behaviour = Callable[[Part], Script]

TOKEN_SECONDS = 0.05
"""The pace of `slow`: 20 tokens a second."""

_CUT = 7  # characters of a delta of `echo`
_GUSH = 20  # tokens of a delta of `flood`
_BREATH = 16  # deltas of `flood` between two pauses
_AT_ONCE = 64  # events that may be said on a loop before others have a turn
_AN_HOUR = 3600.0
_ALONE = 4  # streams that each keep their own time
_STEP_SECONDS = 0.02
_STORY = "once upon a time a small model counted its own words and found that there was always one more to say "
_WORDS = [f"{word} " for word in _STORY.split()]


_playing = 0  # streams on the loop


def _word(index: int) -> str:
    return _WORDS[index % len(_WORDS)]


def _silence() -> Script:
    while True:
        yield Pause(_AN_HOUR)


def _end(part: Part, tokens: int, reason: FinishReason = FinishReason.STOP) -> Script:
    yield Usage(prompt_tokens=len(part.prompt.split()), completion_tokens=tokens)
    yield Finished(reason)


def _echo(part: Part) -> Script:
    """says the last message back, byte for byte"""
    pieces = [part.prompt[at : at + _CUT] for at in range(0, len(part.prompt), _CUT)]
    yield from map(TextDelta, pieces)
    yield from _end(part, len(pieces))


def _slow(part: Part) -> Script:
    """20 tokens a second, max_tokens of them (default 40)"""
    start, said, most = time.monotonic(), 0, part.max_tokens or 40
    while said < most:
        yield Pause(start + (said + 1) * TOKEN_SECONDS - time.monotonic())
        due = min(most, max(said + 1, int((time.monotonic() - start) / TOKEN_SECONDS)))
        # Whoever is late says all that is due at once, as an engine does whose reader is late.
        yield TextDelta("".join(_word(index) for index in range(said, due)))
        said = due
    yield from _end(part, said, FinishReason.LENGTH)


def _flood(part: Part) -> Script:
    """tokens as fast as they are read, max_tokens of them (default: without end)"""
    most = part.max_tokens or 2**31
    for said in range(0, most, _GUSH):
        if said % (_GUSH * _BREATH) == 0:
            yield Pause(0)
        yield TextDelta("".join(map(_word, range(said, min(most, said + _GUSH)))))
    yield from _end(part, most, FinishReason.LENGTH)


def _huge(part: Part) -> Script:
    """one delta of 1 MiB of text"""
    yield TextDelta("λ" * 2**19)
    yield from _end(part, 1)


def _thinking(part: Part) -> Script:
    """reasoning first, then the text"""
    yield ReasoningDelta("The user said something; ")
    yield ReasoningDelta("I shall greet them.")
    yield TextDelta("Hello!")
    yield from _end(part, 3)


def _empty(part: Part) -> Script:
    """an answer without text"""
    yield from _end(part, 0)


def _filtered(part: Part) -> Script:
    """a content filter ends the answer"""
    yield TextDelta("I would rather ")
    yield from _end(part, 1, FinishReason.CONTENT_FILTER)


def _no_usage(part: Part) -> Script:
    """an engine that does not count tokens"""
    yield TextDelta("Uncounted.")
    yield Finished(FinishReason.STOP)


def _stall_first(part: Part) -> Script:
    """never says its first word"""
    yield from _silence()


def _stall(part: Part) -> Script:
    """three words, then silence"""
    yield from map(TextDelta, _WORDS[:3])
    yield from _silence()


def _error_before(part: Part) -> Script:
    """fails before the first word: UNAVAILABLE"""
    raise LlmError(Code.UNAVAILABLE, "the scripted engine fails before its first word", origin="scripted")
    yield


def _error_in_stream(part: Part) -> Script:
    """fails after three words: UNAVAILABLE"""
    yield from map(TextDelta, _WORDS[:3])
    raise LlmError(Code.UNAVAILABLE, "the scripted engine fails in the middle of its answer", origin="scripted")


def _throttle(part: Part) -> Script:
    """has no room: RESOURCE_EXHAUSTED, come back in 2 s"""
    raise LlmError(Code.RESOURCE_EXHAUSTED, "the scripted engine has no room", retry_after=2, origin="scripted")
    yield


def _cut(part: Part) -> Script:
    """three words, and the stream just stops"""
    yield from map(TextDelta, _WORDS[:3])


def _garbage(part: Part) -> Script:
    """three words, and then an event that cannot come there"""
    yield from map(TextDelta, _WORDS[:3])
    yield Started("again", "garbage")


BEHAVIOURS: dict[str, Behaviour] = {
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
    """The stream of the behaviour that `request.model` names (default `echo`), played in the caller's thread.

    Raises `LlmError(NOT_FOUND)` for a name that is none, and what stopped the call.
    """
    for step in _script(request, call):
        if isinstance(step, Pause):
            call.sleep(step.seconds)
        else:
            yield step


async def play_on_loop(request: ChatRequest, call: Call) -> AsyncGenerator[list[StreamEvent], None]:
    """The same stream on an asyncio loop, in batches: what is said between two pauses, at most 64 events.

    It is stopped by the cancellation of its task, and raises the `LlmError`s of the behaviour.
    """
    import asyncio  # a Lambda function, which plays in its only thread, is to start without it

    global _playing
    now = asyncio.get_running_loop().time
    said: list[StreamEvent] = []
    _playing += 1
    try:
        for step in _script(request, call):
            if not isinstance(step, Pause):
                said.append(step)
                if len(said) < _AT_ONCE:
                    continue
                step = Pause(0)
            if said:
                yield said
                said = []
            await asyncio.sleep(_until_step(step.seconds, now()))
    except LlmError:
        if said:
            yield said
        raise
    finally:
        _playing -= 1
    if said:
        yield said


def _until_step(seconds: float, now: float) -> float:
    """Seconds to pause. Many that play at once go on in common steps, as the sequences of an engine's batch do."""
    if _playing <= _ALONE or seconds <= 0:
        return seconds
    return math.ceil((now + seconds) / _STEP_SECONDS) * _STEP_SECONDS - now


def _script(request: ChatRequest, call: Call) -> Script:
    model = request.model or "echo"
    if model not in BEHAVIOURS:
        known = ", ".join(BEHAVIOURS)
        raise LlmError(Code.NOT_FOUND, f"model: there is no {model!r}; there are {known}", origin="scripted")
    steps = BEHAVIOURS[model](Part(request.conversation()[-1].content, request.max_tokens))
    for step in steps:
        if isinstance(step, Pause):
            yield step
            continue
        yield Started(call.id, model)  # an engine says that it has started when it has something to say
        yield step
        break
    yield from steps
