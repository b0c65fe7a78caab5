"""Newline-delimited JSON without I/O: bytes in, lines out. What is in a line is not looked at.

Lines end in LF or CRLF, wherever the input is cut; empty ones are skipped. A line of more than `limit` bytes is an
error: no reader holds more than that of a sender that never ends its line.
"""

from __future__ import annotations

from collections.abc import Iterator

from lambdalm.errors import Code, LlmError

CONTENT_TYPE = "application/x-ndjson"


class Decoder:
    """Feed it bytes as they come; it gives the lines that they complete, without their ends.

    Raises `LlmError(INTERNAL)` for a line over `limit` bytes.
    """

    def __init__(self, limit: int = 4 * 1024 * 1024) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []  # of the line not ended yet
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that this chunk completes. Iterate it to its end before the next `feed`."""
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            self._hold(part)
            yield from self.close()
        if rest:
            self._hold(rest)

    def close(self) -> Iterator[bytes]:
        """The input has ended: the last line, if it was not given because its end did not come."""
        line = b"".join(self._pieces).removesuffix(b"\r")
        self._pieces.clear()
        self._size = 0
        if line:
            yield line

    def _hold(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self._limit:
            raise LlmError(Code.INTERNAL, f"a line of more than {self._limit} bytes in the stream")
