"""Reasoning that a model writes into its text, as `<think>…</think>` (DeepSeek-R1 and its like), told from the answer.

Only a block at the very start counts, where at most white space goes before it: further on the tag is something that
the model talks about. A block that never closes is reasoning to its end. The newlines between `</think>` and the
answer are layout and are dropped, with the tags; every other character comes out, the white space before the block as
part of the reasoning. No I/O; wherever the text is cut, the result is the same.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from lambdalm.events import ReasoningDelta, TextDelta

_OPEN, _CLOSE = "<think>", "</think>"


class _Place(enum.Enum):
    START = enum.auto()  # nothing but white space yet, or a part of the opening tag
    BLOCK = enum.auto()
    GAP = enum.auto()  # after the block, before the answer's first character
    ANSWER = enum.auto()


class ThinkTags:
    """Splits one answer: feed it the text as it comes, and `close` it at the end."""

    def __init__(self) -> None:
        self._place = _Place.START
        self._held = ""  # what cannot be told yet

    def feed(self, text: str) -> Iterator[ReasoningDelta | TextDelta]:
        """What can be told by now. Iterate it to its end before the next `feed`."""
        self._held += text
        if self._place is _Place.START:
            self._look_for_block()
        if self._place is _Place.BLOCK:
            yield from self._reasoning()
        if self._place is _Place.GAP:
            self._held = self._held.lstrip("\r\n")
            if self._held:
                self._place = _Place.ANSWER
        if self._place is _Place.ANSWER:
            yield from self._rest()

    def close(self) -> Iterator[ReasoningDelta | TextDelta]:
        """The text has ended: what was held back."""
        yield from self._rest()

    def _look_for_block(self) -> None:
        bare = self._held.lstrip()
        if bare.startswith(_OPEN):
            self._held = self._held.replace(_OPEN, "", 1)
            self._place = _Place.BLOCK
        elif not _OPEN.startswith(bare):
            self._place = _Place.ANSWER

    def _reasoning(self) -> Iterator[ReasoningDelta | TextDelta]:
        inside, closed, after = self._held.partition(_CLOSE)
        if not closed:
            # The longest end of it that may be the beginning of the closing tag.
            cut = next(at for at in range(len(_CLOSE) - 1, -1, -1) if inside.endswith(_CLOSE[:at]))
            inside, after = inside[: len(inside) - cut], inside[len(inside) - cut :]
        if inside:
            yield ReasoningDelta(inside)
        self._held = after
        if closed:
            self._place = _Place.GAP

    def _rest(self) -> Iterator[ReasoningDelta | TextDelta]:
        if self._held:
            yield (ReasoningDelta if self._place is _Place.BLOCK else TextDelta)(self._held)
        self._held = ""
