"""Server-sent events without I/O: bytes in, messages out, and back.

Follows the WHATWG event stream format: lines end in LF, CR or CRLF, wherever the input is cut; `data` lines of one
message are joined by LF; a message without data is dropped; a byte order mark at the start is skipped. `id` and
`retry` are read over, nobody here uses them. A field `error`, which no document knows and llama-server of 2025 sends,
is data of a message named so. Two things are stricter than in a browser: text that is not UTF-8 is an
error, since it would not be the text that was sent, and so is a message of more than `limit` bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lambdalm.errors import Code, LlmError

CONTENT_TYPE = "text/event-stream"
HEARTBEAT = b": heartbeat\n\n"
"""A comment: it keeps the connection busy, and no reader takes it for an event."""

_BOM = b"\xef\xbb\xbf"


class Message(NamedTuple):
    """One event: its name ("message" where none was given) and its data."""

    event: str
    data: str


def encode(event: str, data: bytes) -> bytes:
    """One event as bytes. `data` must have no line ends in it: JSON never has."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), data)


class Decoder:
    """Feed it bytes as they come; it gives the messages that they complete.

    Raises `LlmError(INTERNAL)` for text that is not UTF-8, and for a message over `limit` bytes.
    """

    def __init__(self, limit: int = 4 * 1024 * 1024) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []  # of the line not ended yet
        self._size = 0  # bytes of the message not ended yet, that line included
        self._after_cr = False
        self._at_start = True
        self._event = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """The messages that this chunk completes. Iterate it to its end before the next `feed`."""
        blocks = self._whole_blocks(chunk)
        if blocks is None:
            yield from self._by_lines(chunk)
            return
        for block in blocks:
            message = _simple(block)
            if message is None:
                yield from self._by_lines(block + b"\n\n")
            else:
                yield message

    def _whole_blocks(self, chunk: bytes) -> list[bytes] | None:
        """The chunk, cut at its empty lines, where it is whole messages and nothing is left of the chunk before."""
        if self._at_start or self._size or self._after_cr or len(chunk) > self._limit:
            return None
        return chunk[:-2].split(b"\n\n") if chunk.endswith(b"\n\n") and b"\r" not in chunk else None

    def _by_lines(self, chunk: bytes) -> Iterator[Message]:
        """The messages that this chunk completes, however it is cut."""
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r") or (not chunk and self._after_cr)
        *ended, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for part in ended:
            self._hold(part)
            line = b"".join(self._pieces)
            self._pieces.clear()
            if not line:
                self._size = 0
            message = self._line(line)
            if message is not None:
                yield message
        if rest:
            self._hold(rest)

    def _hold(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self._limit:
            raise LlmError(Code.INTERNAL, f"an event of more than {self._limit} bytes in the stream")

    def _line(self, line: bytes) -> Message | None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        field, _, value = _text(line).partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._event = value
        elif field == "error":
            self._event = field
            self._data.append(value)
        return None

    def _dispatch(self) -> Message | None:
        event, data = self._event or "message", self._data
        self._event, self._data = "", []
        return Message(event, "\n".join(data)) if data else None


def _simple(block: bytes) -> Message | None:
    """The message of a block that is no more than an event's name and one line of data, as our own are."""
    head, is_ours, data = block.partition(b"\ndata: ")
    if not is_ours or not head.startswith(b"event: ") or b"\n" in head or b"\n" in data:
        return None
    return Message(_text(head[7:]) or "message", _text(data))


def _text(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise LlmError(Code.INTERNAL, "the stream holds bytes that are not UTF-8") from None
