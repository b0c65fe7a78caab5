"""The interaction log: what was asked and what was answered, one JSON object a line.

Theory of operation. A request only puts its interaction into a line of bounded size; one thread encodes and writes,
a beat later and all at once: to wake it for each request cost more than a request does. A crash costs that beat.
What does not fit is dropped and counted, and a file that cannot be written costs lines, never a request: that is said
once, and once more when it works again. Lambda freezes a process as soon as it has answered, so its handler flushes.

Each process needs a file of its own, since it renames it when it is full.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lambdalm import logs
from lambdalm.call import Call
from lambdalm.chat import ChatRequest, Message
from lambdalm.errors import ErrorBody, LlmError, bug
from lambdalm.events import Finished, FinishReason, ReasoningDelta, Started, StreamEvent, TextDelta, Tokens, Usage

STDOUT = "-"

_WORD_SECONDS = 60.0  # between two words on dropped lines
_CLOSE_SECONDS = 5.0
_BEAT_SECONDS = 0.2
_MOST_PIECES = 256  # of a text, before they are joined
_OVERHEAD = 1024  # characters, for what is no text
_PARAMETERS = ("max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "stop", "seed")

_log = logs.get(__name__)


class InteractionsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is written of each interaction, and where; `max_chars` counts for `truncated`."""

    content: Literal["full", "truncated", "off"] = "full"
    path: str = "logs/model_interactions.jsonl"
    max_chars: Annotated[int, Meta(ge=1)] = 500
    max_bytes: Annotated[int, Meta(ge=1)] = 10 * 1024 * 1024
    backups: Annotated[int, Meta(ge=1)] = 5  # with none, RotatingFileHandler would let the file grow without end


class Interaction(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. `prompt` is the last turn and `history` the turns before it; `response` is what came of the answer,
    also where it failed. `timestamp` is when the request came, in UTC; `duration_ms` is in milliseconds."""

    timestamp: datetime.datetime
    request_id: str
    prompt: str
    response: str
    model: str | None
    parameters: dict[str, Any]
    duration_ms: float
    history: tuple[Message, ...] = ()
    reasoning: str = ""
    usage: Tokens | None = None
    finish_reason: FinishReason | None = None
    error: ErrorBody | None = None

    def size(self) -> int:
        """About how many characters it has, and a kilobyte for all that is no text."""
        texts = len(self.prompt) + len(self.response) + len(self.reasoning) + sum(len(m.content) for m in self.history)
        return texts + _OVERHEAD


class InteractionLog:
    """Writes interactions to `config.path`, with at most `max_waiting` characters in line; close it at the end."""

    def __init__(self, config: InteractionsConfig, max_waiting: int = 32 * 1024 * 1024) -> None:
        # In full, an answer that never ends must not fill the memory; nor would a file hold more of it.
        self._limit = config.max_chars if config.content == "truncated" else config.max_bytes
        self._writer = _Writer(config)
        self._changed = threading.Condition()
        self._line: deque[Interaction] = deque()
        self._waiting = 0  # characters, of what is being written, too
        self._in_hurry = 0  # how many wait in `flush`
        self._max_waiting = max_waiting
        self._busy = False
        self._closed = False
        self._dropped = 0
        self._next_word = 0.0
        self._thread = threading.Thread(target=self._run, name="interactions", daemon=True)
        self._thread.start()

    def recording(self, request: ChatRequest, call: Call) -> Recording:
        """An observer of a generation that starts now; when it ends, its interaction is put into the log."""
        return Recording(request, call, self._limit, self.put)

    def put(self, interaction: Interaction) -> None:
        """Have it written soon; never waits."""
        size = interaction.size()
        with self._changed:
            fits = not self._closed and self._waiting + size <= self._max_waiting
            if fits:
                self._line.append(interaction)
                self._waiting += size
                if len(self._line) == 1:
                    self._changed.notify_all()
                return
            self._dropped += 1
            dropped, now = self._dropped, time.monotonic()
            if now < self._next_word:
                return
            self._next_word, self._dropped = now + _WORD_SECONDS, 0
        _log.warning("interactions were dropped: their log does not keep up", lines=dropped)

    def flush(self, seconds: float) -> bool:
        """Wait until all that was put is written, but not longer than this; returns whether it is."""
        with self._changed:
            self._in_hurry += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._line and not self._busy, seconds)
            finally:
                self._in_hurry -= 1

    def close(self) -> None:
        """Write what is left (for at most 5 s) and stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        batch: list[Interaction] = []
        while batch := self._next_batch(batch):
            self._writer.write(batch)
        self._writer.close()

    def _next_batch(self, written: list[Interaction]) -> list[Interaction]:
        """All that is in line, a beat after the first of it came, so that not each request wakes this thread.

        Nothing when the log is closed and the line empty.
        """
        with self._changed:
            self._busy = False
            self._waiting -= sum(interaction.size() for interaction in written)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._line or self._closed)
            self._changed.wait_for(lambda: self._in_hurry or self._closed, _BEAT_SECONDS)
            batch = list(self._line)
            self._line.clear()
            self._busy = bool(batch)
            return batch


class Recording:
    """What has been seen of one generation; at most `limit` characters of each text are kept."""

    def __init__(self, request: ChatRequest, call: Call, limit: int, put: Callable[[Interaction], None]) -> None:
        self._request = request
        self._call = call
        self._limit = limit
        self._put = put
        self._start = datetime.datetime.now(datetime.UTC)
        self._started: Started | None = None
        self._finished: Finished | None = None
        self._usage: Tokens | None = None
        self._text = _Text(limit)
        self._reasoning = _Text(limit)

    def accept(self, event: StreamEvent) -> None:
        if isinstance(event, TextDelta):
            self._text.add(event.text)
        elif isinstance(event, ReasoningDelta):
            self._reasoning.add(event.text)
        elif isinstance(event, Started):
            self._started = event
        elif isinstance(event, Usage):
            self._usage = event.tokens()
        elif isinstance(event, Finished):
            self._finished = event

    def end(self, failure: Exception | None) -> None:
        error = failure if failure is None or isinstance(failure, LlmError) else bug("backend")
        self._put(self._interaction(None if error is None else ErrorBody.of(error)))

    def _interaction(self, error: ErrorBody | None) -> Interaction:
        *history, asked = self._request.conversation()
        finished = self._finished
        return Interaction(
            timestamp=self._start,
            request_id=self._call.id,
            prompt=_cut(asked.content, self._limit),
            response=self._text.all(),
            model=self._started.model if self._started else self._request.model,
            parameters={
                name: value for name in _PARAMETERS if (value := getattr(self._request, name)) not in (None, ())
            },
            duration_ms=self._call.clock.total_ms(),
            history=tuple(Message(turn.role, _cut(turn.content, self._limit)) for turn in history),
            reasoning=self._reasoning.all(),
            usage=(finished.usage if finished else None) or self._usage,
            finish_reason=finished.reason if finished else None,
            error=error,
        )


class _Text:
    """Grows by pieces, up to `limit` characters and the sign that there was more.

    Many small texts take several times their size, and what they took is not given back to the system.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._joined: list[str] = []
        self._pieces: list[str] = []
        self._length = 0

    def add(self, piece: str) -> None:
        if self._length > self._limit:
            return
        self._length += len(piece)
        self._pieces.append(piece)
        if len(self._pieces) >= _MOST_PIECES:
            self._joined.append("".join(self._pieces))
            self._pieces.clear()

    def all(self) -> str:
        return _cut("".join(self._joined + self._pieces), self._limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"


class _Writer:
    """The log's end, of the one thread: opens, rotates, and copes with what cannot be written."""

    def __init__(self, config: InteractionsConfig) -> None:
        self._config = config
        self._handler: logging.Handler | None = None
        self._lost = 0

    def write(self, batch: Sequence[Interaction]) -> None:
        if self._config.path != STDOUT and not Path(self._config.path).exists():
            self.close()  # it has been taken away: a new one
        for interaction in batch:
            self._write(interaction)

    def _write(self, interaction: Interaction) -> None:
        try:
            line = msgspec.json.encode(interaction).decode()
            if self._handler is None:
                self._handler = _open(self._config)
            self._handler.handle(logging.makeLogRecord({"msg": line}))
        except Exception as error:  # noqa: BLE001  # the thread's edge: without it there would be no log at all
            self._failed(error)
        else:
            if self._lost:
                _log.info("the interaction log is written again", path=self._config.path, lost=self._lost)
                self._lost = 0

    def close(self) -> None:
        handler, self._handler = self._handler, None
        if handler is not None:
            with contextlib.suppress(OSError):
                handler.close()

    def _failed(self, error: Exception) -> None:
        self.close()
        self._lost += 1
        if self._lost == 1:
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            _log.warning("the interaction log cannot be written; requests go on", path=self._config.path, why=why)


def _open(config: InteractionsConfig) -> logging.Handler:
    """Raises OSError."""
    from logging.handlers import RotatingFileHandler  # it imports sockets and pickle, which most starts can do without

    class Stdout(_Raising, logging.StreamHandler[Any]):
        pass

    class Device(_Raising, logging.FileHandler):
        pass

    class File(_Raising, RotatingFileHandler):
        def _open(self) -> TextIOWrapper:
            Path(self.baseFilename).touch(0o600)  # it holds what people wrote
            return super()._open()

    if config.path == STDOUT:
        return Stdout(sys.stdout)
    path = Path(config.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        return Device(path, encoding="utf-8")  # /dev/stdout, a pipe: there is nothing to rename
    _mend(path)
    return File(path, maxBytes=config.max_bytes, backupCount=config.backups, encoding="utf-8")


class _Raising(logging.Handler):
    """A handler whose `handle` raises what went wrong, where logging would print it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        raise  # logging calls it while it handles the exception


def _mend(path: Path) -> None:
    """End a line that a full disk or a crash has cut, so that the next one is whole."""
    with contextlib.suppress(OSError):
        if path.stat().st_size == 0:
            return
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def open_log(config: InteractionsConfig, worker: int = 0) -> InteractionLog | None:
    """The log, or None where nothing is to be written. Of several workers each but the first (0) has its number in the
    file's name: `model_interactions.1.jsonl`."""
    if config.content == "off":
        return None
    if worker and config.path != STDOUT:
        path = Path(config.path)
        config = msgspec.structs.replace(config, path=str(path.with_suffix(f".{worker}{path.suffix}")))
    return InteractionLog(config)
