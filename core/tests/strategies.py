"""What any request, event or text may be: hypothesis strategies that several subjects share."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from lambdalm.chat import ChatRequest, Message
from lambdalm.events import (
    Finished,
    FinishReason,
    Heartbeat,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    Tokens,
    ToolCallDelta,
    Usage,
)
from lambdalm.timings import HopTiming, Timings

_AWKWARD = ["\u2028", "\u2029", "\x00", "\ufeff", "\x85", "\r\n", "\r", "\n", "\n\n", "\\", '"', ": ", "data: ", "λ"]
_AWKWARD += ["\U0001f469\u200d\U0001f469\u200d\U0001f467", "e\u0301"]  # several code points, one character

texts = st.lists(st.one_of(st.text(), st.sampled_from(_AWKWARD)), max_size=4).map("".join)
"""Any Unicode but lone surrogates, with what parsers like to stumble over."""

names = st.text(min_size=1, max_size=20)
counts = st.none() | st.integers(0, 2**63 - 1)
floats = st.floats(0, 1e9, allow_nan=False)
milliseconds = st.integers(0, 900_000_000).map(lambda n: n / 1000)
"""As `HopClock` rounds them, up to the longest time budget."""
milliseconds_of_a_second = st.integers(0, 999_999).map(lambda n: n / 1000)


def hop_timings(
    numbers: st.SearchStrategy[float] = floats, hops: st.SearchStrategy[str] = names
) -> st.SearchStrategy[Timings]:
    """Timings of any hops, whose shares are `numbers` or unknown."""
    share = st.builds(
        HopTiming,
        total_ms=numbers,
        queue_ms=st.none() | numbers,
        first_token_ms=st.none() | numbers,
        generation_ms=st.none() | numbers,
        own_ms=st.none() | numbers,
    )
    return st.dictionaries(hops, share, max_size=3)


tool_call_deltas = st.builds(
    ToolCallDelta,
    index=st.integers(0, 3),
    id=st.none() | texts,
    name=st.none() | texts,
    arguments=texts,
)
deltas: st.SearchStrategy[StreamEvent] = st.one_of(
    st.builds(TextDelta, texts), st.builds(ReasoningDelta, texts), tool_call_deltas
)
started = st.builds(Started, id=texts, model=texts, session_id=st.none() | names)
usages = st.builds(Usage, prompt_tokens=counts, completion_tokens=counts)
finished = st.builds(
    Finished,
    reason=st.sampled_from(FinishReason),
    usage=st.none() | st.builds(Tokens, prompt_tokens=counts, completion_tokens=counts),
    timings=hop_timings(),
)
events: st.SearchStrategy[StreamEvent] = st.one_of(started, deltas, st.just(Heartbeat()), usages, finished)


@st.composite
def streams(draw: st.DrawFn) -> list[StreamEvent]:
    """A whole stream that keeps the contract, without heartbeats."""
    middle: list[StreamEvent] = draw(st.lists(deltas, max_size=6))
    usage = draw(st.none() | usages)
    if usage is not None:
        middle.insert(draw(st.integers(0, len(middle))), usage)
    end = draw(finished)
    if usage is not None and end.usage is None:  # as the contract fills it in
        end = Finished(end.reason, usage.tokens(), end.timings)
    return [draw(started), *middle, end]


def pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """`data` cut at `cuts`, wherever they fall (also to nothing)."""
    places = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


cuts = st.lists(st.integers(0, 2**16), max_size=12)

_messages = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "developer", "user", "assistant", "tool"]), content=texts),
    min_size=1,
    max_size=3,
).map(tuple)
_stops = st.lists(st.text(min_size=1, max_size=20), max_size=4).map(tuple)


def _decimals(low: int, high: int) -> st.SearchStrategy[float | None]:
    """Numbers with at most five decimals, which 32 bits hold, or none."""
    return st.none() | st.integers(low * 100_000, high * 100_000).map(lambda n: n / 100_000)


@st.composite
def requests(draw: st.DrawFn) -> ChatRequest:
    """Any request that is valid."""
    whole = draw(st.booleans())
    session_id = None if whole else draw(st.none() | names)
    return ChatRequest(
        prompt=None if whole else draw(texts.filter(lambda text: bool(text.strip()))),
        messages=draw(_messages) if whole else None,
        model=draw(st.none() | names),
        max_tokens=draw(st.none() | st.integers(1, 2**31 - 1)),
        temperature=draw(_decimals(0, 2)),
        top_p=draw(_decimals(0, 1)),
        presence_penalty=draw(_decimals(-2, 2)),
        frequency_penalty=draw(_decimals(-2, 2)),
        stop=draw(_stops),
        seed=draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
        system=None if whole else draw(st.none() | texts.filter(bool)),
        session_id=session_id,
        memory=draw(st.sampled_from([None, "on"] if session_id else [None, "on", "off"])),
        on_disconnect=draw(st.sampled_from([None, "cancel", "drain"])),
    )
