"""Requests: what a caller asks of a model.

`ChatRequest` is what flows through the pipeline. `prompt` adds a turn to the session if there is one; `messages` is a
whole conversation and does not go with a session. `QueryBody` is the JSON of `POST /query`, which both HTTP hops
read and the gRPC proxy writes. Both are strict: unknown fields, wrong types and values out of range are
`LlmError(INVALID_ARGUMENT)` that names the field.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from lambdalm.errors import Code, LlmError

Role = Literal["system", "developer", "user", "assistant", "tool"]
Memory = Literal["on", "off"]
OnDisconnect = Literal["cancel", "drain"]

Temperature = Annotated[float, Meta(ge=0, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
StopText = Annotated[str, Meta(min_length=1, max_length=1024)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
System = Annotated[str, Meta(min_length=1)]

_MAX_STOPS = 16


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Role
    content: str


class ChatRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A prompt or a conversation, and how to answer it. `None` leaves a choice to the engine.

    `max_tokens` counts the answer's tokens; `temperature` is 0 to 2, `top_p` 0 to 1, the penalties −2 to 2. `system`
    goes before a prompt. `session_id`, `memory` and `on_disconnect` are for the gRPC proxy, the hop that remembers.
    """

    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    model: Name | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: tuple[StopText, ...] = ()
    seed: Seed | None = None
    system: System | None = None
    session_id: Name | None = None
    memory: Memory | None = None
    on_disconnect: OnDisconnect | None = None

    def conversation(self) -> tuple[Message, ...]:
        """The messages to answer; a prompt is one message of the user's, after that of the system if there is one."""
        if self.messages is not None:
            return self.messages
        user = Message("user", self.prompt or "")
        return (user,) if self.system is None else (Message("system", self.system), user)


def validate(request: ChatRequest) -> ChatRequest:
    """The same request; raises `LlmError(INVALID_ARGUMENT)` for what types alone cannot refuse."""
    if request.prompt is None and request.messages is None:
        raise invalid("prompt", "is missing: give a prompt, or messages")
    if request.prompt is not None and request.messages is not None:
        raise invalid("messages", "does not go with prompt: give one of the two")
    if request.prompt is not None and not request.prompt.strip():
        raise invalid("prompt", "must not be empty")
    if request.messages is not None and not request.messages:
        raise invalid("messages", "must not be empty")
    if request.messages is not None and request.session_id is not None:
        raise invalid("messages", "is a whole conversation and does not go with session_id: send a prompt")
    if request.messages is not None and request.system is not None:
        raise invalid("system", "does not go with messages: put it among them")
    if request.memory == "off" and request.session_id is not None:
        raise invalid("session_id", "does not go with memory: off")
    if len(request.stop) > _MAX_STOPS:
        raise invalid("stop", f"at most {_MAX_STOPS} texts")
    return request


def invalid(field: str, why: str) -> LlmError:
    """The INVALID_ARGUMENT for one field of a request."""
    return LlmError(Code.INVALID_ARGUMENT, f"{field}: {why}")


class QueryBody(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The JSON of `POST /query`: a ChatRequest, with the aliases and choices of that wire.

    `maxTokens` is an alias of `max_tokens`; `stop` may be one text; `stream` asks for server-sent events.
    """

    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    model: Name | None = None
    max_tokens: Count | None = None
    maxTokens: Count | None = None  # noqa: N815  # the name on the wire
    temperature: Temperature | None = None
    top_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: StopText | tuple[StopText, ...] | None = None
    seed: Seed | None = None
    system: System | None = None
    session_id: Name | None = None
    memory: Memory | None = None
    on_disconnect: OnDisconnect | None = None
    stream: bool = False

    def request(self) -> ChatRequest:
        """The request in it, validated."""
        if self.max_tokens is not None and self.maxTokens is not None and self.max_tokens != self.maxTokens:
            raise invalid("maxTokens", "is an alias of max_tokens: give one of the two")
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        return validate(
            ChatRequest(
                prompt=self.prompt,
                messages=self.messages,
                model=self.model,
                max_tokens=self.max_tokens if self.max_tokens is not None else self.maxTokens,
                temperature=self.temperature,
                top_p=self.top_p,
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
                stop=stop,
                seed=self.seed,
                system=self.system,
                session_id=self.session_id,
                memory=self.memory,
                on_disconnect=self.on_disconnect,
            )
        )


_decoder = msgspec.json.Decoder(QueryBody)
_encoder = msgspec.json.Encoder()


def decode_query(body: bytes) -> QueryBody:
    """Read the body of a `POST /query`; raises `LlmError(INVALID_ARGUMENT)` that names what is wrong."""
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise LlmError(Code.INVALID_ARGUMENT, _readable(str(error))) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise LlmError(Code.INVALID_ARGUMENT, f"the body is not JSON: {error}") from None


def encode_query(request: ChatRequest, stream: bool) -> bytes:
    """A request as the body of a `POST /query`."""
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    return _encoder.encode(QueryBody(**{**fields, "stop": request.stop or None, "stream": stream}))


def _readable(why: str) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.max_tokens`" with the field first: "max_tokens: Expected …"."""
    what, found, where = why.rpartition(" - at `$")
    if not found:
        return why
    return f"{where.rstrip('`').removeprefix('.') or 'the body'}: {what}"
