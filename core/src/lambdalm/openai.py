"""OpenAI's chat completions without I/O: a ChatRequest as their request, their chunks as our events.

Read by the backend's providers and by the gRPC proxy. What servers differ in is met here: reasoning comes as
`reasoning_content` or `reasoning`; an error in a stream as `data: {"error": …}` or, from llama-server of 2025, as a
field `error:`; vLLM says `[DONE]` after an error, too, so that `[DONE]` proves nothing; some never say it, so that a
finish_reason is what ends an answer; usage may be missing, and is then unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from lambdalm import sse
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import (
    Count,
    Finished,
    FinishReason,
    Index,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from lambdalm.foreign_errors import error_event

_SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")
_REASONS = {reason.value: reason for reason in FinishReason} | {"function_call": FinishReason.TOOL_CALLS}
_NO_ANSWER = ("abort", "error")  # vLLM's and OpenRouter's finish reasons of an answer that failed

_encoder = msgspec.json.Encoder()


def request_fields(request: ChatRequest, model: str | None) -> dict[str, Any]:
    """The request as OpenAI's fields, streamed and with usage; what it leaves open stays open.

    A developer's message goes as the system's: they mean the same, and few servers know the newer name.
    """
    fields: dict[str, Any] = {
        "messages": [
            {"role": "system" if turn.role == "developer" else turn.role, "content": turn.content}
            for turn in request.conversation()
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if model is not None:
        fields["model"] = model
    if request.max_tokens is not None:
        fields["max_tokens"] = request.max_tokens
    fields |= {name: getattr(request, name) for name in _SAMPLING if getattr(request, name) is not None}
    if request.stop:
        fields["stop"] = list(request.stop)
    return fields


def encode_request(request: ChatRequest, model: str | None) -> bytes:
    """The same as the JSON of `POST /chat/completions`."""
    return _encoder.encode(request_fields(request, model))


class _Function(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, frozen=True):
    index: Index | None = None  # None in an answer that is no stream
    id: str | None = None
    function: _Function = _Function()


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Sequence[_ToolCall] | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None  # in place of delta, in an answer that is no stream
    finish_reason: str | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class Chunk(msgspec.Struct, frozen=True):
    """A chat.completion.chunk, or a whole chat.completion: what of it is used."""

    model: str | None = None
    choices: Sequence[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_chunks = msgspec.json.Decoder(Chunk)


class Translation:
    """The chunks of one answer as events. `who` is what errors call the server, `model` the one that was asked for."""

    def __init__(self, id: str, model: str, who: str) -> None:
        self._id = id
        self._model = model
        self._who = who
        self._begun = False
        self._usage: Usage | None = None
        self._reason: FinishReason | None = None

    def chunk(self, chunk: Chunk) -> Iterator[StreamEvent]:
        """What one chunk says; raises the LlmError that it may be."""
        if chunk.error is not None:
            raise error_event(chunk.error, self._who)
        if chunk.usage is not None:
            self._usage = Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
        for choice in chunk.choices or ():
            if choice.index == 0:
                yield from self._choice(choice, chunk.model)

    def end(self) -> Iterator[StreamEvent]:
        """The server says that this was all: raises `LlmError(UNAVAILABLE)` where the answer has not ended."""
        if self._reason is None:
            raise LlmError(Code.UNAVAILABLE, f"{self._who} broke off before the answer's end: it is incomplete")
        if self._usage is not None:
            yield self._usage
        yield Finished(self._reason)

    def _choice(self, choice: _Choice, model: str | None) -> Iterator[StreamEvent]:
        deltas = list(_deltas(choice.delta or choice.message or _Delta()))
        if not self._begun and (deltas or choice.finish_reason):
            self._begun = True
            yield Started(self._id, model or self._model)
        yield from deltas
        if choice.finish_reason in _NO_ANSWER:
            raise LlmError(Code.UNAVAILABLE, f"{self._who} gave up the answer ({choice.finish_reason})")
        if choice.finish_reason:
            self._reason = _REASONS.get(choice.finish_reason, FinishReason.STOP)


def _deltas(delta: _Delta) -> Iterator[StreamEvent]:
    reasoning, text = delta.reasoning_content or delta.reasoning, delta.content or delta.refusal
    if reasoning:
        yield ReasoningDelta(reasoning)
    if text:
        yield TextDelta(text)
    for place, call in enumerate(delta.tool_calls or ()):
        index = place if call.index is None else call.index
        yield ToolCallDelta(index, call.id, call.function.name, call.function.arguments or "")


class ChunkReader:
    """Reads one stream of chunks: bytes in, events out."""

    def __init__(self, id: str, model: str, who: str) -> None:
        self.finished = False
        self._decoder = sse.Decoder()
        self._translation = Translation(id, model, who)
        self._who = who

    def feed(self, data: bytes) -> Iterator[StreamEvent]:
        """The events that these bytes complete; raises the LlmError that the stream ends in.

        Raises `LlmError(INTERNAL)` for what is no such stream. Iterate it to its end before the next `feed`; what
        comes after the end is not looked at.
        """
        for message in () if self.finished else self._decoder.feed(data):
            if message.data == "[DONE]":
                yield from self._end()
                return
            elif message.event == "error":
                raise self._failure(message.data)
            else:
                yield from self._translation.chunk(_chunk(message.data, self._who))

    def close(self) -> Iterator[StreamEvent]:
        """The input has ended: raises `LlmError(UNAVAILABLE)` unless the answer had."""
        if not self.finished:
            yield from self._end()

    def _end(self) -> Iterator[StreamEvent]:
        yield from self._translation.end()
        self.finished = True

    def _failure(self, data: str) -> LlmError:
        """An `error` message: the error itself, or an object that holds it."""
        try:
            error = msgspec.json.decode(data)
        except (msgspec.DecodeError, RecursionError):
            error = data
        if isinstance(error, dict) and "error" in error:
            error = error["error"]
        return error_event(error, self._who)


def is_whole(content_type: str, who: str) -> bool:
    """Whether an answer of this type comes in one piece, not as a stream; raises `LlmError(INTERNAL)` for neither."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind.endswith("json"):
        return True
    if kind not in ("", sse.CONTENT_TYPE):
        raise LlmError(Code.INTERNAL, f"{who} answered {kind} instead of a chat completion: is the URL right?")
    return False


def whole_answer(body: bytes, id: str, model: str, who: str) -> Iterator[StreamEvent]:
    """The events of an answer that came in one piece, from a server that does not stream; raises LlmError."""
    translation = Translation(id, model, who)
    yield from translation.chunk(_chunk(body, who))
    yield from translation.end()


class ListedModel(msgspec.Struct, frozen=True):
    """A row of `/models`; `max_model_len` is vLLM's, in tokens."""

    id: str
    max_model_len: int | None = None


class _Listed(msgspec.Struct, frozen=True):
    data: list[ListedModel]


def listed_models(body: bytes, who: str) -> list[ListedModel]:
    """What `GET /models` answers; raises `LlmError(INTERNAL)` where it makes no sense."""
    try:
        return msgspec.json.decode(body, type=_Listed).data
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise LlmError(Code.INTERNAL, f"{who} has a /models that makes no sense: {error}") from None


def _chunk(data: str | bytes, who: str) -> Chunk:
    try:
        return _chunks.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise LlmError(Code.INTERNAL, f"{who} sent something that is no chat completion: {error}") from None
