"""Phrasings: short templates that expand to many ways to say a thing, some of them held out of training.

A template is a line of text with alternatives in round brackets, `(what is|what's) your name`, and slots in braces,
`{country}`. In each family one template of eight, chosen by its SHA-256, is held out whole: training never sees any
of its expansions, so the evaluation asks in words that are new to the model. A line that begins with `!` is always
trained on; so is one that begins with `+`, but for those of its expansions that are held out.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable

HELD_OUT_SHARE = 8

_GROUP = re.compile(r"\(([^()]*)\)")
_NOISE = re.compile(r"[^\w{}]+")


def expand(template: str) -> list[str]:
    """All texts that a template stands for, slots left as they are."""
    group = _GROUP.search(template)
    if group is None:
        return [" ".join(template.split())]
    before, after = template[: group.start()], template[group.end() :]
    return [text for option in group[1].split("|") for text in expand(before + option + after)]


def skeleton(text: str) -> str:
    """A text without case, spaces and punctuation: what two surfaces of one phrasing have in common."""
    return _NOISE.sub("", text.casefold())


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def phrases(text: str) -> tuple[str, ...]:
    """The phrases of a text, with `|` between them."""
    return tuple(" ".join(phrase.split()) for phrase in text.split("|"))


def _digest(template: str) -> bytes:
    return hashlib.sha256(template.encode()).digest()


class Phrasings:
    """The ways to say one thing, split into training and held out; each is a list of lists (one a template)."""

    def __init__(self, block: str, *, bare: bool = False) -> None:
        """`block` holds one template a line; `bare` phrasings take no prefix or suffix."""
        self.bare = bare
        lines = [line.strip() for line in block.strip().splitlines() if line.strip()]
        free = sorted((line for line in lines if line[0] not in "!+"), key=_digest)
        count = (len(free) + HELD_OUT_SHARE // 2) // HELD_OUT_SHARE
        hidden = set(free[: max(count, 1 if len(free) >= 4 else 0)])
        core = [expand(line.lstrip("!")) for line in lines if line[0] != "+" and line not in hidden]
        seen = skeletons(core)
        self.held = _without([expand(line) for line in lines if line in hidden], seen)
        self.train = core + _without([expand(line[1:]) for line in lines if line[0] == "+"], skeletons(self.held))

    def pick(self, rng: random.Random, held: bool) -> str:
        """One phrasing, slots unfilled; a template's chance does not depend on how much it expands to."""
        templates = self.held if held and self.held else self.train
        return rng.choice(rng.choice(templates))


def _without(templates: list[list[str]], unwanted: set[str]) -> list[list[str]]:
    """The templates less the expansions with an unwanted skeleton."""
    kept = [[text for text in texts if skeleton(text) not in unwanted] for texts in templates]
    return [texts for texts in kept if texts]


def skeletons(templates: Iterable[Iterable[str]]) -> set[str]:
    """The skeletons of many texts."""
    return {skeleton(text) for texts in templates for text in texts}
