"""Slots: first come first served, a line with an end, and no slot lost, whatever leaves when."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from backend_lambda.slots import Slots
from lambdalm.errors import Code, LlmError
from lambdalm.timings import HopClock

from .conftest import WAIT, new_call


class Taker:
    """A task that takes a slot and holds it until `go_on`."""

    def __init__(self, slots: Slots, log: list[str], name: str = "") -> None:
        self.holds = asyncio.Event()
        self.go_on = asyncio.Event()
        self._slots, self._log, self._name = slots, log, name
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._slots.take(new_call()):
            self._log.append(self._name)
            self.holds.set()
            await self.go_on.wait()

    async def end(self) -> None:
        self.go_on.set()
        await asyncio.wait_for(self.task, WAIT)


async def in_line(slots: Slots, log: list[str], name: str = "") -> Taker:
    """A taker that has come as far as it can."""
    taker = Taker(slots, log, name)
    await asyncio.sleep(0)
    return taker


def numbers(slots: Slots) -> tuple[int, int]:
    return slots.held, slots.waiting


async def test_a_free_slot_is_taken_at_once_and_given_back() -> None:
    slots = Slots(2, 0)
    async with slots.take(new_call()):
        assert numbers(slots) == (1, 0)
        async with slots.take(new_call()):
            assert numbers(slots) == (2, 0)
        assert numbers(slots) == (1, 0)
    assert numbers(slots) == (0, 0)


async def test_a_slot_is_given_back_when_its_holder_fails() -> None:
    slots = Slots(1, 0)
    with pytest.raises(RuntimeError, match="engine"):
        async with slots.take(new_call()):
            raise RuntimeError("the engine broke")
    assert numbers(slots) == (0, 0)


async def test_waiting_requests_are_served_in_their_order() -> None:
    slots, log, takers = Slots(1, 10), list[str](), list[Taker]()
    async with slots.take(new_call()):
        for count, name in enumerate("abcdef"):
            assert numbers(slots) == (1, count)
            takers.append(await in_line(slots, log, name))
            takers[-1].go_on.set()
        assert log == []
    for taker in takers:
        await taker.end()
    assert log == list("abcdef")
    assert numbers(slots) == (0, 0)


async def test_a_newcomer_does_not_overtake_the_one_whose_turn_it_is() -> None:
    slots, log = Slots(1, 10), list[str]()
    async with slots.take(new_call()):
        first = await in_line(slots, log, "first")
    newcomer = Taker(slots, log, "newcomer")
    await asyncio.wait_for(first.holds.wait(), WAIT)
    assert numbers(slots) == (1, 1)
    await first.end()
    await newcomer.end()
    assert log == ["first", "newcomer"]


async def test_a_full_line_refuses_and_says_when_to_come_back() -> None:
    slots = Slots(1, 1)
    async with slots.take(new_call()):
        waiting = await in_line(slots, [])
        with pytest.raises(LlmError) as refused:
            await slots.take(new_call()).__aenter__()
        assert refused.value.code is Code.RESOURCE_EXHAUSTED
        assert refused.value.retry_after == 1
        assert numbers(slots) == (1, 1)
    await waiting.end()
    async with slots.take(new_call()):  # the refused one has left nothing behind
        assert numbers(slots) == (1, 0)


async def test_without_a_line_only_free_slots_are_given() -> None:
    slots = Slots(1, 0)
    async with slots.take(new_call()):
        with pytest.raises(LlmError, match="come back later"):
            await slots.take(new_call()).__aenter__()
    assert numbers(slots) == (0, 0)


async def test_a_cancelled_request_leaves_the_line_and_the_next_moves_up() -> None:
    slots, log = Slots(1, 2), list[str]()
    async with slots.take(new_call()):
        leaver, stayer = await in_line(slots, log, "leaver"), await in_line(slots, log, "stayer")
        assert numbers(slots) == (1, 2)
        leaver.task.cancel()
        await asyncio.wait([leaver.task])
        assert leaver.task.cancelled()
        assert numbers(slots) == (1, 1)
    await stayer.end()
    assert log == ["stayer"]
    assert numbers(slots) == (0, 0)


async def test_a_slot_passes_over_a_request_that_is_just_leaving() -> None:
    slots, log = Slots(1, 2), list[str]()
    async with slots.take(new_call()):
        leaver, stayer = await in_line(slots, log, "leaver"), await in_line(slots, log, "stayer")
        leaver.task.cancel()  # it learns of that when this task waits
    await stayer.end()
    assert log == ["stayer"]
    assert numbers(slots) == (0, 0)


async def test_a_slot_handed_to_a_request_just_cancelled_is_passed_on() -> None:
    slots, log = Slots(1, 2), list[str]()
    async with slots.take(new_call()):
        leaver, stayer = await in_line(slots, log, "leaver"), await in_line(slots, log, "stayer")
    leaver.task.cancel()  # the slot is its own already, and it does not know yet
    await stayer.end()
    assert log == ["stayer"]
    assert numbers(slots) == (0, 0)


async def test_a_call_stopped_beforehand_takes_no_slot() -> None:
    slots, call = Slots(1, 1), new_call()
    call.cancel("gone")
    with pytest.raises(LlmError, match="gone"):
        await slots.take(call).__aenter__()
    assert numbers(slots) == (0, 0)


@pytest.mark.parametrize("seed", range(3))
async def test_no_slot_is_lost_or_doubled_under_random_leaving(seed: int) -> None:
    slots, inside, most, served = Slots(3, 6), 0, 0, 0

    async def client(dice: random.Random) -> None:
        nonlocal inside, most, served
        for _ in range(150):
            with contextlib.suppress(LlmError, asyncio.CancelledError):
                async with slots.take(new_call()):
                    inside += 1
                    most, served = max(most, inside), served + 1
                    try:
                        await asyncio.sleep(dice.choice([0, 0, 0.0005]))
                    finally:
                        inside -= 1

    clients = [asyncio.create_task(client(random.Random(seed * 100 + number))) for number in range(12)]
    dice = random.Random(seed)
    while not all(task.done() for task in clients):
        dice.choice(clients).cancel()
        await asyncio.sleep(0)
    assert numbers(slots) == (0, 0)
    assert most <= 3
    assert served > 0
    async with slots.take(new_call()), slots.take(new_call()), slots.take(new_call()):
        assert numbers(slots) == (3, 0)


async def test_the_wait_for_a_slot_is_part_of_the_timings() -> None:
    now = 0.0
    slots, call = Slots(1, 1), new_call()
    call.clock = HopClock("backend", lambda: now)

    async def take() -> None:
        async with slots.take(call):
            pass

    async with slots.take(new_call()):
        waiting = asyncio.create_task(take())
        await asyncio.sleep(0)
        now = 1.5
    await waiting
    now = 2.0
    assert call.clock.timings()["backend"].queue_ms == 1500
    assert call.clock.timings()["backend"].own_ms == 500
