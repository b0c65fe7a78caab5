"""What a trace tells of one generation, in OpenTelemetry's names for GenAI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/): the model, what it cost and how it ended, no words.
"""

from __future__ import annotations

from collections.abc import Iterator

from lambdalm import tracing
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.events import Finished, Started, StreamEvent, Tokens, Usage
from lambdalm.tracing import Span

_OPERATION = "chat"
_WELL_KNOWN = {"bedrock": "aws.bedrock"}  # providers whose name there is not ours


def chat_span(provider: str, request: ChatRequest, call: Call) -> Span:
    """The span of this provider's answer; it begins now."""
    known = {"gen_ai.operation.name": _OPERATION, "gen_ai.provider.name": _WELL_KNOWN.get(provider, provider)}
    name = _OPERATION
    if request.model is not None:
        known["gen_ai.request.model"] = request.model
        name = _name(request.model)
    return tracing.span(name, "client", call.span.trace, known)


def described(events: Iterator[StreamEvent], span: Span) -> Iterator[StreamEvent]:
    """The same stream; the span learns what it says."""
    return _described(events, span) if span.recording else events


def _described(events: Iterator[StreamEvent], span: Span) -> Iterator[StreamEvent]:
    for event in events:
        match event:
            case Started(_, model):
                span.rename(_name(model))
                span.set({"gen_ai.response.model": model})
            case Usage():
                span.set(_tokens(event.tokens()))
            case Finished(reason):
                span.set({"gen_ai.response.finish_reasons": [reason.value]})
        yield event


def _tokens(counted: Tokens) -> dict[str, int]:
    named = {
        "gen_ai.usage.input_tokens": counted.prompt_tokens,
        "gen_ai.usage.output_tokens": counted.completion_tokens,
    }
    return {name: tokens for name, tokens in named.items() if tokens is not None}


def _name(model: str) -> str:
    return f"{_OPERATION} {model}"
