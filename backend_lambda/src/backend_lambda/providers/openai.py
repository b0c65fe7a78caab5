"""Any OpenAI-style server: vLLM, llama-server, LiteLLM, hosted ones; over `/chat/completions`, always streamed."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from backend_lambda.providers.base import ProviderHealth
from backend_lambda.providers.engine_http import EngineHttp, HttpUrl, Reply, Seconds, Stream
from lambdalm import openai
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.credentials import hidden, read_secret
from lambdalm.errors import Code, LlmError
from lambdalm.events import StreamEvent, join
from lambdalm.foreign_errors import error_answer
from lambdalm.models import ModelInfo

NAME = "openai"
UNNAMED = "default"
"""What the model is called while the server has not said."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An OpenAI-style server; what is None is left to it."""

    base_url: HttpUrl = "http://127.0.0.1:8000/v1"
    model: str | None = None
    api_key: str | None = None
    api_key_file: str | None = None
    connect_timeout: Seconds = 5
    request_timeout: Seconds = 120
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"


def make(config: Config, slots: int) -> OpenAIProvider:
    return OpenAIProvider(config)


class OpenAIProvider:
    """One server, whatever its models."""

    name = NAME

    def __init__(self, config: Config) -> None:
        self._config = config
        self._key = read_secret("provider.openai.api_key", config.api_key, config.api_key_file)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = EngineHttp(NAME, config.base_url, headers, config.connect_timeout, config.request_timeout)
        self._who = f"the server at {config.base_url}"

    def stream(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
        model = request.model or self._config.model
        try:
            with self._http.post("/chat/completions", self._body(request, model), call) as answer:
                if isinstance(answer, Reply):
                    raise self._refusal(answer)
                yield from self._events(answer, call.id, model or UNNAMED)
        except LlmError as error:
            raise hidden(error, self._key).at(NAME) from None

    def health(self) -> ProviderHealth:
        try:
            self._look_at_models()
        except LlmError as error:
            return ProviderHealth(ok=False, detail=error.message)
        return ProviderHealth(ok=True)

    def models(self) -> Sequence[ModelInfo]:
        configured = self._config.model
        try:
            listed = openai.listed_models(self._look_at_models().body, self._who)
        except LlmError:
            listed = []
        found = [ModelInfo(model.id, NAME, model.max_model_len) for model in listed]
        first = [info for info in found if info.id == configured] or [ModelInfo(configured or UNNAMED, NAME)]
        if configured is None and found:
            return found
        return first + [info for info in found if info.id != configured]

    def close(self) -> None:
        pass

    def _body(self, request: ChatRequest, model: str | None) -> bytes:
        config = self._config
        defaults = {name: getattr(config, name) for name in ("temperature", "top_p", "max_tokens")}
        fields: dict[str, Any] = {name: value for name, value in defaults.items() if value is not None}
        fields |= openai.request_fields(request, model)
        if "max_tokens" in fields:
            fields[config.max_tokens_field] = fields.pop("max_tokens")
        return msgspec.json.encode(fields)

    def _events(self, answer: Stream, id: str, model: str) -> Iterator[StreamEvent]:
        if openai.is_whole(answer.content_type, self._who):
            yield from openai.whole_answer(answer.whole(), id, model, self._who)
            return
        reader = openai.ChunkReader(id, model, self._who)
        for chunk in answer.chunks:
            yield from join(reader.feed(chunk))
            if reader.finished:
                return
        yield from reader.close()

    def _refusal(self, reply: Reply) -> LlmError:
        error = error_answer(reply.status, reply.body, self._who, reply.retry_after)
        if error.code is Code.UNAUTHENTICATED:
            hint = "provider.openai.api_key_file (OPENAI_API_KEY_FILE) or OPENAI_API_KEY gives it its key"
            return LlmError(Code.UNAUTHENTICATED, f"{error.message}; {hint}")
        if reply.status == 404 and not self._config.base_url.rstrip("/").endswith("/v1"):
            hint = "provider.openai.base_url (OPENAI_BASE_URL) usually ends in /v1"
            return LlmError(Code.NOT_FOUND, f"{error.message}; {hint}")
        return error

    def _look_at_models(self) -> Reply:
        """A 200; raises LlmError, which never holds the key."""
        try:
            reply = self._http.look("/models")
            if reply.status != 200:
                raise self._refusal(reply)
        except LlmError as error:
            raise hidden(error, self._key) from None
        return reply
