"""Ollama, over its own `/api/chat`: its OpenAI-style `/v1` cannot set the context window, nor tell errors in a stream.

Here is what goes to Ollama; what it says in answer is read by `ollama_chat`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from backend_lambda.providers.base import ProviderHealth
from backend_lambda.providers.engine_http import EngineHttp, HttpUrl, Reply, Seconds
from backend_lambda.providers.ollama_chat import NAME as NAME
from backend_lambda.providers.ollama_chat import Number, decoded, events_of, lines_of
from lambdalm.call import Call
from lambdalm.chat import ChatRequest, Count, Name, Penalty, Probability, Temperature
from lambdalm.errors import Code, LlmError
from lambdalm.events import StreamEvent
from lambdalm.foreign_errors import error_answer
from lambdalm.models import ModelInfo

_BUSY_SECONDS = 1.0  # until another try makes sense, where Ollama does not say: it never does
_LATEST = ":latest"  # what a model's name means that has no tag


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


def pull(config: Config, model: str, call: Call) -> Generator[PullProgress, None, None]:
    """Let the engine get a model: what `backend-lambda pull` does where a provider's module has it."""
    return OllamaProvider(config).pull(model, call)


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
            for line in lines_of(chunks):
                said = decoded(_pull_decoder, line)
                if said.error is not None:
                    raise _pull_failure(model, said.error)
                yield PullProgress(said.status, said.digest, said.total, said.completed)
                if said.status == "success":
                    return
            raise LlmError(Code.UNAVAILABLE, f"Ollama broke off before it had all of {model!r}; pull it again")

    def health(self) -> ProviderHealth:
        try:
            reply = self._http.look("/api/version")
            if reply.status != 200:
                raise _refusal(reply, self._config.model, self._who)
            decoded(_version_decoder, reply.body)
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
            return [row.name for row in decoded(_tags_decoder, self._http.look("/api/tags").body).models]
        except LlmError:
            return []

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


class _Pull(msgspec.Struct):
    status: str = ""
    digest: str | None = None
    total: Number = None
    completed: Number = None
    error: str | None = None


class _Tag(msgspec.Struct):
    name: str


class _Tags(msgspec.Struct):
    models: list[_Tag]


class _Version(msgspec.Struct):
    version: str


_pull_decoder = msgspec.json.Decoder(_Pull)
_tags_decoder = msgspec.json.Decoder(_Tags)
_version_decoder = msgspec.json.Decoder(_Version)


def _refusal(reply: Reply, model: str, who: str) -> LlmError:
    """What an answer other than 200 means."""
    error = error_answer(reply.status, reply.body, who, reply.retry_after).at(NAME)
    said = error.message.removeprefix(who)  # whose address may hold these words, too
    if reply.status == 404 and "not found" in said:
        hint = f"get it with `ollama pull {model}` or `backend-lambda pull --provider ollama {model}`"
        return LlmError(Code.NOT_FOUND, f"model: {who} has no {model!r}; {hint}", origin=NAME)
    if reply.status == 503 and "busy" in said:
        wait = reply.retry_after or _BUSY_SECONDS
        return LlmError(Code.RESOURCE_EXHAUSTED, error.message, retry_after=wait, origin=NAME)
    return error


def _pull_failure(model: str, why: str) -> LlmError:
    if "file does not exist" in why:  # how Ollama's registry says that it has no such model
        return LlmError(
            Code.NOT_FOUND, f"there is no model {model!r} to pull; https://ollama.com/library has the names"
        )
    return LlmError(Code.UNAVAILABLE, f"Ollama could not pull {model!r}: {why}")
