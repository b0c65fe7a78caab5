"""What a run of `tests.history` does, drawn from a seed: which hop dies when, and what its clients ask.

Pure: the same seed is the same plan. How many of a client's questions a round comes to, time decides.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

HOPS = ("backend", "proxy", "edge")

_PIECES = [
    *(
        "λλM ",
        "naïve ",
        "u\u0308 ",
        "👩\u200d👩\u200d👧 ",
        "日本語",
        "\u200fעברית ",
    ),  # many bytes, composed, right to left
    *("\r\n", "\n\n", "\u2028", "\t", "\0", "data: ", '"\\'),  # what a codec might take for its own
]


class Question(NamedTuple):
    """One turn that a client asks for. `persists`: it repeats it until it is acknowledged; `again`: after that, too."""

    request_id: str
    prompt: str
    model: str
    max_tokens: int
    persists: bool
    again: bool


class Round(NamedTuple):
    """One kill: of the hop `victim`, once so many turns have been acknowledged. `fresh` clients begin a new session."""

    number: int
    victim: str
    after: int
    fresh: frozenset[int]


def rounds(seed: int, number: int, clients: int) -> list[Round]:
    """So many rounds; among any three from the first on, each hop dies once."""
    draw = random.Random(f"{seed}")
    victims = itertools.chain.from_iterable(draw.sample(HOPS, len(HOPS)) for _ in itertools.count())
    return [
        Round(
            number=index,
            victim=next(victims),
            after=draw.randint(2, 3 * clients),
            fresh=frozenset(client for client in range(clients) if draw.random() < 0.15),
        )
        for index in range(number)
    ]


def questions(seed: int, round_number: int, client: int) -> Iterator[Question]:
    """What this client asks in this round, one after the other, without end."""
    draw = random.Random(f"{seed}/{round_number}/{client}")
    for index in itertools.count():
        name = f"{round_number}.{client}.{index}"
        text = "".join(draw.choices(_PIECES, k=draw.randint(1, 60)))
        yield Question(
            request_id=f"history-{seed}.{name}",
            prompt=f"{name}: {text}",
            model=draw.choice(["echo", "slow"]),
            max_tokens=draw.randint(3, 16),
            persists=draw.random() < 0.6,
            again=draw.random() < 0.15,
        )
