"""Titan Text's own body format, for what does not speak Converse: `api: titan`.

Amazon's Titan Text models are at their end of life; imported and fine-tuned ones may live on. The format has no roles:
a conversation goes as `User: …` and `Bot: …`, as AWS's guide for Titan writes it, and the system's words before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from backend_lambda.providers.bedrock_converse import Guardrail, split
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import Finished, FinishReason, Started, StreamEvent, TextDelta, Usage
from lambdalm.timings import HopTiming, Timings

OPERATION = "invoke_model_with_response_stream"

_REASONS = {
    "FINISH": FinishReason.STOP,
    "FINISHED": FinishReason.STOP,
    "STOP_CRITERIA_MET": FinishReason.STOP,
    "LENGTH": FinishReason.LENGTH,
    "CONTENT_FILTERED": FinishReason.CONTENT_FILTER,
}
_SPEAKERS = {"user": "User", "assistant": "Bot"}


def parameters(request: ChatRequest, guardrail: Guardrail | None) -> dict[str, Any]:
    """The request, whose `model` is set, as parameters of `invoke_model_with_response_stream`."""
    sampling = {
        "maxTokenCount": request.max_tokens,
        "temperature": request.temperature,
        "topP": request.top_p,
        "stopSequences": list(request.stop) or None,
    }
    body = {
        "inputText": _prompt(request),
        "textGenerationConfig": {name: value for name, value in sampling.items() if value is not None},
    }
    fields: dict[str, Any] = {
        "modelId": request.model,
        "contentType": "application/json",
        "accept": "application/json",
        "body": msgspec.json.encode(body),
    }
    if guardrail is not None:
        fields |= {"guardrailIdentifier": guardrail.id, "guardrailVersion": guardrail.version}
        if guardrail.trace is not None:
            fields["trace"] = guardrail.trace.upper()
    return fields


def _prompt(request: ChatRequest) -> str:
    """One question goes as it is; more go as a conversation whose next line is the model's."""
    system, turns = split(request)
    if not system and len(turns) == 1:
        return "\n".join(turns[0][1])
    lines = [f"{_SPEAKERS[role]}: " + "\n".join(texts) for role, texts in turns]
    return "\n".join([*system, *lines, "Bot:"])


class _Metrics(msgspec.Struct, frozen=True):
    latency: float | None = msgspec.field(default=None, name="invocationLatency")


class _Chunk(msgspec.Struct, frozen=True, rename="camel"):
    output_text: str = ""
    completion_reason: str | None = None
    input_text_token_count: int | None = None
    total_output_text_token_count: int | None = None
    guardrail_action: str | None = msgspec.field(default=None, name="amazon-bedrock-guardrailAction")
    metrics: _Metrics = msgspec.field(default=_Metrics(), name="amazon-bedrock-invocationMetrics")


_chunks = msgspec.json.Decoder(_Chunk)


class Translation:
    """The chunks of one answer as our events. An answer has ended with a `completionReason`."""

    def __init__(self, id: str, model: str, name: str) -> None:
        self._started = Started(id, model)
        self._name = name
        self._begun = False
        self._reason: FinishReason | None = None
        self._prompt_tokens: int | None = None
        self._tokens: int | None = None
        self._timings: Timings = {}

    @property
    def complete(self) -> bool:
        """Nothing more will come."""
        return self._reason is not None

    def events(self, events: Iterable[dict[str, Any]]) -> Iterator[StreamEvent]:
        """What these say; raises LlmError where they make no sense."""
        for event in events:
            if "chunk" in event:
                try:
                    chunk = _chunks.decode(event["chunk"].get("bytes", b""))
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                    raise LlmError(Code.INTERNAL, f"Titan's chunk makes no sense: {error}") from None
                yield from self._chunk(chunk)

    def end(self) -> Iterator[StreamEvent]:
        """There are no more: raises LlmError(UNAVAILABLE) unless the answer had ended."""
        if self._reason is None:
            raise LlmError(Code.UNAVAILABLE, "Bedrock broke off before the answer's end: it is incomplete")
        if self._prompt_tokens is not None or self._tokens is not None:
            yield Usage(self._prompt_tokens, self._tokens)
        yield Finished(self._reason, timings=self._timings)

    def _chunk(self, chunk: _Chunk) -> Iterator[StreamEvent]:
        if not self._begun and (chunk.output_text or chunk.completion_reason):
            self._begun = True
            yield self._started
        if chunk.output_text:
            yield TextDelta(chunk.output_text)
        if chunk.input_text_token_count is not None:
            self._prompt_tokens = chunk.input_text_token_count
        if chunk.metrics.latency is not None:
            self._timings = {self._name: HopTiming(total_ms=chunk.metrics.latency)}
        if chunk.completion_reason is not None:
            blocked = chunk.guardrail_action == "INTERVENED"
            found = _REASONS.get(chunk.completion_reason, FinishReason.STOP)
            self._reason = FinishReason.CONTENT_FILTER if blocked else found
            self._tokens = chunk.total_output_text_token_count
