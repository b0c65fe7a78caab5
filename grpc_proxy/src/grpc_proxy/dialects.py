"""What an upstream may speak: our own `/query`, or OpenAI's chat completions. Codecs only, `upstream.py` does the I/O.

A dialect says what goes where and how to read what comes back. To add one, write its class and name it in `DIALECTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from lambdalm import openai, sse
from lambdalm.chat import ChatRequest, encode_query
from lambdalm.errors import Code, LlmError
from lambdalm.events import (
    Answer,
    StreamContract,
    StreamEvent,
    replayed,
)
from lambdalm.foreign_errors import error_answer
from lambdalm.models import ModelInfo, Models
from lambdalm.stream import ErrorAnswer, EventReader
from lambdalm.timings import Timings

_T = TypeVar("_T")

_NO_LIST = (404, 405, 501)  # a server that lists no models, and lives
_MAX_WHOLE = 16 * 1024 * 1024  # bytes of an answer in one piece


class Refusal(NamedTuple):
    """An HTTP answer other than 200; `retry_after` is in seconds."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    retry_after: float | None = None


class Look(NamedTuple):
    """What a look at an upstream found: None, or why it cannot answer; and what runs there, where it says that."""

    why: str | None
    detail: str = ""


class Failure(NamedTuple):
    """What a refusal says, and where the time went if it says that."""

    error: LlmError
    timings: Timings


class Reader(Protocol):
    """Reads one answer: bytes in, events out, held to their contract. Iterate what a call gives before the next one."""

    @property
    def finished(self) -> bool: ...

    @property
    def timings(self) -> Timings:
        """What the upstream has told of its hops."""
        ...

    def feed(self, chunk: bytes) -> Iterator[StreamEvent]:
        """The events that this chunk completes; raises the LlmError that the answer ends in."""
        ...

    def close(self) -> Iterator[StreamEvent] | None:
        """The input has ended: the events left; raises LlmError unless the answer has ended, too."""
        ...


class Dialect(Protocol):
    """What to send to one upstream, and what its answers mean. Made of the config's `upstream.url`; raises ValueError
    for one that does not fit."""

    origin: str
    """Where errors happened that the upstream does not speak of itself."""
    place: str
    """What it is called where it cannot be reached."""
    ask_url: str
    models_url: str
    health_url: str

    def broke_off(self) -> LlmError:
        """The error of a connection that broke in the middle."""
        ...

    whole: Callable[[bytes], Answer] | None
    """Reads an answer that was asked for without a stream; None where only a stream can be stopped in the middle.
    Raises LlmError."""

    def encode(self, request: ChatRequest, stream: bool) -> bytes:
        """The JSON to POST; without `stream` only where `whole` reads what comes."""
        ...

    def reader(self, content_type: str, id: str, model: str | None) -> Reader:
        """For a 200 answer to the request `id`, which asked for `model`; raises LlmError for what it cannot be."""
        ...

    def failure(self, refusal: Refusal) -> Failure:
        """What an answer other than 200 says."""
        ...

    def look(self, status: int, body: bytes) -> Look:
        """What an answer of `health_url` says."""
        ...

    def models(self, body: bytes) -> list[ModelInfo]:
        """What `models_url` gives; raises LlmError."""
        ...


class Query:
    """Our own: a backend's `POST /query`, also one that does not stream (a Lambda function)."""

    origin = "backend"

    def __init__(self, url: str) -> None:
        base, _, rest = url.rpartition("/query")
        if rest or not base.partition("://")[2]:
            raise ValueError(f"url: {url} must end in /query, as http://127.0.0.1:8500/query does")
        self.place = f"the LLM backend at {base}"
        self.ask_url = url
        self.models_url = f"{base}/models"
        self.health_url = f"{base}/health"
        self.whole: Callable[[bytes], Answer] | None = _answer

    def broke_off(self) -> LlmError:
        why = "the connection to the LLM backend broke off: the answer is incomplete"
        return LlmError(Code.UNAVAILABLE, why, retry_after=1)

    def encode(self, request: ChatRequest, stream: bool) -> bytes:
        return encode_query(request, stream)

    def reader(self, content_type: str, id: str, model: str | None) -> Reader:
        if content_type == sse.CONTENT_TYPE:
            return EventReader()
        if content_type == "application/json":
            return _Checked(_Whole(lambda body: replayed(_answer(body))))
        raise LlmError(Code.INTERNAL, f"the backend answered {content_type} instead of an event stream or JSON")

    def failure(self, refusal: Refusal) -> Failure:
        try:
            answer = msgspec.json.decode(refusal.body, type=ErrorAnswer)
        except (msgspec.MsgspecError, RecursionError):
            return Failure(_foreign(refusal, "the backend"), {})
        return Failure(_advised(answer.error.to_error()), answer.timings)

    def look(self, status: int, body: bytes) -> Look:
        try:
            said = msgspec.json.decode(body, type=_Health)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            said = _Health()
        detail = " ".join(part for part in (said.provider, said.model) if part)
        why = None if status == 200 else f"its /health answers HTTP {status}{said.detail and ': '}{said.detail}"
        return Look(why, detail)

    def models(self, body: bytes) -> list[ModelInfo]:
        return _decoded(body, Models, "the backend's /models").models


class OpenAI:
    """Any OpenAI-style server: vLLM, llama-server, LiteLLM, hosted ones. It is healthy while it lists its models, or
    says that it does not.

    Errors have the words and the origin of the backend's provider `openai`: it does not matter who asked the server.
    """

    origin = "openai"
    whole: Callable[[bytes], Answer] | None = None

    def __init__(self, url: str) -> None:
        base = url.rstrip("/")
        if base.endswith("/chat/completions"):
            raise ValueError(f"url: {url} must be the base without /chat/completions, as http://127.0.0.1:8000/v1 is")
        if base.endswith("/query"):
            raise ValueError(f"url: {url} is a backend's; dialect openai wants a base, as http://127.0.0.1:8000/v1 is")
        self.place = f"openai at {base}"
        self.ask_url = f"{base}/chat/completions"
        self.models_url = self.health_url = f"{base}/models"
        self._who = f"the server at {base}"

    def broke_off(self) -> LlmError:
        why = f"{self.place} broke off in the middle of its answer: the connection was closed"
        return LlmError(Code.UNAVAILABLE, why, retry_after=1)

    def encode(self, request: ChatRequest, stream: bool) -> bytes:
        return openai.encode_request(request, request.model)

    def reader(self, content_type: str, id: str, model: str | None) -> Reader:
        named = model or "default"
        if openai.is_whole(content_type, self._who):
            return _Checked(_Whole(lambda body: openai.whole_answer(body, id, named, self._who)))
        return _Checked(openai.ChunkReader(id, named, self._who))

    def failure(self, refusal: Refusal) -> Failure:
        return Failure(_foreign(refusal, self._who), {})

    def look(self, status: int, body: bytes) -> Look:
        if status == 200 or status in _NO_LIST:
            return Look(None, self.place)
        return Look(f"its /models answers HTTP {status}", self.place)

    def models(self, body: bytes) -> list[ModelInfo]:
        listed = openai.listed_models(body, self._who)
        return [ModelInfo(row.id, self.origin, row.max_model_len) for row in listed]


DIALECTS: dict[str, Callable[[str], Dialect]] = {"query": Query, "openai": OpenAI}
"""`upstream.dialect` → what makes it of `upstream.url`."""


class _Health(msgspec.Struct, frozen=True):
    provider: str = ""
    model: str = ""
    detail: str = ""


class _Plain(Protocol):
    """A reader whose events nobody has checked."""

    def feed(self, data: bytes) -> Iterator[StreamEvent]: ...

    def close(self) -> Iterator[StreamEvent]: ...


class _Checked:
    """The same reader, held to the contract."""

    def __init__(self, reader: _Plain) -> None:
        self.timings: Timings = {}
        self._reader = reader
        self._contract = StreamContract()

    @property
    def finished(self) -> bool:
        return self._contract.finished

    def feed(self, chunk: bytes) -> Iterator[StreamEvent]:
        return map(self._contract.accept, self._reader.feed(chunk))

    def close(self) -> Iterator[StreamEvent]:
        return map(self._contract.accept, self._reader.close())


class _Whole:
    """Reads an answer that comes in one piece, when all of it has come."""

    def __init__(self, decode: Callable[[bytes], Iterator[StreamEvent]]) -> None:
        self._decode = decode
        self._body = bytearray()

    def feed(self, data: bytes) -> Iterator[StreamEvent]:
        self._body += data
        if len(self._body) > _MAX_WHOLE:
            raise LlmError(Code.INTERNAL, f"an answer of more than {_MAX_WHOLE >> 20} MiB")
        return iter(())

    def close(self) -> Iterator[StreamEvent]:
        return self._decode(bytes(self._body))


def _answer(body: bytes) -> Answer:
    """A plain answer of `/query`."""
    return _decoded(body, Answer, "the backend's answer of type application/json")


def _foreign(refusal: Refusal, who: str) -> LlmError:
    return _advised(error_answer(refusal.status, refusal.body, who, refusal.retry_after, refusal.headers))


def _advised(error: LlmError) -> LlmError:
    """What a refusal of the proxy itself wants: it is not the caller who was not let in."""
    if error.code is not Code.UNAUTHENTICATED:
        return error
    hint = "its auth in the config (BACKEND_AUTH, BACKEND_TOKEN_FILE) says how the proxy proves to it who asks"
    return LlmError(error.code, f"{error.message}; {hint}", origin=error.origin)


def _decoded(body: bytes, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise LlmError(Code.INTERNAL, f"{what} cannot be read: {error}") from None
