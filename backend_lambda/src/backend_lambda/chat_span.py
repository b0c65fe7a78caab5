"""What a trace tells of one generation, in OpenTelemetry's names for GenAI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/): the model, what it cost and how it ended, no words.
"""

from __future__ import annotations

from lambdalm import tracing
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.events import Finished, Started, StreamEvent, Tokens, Usage

_OPERATION = "chat"
_WELL_KNOWN = {"bedrock": "aws.bedrock"}  # providers whose name there is not ours


class ChatSpan:
    """The span of one generation of this provider, which begins now; an observer of the generation."""

    def __init__(self, provider: str, request: ChatRequest, call: Call) -> None:
        known = {"gen_ai.operation.name": _OPERATION, "gen_ai.provider.name": _WELL_KNOWN.get(provider, provider)}
        name = _OPERATION
        if request.model is not None:
            known["gen_ai.request.model"] = request.model
            name = _name(request.model)
        self._span = tracing.span(name, "client", call.span.trace, known)

    @property
    def recording(self) -> bool:
        return self._span.recording

    def accept(self, event: StreamEvent) -> None:
        match event:
            case Started(_, model):
                self._span.rename(_name(model))
                self._span.set({"gen_ai.response.model": model})
            case Usage():
                self._span.set(_tokens(event.tokens()))
            case Finished(reason):
                self._span.set({"gen_ai.response.finish_reasons": [reason.value]})

    def end(self, failure: Exception | None) -> None:
        if failure is not None:
            self._span.failed(failure)
        self._span.end()


def _tokens(counted: Tokens) -> dict[str, int]:
    named = {
        "gen_ai.usage.input_tokens": counted.prompt_tokens,
        "gen_ai.usage.output_tokens": counted.completion_tokens,
    }
    return {name: tokens for name, tokens in named.items() if tokens is not None}


def _name(model: str) -> str:
    return f"{_OPERATION} {model}"
