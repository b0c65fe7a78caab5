"""Puts turns together to dialogues, for training and for evaluation; the same seed gives the same dialogues."""

# ruff: noqa: E501  (a template is a line)

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from . import about, capitals, chat, counting, facts, followups, lists, memory, refusals, sums
from .grammar import Phrasings, skeletons
from .phrasebook import found_in
from .surface import CLEAN, EVALUATION, TRAINING, Noise, Speaker
from .turn import Dialogue, Turn

SINGLES: tuple[tuple[Callable[[Speaker], Turn], int], ...] = (
    (chat.greeting, 9),
    (chat.who, 15),
    (about.about, 17),
    (capitals.capital, 11),
    (sums.sum_, 16),
    (facts.fact, 11),
    (counting.count, 8),
    (lists.list_, 6),
    (refusals.refusal, 42),
)
CATEGORIES = (
    "greetings", "who are you", "help on λλM", "capitals", "sums", "facts", "counting", "lists", "memory", "memory, two turns",
    "follow-ups", "out of domain",
)  # fmt: skip
_SOURCES = (chat, about, capitals, sums, facts, counting, lists, memory, followups, refusals)


def all_phrasings() -> list[Phrasings]:
    """Every set of phrasings there is."""
    return [phrasings for module in _SOURCES for phrasings in found_in(module)]


def held_out() -> frozenset[str]:
    """The skeletons of all held-out phrasings, slots unfilled."""
    return frozenset(s for phrasings in all_phrasings() for s in skeletons(phrasings.held))


HELD_OUT = held_out()


def speaker(rng: random.Random, *, held: bool = False, noise: Noise = TRAINING) -> Speaker:
    """A speaker for training, or (held) one that uses held-out phrasings only."""
    return Speaker(rng, held=held, noise=noise, hidden=HELD_OUT)


def single(say: Speaker) -> Turn:
    """One turn that needs no turn before it."""
    makers, weights = zip(*SINGLES, strict=True)
    maker: Callable[[Speaker], Turn] = say.rng.choices(makers, weights)[0]
    return maker(say)


def training(seed: int) -> Iterator[Dialogue]:
    """Training dialogues without end."""
    rng = random.Random(f"training {seed}")
    say = speaker(rng)
    while True:
        draw = rng.random()
        if draw < 0.72:
            yield (single(say),)
        elif draw < 0.80:
            yield tuple(memory.conversation(say, lambda: single(say), 2))
        elif draw < 0.85:
            yield tuple(memory.conversation(say, lambda: single(say), rng.randint(3, 9)))
        elif draw < 0.97:
            before = [single(say) for _ in range(rng.choice((0, 0, 1, 2)))]
            yield (*before, *followups.follow_up(say, lambda: single(say)))
        else:
            yield tuple(single(say) for _ in range(rng.randint(2, 8)))


def evaluation(category: str, seed: int) -> Iterator[Dialogue]:
    """Dialogues without end whose last turn is to be answered; its phrasing was held out of training."""
    rng = random.Random(f"evaluation {category} {seed}")
    say, usual = speaker(rng, held=True, noise=EVALUATION), speaker(rng, noise=CLEAN)
    singles = {"greetings": chat.greeting, "who are you": chat.who, "help on λλM": about.about, "sums": sums.sum_,
               "capitals": capitals.capital, "facts": facts.fact, "counting": counting.count, "lists": lists.list_,
               "out of domain": refusals.refusal}  # fmt: skip
    while True:
        if category in singles:
            yield (singles[category](say),)
        elif category == "memory, two turns":
            told, value = memory.tell(say, memory.NAME)
            yield told, memory.ask(say, memory.NAME, value)
        elif category == "memory":
            yield tuple(_remembering(say, usual))
        else:
            yield tuple(followups.follow_up(say, lambda: single(usual)))


def _remembering(say: Speaker, usual: Speaker) -> list[Turn]:
    """Something told, up to three turns of other talk, and the question; one in eight was never told."""
    kind = say.rng.choices(memory.KINDS, memory.WEIGHTS)[0]
    told, value = memory.tell(say, kind)
    talk = [single(usual) for _ in range(say.rng.randint(0, 3))]
    if say.rng.random() < 0.125:
        return [*talk, memory.ask(say, kind, None)]
    return [told, *talk, memory.ask(say, kind, value)]
