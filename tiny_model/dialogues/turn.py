"""What a dialogue is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """One exchange: what the user types, the one right answer, and the category it is measured under."""

    user: str
    assistant: str
    category: str


Dialogue = tuple[Turn, ...]
