"""Rounds: what is compared takes turns, until the mean of the rounds is precise enough."""

from __future__ import annotations

import math
import statistics
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

_LEAST = 4
PRECISE = 0.03
"""The spread at which the rounds end."""

S = TypeVar("S")
T = TypeVar("T")


def spread(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of `values`, relative to it; infinite for fewer than two."""
    if len(values) < 2:
        return math.inf
    return 2 * statistics.stdev(values) / math.sqrt(len(values)) / statistics.mean(values)


async def alternate(
    sides: Sequence[S],
    take: Callable[[S], Awaitable[T]],
    precise: Callable[[Sequence[Sequence[T]]], bool],
    most: int,
) -> list[list[T]]:
    """What `take` gave for each side, round by round; every other round goes through the sides backwards.

    The rounds end when `precise` says so of all that was found, after four of them or more, or after `most`.
    """
    found: list[list[T]] = [[] for _ in sides]
    for number in range(most):
        order = list(range(len(sides)))
        for index in order if number % 2 == 0 else reversed(order):
            found[index].append(await take(sides[index]))
        if number + 1 >= _LEAST and precise(found):
            break
    return found
