"""The terminal: the answer's text on stdout as it comes, all else on stderr, and no colour where nobody sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from bedrest_client.render import printable

_DIM = "\x1b[2m"
_RED = "\x1b[31m"
_RESET = "\x1b[0m"


class Screen:
    """Where an answer is shown. `out` gets the text exactly, unless it is a terminal, which gets no control characters.

    Reasoning is shown only where `err` is a terminal.
    """

    def __init__(self, out: TextIO, err: TextIO, environ: Mapping[str, str]) -> None:
        self._out = out
        self._err = err
        self._out_tty = out.isatty()
        self._err_tty = err.isatty()
        self._colour = self._err_tty and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        self._open: TextIO | None = None  # the stream whose line is not ended

    def text(self, text: str) -> None:
        """More of the answer."""
        if self._open is self._err:
            self.end_line()
        self._write(self._out, self._shown(text), text)

    def reasoning(self, text: str) -> None:
        """More of the reasoning."""
        if self._err_tty:
            self._write(self._err, self._painted(_DIM, printable(text)), text)

    def end_line(self) -> None:
        """What comes next starts on a line of its own."""
        if self._open is not None:
            self._open.write("\n")
            self._open.flush()
            self._open = None

    def line(self, text: str) -> None:
        """A line that belongs to the output: a prompt that was asked, for example."""
        self.end_line()
        self._out.write(f"{self._shown(text)}\n")
        self._out.flush()

    def note(self, text: str) -> None:
        """A line beside the output: statistics, a remark."""
        self._aside(self._painted(_DIM, text))

    def error(self, text: str) -> None:
        """An error."""
        self._aside(self._painted(_RED, text))

    def _aside(self, text: str) -> None:
        self.end_line()
        self._err.write(f"{text}\n")
        self._err.flush()

    def _write(self, stream: TextIO, shown: str, text: str) -> None:
        if not text:
            return
        # First, so that a Ctrl-C between the two does not lose the line's end.
        self._open = None if text.endswith("\n") else stream
        stream.write(shown)
        stream.flush()

    def _shown(self, text: str) -> str:
        return printable(text) if self._out_tty else text

    def _painted(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if self._colour else text
