"""Ollama, over its own `/api/chat`: its OpenAI-style `/v1` cannot set the context window, nor tell errors in a stream.

An answer is lines of JSON; the one with `done: true` is its end, and an answer without it is incomplete (Ollama's
runner just stops when a model says the same token again and again). An error in the middle is a line of its own, at
HTTP 200. Values that are zero are left out, so a count that is not there is unknown: a prompt that was cached has none.

`events_of` translates without I/O; the provider brings the bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from backend_lambda.providers.base import ModelInfo, ProviderHealth
from backend_lambda.providers.engine_http import EngineHttp, HttpUrl, Reply, Seconds, check_call
from backend_lambda.providers.think_tags import ThinkTags
from lambdalm import ndjson
from lambdalm.call import Call
from lambdalm.chat import ChatRequest, Count, Name, Penalty, Probability, Temperature
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
    join,
)
from lambdalm.foreign_errors import error_answer, error_event
from lambdalm.timings import HopTiming, Timings

NAME = "ollama"

_BUSY_SECONDS = 1.0  # until another try makes sense, where Ollama does not say: it never does
_LATEST = ":latest"  # what a model's name means that has no tag

_T = TypeVar("_T")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An Ollama server; the values from `temperature` on are for requests that have none.

    `connect_timeout` and `request_timeout`, the time that may pass without a byte, are in seconds; `keep_alive`, how
    long the model stays loaded, is a duration of Go's; `context_window` is in tokens, prompt and answer together.
    """

    base_url: HttpUrl = "http://127.0.0.1:11434"
    model: Name = "llama3.2"
    connect_timeout: Seconds = 5
    request_timeout: Seconds = 120
    keep_alive: Annotated[str, Meta(pattern=r"^(0|-?([0-9.]+(ms|s|m|h))+)$")] = "5m"
    temperature: Temperature = 0.7
    max_tokens: Count = 2048
    top_p: Probability = 0.95
    presence_penalty: Penalty = 0
    frequency_penalty: Penalty = 0
    context_window: Annotated[int, Meta(ge=64)] = 8192


class PullProgress(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far the download of a model is: `total` and `completed` are bytes of the layer `digest`."""

    status: str = ""
    digest: str | None = None
    total: int | None = None
    completed: int | None = None


def make(config: Config, slots: int) -> OllamaProvider:
    return OllamaProvider(config)


class OllamaProvider:
    """One Ollama server, any of its models."""

    name = NAME

    def __init__(self, config: Config) -> None:
        self._config = config
        self._http = EngineHttp(NAME, config.base_url, {}, config.connect_timeout, config.request_timeout)
        self._who = f"Ollama at {config.base_url}"

    def stream(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
        model = request.model or self._config.model
        with self._ask("/api/chat", _body(self._config, model, request), call) as chunks:
            yield from events_of(chunks, call.id, model)

    def pull(self, model: str, call: Call) -> Generator[PullProgress, None, None]:
        """Let Ollama download `model`; raises LlmError, also when the progress ends without success.

        To close it, or to stop the call, stops the download; the next one goes on from there.
        """
        with self._ask("/api/pull", {"model": model, "stream": True}, call) as chunks:
            for line in _lines(chunks):
                said = _decode(_pull_decoder, line)
                if said.error is not None:
                    raise _pull_failure(model, said.error)
                yield PullProgress(said.status, said.digest, said.total, said.completed)
                if said.status == "success":
                    return
            raise LlmError(Code.UNAVAILABLE, f"Ollama broke off before it had all of {model!r}; pull it again")

    def health(self) -> ProviderHealth:
        try:
            reply = self._look("/api/version")
            if reply.status != 200:
                raise _refusal(reply, self._config.model, self._who)
            _decode(_version_decoder, reply.body)
        except LlmError as error:
            return ProviderHealth(False, f"{error.message}; start `ollama serve`, or say where it is with OLLAMA_URL")
        return ProviderHealth(ok=True)

    def models(self) -> Sequence[ModelInfo]:
        default = self._config.model
        names = {name.removesuffix(_LATEST): None for name in self._installed()}
        names.pop(default.removesuffix(_LATEST), None)
        return [ModelInfo(name, NAME, self._config.context_window) for name in (default, *names)]

    def close(self) -> None:
        """Each exchange has closed its own connection."""

    def _installed(self) -> list[str]:
        try:
            return [row.name for row in _decode(_tags_decoder, self._look("/api/tags").body).models]
        except LlmError:
            return []

    def _look(self, path: str) -> Reply:
        try:
            return self._http.get(path, check_call(NAME))
        except LlmError as error:
            if error.code is not Code.DEADLINE_EXCEEDED:
                raise
        raise LlmError(Code.UNAVAILABLE, f"{self._who} does not answer", origin=NAME)

    @contextlib.contextmanager
    def _ask(self, path: str, body: dict[str, Any], call: Call) -> Iterator[Iterator[bytes]]:
        """The bytes of a 200; raises what any other answer means."""
        try:
            with self._http.post(path, msgspec.json.encode(body), call) as answer:
                if isinstance(answer, Reply):
                    raise _refusal(answer, body["model"], self._who)
                yield answer.chunks
        except LlmError as error:
            raise error.at(NAME) from None


def _body(config: Config, model: str, request: ChatRequest) -> dict[str, Any]:
    """The request as Ollama takes it. It knows no `developer`, which is OpenAI's newer name of `system`."""
    options: dict[str, Any] = {
        "num_ctx": config.context_window,
        "num_predict": request.max_tokens or config.max_tokens,
    }
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        value = getattr(request, name)
        options[name] = getattr(config, name) if value is None else value
    if request.seed is not None:
        options["seed"] = request.seed
    if request.stop:
        options["stop"] = list(request.stop)
    turns = [(turn.role, turn.content) for turn in request.conversation()]
    return {
        "model": model,
        "messages": [{"role": "system" if role == "developer" else role, "content": text} for role, text in turns],
        "stream": True,
        "keep_alive": config.keep_alive,
        "options": options,
    }


def events_of(chunks: Iterable[bytes], id: str, model: str) -> Iterator[StreamEvent]:
    """The events of one answer of `/api/chat`, joined for each chunk; raises LlmError for one that fails.

    `model` is the one that was asked for, where the answer does not name it.
    """
    translation = _Translation(id, model)
    for lines in _batches(chunks):
        yield from join(translation.events(lines))
        if translation.finished:
            return
    why = "Ollama broke off without saying that it was done: the answer is incomplete"
    raise LlmError(Code.UNAVAILABLE, why, origin=NAME)


# What Ollama says, as far as it is read. Any of it may be left out, or null.

_Number = Annotated[int, Meta(ge=0, le=2**63 - 1)] | None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _ToolCall(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Line(msgspec.Struct):
    """A line of an answer; durations are in nanoseconds."""

    model: str | None = None
    message: _Message | None = None
    error: Any = None
    done: bool = False
    done_reason: str | None = None
    total_duration: _Number = None
    load_duration: _Number = None
    prompt_eval_count: _Number = None
    prompt_eval_duration: _Number = None
    eval_count: _Number = None
    eval_duration: _Number = None


class _Pull(msgspec.Struct):
    status: str = ""
    digest: str | None = None
    total: _Number = None
    completed: _Number = None
    error: str | None = None


class _Tag(msgspec.Struct):
    name: str


class _Tags(msgspec.Struct):
    models: list[_Tag]


class _Version(msgspec.Struct):
    version: str


_line_decoder = msgspec.json.Decoder(_Line)
_pull_decoder = msgspec.json.Decoder(_Pull)
_tags_decoder = msgspec.json.Decoder(_Tags)
_version_decoder = msgspec.json.Decoder(_Version)


class _Translation:
    """Ollama's lines as our events; one for each answer."""

    def __init__(self, id: str, model: str) -> None:
        self.finished = False
        self._id = id
        self._model = model
        self._started = False
        self._tags: ThinkTags | None = ThinkTags()  # until the engine itself tells the reasoning apart
        self._tool_calls = 0

    def events(self, lines: Iterable[bytes]) -> Iterator[StreamEvent]:
        """What these lines say, up to the one that is the end."""
        for line in lines:
            said = _decode(_line_decoder, line)
            if said.error is not None:
                raise error_event(said.error, "Ollama").at(NAME)
            if not self._started:
                self._started = True
                yield Started(self._id, said.model or self._model)
            if said.message is not None:
                yield from self._message(said.message)
            if said.done:
                yield from self._end(said)
                return

    def _message(self, message: _Message) -> Iterator[StreamEvent]:
        if message.thinking:
            yield from self._untagged()
            yield ReasoningDelta(message.thinking)
        if message.content:
            yield from self._tags.feed(message.content) if self._tags else [TextDelta(message.content)]
        for call in message.tool_calls or ():
            yield from self._untagged()
            function = call.function
            yield ToolCallDelta(self._tool_calls, call.id, function.name, _json_text(function.arguments))
            self._tool_calls += 1

    def _untagged(self) -> Iterator[StreamEvent]:
        """Look for tags no longer."""
        if self._tags is not None:
            yield from self._tags.close()
            self._tags = None

    def _end(self, line: _Line) -> Iterator[StreamEvent]:
        yield from self._untagged()
        if line.prompt_eval_count or line.eval_count:
            yield Usage(line.prompt_eval_count or None, line.eval_count or None)
        self.finished = True
        yield Finished(self._reason(line.done_reason), timings=_timings(line))

    def _reason(self, done_reason: str | None) -> FinishReason:
        """Ollama's other reasons (`load`, `unload`, none) are no reason to call an answer anything but whole."""
        if done_reason == "length":
            return FinishReason.LENGTH
        return FinishReason.TOOL_CALLS if self._tool_calls else FinishReason.STOP


def _timings(line: _Line) -> Timings:
    """The engine as a hop of its own. Its `load_duration` begins with the request and so has the wait in it."""
    if not line.total_duration:
        return {}
    load, prompt = line.load_duration, line.prompt_eval_duration
    share = HopTiming(
        total_ms=_ms(line.total_duration),
        queue_ms=_ms(load) if load else None,
        first_token_ms=_ms((load or 0) + prompt) if prompt else None,
        generation_ms=_ms(line.eval_duration) if line.eval_duration else None,
    )
    return {NAME: share}


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 3)


def _batches(chunks: Iterable[bytes]) -> Iterator[Iterator[bytes]]:
    """The lines that came together, and at last what had no end of line. Iterate each to its end before the next."""
    decoder = ndjson.Decoder()
    for chunk in chunks:
        yield decoder.feed(chunk)
    yield decoder.close()


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    for lines in _batches(chunks):
        yield from lines


def _decode(decoder: msgspec.json.Decoder[_T], data: bytes) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LlmError(Code.INTERNAL, f"Ollama said something that makes no sense: {error}", origin=NAME) from None


def _json_text(raw: msgspec.Raw) -> str:
    """The JSON as it was sent. Raw is not looked at when it is decoded, so that this is where bad UTF-8 shows."""
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError:
        raise LlmError(Code.INTERNAL, "Ollama sent a tool call that is not UTF-8", origin=NAME) from None


def _refusal(reply: Reply, model: str, who: str) -> LlmError:
    """What an answer other than 200 means."""
    error = error_answer(reply.status, reply.body, who, reply.retry_after).at(NAME)
    if reply.status == 404 and "not found" in error.message:
        hint = f"get it with `ollama pull {model}` or `backend-lambda pull {model}`"
        return LlmError(Code.NOT_FOUND, f"model: {who} has no {model!r}; {hint}", origin=NAME)
    if reply.status == 503 and "busy" in error.message:
        wait = reply.retry_after or _BUSY_SECONDS
        return LlmError(Code.RESOURCE_EXHAUSTED, error.message, retry_after=wait, origin=NAME)
    return error


def _pull_failure(model: str, why: str) -> LlmError:
    if "file does not exist" in why:  # how Ollama's registry says that it has no such model
        return LlmError(
            Code.NOT_FOUND, f"there is no model {model!r} to pull; https://ollama.com/library has the names"
        )
    return LlmError(Code.UNAVAILABLE, f"Ollama could not pull {model!r}: {why}")
