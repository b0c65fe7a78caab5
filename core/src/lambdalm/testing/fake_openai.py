"""A fake OpenAI-style server: `/v1/chat/completions`, `/v1/models` and `/health`, with vLLM's ways.

    python -m lambdalm.testing.fake_openai --port 8000

Its models are `lambdalm.testing.fake_engine.BEHAVIOURS`. It sends usage only where it was asked for
(`stream_options.include_usage`), reasoning as `reasoning_content`, and after an error in a stream it says
`[DONE]` all the same, as vLLM does. With `error_field` such an error is llama-server's `error:` field of 2025.
With `key` it wants that bearer token. Wire format: OpenAI's API reference; vLLM 0.33 and llama-server for errors.
"""

from __future__ import annotations

import json
from typing import Any

from lambdalm.testing.fake_engine import BEHAVIOURS, FakeEngine, Request, Said, main, now
from lambdalm.testing.fake_http import Exchange, Reply


class FakeOpenAI(FakeEngine):
    """A fake OpenAI-style server whose models are behaviours and faults."""

    name = "openai"
    stream_type = "text/event-stream"

    def __init__(self, port: int = 0, key: str | None = None, error_field: bool = False) -> None:
        super().__init__(port)
        self._key = key
        self._error_field = error_field

    def answer(self, exchange: Exchange) -> None:
        asked = exchange.asked
        if asked.path == "/health":
            exchange.reply(Reply(200, b"{}"))
        elif self._key is not None and asked.headers.get("authorization") != f"Bearer {self._key}":
            exchange.reply(_error(401, "Incorrect API key provided", "invalid_request_error"))
        elif asked.path == "/v1/models":
            exchange.reply(Reply(200, _models()))
        elif asked.path == "/v1/chat/completions":
            self._chat(exchange)
        else:
            exchange.reply(_error(404, "Not Found", "not_found_error"))

    def _chat(self, exchange: Exchange) -> None:
        try:
            body = json.loads(exchange.asked.body)
            last = body["messages"][-1]["content"]
        except (ValueError, LookupError, TypeError) as error:
            return exchange.reply(_error(400, f"bad request: {error!r}", "invalid_request_error"))
        stream = bool(body.get("stream"))
        counted = not stream or bool((body.get("stream_options") or {}).get("include_usage"))
        request = Request(body.get("model", "echo"), last, body.get("max_tokens"), stream, counted)
        return self.play(request, exchange)

    def opening(self, request: Request) -> bytes:
        return _chunk(request, {"role": "assistant", "content": ""})

    def text(self, request: Request, piece: str) -> bytes:
        return _chunk(request, {"content": piece})

    def reasoning(self, request: Request, piece: str) -> bytes:
        return _chunk(request, {"reasoning_content": piece})

    def ending(self, request: Request, said: Said) -> bytes:
        end = _chunk(request, {}, said.reason)
        if said.tokens is not None:
            end += _data({**_head(request, "chat.completion.chunk"), "choices": [], "usage": _usage(said.tokens)})
        return end + b"data: [DONE]\n\n"

    def whole(self, request: Request, said: Said) -> bytes:
        message = {"role": "assistant", "content": said.text}
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        answer = _head(request, "chat.completion")
        answer["choices"] = [{"index": 0, "message": message, "finish_reason": said.reason}]
        if said.tokens is not None:
            answer["usage"] = _usage(said.tokens)
        return json.dumps(answer).encode()

    def failure(self, request: Request) -> bytes:
        error = {"message": "the engine died", "type": "InternalServerError", "param": None, "code": 500}
        if self._error_field:
            return b"error: %b\n\n" % json.dumps(error).encode()
        return _data({"error": error}) + b"data: [DONE]\n\n"

    def garbage(self, request: Request) -> bytes:
        return b'data: {"choices": [{"delta": \n\n'

    def refusal(self, request: Request, why: str) -> Reply:
        if why == "throttle":
            busy = _error(429, "Too many requests", "rate_limit_error")
            return busy._replace(headers=(("Retry-After", "2"),))
        if why == "unknown":
            return _error(404, f"The model `{request.model}` does not exist.", "NotFoundError")
        return _error(500, "the engine is not well", "InternalServerError")


def _head(request: Request, kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-fake", "object": kind, "created": now(), "model": request.model}


def _chunk(request: Request, delta: dict[str, str], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return _data({**_head(request, "chat.completion.chunk"), "choices": [choice]})


def _data(value: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(value).encode()


def _usage(tokens: tuple[int, int]) -> dict[str, int]:
    prompt, completion = tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _error(status: int, message: str, type: str) -> Reply:
    body = {"error": {"message": message, "type": type, "param": None, "code": status}}
    return Reply(status, json.dumps(body).encode())


def _models() -> bytes:
    rows = [{"id": name, "object": "model", "created": now(), "owned_by": "lambdalm"} for name in BEHAVIOURS]
    return json.dumps({"object": "list", "data": rows}).encode()


if __name__ == "__main__":
    main(FakeOpenAI, 8000)
