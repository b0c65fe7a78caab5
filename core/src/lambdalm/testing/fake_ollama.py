"""A fake Ollama: `/api/chat`, `/api/generate`, `/api/pull`, `/api/show`, `/api/tags`, `/api/ps` and `/api/version`.

    python -m lambdalm.testing.fake_ollama --port 11434

Its models are `lambdalm.testing.fake_engine.BEHAVIOURS`. As the real one does, it streams unless it is asked not to,
leaves out every value that is zero, and says an error in the middle of a stream as one more line at HTTP 200. It has no
content filter: such an answer just stops. Models whose name begins with `unknown` cannot be pulled.
Wire format: Ollama 0.33's `api/types.go` and `server/routes.go`.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from lambdalm.testing.fake_engine import BEHAVIOURS, FakeEngine, Request, Said, main
from lambdalm.testing.fake_http import Exchange, Reply

VERSION = "0.33.0"
LAYER_BYTES = 2048
"""The size of what `/api/pull` pretends to download."""

_DIGEST = f"sha256:{'1a' * 32}"
_NDJSON = "application/x-ndjson"
_JSON = "application/json; charset=utf-8"

_T = TypeVar("_T")


class _Turn(msgspec.Struct):
    role: str
    content: str = ""


class _Chat(msgspec.Struct):
    model: str
    messages: list[_Turn] = []
    stream: bool | None = None
    options: dict[str, Any] = {}


class _Generate(msgspec.Struct):
    model: str
    prompt: str = ""
    stream: bool | None = None
    options: dict[str, Any] = {}


class _Named(msgspec.Struct):
    model: str
    stream: bool | None = None


class _GenerateRequest(Request):
    """A request of `/api/generate`, whose lines have the text in another place."""


class FakeOllama(FakeEngine):
    """A fake Ollama whose models are behaviours and faults."""

    name = "ollama"
    stream_type = _NDJSON

    def answer(self, exchange: Exchange) -> None:
        asked = exchange.asked
        routes: dict[tuple[str, str], Callable[[Exchange], None]] = {
            ("POST", "/api/chat"): self._chat,
            ("POST", "/api/generate"): self._generate,
            ("POST", "/api/pull"): _pull,
            ("POST", "/api/show"): _show,
        }
        route = routes.get((asked.method, asked.path))
        try:
            if route is not None:
                route(exchange)
            else:
                exchange.reply(_look(asked.method, asked.path))
        except msgspec.MsgspecError as error:
            exchange.reply(_error(400, str(error)))

    def _chat(self, exchange: Exchange) -> None:
        asked = msgspec.json.decode(exchange.asked.body, type=_Chat)
        prompt = asked.messages[-1].content if asked.messages else ""
        self.play(Request(_bare(asked.model), prompt, _most(asked.options), asked.stream is not False), exchange)

    def _generate(self, exchange: Exchange) -> None:
        asked = msgspec.json.decode(exchange.asked.body, type=_Generate)
        most, stream = _most(asked.options), asked.stream is not False
        self.play(_GenerateRequest(_bare(asked.model), asked.prompt, most, stream), exchange)

    def opening(self, request: Request) -> bytes:
        return b""

    def text(self, request: Request, piece: str) -> bytes:
        return _line({**_said(request, piece), "done": False})

    def reasoning(self, request: Request, piece: str) -> bytes:
        return _line({**_said(request, "", piece), "done": False})

    def ending(self, request: Request, said: Said) -> bytes:
        return _line({**_said(request, ""), **_end(said)})

    def whole(self, request: Request, said: Said) -> bytes:
        return _line({**_said(request, said.text, said.reasoning), **_end(said)})

    def failure(self, request: Request) -> bytes:
        return _line({"error": "model runner has unexpectedly stopped"})

    def garbage(self, request: Request) -> bytes:
        return b'{"model": "garbage", "message": {"role": \n'

    def refusal(self, request: Request, why: str) -> Reply:
        if why == "throttle":
            return _error(503, "server busy, please try again.  maximum pending requests exceeded")
        if why == "unknown":
            return _error(404, f"model '{request.model}' not found")
        return _error(500, "llama runner process has terminated: exit status 2")


def _said(request: Request, text: str, thinking: str = "") -> dict[str, Any]:
    head = {"model": request.model, "created_at": datetime.datetime.now(datetime.UTC).isoformat()}
    thought = {"thinking": thinking} if thinking else {}
    if isinstance(request, _GenerateRequest):
        return {**head, "response": text, **thought}
    return {**head, "message": {"role": "assistant", "content": text, **thought}}


def _end(said: Said) -> dict[str, Any]:
    prompt, answer = said.tokens or (0, 0)
    numbers = {
        "total_duration": _nanoseconds(said.seconds),
        "prompt_eval_count": prompt,
        "prompt_eval_duration": _nanoseconds(said.first_seconds) if prompt else 0,
        "eval_count": answer,
        "eval_duration": _nanoseconds(said.seconds - said.first_seconds) if answer else 0,
    }
    reason = "length" if said.reason == "length" else "stop"
    return {"done_reason": reason, "done": True, **{name: number for name, number in numbers.items() if number}}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _look(method: str, path: str) -> Reply:
    """What can be looked at."""
    found: dict[str, Any] = {
        "/api/version": {"version": VERSION},
        "/api/tags": {"models": [_row(name) for name in BEHAVIOURS]},
        "/api/ps": {"models": []},
    }
    if method == "GET" and path == "/":
        return Reply(200, b"Ollama is running", "text/plain; charset=utf-8")
    if method == "GET" and path in found:
        return Reply(200, msgspec.json.encode(found[path]), _JSON)
    return Reply(404, b"404 page not found", "text/plain")


def _show(exchange: Exchange) -> None:
    name = _bare(msgspec.json.decode(exchange.asked.body, type=_Named).model)
    if name not in BEHAVIOURS:
        return exchange.reply(_error(404, f"model '{name}' not found"))
    about = {"general.architecture": "llama", "llama.context_length": 8192}
    shown = {"details": _row(name)["details"], "model_info": about, "capabilities": ["completion"]}
    return exchange.reply(Reply(200, msgspec.json.encode(shown), _JSON))


def _pull(exchange: Exchange) -> None:
    asked = msgspec.json.decode(exchange.asked.body, type=_Named)
    lines: list[dict[str, Any]] = [{"status": "pulling manifest"}]
    if asked.model.startswith("unknown"):
        lines.append({"error": "pull model manifest: file does not exist"})
    else:
        layer = {"status": f"pulling {_DIGEST[7:19]}", "digest": _DIGEST, "total": LAYER_BYTES}
        lines += [layer, {**layer, "completed": LAYER_BYTES // 2}, {**layer, "completed": LAYER_BYTES}]
        lines += [{"status": status} for status in ("verifying sha256 digest", "writing manifest", "success")]
    if asked.stream is False:
        status = 500 if "error" in lines[-1] else 200
        return exchange.reply(Reply(status, msgspec.json.encode(lines[-1]), _JSON))
    exchange.begin(_NDJSON)
    for line in lines:
        exchange.send(_line(line))
    return exchange.end()


def _row(name: str) -> dict[str, Any]:
    details = {"format": "gguf", "family": "llama", "parameter_size": "1.2B", "quantization_level": "Q4_K_M"}
    row = {"name": f"{name}:latest", "model": f"{name}:latest", "size": LAYER_BYTES, "digest": _DIGEST[7:]}
    return {**row, "modified_at": "2026-11-21T12:00:00Z", "details": details}


def _bare(model: str) -> str:
    """`latest` is what a name means that has no tag."""
    return model.removesuffix(":latest")


def _most(options: dict[str, Any]) -> int | None:
    """The tokens that an answer may have; Ollama takes those below one for no limit."""
    most = options.get("num_predict")
    return most if isinstance(most, int) and most > 0 else None


def _line(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _error(status: int, message: str) -> Reply:
    return Reply(status, msgspec.json.encode({"error": message}), _JSON)


if __name__ == "__main__":
    main(FakeOllama, 11434)
