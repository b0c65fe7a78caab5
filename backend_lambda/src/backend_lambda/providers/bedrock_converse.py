"""Bedrock's Converse API, which is the same for all of its models: a ChatRequest as its parameters, events as ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import msgspec

from lambdalm.chat import ChatRequest, Message, invalid
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
)
from lambdalm.timings import HopTiming, Timings

OPERATION = "converse_stream"

_REASONS = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "guardrail_intervened": FinishReason.CONTENT_FILTER,
    "content_filtered": FinishReason.CONTENT_FILTER,
}
_NO_ANSWER = ("malformed_model_output", "malformed_tool_use")
_SYSTEM = ("system", "developer")


class Guardrail(NamedTuple):
    """A guardrail that reads along; `trace` is enabled, disabled or enabled_full, None leaves it to Bedrock."""

    id: str
    version: str
    trace: str | None


def parameters(request: ChatRequest, guardrail: Guardrail | None) -> dict[str, Any]:
    """The request, whose `model` is set, as parameters of `converse_stream`; raises LlmError(INVALID_ARGUMENT)."""
    system, turns = split(request)
    sampling = {
        "maxTokens": request.max_tokens,
        "temperature": request.temperature,
        "topP": request.top_p,
        "stopSequences": list(request.stop) or None,
    }
    fields: dict[str, Any] = {
        "modelId": request.model,
        "messages": [{"role": role, "content": [{"text": text} for text in texts]} for role, texts in turns],
        "inferenceConfig": {name: value for name, value in sampling.items() if value is not None},
    }
    if system:
        fields["system"] = [{"text": text} for text in system]
    if guardrail is not None:
        guard = {"guardrailIdentifier": guardrail.id, "guardrailVersion": guardrail.version, "trace": guardrail.trace}
        fields["guardrailConfig"] = {name: value for name, value in guard.items() if value is not None}
    return fields


def split(request: ChatRequest) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The texts of the system, and the turns of user and assistant, which take turns and start with the user."""
    messages = request.conversation()
    if any(message.role == "tool" for message in messages):
        raise invalid("messages", "Bedrock takes no message of a tool, which would have to say what call it answers")
    system = [message.content for message in messages if message.role in _SYSTEM]
    rest = [message for message in messages if message.role not in _SYSTEM]
    if not rest or rest[0].role != "user":
        raise invalid("messages", "Bedrock wants a conversation that starts with the user")
    return system, [(role, [turn.content for turn in turns]) for role, turns in groupby(rest, key=_role)]


def _role(message: Message) -> str:
    return message.role


class _Part(msgspec.Struct, frozen=True, rename="camel"):
    """A part of an event; what of it is not named here is passed over."""


class _ToolUse(_Part, frozen=True):
    tool_use_id: str
    name: str


class _Start(_Part, frozen=True):
    tool_use: _ToolUse | None = None


class _BlockStart(_Part, frozen=True):
    start: _Start
    content_block_index: int = 0


class _Reasoning(_Part, frozen=True):
    text: str | None = None  # None where it is a signature or redacted


class _ToolInput(_Part, frozen=True):
    input: str = ""


class _Delta(_Part, frozen=True):
    text: str | None = None
    reasoning_content: _Reasoning | None = None
    tool_use: _ToolInput | None = None


class _BlockDelta(_Part, frozen=True):
    delta: _Delta
    content_block_index: int = 0


class _Stop(_Part, frozen=True):
    stop_reason: str


class _Usage(_Part, frozen=True):
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0


class _Metrics(_Part, frozen=True):
    latency_ms: float | None = None


class _Metadata(_Part, frozen=True):
    usage: _Usage | None = None
    metrics: _Metrics = _Metrics()


class _Event(_Part, frozen=True):
    content_block_start: _BlockStart | None = None
    content_block_delta: _BlockDelta | None = None
    message_stop: _Stop | None = None
    metadata: _Metadata | None = None


class Translation:
    """The events of one answer as ours. An answer has ended with `messageStop`; `metadata` comes after it."""

    def __init__(self, id: str, model: str, name: str) -> None:
        self._started = Started(id, model)
        self._name = name
        self._begun = False
        self._tools: dict[int, int] = {}  # content block → tool call
        self._reason: FinishReason | None = None
        self._metadata: _Metadata | None = None

    @property
    def complete(self) -> bool:
        """Nothing more will come."""
        return self._reason is not None and self._metadata is not None

    def events(self, events: Iterable[dict[str, Any]]) -> Iterator[StreamEvent]:
        """What these say; raises LlmError where they make no sense or say that there is no answer."""
        for raw in events:
            try:
                event = msgspec.convert(raw, _Event)
            except msgspec.ValidationError as error:
                raise LlmError(Code.INTERNAL, f"Bedrock's event makes no sense: {error}") from None
            yield from self._event(event)

    def end(self) -> Iterator[StreamEvent]:
        """There are no more: raises LlmError(UNAVAILABLE) unless the answer had ended."""
        if self._reason is None:
            raise LlmError(Code.UNAVAILABLE, "Bedrock broke off before the answer's end: it is incomplete")
        timings: Timings = {}
        if self._metadata is not None:
            usage, latency = self._metadata.usage, self._metadata.metrics.latency_ms
            if usage is not None:
                yield Usage(_prompt_tokens(usage), usage.output_tokens)
            if latency is not None:
                timings = {self._name: HopTiming(total_ms=latency)}
        yield Finished(self._reason, timings=timings)

    def _event(self, event: _Event) -> Iterator[StreamEvent]:
        deltas = list(self._deltas(event))
        if not self._begun and (deltas or event.message_stop):
            self._begun = True
            yield self._started
        yield from deltas
        if event.message_stop is not None:
            self._reason = _reason(event.message_stop.stop_reason)
        if event.metadata is not None:
            self._metadata = event.metadata

    def _deltas(self, event: _Event) -> Iterator[StreamEvent]:
        if event.content_block_start is not None and event.content_block_start.start.tool_use is not None:
            tool = event.content_block_start.start.tool_use
            index = self._tools.setdefault(event.content_block_start.content_block_index, len(self._tools))
            yield ToolCallDelta(index, tool.tool_use_id, tool.name)
        if event.content_block_delta is not None:
            block = event.content_block_delta
            delta = block.delta
            if delta.reasoning_content is not None and delta.reasoning_content.text:
                yield ReasoningDelta(delta.reasoning_content.text)
            if delta.text:
                yield TextDelta(delta.text)
            if delta.tool_use is not None:
                index = self._tools.setdefault(block.content_block_index, len(self._tools))
                yield ToolCallDelta(index, arguments=delta.tool_use.input)


def _reason(stop_reason: str) -> FinishReason:
    if stop_reason in _NO_ANSWER:
        why = f"Bedrock: the model's output makes no sense ({stop_reason}); ask again"
        raise LlmError(Code.INTERNAL, why)
    return _REASONS.get(stop_reason, FinishReason.STOP)


def _prompt_tokens(usage: _Usage) -> int:
    """All of the prompt: Bedrock counts apart what came out of its cache or went into it."""
    return usage.input_tokens + usage.cache_read_input_tokens + usage.cache_write_input_tokens
