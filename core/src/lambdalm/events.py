"""The stream of events that flows through every hop, and its contract.

    StreamEvent = Started | ReasoningDelta | TextDelta | ToolCallDelta | Heartbeat | Usage | Finished

The contract: `Started` first; then deltas; at most one `Usage`; then exactly one end, `Finished` or a failure
(an `LlmError` in process). `Heartbeat` may come anywhere, also before `Started`. A stream that just stops has failed:
nothing that reads one takes its end of input for an end of the answer.

`StreamContract` holds a stream to it, event by event, so that synchronous and asyncio hops share the logic;
`checked` applies it to an iterator, `Collector` folds a stream into one `Answer`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from lambdalm.errors import Code, LlmError
from lambdalm.timings import HopClock, Timings

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""How many tokens; as many as protobuf's int64 holds."""
Index = Annotated[int, Meta(ge=0, le=2**31 - 1)]
"""Which tool call; an int32 of protobuf holds it."""


class FinishReason(enum.StrEnum):
    """Why a generation ended; OpenAI's four values."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class _Event(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type"):
    pass


class Started(_Event, frozen=True, tag="started"):
    """The answer begins. `id` is the request's id, `model` the model that really answers.

    `session_id` names the session that the answer is a turn of, where one remembers it.
    """

    id: str
    model: str
    session_id: str | None = None


class ReasoningDelta(_Event, frozen=True, tag="reasoning_delta"):
    """More of the model's reasoning, which is not part of the answer's text."""

    text: str


class TextDelta(_Event, frozen=True, tag="text_delta"):
    """More of the answer's text. Concatenated, the deltas are the text exactly; how it is cut is not promised."""

    text: str


class ToolCallDelta(_Event, frozen=True, tag="tool_call_delta"):
    """More of the tool call number `index`: `id` and `name` come once, `arguments` (JSON text) in pieces."""

    index: Index
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Heartbeat(_Event, frozen=True, tag="heartbeat"):
    """Nothing has happened, and the stream lives."""


class Tokens(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens spent, as the engine counted them; unknown stays absent and is never zero."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class Usage(_Event, frozen=True, tag="usage"):
    """Tokens spent, as soon as they are known."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None

    def tokens(self) -> Tokens:
        return Tokens(self.prompt_tokens, self.completion_tokens)


class Finished(_Event, frozen=True, tag="finished"):
    """The whole answer has been sent. It repeats the usage, so that the last event alone tells all."""

    reason: FinishReason
    usage: Tokens | None = None
    timings: Timings = {}


Delta = ReasoningDelta | TextDelta | ToolCallDelta
StreamEvent = Started | ReasoningDelta | TextDelta | ToolCallDelta | Heartbeat | Usage | Finished


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A whole tool call; `arguments` is JSON text."""

    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A whole answer: what `/query` gives without `stream`."""

    id: str
    model: str
    text: str
    finish_reason: FinishReason
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Tokens | None = None
    timings: Timings = {}
    session_id: str | None = None


class StreamContract:
    """Holds one stream to the contract. Give it each event (`accept`), and tell it of the end of input (`close`)."""

    def __init__(self) -> None:
        self.started = False
        self.finished = False
        self._usage: Usage | None = None

    def accept(self, event: StreamEvent) -> StreamEvent:
        """Returns the event, or raises `LlmError(INTERNAL)` where the sender broke the contract.

        `Finished` comes out with the usage that went before it.
        """
        if self.finished:
            raise broken(f"{_name(event)} after finished")
        if isinstance(event, Heartbeat):
            return event
        if isinstance(event, Started):
            if self.started:
                raise broken("started twice")
            self.started = True
            return event
        if not self.started:
            raise broken(f"{_name(event)} before started")
        if isinstance(event, Usage):
            if self._usage is not None:
                raise broken("usage twice")
            self._usage = event
        elif isinstance(event, Finished):
            self.finished = True
            if event.usage is None and self._usage is not None:
                return msgspec.structs.replace(event, usage=self._usage.tokens())
        return event

    def close(self) -> None:
        """The input has ended: raises `LlmError(UNAVAILABLE)` unless `Finished` came first."""
        if not self.finished:
            raise LlmError(Code.UNAVAILABLE, "the stream broke off before its end: the answer is incomplete")


def _name(event: StreamEvent) -> str:
    return str(event.__struct_config__.tag)


def broken(what: str) -> LlmError:
    """The INTERNAL of a stream whose sender broke the contract."""
    return LlmError(Code.INTERNAL, f"the stream broke its contract: {what}")


def checked(stream: Iterable[StreamEvent]) -> Iterator[StreamEvent]:
    """The same stream, held to its contract; raises what `StreamContract` raises."""
    contract = StreamContract()
    for event in stream:
        yield contract.accept(event)
    contract.close()


class Collector:
    """Folds a stream that keeps the contract into one `Answer`."""

    def __init__(self) -> None:
        self._started: Started | None = None
        self._finished: Finished | None = None
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._tools: dict[int, ToolCall] = {}

    def add(self, event: StreamEvent) -> None:
        match event:
            case Started():
                self._started = event
            case TextDelta(text):
                self._text.append(text)
            case ReasoningDelta(text):
                self._reasoning.append(text)
            case ToolCallDelta():
                call = self._tools.get(event.index, ToolCall())
                self._tools[event.index] = ToolCall(
                    call.id or event.id, call.name or event.name, call.arguments + event.arguments
                )
            case Finished():
                self._finished = event

    def answer(self) -> Answer:
        """Raises `LlmError(UNAVAILABLE)` when the end has not come."""
        if self._started is None or self._finished is None:
            raise LlmError(Code.UNAVAILABLE, "the stream broke off before its end: the answer is incomplete")
        return Answer(
            id=self._started.id,
            model=self._started.model,
            text="".join(self._text),
            finish_reason=self._finished.reason,
            reasoning="".join(self._reasoning) or None,
            tool_calls=tuple(self._tools[index] for index in sorted(self._tools)),
            usage=self._finished.usage,
            timings=self._finished.timings,
            session_id=self._started.session_id,
        )


def collect(stream: Iterable[StreamEvent]) -> Answer:
    """The whole answer of a stream; raises what the stream raises, and `LlmError` where it breaks the contract."""
    collector = Collector()
    for event in checked(stream):
        collector.add(event)
    return collector.answer()


def replayed(answer: Answer) -> Iterator[StreamEvent]:
    """A whole answer as the stream that it would have been."""
    yield Started(answer.id, answer.model, answer.session_id)
    if answer.reasoning:
        yield ReasoningDelta(answer.reasoning)
    if answer.text:
        yield TextDelta(answer.text)
    for index, tool in enumerate(answer.tool_calls):
        yield ToolCallDelta(index, tool.id, tool.name, tool.arguments)
    if answer.usage is not None:
        yield Usage(answer.usage.prompt_tokens, answer.usage.completion_tokens)
    yield Finished(answer.finish_reason, answer.usage, answer.timings)


def timed(events: Iterable[StreamEvent], clock: HopClock) -> Iterator[StreamEvent]:
    """The same stream, with the time of the hop whose clock this is added to its end."""
    for event in events:
        if isinstance(event, Delta):
            clock.first_delta()
        elif isinstance(event, Finished):
            if event.timings:
                clock.behind = event.timings
            event = msgspec.structs.replace(event, timings=clock.timings())
        yield event


def join(events: Iterable[StreamEvent]) -> Iterator[StreamEvent]:
    """The same stream in fewer events: neighbouring deltas of text become one, and so do those of reasoning.

    When `events` raises, what it gave before comes first.
    """
    texts: list[str] = []
    kind: type[TextDelta] | type[ReasoningDelta] | None = None
    try:
        for event in events:
            if kind is not None and type(event) is not kind:
                yield kind("".join(texts))
                kind, texts = None, []
            if isinstance(event, TextDelta | ReasoningDelta):
                kind = type(event)
                texts.append(event.text)
            else:
                yield event
    except LlmError:
        if kind is not None:
            yield kind("".join(texts))
        raise
    if kind is not None:
        yield kind("".join(texts))
