"""Finds the phrasings that a family module defines."""

from __future__ import annotations

from types import ModuleType

from .grammar import Phrasings
from .memory import Kind


def found_in(module: ModuleType) -> list[Phrasings]:
    """All phrasings among a module's names, also those inside dictionaries and kinds of memory."""
    found: list[Phrasings] = []
    for value in vars(module).values():
        if isinstance(value, Phrasings):
            found.append(value)
        elif isinstance(value, Kind):
            found += [value.tell, value.ask]
        elif isinstance(value, dict):
            found += [v for v in value.values() if isinstance(v, Phrasings)]
    return found
