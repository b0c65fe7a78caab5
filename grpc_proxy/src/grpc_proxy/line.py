"""The line before the upstreams: who may go to one now, who waits for which, and who is next.

A request waits for any of those that could answer it, so the line is one for all; what becomes free is offered to those
who wait for it, the first first. The rest of it is `routing.py`'s. For one event loop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from grpc_proxy import routing
from grpc_proxy.routing import Target
from lambdalm.errors import Code, LlmError

_COME_BACK = 1.0  # seconds, and up to as much again, so that not all come back at once


class Slot:
    """A request's place at a target, where it counts as in flight until the place is given back."""

    def __init__(self, target: Target, on_trial: bool, line: Line) -> None:
        self.target = target
        self.on_trial = on_trial
        self._line = line

    def give_back(self) -> None:
        self.target.in_flight -= 1
        if self.on_trial:
            self.target.breaker.trial_over()
        self._line.move()


class Waiter(NamedTuple):
    """Who waits for one of these targets, and what they are given when their turn comes."""

    targets: tuple[Target, ...]
    sticky: str | None
    given: asyncio.Future[Slot]


class Line:
    """`everyone` are all targets there are; `nobody` is the error of those for whom none of theirs is left."""

    def __init__(self, everyone: Sequence[Target], nobody: Callable[[Sequence[Target]], LlmError]) -> None:
        self.waiters: list[Waiter] = []
        self._everyone = everyone
        self._nobody = nobody
        self._turn = 0

    def up(self, targets: Sequence[Target], sticky: str | None) -> Waiter:
        """A place in the line, or at its head if there is room now.

        Raises `LlmError(RESOURCE_EXHAUSTED)` where the line is full. Who has it calls `leave` when they are through.
        """
        waiter = Waiter(tuple(targets), sticky, asyncio.get_running_loop().create_future())
        slot = self._take(targets, sticky)  # who waits already waits for others: these would have been given to them
        if slot is not None:
            waiter.given.set_result(slot)
            return waiter
        before = max(target.waiting for target in targets)
        if before >= sum(target.queue for target in targets):
            why = f"all backends are busy and {before} requests wait for them, which is the limit: come back later"
            raise LlmError(Code.RESOURCE_EXHAUSTED, why, retry_after=jittered())
        self.waiters.append(waiter)
        for target in targets:
            target.waiting += 1
        return waiter

    def leave(self, waiter: Waiter, taken: bool) -> None:
        """Out of the line; `taken` says whether what was given is in use. If it is not, others have it."""
        if waiter in self.waiters:
            self.waiters.remove(waiter)
            for target in waiter.targets:
                target.waiting -= 1
        given = waiter.given
        if not given.done():
            given.cancel()
        elif not taken and not given.cancelled() and given.exception() is None:
            given.result().give_back()

    def looked(self) -> None:
        """Something has become known of the targets: who waits for none any more is told so, and the line moves."""
        for waiter in self.waiters:
            if not waiter.given.done() and not routing.available(waiter.targets, now()):
                waiter.given.set_exception(self._nobody(waiter.targets))
        self.move()

    def move(self) -> None:
        """Give what has become free to those who wait for it."""
        if not any(target.has_room for target in self._everyone):
            return
        stuck: set[tuple[Target, ...]] = set()  # what one cannot have now, none behind who waits for the same can
        for waiter in self.waiters:
            if waiter.given.done() or waiter.targets in stuck:
                continue
            slot = self._take(waiter.targets, waiter.sticky)
            if slot is None:
                stuck.add(waiter.targets)
            else:
                waiter.given.set_result(slot)

    def _take(self, targets: Sequence[Target], sticky: str | None) -> Slot | None:
        """A place at one of them now; None where all have to be waited for."""
        moment = now()
        target = routing.choose(routing.available(targets, moment), sticky)
        if target is None:
            return None
        self._turn += 1
        return Slot(target, target.began(self._turn, moment), self)


def jittered() -> float:
    """Seconds after which to come back."""
    return round(random.uniform(_COME_BACK, 2 * _COME_BACK), 2)


def now() -> float:
    """The loop's clock, by which breakers and routing judge; in seconds."""
    return asyncio.get_running_loop().time()
