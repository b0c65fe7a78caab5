"""An OpenAI-style server that costs little and answers at once: what stands behind the gateways of `bench.peers`.

It has two models. `instant` sends all tokens of a stream in one piece; `paced` sends 20 a second. Plain answers come at
once from both, and all answers are the same text. Started as a program it prints its port.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import msgspec
import uvloop

TOKENS = 100
"""Tokens of an answer."""

TEXT = "".join(f" word{number:02}" for number in range(TOKENS))
"""The answer."""

INSTANT = "instant"
PACED = "paced"

_TOKEN_SECONDS = 0.05
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_USAGE = {"prompt_tokens": 8, "completion_tokens": TOKENS, "total_tokens": TOKENS + 8}


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Request(msgspec.Struct):
    """What counts of a request's body."""

    model: str = INSTANT
    stream: bool = False
    stream_options: StreamOptions | None = None


class Answers(NamedTuple):
    """All answers of a model, as bytes: a plain one; the pieces of a stream; its usage, if asked for; its end."""

    plain: bytes
    head: bytes
    pieces: list[bytes]
    usage: bytes
    end: bytes


def _response(body: Mapping[str, Any], status: str = "200 OK") -> bytes:
    text = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    return head.encode() + text


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _answers(model: str) -> Answers:
    common = {"id": "chatcmpl-bench", "created": 1700000000, "model": model}

    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        body = {**common, "object": "chat.completion.chunk", "choices": choices, **more}
        return _chunk(f"data: {json.dumps(body)}\n\n".encode())

    def delta(reason: str | None = None, **fields: str) -> bytes:
        return event([{"index": 0, "delta": fields, "finish_reason": reason}])

    message = {"role": "assistant", "content": TEXT}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    plain = _response({**common, "object": "chat.completion", "choices": [choice], "usage": _USAGE})
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    first, *others = re.findall(r" \S+", TEXT)
    pieces = [delta(role="assistant", content=first), *(delta(content=token) for token in others), delta("stop")]
    return Answers(plain, head, pieces, event([], usage=_USAGE), _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


_ANSWERS = {model: _answers(model) for model in (INSTANT, PACED)}
_MODELS = _response({"object": "list", "data": [{"id": model, "object": "model"} for model in _ANSWERS]})
_LOST = _response({"error": {"message": "there is nothing here", "type": "not_found_error"}}, "404 Not Found")
_decode = msgspec.json.Decoder(Request).decode


class Server(asyncio.Protocol):
    """One connection. Requests have a Content-Length and come one after the other."""

    def __init__(self) -> None:
        self._held = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without inheriting from it

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._held += data
        head, found, rest = self._held.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        size = int(length[1]) if length else 0
        if found and len(rest) >= size:
            self._held = rest[size:]
            self._answer(head, rest[:size])

    def _answer(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path == b"/v1/models":
            self._transport.write(_MODELS)
        elif path == b"/v1/chat/completions":
            self._complete(_decode(body))
        else:
            self._transport.write(_LOST)

    def _complete(self, request: Request) -> None:
        answers = _ANSWERS[request.model]
        if not request.stream:
            self._transport.write(answers.plain)
            return
        end = (answers.usage if request.stream_options and request.stream_options.include_usage else b"") + answers.end
        self._transport.write(answers.head)
        if request.model == PACED:
            self._pace(asyncio.get_running_loop().time(), iter([*answers.pieces, end]))
        else:
            self._transport.write(b"".join(answers.pieces) + end)

    def _pace(self, due: float, pieces: Iterator[bytes]) -> None:
        """Send the next piece now, and the others each in its turn."""
        if (piece := next(pieces, None)) is not None:
            self._transport.write(piece)
            due += _TOKEN_SECONDS
            self._timer = asyncio.get_running_loop().call_at(due, self._pace, due, pieces)


class Running(NamedTuple):
    """A server that runs: its process id and the base of its API."""

    pid: int
    url: str


@contextlib.contextmanager
def running() -> Iterator[Running]:
    """The server as a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "bench.upstream"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Running(process.pid, f"http://127.0.0.1:{int(process.stdout.readline())}/v1")
    finally:
        process.terminate()
        process.communicate()


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())
