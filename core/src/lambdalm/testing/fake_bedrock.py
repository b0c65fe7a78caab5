"""A fake Amazon Bedrock: Converse and InvokeModel (Titan Text's format), plain and streamed, in true event streams.

    python -m lambdalm.testing.fake_bedrock --port 8600

Its models are `lambdalm.testing.fake_engine.BEHAVIOURS`, and more that are Bedrock's own: the exceptions that come in a
stream (`EXCEPTIONS`), the ways to stop (`STOPS`) and the refusals (`REFUSALS`). It wants a signature or a bearer token
and does not look what is in it. Wire format: botocore's model of bedrock-runtime, and AWS's "event stream encoding".
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

from lambdalm.testing.fake_engine import BEHAVIOURS, WORDS, FakeEngine, Play, Request, Said, main
from lambdalm.testing.fake_http import Exchange, Reply

EVENT_STREAM = "application/vnd.amazon.eventstream"

EXCEPTIONS = {
    "internal-server": ("internalServerException", "The system encountered an unexpected error."),
    "model-stream-error": ("modelStreamErrorException", "The model stopped talking."),
    "validation": ("validationException", "The model does not like this."),
    "throttling-in-stream": ("throttlingException", "Too many tokens, please wait."),
    "service-unavailable": ("serviceUnavailableException", "Bedrock is unable to process your request."),
    "unheard-of-in-stream": ("somethingNewException", "This is new."),
}
"""Model name → the exception that comes after four words."""

STOPS = {
    reason.replace("_", "-"): reason
    for reason in (
        "end_turn",
        "stop_sequence",
        "max_tokens",
        "model_context_window_exceeded",
        "tool_use",
        "guardrail_intervened",
        "content_filtered",
        "malformed_model_output",
        "malformed_tool_use",
        "unheard_of",
    )
}
"""Model name → the `stopReason` after four words; before `tool_use` there is a tool's call."""


class _Error(NamedTuple):
    status: int
    name: str
    message: str


REFUSALS = {
    "unknown": _Error(400, "ValidationException", "The provided model identifier is invalid."),
    "error-before": _Error(500, "InternalServerException", "The system encountered an unexpected error."),
    "throttle": _Error(429, "ThrottlingException", "Too many requests, please wait before trying again."),
    "on-demand": _Error(
        400,
        "ValidationException",
        "Invocation of model ID on-demand with on-demand throughput isn’t supported. Retry your request with the ID "
        "or ARN of an inference profile that contains this model.",
    ),
    "end-of-life": _Error(
        404,
        "ResourceNotFoundException",
        "This model version has reached the end of its life. Please refer to the AWS documentation for more details.",
    ),
    "access-denied": _Error(
        403, "AccessDeniedException", "You don't have access to the model with the specified model ID."
    ),
    "bad-key": _Error(403, "AccessDeniedException", "Authentication failed: Please make sure your API Key is valid."),
    "bad-request": _Error(400, "ValidationException", "Malformed input request, please reformat."),
    "quota": _Error(400, "ServiceQuotaExceededException", "You have exceeded a quota."),
    "not-found": _Error(404, "ResourceNotFoundException", "Could not resolve the foundation model."),
    "model-timeout": _Error(408, "ModelTimeoutException", "The model took too long."),
    "model-error": _Error(424, "ModelErrorException", "The model failed."),
    "model-not-ready": _Error(429, "ModelNotReadyException", "The model is not ready to serve inference requests."),
    "unavailable": _Error(503, "ServiceUnavailableException", "Bedrock is unable to process your request."),
    "conflict": _Error(400, "ConflictException", "Something else is going on."),
    "expired-token": _Error(403, "ExpiredTokenException", "The security token included in the request is expired"),
    "unknown-client": _Error(
        403, "UnrecognizedClientException", "The security token included in the request is invalid."
    ),
    "bad-signature": _Error(403, "InvalidSignatureException", "The Canonical String should have been: {secrets}"),
    "talkative": _Error(400, "ValidationException", "I do not like {secrets}"),
    "unheard-of-error": _Error(418, "SomethingNewException", "This is new."),
}
"""Model name → the error before a stream; `{secrets}` are what the request was signed with."""

_SECRETS = ("authorization", "x-amz-security-token")


class _Format(Protocol):
    """One of the two APIs: what its answers look like."""

    def opening(self) -> bytes: ...
    def text(self, piece: str) -> bytes: ...
    def reasoning(self, piece: str) -> bytes: ...
    def ending(self, said: Said) -> bytes: ...
    def whole(self, said: Said) -> bytes: ...


class _Asked(Request):
    """A request that knows how it is to be answered."""

    form: _Format
    headers: dict[str, str]


class FakeBedrock(FakeEngine):
    """A fake Bedrock whose models are behaviours and faults."""

    name = "bedrock"
    stream_type = EVENT_STREAM

    def answer(self, exchange: Exchange) -> None:
        asked = exchange.asked
        _, _, path = asked.path.partition("/model/")
        model, _, operation = path.rpartition("/")
        if asked.method != "POST" or operation not in _OPERATIONS:
            return exchange.reply(_refusal(_Error(404, "UnknownOperationException", "")))
        if not asked.headers.get("authorization", "").startswith(("AWS4-HMAC-SHA256 Credential=", "Bearer ")):
            return exchange.reply(_refusal(_Error(403, "MissingAuthenticationTokenException", "Missing token")))
        read, form, stream = _OPERATIONS[operation]
        try:
            prompt, max_tokens = read(json.loads(asked.body))
        except (ValueError, LookupError, TypeError) as error:
            return exchange.reply(_refusal(_Error(400, "ValidationException", f"bad request: {error!r}")))
        request = _Asked(unquote(model), prompt, max_tokens, stream)
        request.form, request.headers = form, asked.headers
        return self.play(request, exchange)

    def play(self, request: Request, exchange: Exchange) -> None:
        if request.model in _MORE:
            _MORE[request.model](Play(self, request, exchange))
        else:
            super().play(request, exchange)

    def opening(self, request: Request) -> bytes:
        return _format(request).opening()

    def text(self, request: Request, piece: str) -> bytes:
        return _format(request).text(piece)

    def reasoning(self, request: Request, piece: str) -> bytes:
        return _format(request).reasoning(piece)

    def ending(self, request: Request, said: Said) -> bytes:
        return _format(request).ending(said)

    def whole(self, request: Request, said: Said) -> bytes:
        return _format(request).whole(said)

    def failure(self, request: Request) -> bytes:
        return exception(*EXCEPTIONS.get(request.model, EXCEPTIONS["model-stream-error"]))

    def garbage(self, request: Request) -> bytes:
        """A frame whose payload is not the one that was summed up."""
        frame = bytearray(event("contentBlockDelta", {"delta": {"text": "lost"}, "contentBlockIndex": 0}))
        frame[-6] ^= 1
        return bytes(frame)

    def refusal(self, request: Request, why: str) -> Reply:
        assert isinstance(request, _Asked)
        return _refusal(REFUSALS[why], request.headers)


def event(type: str, payload: Any) -> bytes:
    """A frame with an event."""
    headers = {":message-type": "event", ":event-type": type, ":content-type": "application/json"}
    return frame(headers, json.dumps(payload).encode())


def exception(type: str, message: str) -> bytes:
    """A frame with an exception."""
    headers = {":message-type": "exception", ":exception-type": type, ":content-type": "application/json"}
    return frame(headers, json.dumps({"message": message}).encode())


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """A frame of an event stream: lengths, their CRC, headers (all of them text), payload, CRC of all before."""
    return sealed(b"".join(_header(name.encode(), value.encode()) for name, value in headers.items()), payload)


def sealed(head: bytes, payload: bytes) -> bytes:
    """A frame whose headers are encoded already."""
    prelude = struct.pack("!II", 12 + len(head) + len(payload) + 4, len(head))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + head + payload
    return message + struct.pack("!I", zlib.crc32(message))


def _header(name: bytes, value: bytes) -> bytes:
    return struct.pack("!B", len(name)) + name + struct.pack("!BH", 7, len(value)) + value


_CONVERSE_REASONS = {"stop": "end_turn", "length": "max_tokens", "content_filter": "content_filtered"}
_TITAN_REASONS = {"stop": "FINISH", "length": "LENGTH", "content_filter": "CONTENT_FILTERED"}


class _Converse:
    def opening(self) -> bytes:
        return event("messageStart", {"role": "assistant"})

    def text(self, piece: str) -> bytes:
        return event("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"text": piece}})

    def reasoning(self, piece: str) -> bytes:
        return event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": piece}}})

    def ending(self, said: Said) -> bytes:
        end = event("contentBlockStop", {"contentBlockIndex": 1})
        if said.reason == "tool_use":
            end += _tool_call()
        metadata: dict[str, Any] = {"metrics": {"latencyMs": _milliseconds(said)}}
        if said.tokens is not None:
            metadata["usage"] = _usage(said.tokens)
        stop = {"stopReason": _CONVERSE_REASONS.get(said.reason, said.reason)}
        return end + event("messageStop", stop) + event("metadata", metadata)

    def whole(self, said: Said) -> bytes:
        content: list[dict[str, Any]] = [{"text": said.text}]
        if said.reasoning:
            content.insert(0, {"reasoningContent": {"reasoningText": {"text": said.reasoning}}})
        answer: dict[str, Any] = {
            "output": {"message": {"role": "assistant", "content": content}},
            "stopReason": _CONVERSE_REASONS.get(said.reason, said.reason),
            "metrics": {"latencyMs": _milliseconds(said)},
        }
        if said.tokens is not None:
            answer["usage"] = _usage(said.tokens)
        return json.dumps(answer).encode()


def _milliseconds(said: Said) -> int:
    return round(said.seconds * 1000)


class _Titan:
    def opening(self) -> bytes:
        return b""

    def text(self, piece: str) -> bytes:
        return self._chunk({"outputText": piece, "index": 0, "completionReason": None})

    def reasoning(self, piece: str) -> bytes:
        return b""  # Titan Text has none

    def ending(self, said: Said) -> bytes:
        last: dict[str, Any] = {"outputText": "", "index": 0, "completionReason": self._reason(said)}
        last["amazon-bedrock-invocationMetrics"] = {"invocationLatency": _milliseconds(said)}
        if said.tokens is not None:
            last["inputTextTokenCount"], last["totalOutputTextTokenCount"] = said.tokens
        return self._chunk(last)

    def whole(self, said: Said) -> bytes:
        result: dict[str, Any] = {"outputText": said.text, "completionReason": self._reason(said)}
        answer: dict[str, Any] = {"results": [result]}
        if said.tokens is not None:
            answer["inputTextTokenCount"], result["tokenCount"] = said.tokens
        return json.dumps(answer).encode()

    def _reason(self, said: Said) -> str:
        return _TITAN_REASONS.get(said.reason, said.reason.upper())

    def _chunk(self, chunk: dict[str, Any]) -> bytes:
        return event("chunk", {"bytes": base64.b64encode(json.dumps(chunk).encode()).decode()})


def _tool_call() -> bytes:
    start = {"contentBlockIndex": 2, "start": {"toolUse": {"toolUseId": "t1", "name": "weather"}}}
    pieces = [{"contentBlockIndex": 2, "delta": {"toolUse": {"input": piece}}} for piece in ('{"city": ', '"Rome"}')]
    return event("contentBlockStart", start) + b"".join(event("contentBlockDelta", piece) for piece in pieces)


def _usage(tokens: tuple[int, int]) -> dict[str, int]:
    prompt, completion = tokens
    return {"inputTokens": prompt, "outputTokens": completion, "totalTokens": prompt + completion}


def _read_converse(body: dict[str, Any]) -> tuple[str, int | None]:
    last = "".join(block["text"] for block in body["messages"][-1]["content"])
    return last, body.get("inferenceConfig", {}).get("maxTokens")


def _read_titan(body: dict[str, Any]) -> tuple[str, int | None]:
    return body["inputText"], body.get("textGenerationConfig", {}).get("maxTokenCount")


_Reader = Callable[[dict[str, Any]], tuple[str, int | None]]
_OPERATIONS: dict[str, tuple[_Reader, _Format, bool]] = {
    "converse": (_read_converse, _Converse(), False),
    "converse-stream": (_read_converse, _Converse(), True),
    "invoke": (_read_titan, _Titan(), False),
    "invoke-with-response-stream": (_read_titan, _Titan(), True),
}


def _format(request: Request) -> _Format:
    assert isinstance(request, _Asked)
    return request.form


def _refusal(error: _Error, headers: dict[str, str] | None = None) -> Reply:
    secrets = " and ".join(value for name, value in (headers or {}).items() if name in _SECRETS)
    message = error.message.replace("{secrets}", secrets)
    said = (("x-amzn-errortype", f"{error.name}:http://internal.amazon.com/coral/com.amazon.bedrock/"),)
    return Reply(error.status, json.dumps({"message": message}).encode(), headers=said)


def _stops(reason: str) -> Callable[[Play], None]:
    def behave(play: Play) -> None:
        play.start()
        play.say(*WORDS)
        play.end(reason)

    return behave


def _refuses(why: str) -> Callable[[Play], None]:
    return lambda play: play.refuse(why)


_MORE: dict[str, Callable[[Play], None]] = {
    **dict.fromkeys(EXCEPTIONS, BEHAVIOURS["error-in-stream"]),
    **{model: _stops(reason) for model, reason in STOPS.items()},
    **{model: _refuses(model) for model in REFUSALS},
}


if __name__ == "__main__":
    main(FakeBedrock, 8600)
