"""Slots: first come first served, a line with an end, and no slot lost whoever leaves when."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator

import pytest

from backend_lambda.slots import Slots
from lambdalm.call import Call
from lambdalm.errors import Code, LlmError
from lambdalm.timings import HopClock

from .conftest import WAIT, new_call


class Waiting(Call):
    """A call that says when it has entered the line."""

    def __init__(self, in_line: Callable[[Call], object], budget: float = WAIT) -> None:
        super().__init__("r1", budget, HopClock("backend"))
        self._in_line = in_line

    @contextlib.contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        with super().on_cancel(callback):
            self._in_line(self)
            yield


class Taker:
    """A thread that takes a slot, holds it until told, and says what became of it."""

    def __init__(self, slots: Slots, log: list[str], name: str = "", budget: float = WAIT) -> None:
        self.error: LlmError | None = None
        self.holds = threading.Event()
        self.go_on = threading.Event()
        in_line = threading.Event()
        self.call = Waiting(lambda _: in_line.set(), budget)
        self._slots, self._log, self._name = slots, log, name
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert in_line.wait(WAIT)

    def _run(self) -> None:
        try:
            with self._slots.take(self.call):
                self._log.append(self._name)
                self.holds.set()
                self.go_on.wait(WAIT)
        except LlmError as error:
            self.error = error

    def end(self) -> LlmError | None:
        self.go_on.set()
        self._thread.join(WAIT)
        assert not self._thread.is_alive()
        return self.error


def numbers(slots: Slots) -> tuple[int, int]:
    return slots.held, slots.waiting


def test_a_free_slot_is_taken_at_once_and_given_back() -> None:
    slots = Slots(2, 0)
    with slots.take(new_call()):
        assert numbers(slots) == (1, 0)
        with slots.take(new_call()):
            assert numbers(slots) == (2, 0)
        assert numbers(slots) == (1, 0)
    assert numbers(slots) == (0, 0)


def test_a_slot_is_given_back_when_its_holder_fails() -> None:
    slots = Slots(1, 0)
    with pytest.raises(RuntimeError, match="engine"), slots.take(new_call()):
        raise RuntimeError("the engine broke")
    assert numbers(slots) == (0, 0)


def test_those_who_wait_are_served_in_the_order_in_which_they_came() -> None:
    slots, log = Slots(1, 10), list[str]()
    with slots.take(new_call()):
        takers = []
        for count, name in enumerate("abcdef"):
            assert numbers(slots) == (1, count)
            takers.append(Taker(slots, log, name))
            takers[-1].go_on.set()
        assert log == []
    for taker in takers:
        assert taker.end() is None
    assert log == list("abcdef")
    assert numbers(slots) == (0, 0)


def test_a_newcomer_does_not_overtake_the_one_whose_turn_it_is() -> None:
    slots, log = Slots(1, 10), list[str]()
    with slots.take(new_call()):
        first = Taker(slots, log, "first")
    newcomer = Taker(slots, log, "newcomer")
    assert first.holds.wait(WAIT)
    assert numbers(slots) == (1, 1)
    assert first.end() is None
    assert newcomer.end() is None
    assert log == ["first", "newcomer"]


def test_a_full_line_refuses_at_once_and_says_when_to_come_back() -> None:
    slots = Slots(1, 1)
    with slots.take(new_call()):
        waiting = Taker(slots, [])
        with pytest.raises(LlmError) as refused, slots.take(new_call()):
            pass
        assert refused.value.code is Code.RESOURCE_EXHAUSTED
        assert refused.value.retry_after == 1
        assert numbers(slots) == (1, 1)
    assert waiting.end() is None
    with slots.take(new_call()):  # the refused one has left nothing behind
        assert numbers(slots) == (1, 0)


def test_without_a_line_only_free_slots_are_given() -> None:
    slots = Slots(1, 0)
    with slots.take(new_call()), pytest.raises(LlmError, match="come back later"), slots.take(new_call()):
        pass
    assert numbers(slots) == (0, 0)


def test_a_cancelled_call_leaves_the_line_and_the_next_one_moves_up() -> None:
    slots, log = Slots(1, 2), list[str]()
    with slots.take(new_call()):
        leaver, stayer = Taker(slots, log, "leaver"), Taker(slots, log, "stayer")
        assert numbers(slots) == (1, 2)
        leaver.call.cancel("the client hung up")
        error = leaver.end()
        assert error is not None
        assert (error.code, error.message) == (Code.CANCELLED, "the client hung up")
        assert numbers(slots) == (1, 1)
    assert stayer.end() is None
    assert log == ["stayer"]
    assert numbers(slots) == (0, 0)


def test_a_call_whose_time_is_up_leaves_the_line() -> None:
    slots = Slots(1, 1)
    with slots.take(new_call()):
        late = Taker(slots, [], budget=0.02)
        error = late.end()
        assert error is not None
        assert error.code is Code.DEADLINE_EXCEEDED
        assert numbers(slots) == (1, 0)
    assert numbers(slots) == (0, 0)


def test_a_call_cancelled_beforehand_takes_no_slot() -> None:
    slots, call = Slots(1, 1), new_call()
    call.cancel("gone")
    with pytest.raises(LlmError, match="gone"), slots.take(call):
        pass
    assert numbers(slots) == (0, 0)


def test_a_slot_handed_over_to_a_call_just_cancelled_is_passed_on() -> None:
    slots, log = Slots(1, 2), list[str]()
    holder = contextlib.ExitStack()
    holder.enter_context(slots.take(new_call()))
    behind: list[Taker] = []

    def handed_over_and_cancelled(call: Call) -> None:
        behind.append(Taker(slots, log, "behind"))
        holder.close()
        call.cancel("gone")

    with pytest.raises(LlmError, match="gone"), slots.take(Waiting(handed_over_and_cancelled)):
        pass
    assert behind[0].holds.wait(WAIT)
    assert behind[0].end() is None
    assert numbers(slots) == (0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_no_slot_is_lost_or_doubled_when_many_come_and_leave_at_random(seed: int) -> None:
    slots, lock = Slots(3, 6), threading.Lock()
    inside, most, served = 0, 0, 0
    starts = threading.Barrier(13)

    def client(number: int) -> None:
        nonlocal inside, most, served
        dice = random.Random(seed * 100 + number)
        starts.wait()
        for _ in range(150):
            call = new_call(dice.choice([0, 0.0005, 0.002, WAIT]))
            leaving.append(call)
            with contextlib.suppress(LlmError), slots.take(call):
                with lock:
                    inside += 1
                    most = max(most, inside)
                    served += 1
                with lock:
                    inside -= 1

    def hang_up() -> None:
        starts.wait()
        while any(thread.is_alive() for thread in threads):
            with contextlib.suppress(IndexError):
                leaving.pop(0).cancel("gone")

    leaving: list[Call] = []
    threads = [threading.Thread(target=client, args=[number]) for number in range(12)]
    canceller = threading.Thread(target=hang_up)
    for thread in [*threads, canceller]:
        thread.start()
    for thread in [*threads, canceller]:
        thread.join()
    assert numbers(slots) == (0, 0)
    assert most <= 3
    assert served > 0
    with slots.take(new_call()), slots.take(new_call()), slots.take(new_call()):
        assert numbers(slots) == (3, 0)


def test_the_wait_for_a_slot_is_part_of_the_timings() -> None:
    now = 0.0
    call = new_call()
    call.clock = HopClock("backend", lambda: now)
    with Slots(1, 0).take(call):
        now = 1.5
    assert call.clock.timings()["backend"].queue_ms == 0
    assert call.clock.timings()["backend"].own_ms == 0
