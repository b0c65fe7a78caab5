"""Requests, events and answers as protobuf messages, and back; no I/O.

An empty string or list in a proto3 field without presence means that it was not given. `float` on the wire has 32
bits, so that 0.7 arrives as 0.699999988: parameters are rounded to seven significant digits, all that it can hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from lambdalm.chat import ChatRequest, Memory, OnDisconnect, invalid, validate
from lambdalm.errors import Code, LlmError
from lambdalm.events import (
    Answer,
    Finished,
    FinishReason,
    Heartbeat,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    Tokens,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from lambdalm.timings import HopTiming, Timings
from lambdalm_proto.v1 import llm_pb2 as pb

_T = TypeVar("_T")

_FLOATS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
_PARAMETERS = ("max_tokens", *_FLOATS, "seed")
_SHARES = ("queue_ms", "first_token_ms", "generation_ms", "own_ms")

_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
    FinishReason.CONTENT_FILTER: pb.FINISH_REASON_CONTENT_FILTER,
}
_MEMORY: dict[Memory | None, pb.Memory] = {
    None: pb.MEMORY_UNSPECIFIED,
    "on": pb.MEMORY_ON,
    "off": pb.MEMORY_OFF,
}
_MEMORY_BACK = {int(number): memory for memory, number in _MEMORY.items()}
_DISCONNECT: dict[OnDisconnect | None, pb.OnDisconnect] = {
    None: pb.ON_DISCONNECT_UNSPECIFIED,
    "cancel": pb.ON_DISCONNECT_CANCEL,
    "drain": pb.ON_DISCONNECT_DRAIN,
}
_DISCONNECT_BACK = {int(number): policy for policy, number in _DISCONNECT.items()}
_REASONS_BACK: dict[int, FinishReason] = {int(number): reason for reason, number in _REASONS.items()}


def request_to_proto(request: ChatRequest) -> pb.LLMRequest:
    """A request as the edge sends it."""
    parameters = pb.LLMRequest.Parameters(**{name: getattr(request, name) for name in _PARAMETERS}, stop=request.stop)
    return pb.LLMRequest(
        prompt=request.prompt or "",
        parameters=parameters,
        messages=[pb.ChatMessage(role=turn.role, content=turn.content) for turn in request.messages or ()],
        model=request.model or "",
        session_id=request.session_id or "",
        memory=_MEMORY[request.memory],
        on_disconnect=_DISCONNECT[request.on_disconnect],
        system=request.system or "",
    )


def request_from_proto(message: pb.LLMRequest) -> ChatRequest:
    """The request in a message; raises `LlmError(INVALID_ARGUMENT)` that names the field."""
    fields: dict[str, Any] = {
        "prompt": message.prompt or None,
        "messages": [{"role": turn.role, "content": turn.content} for turn in message.messages] or None,
        "model": message.model or None,
        "session_id": message.session_id or None,
        "memory": _known(_MEMORY_BACK, "memory", message.memory),
        "on_disconnect": _known(_DISCONNECT_BACK, "on_disconnect", message.on_disconnect),
        "system": message.system or None,
        "stop": list(message.parameters.stop),
    }
    for name in _PARAMETERS:
        if message.parameters.HasField(name):
            value = getattr(message.parameters, name)
            fields[name] = float(f"{value:.7g}") if name in _FLOATS else value
    try:
        return validate(msgspec.convert(fields, ChatRequest))
    except msgspec.ValidationError as error:
        what, _, where = str(error).rpartition(" - at `$.")
        raise LlmError(Code.INVALID_ARGUMENT, f"{where.rstrip('`')}: {what}") from None


def event_to_proto(event: StreamEvent) -> pb.LLMStreamEvent:
    """An event as the proxy sends it."""
    match event:
        case TextDelta(text):
            return pb.LLMStreamEvent(text_delta=pb.TextDelta(text=text))
        case ReasoningDelta(text):
            return pb.LLMStreamEvent(reasoning_delta=pb.ReasoningDelta(text=text))
        case Heartbeat():
            return pb.LLMStreamEvent(heartbeat=pb.Heartbeat())
        case Started(id, model, session_id):
            return pb.LLMStreamEvent(started=pb.Started(id=id, model=model, session_id=session_id or ""))
        case ToolCallDelta(index, id, name, arguments):
            delta = pb.ToolCallDelta(index=index, id=id, name=name, arguments=arguments)
            return pb.LLMStreamEvent(tool_call_delta=delta)
        case Usage():
            return pb.LLMStreamEvent(usage=usage_to_proto(event.tokens()))
        case Finished(reason, usage, timings):
            end = pb.Finished(reason=_REASONS[reason], usage=usage_to_proto(usage), timings=_timings_to_proto(timings))
            return pb.LLMStreamEvent(finished=end)


def event_from_proto(message: pb.LLMStreamEvent) -> StreamEvent:
    """The event in a message; raises `LlmError(INTERNAL)` for one that this version does not know."""
    match message.WhichOneof("event"):
        case "text_delta":
            return TextDelta(message.text_delta.text)
        case "reasoning_delta":
            return ReasoningDelta(message.reasoning_delta.text)
        case "heartbeat":
            return Heartbeat()
        case "started":
            return Started(message.started.id, message.started.model, message.started.session_id or None)
        case "tool_call_delta":
            delta = message.tool_call_delta
            return ToolCallDelta(delta.index, _given(delta, "id"), _given(delta, "name"), delta.arguments)
        case "usage":
            return Usage(*_counts(message.usage))
        case "finished":
            end = message.finished
            usage = usage_from_proto(end.usage) if end.HasField("usage") else None
            return Finished(_reason(end.reason), usage, _timings_from_proto(end.timings))
    raise LlmError(Code.INTERNAL, "the stream holds an event that this version does not know")


def answer_to_proto(answer: Answer) -> pb.LLMResponse:
    """A whole answer as one message."""
    return pb.LLMResponse(
        id=answer.id,
        model=answer.model,
        text=answer.text,
        reasoning=answer.reasoning or "",
        tool_calls=[
            pb.ToolCall(id=call.id or "", name=call.name or "", arguments=call.arguments) for call in answer.tool_calls
        ],
        finish_reason=_REASONS[answer.finish_reason],
        usage=usage_to_proto(answer.usage),
        timings=_timings_to_proto(answer.timings),
        session_id=answer.session_id or "",
    )


def answer_from_proto(message: pb.LLMResponse) -> Answer:
    """The answer in a message; raises `LlmError(INTERNAL)` for an end that this version does not know."""
    return Answer(
        id=message.id,
        model=message.model,
        text=message.text,
        finish_reason=_reason(message.finish_reason),
        reasoning=message.reasoning or None,
        tool_calls=tuple(ToolCall(call.id or None, call.name or None, call.arguments) for call in message.tool_calls),
        usage=usage_from_proto(message.usage) if message.HasField("usage") else None,
        timings=_timings_from_proto(message.timings),
        session_id=message.session_id or None,
    )


def _known(table: Mapping[int, _T], field: str, number: int) -> _T:
    if number not in table:
        raise invalid(field, f"this version does not know the value {number}")
    return table[number]


def usage_to_proto(usage: Tokens | None) -> pb.Usage | None:
    """Tokens as a message; None where nothing is known."""
    if usage is None:
        return None
    return pb.Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)


def usage_from_proto(usage: pb.Usage) -> Tokens:
    """The tokens in a message."""
    return Tokens(*_counts(usage))


def reason_to_proto(reason: FinishReason | None) -> pb.FinishReason:
    """A finish reason's number."""
    return pb.FINISH_REASON_UNSPECIFIED if reason is None else _REASONS[reason]


def _counts(usage: pb.Usage) -> tuple[int | None, int | None]:
    return _given(usage, "prompt_tokens"), _given(usage, "completion_tokens")


def _given(message: Any, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None


def _reason(number: int) -> FinishReason:
    if number not in _REASONS_BACK:
        raise LlmError(Code.INTERNAL, f"the answer ends with the unknown finish reason {number}")
    return _REASONS_BACK[number]


def _timings_to_proto(timings: Timings) -> list[pb.HopTiming]:
    return [
        pb.HopTiming(hop=hop, total_ms=share.total_ms, **{name: getattr(share, name) for name in _SHARES})
        for hop, share in timings.items()
    ]


def _timings_from_proto(messages: Iterable[pb.HopTiming]) -> Timings:
    return {
        message.hop: HopTiming(message.total_ms, **{name: _given(message, name) for name in _SHARES})
        for message in messages
    }
