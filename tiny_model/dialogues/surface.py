"""How people really type: prefixes, thanks, lost capitals and question marks, slips of the finger.

A `Surface` is drawn for one user turn. It decorates the phrasing before its slots are filled, so that a name or a
number is never damaged, and it tells the family how the person writes (`styled`), since an answer repeats a name as
it was typed.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from .grammar import Phrasings, skeleton

PREFIXES = (
    "please", "please,", "hey,", "hi,", "hello,", "ok,", "okay,", "so,", "so", "well,", "um,", "hmm,", "now", "now,",
    "quick question:", "question:", "just wondering,", "I have a question:", "excuse me,", "sorry,", "hi there,",
    "one more thing:", "another question:", "next question:", "alright,", "good morning,", "hey there,", "and",
)  # fmt: skip
ASKING = (
    "can you tell me", "could you tell me", "tell me", "please tell me", "do you know", "I want to know",
    "I would like to know", "I'd like to know", "would you tell me", "can you please tell me",
)  # fmt: skip
SUFFIXES = (
    "please",
    ", please",
    "thanks",
    ", thanks",
    ", thank you",
    "for me",
    "today",
    "now",
    ", ok",
    "my friend",
)
QUESTION = re.compile(r"^(what|which|who|how|when|where|whose)\b", re.IGNORECASE)
LITTLE = re.compile(r"\b(?:the|a|an|is|are|do|does|of) (?=[\w{])", re.IGNORECASE)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FILLERS = (
    "exactly",
    "really",
    "actually",
    "just",
    "then",
    "please",
    "again",
    "maybe",
    "quickly",
    "kindly",
    "simply",
    "right now",
)
SAME = tuple(
    tuple(group.split("|"))
    for group in (
        "what is|what's|whats|what was|what would be|which is",
        "which|what",
        "tell me|say|give me|show me|let me know|tell us|explain",
        "can you|could you|would you|will you|are you able to|do you want to|may you",
        "do I|can I|could I|should I|would I|must I|does one|do we",
        "I want|I need|I would like|I'd like|I wish|we want",
        "is there|do you have|have you got|are there",
        "how do|how can|how could|how should|in what way do",
        "the|this|that",
        "calculate|compute|work out|solve|evaluate|determine",
        "big|large|huge",
        "a|one|some|any",
        "know|understand|remember",
        "who|which person|whoever",
    )
)


@dataclass(frozen=True)
class Noise:
    """How often each kind of noise strikes, each a chance per turn."""

    prefix: float = 0.18
    asking: float = 0.10
    suffix: float = 0.08
    lower: float = 0.28
    upper: float = 0.03
    bare: float = 0.35
    typo: float = 0.10
    drop: float = 0.06
    reword: float = 0.2
    filler: float = 0.06


TRAINING = Noise()
CLEAN = Noise(prefix=0, asking=0, suffix=0, lower=0, upper=0, bare=0, typo=0, drop=0, reword=0, filler=0)
EVALUATION = Noise(
    prefix=0.10, asking=0.05, suffix=0.04, lower=0.20, upper=0, bare=0.25, typo=0, drop=0, reword=0, filler=0
)


class Surface:
    """One way of typing, and the phrasing it was drawn for."""

    def __init__(self, rng: random.Random, phrasings: Phrasings, text: str, noise: Noise) -> None:
        self.case = _case(rng, noise)
        text = text if phrasings.bare else _decorate(rng, text, noise)
        text = _punctuate(rng, text, noise)
        if rng.random() < noise.reword:
            text = _reword(rng, text)
        if rng.random() < noise.filler:
            text = _filler(rng, text)
        if rng.random() < noise.drop:
            text = LITTLE.sub("", text, count=1)
        if rng.random() < noise.typo:
            text = _slip(rng, text)
        self.text = text

    def styled(self, value: str) -> str:
        """A slot's value as this person types it."""
        return value.lower() if self.case == "lower" else value.upper() if self.case == "upper" else value

    def fill(self, **slots: str) -> str:
        """The finished user text."""
        text = self.text
        for slot, value in slots.items():
            text = text.replace("{" + slot + "}", value)
        if self.case != "as is":
            return self.styled(text)
        return text[:1].upper() + text[1:] if text[:1].isascii() else text


class Speaker:
    """Draws surfaces: from training phrasings, or (held) from those that training never shows."""

    def __init__(self, rng: random.Random, *, held: bool, noise: Noise, hidden: frozenset[str]) -> None:
        self.rng, self.held, self.noise, self.hidden = rng, held, noise, hidden

    def say(self, phrasings: Phrasings) -> Surface:
        """A surface of one of the phrasings; in training never one whose words are held out."""
        while True:
            text = phrasings.pick(self.rng, self.held)
            surface = Surface(self.rng, phrasings, text, self.noise)
            if self.held or skeleton(surface.text) not in self.hidden:
                return surface


def _case(rng: random.Random, noise: Noise) -> str:
    draw = rng.random()
    return "lower" if draw < noise.lower else "upper" if draw < noise.lower + noise.upper else "as is"


def _decorate(rng: random.Random, text: str, noise: Noise) -> str:
    if QUESTION.match(text) and rng.random() < noise.asking:
        text = f"{rng.choice(ASKING)} {text}"
    elif rng.random() < noise.prefix:
        text = f"{rng.choice(PREFIXES)} {text}"
    if rng.random() < noise.suffix:
        end = text[-1] if text[-1] in "?!." else ""
        suffix = rng.choice(SUFFIXES)
        text = text.rstrip("?!.") + ("" if suffix.startswith(",") else " ") + suffix + end
    return text


def _punctuate(rng: random.Random, text: str, noise: Noise) -> str:
    if rng.random() >= noise.bare:
        return text
    return text.rstrip("?!.") + rng.choices(("", ".", "!", "??", " ?", "?!", "..."), (12, 2, 2, 1, 1, 1, 1))[0]


def _slip(rng: random.Random, text: str) -> str:
    """One slip in a word of four letters or more, never inside a slot."""
    words = list(re.finditer(r"(?<![{\w])[A-Za-z]{4,}(?![}\w])", text))
    if not words:
        return text
    word = rng.choice(words)
    return text[: word.start()] + slip(rng, word[0]) + text[word.end() :]


def _reword(rng: random.Random, text: str) -> str:
    """One group of words put in another way, if the text has any."""
    for group in rng.sample(SAME, len(SAME)):
        found = re.search(r"\b(?:" + "|".join(map(re.escape, group)) + r")\b(?!['}])", text, re.IGNORECASE)
        if found and found[0] != found[0].upper():
            return text[: found.start()] + rng.choice(group) + text[found.end() :]
    return text


def _filler(rng: random.Random, text: str) -> str:
    """A word that says nothing, put between two others."""
    gaps = [m.start() for m in re.finditer(" ", text)]
    if not gaps:
        return text
    at = rng.choice(gaps)
    return f"{text[:at]} {rng.choice(FILLERS)}{text[at:]}"


def slip(rng: random.Random, word: str) -> str:
    """A word with two letters swapped, one lost, doubled or replaced."""
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[:at] + word[at] + word[at:]
    return word[:at] + rng.choice(LETTERS) + word[at + 1 :]
