"""Coalescer: at once for few streams, on common ticks for many, over the budget on fewer of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdalm.coalesce import LONGEST_PAUSE, Coalescer

BUDGET = 1000
TICK = 0.02
NOW = 1e6


def delays(coalescer: Coalescer, per_second: int, start: float, seconds: float = 1.0) -> list[tuple[float, float]]:
    """When frames of one delta, evenly spread from `start` on, come and how long they are held back."""
    times = [start + index / per_second for index in range(int(per_second * seconds))]
    return [(now, coalescer.delay(1, now)) for now in times]


def busy(stack: contextlib.ExitStack, streams: int) -> Coalescer:
    """A coalescer with so many streams in it; they end with the stack."""
    made = Coalescer(BUDGET, TICK)
    for _ in range(streams):
        stack.enter_context(made.stream())
    return made


def crowded(stack: contextlib.ExitStack, streams: int) -> Coalescer:
    """The same, when twice the budget has come in the second before `NOW`."""
    coalescer = busy(stack, streams)
    delays(coalescer, 2 * BUDGET, NOW - 1)
    return coalescer


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def is_tick(moment: float) -> bool:
    return moment / TICK == pytest.approx(round(moment / TICK), abs=1e-4)


def leaves_well(now: float, delay: float) -> bool:
    """On a tick, or just after one without a wait."""
    return is_tick(now + delay) or (delay == 0 and now / TICK % 1 < 0.2)


@pytest.mark.parametrize("streams", [1, 8])
@pytest.mark.parametrize("start", [0.0, NOW])
def test_frames_of_few_streams_leave_at_once(stack: contextlib.ExitStack, streams: int, start: float) -> None:
    assert {delay for _, delay in delays(busy(stack, streams), 200, start, 3)} == {0.0}


@pytest.mark.parametrize("start", [0.0, NOW])
def test_frames_of_many_streams_leave_on_the_next_tick(stack: contextlib.ExitStack, start: float) -> None:
    found = delays(busy(stack, 9), 130, start, 3)
    assert all(leaves_well(now, delay) and delay <= TICK + 1e-9 for now, delay in found)
    assert sum(delay > 0 for _, delay in found) > len(found) // 2


@pytest.mark.parametrize(("late", "waits"), [(0.0, False), (0.003, False), (0.005, True), (0.019, True)])
def test_frame_that_comes_just_after_a_tick_leaves_at_once(
    stack: contextlib.ExitStack, late: float, waits: bool
) -> None:
    assert (busy(stack, 9).delay(1, NOW + late) > 0) is waits


def test_the_lone_stream_that_is_left_waits_no_longer(stack: contextlib.ExitStack) -> None:
    coalescer = busy(stack, 20)
    with coalescer.stream():
        assert coalescer.delay(1, NOW + 0.011) > 0
        stack.close()
        assert coalescer.delay(1, NOW + 0.011) == 0


@pytest.mark.parametrize("streams", [1, 50, 120])
def test_over_the_budget_each_stream_waits_for_its_share(stack: contextlib.ExitStack, streams: int) -> None:
    for now, delay in delays(crowded(stack, streams), 2 * BUDGET, NOW):
        assert streams / BUDGET < delay <= streams / BUDGET + TICK + 1e-9
        assert is_tick(now + delay)


def test_no_frame_waits_longer_than_a_reader_bears(stack: contextlib.ExitStack) -> None:
    for now, delay in delays(crowded(stack, BUDGET), 2 * BUDGET, NOW):
        assert LONGEST_PAUSE - TICK - 1e-9 <= delay <= LONGEST_PAUSE
        assert is_tick(now + delay)


def test_the_budget_counts_deltas_not_frames(stack: contextlib.ExitStack) -> None:
    coalescer = busy(stack, 100)
    found = [coalescer.delay(20, NOW + index / 100) for index in range(200)]  # 100 frames/s of 20 deltas each
    assert max(found[:100]) <= TICK + 1e-9
    assert min(found[100:]) > 100 / BUDGET


def test_the_share_follows_the_streams_that_come_and_go(stack: contextlib.ExitStack) -> None:
    coalescer = crowded(stack, 100)
    with contextlib.ExitStack() as more:
        for _ in range(40):
            more.enter_context(coalescer.stream())
        assert coalescer.delay(1, NOW) > 140 / BUDGET
    assert 100 / BUDGET < coalescer.delay(1, NOW) <= 120 / BUDGET + 1e-9


def test_joined_deltas_that_look_like_fewer_do_not_end_the_joining(stack: contextlib.ExitStack) -> None:
    found = delays(crowded(stack, 100), BUDGET * 6 // 10, NOW, 3)
    assert min(delay for _, delay in found) > 100 / BUDGET


def test_when_the_crowd_has_left_each_tick_counts_again(stack: contextlib.ExitStack) -> None:
    calm = [delay for _, delay in delays(crowded(stack, 100), 100, NOW, 3)]
    assert calm[0] > 100 / BUDGET
    assert max(calm[200:]) <= TICK + 1e-9


def test_after_a_silence_the_first_delta_waits_for_one_tick(stack: contextlib.ExitStack) -> None:
    assert crowded(stack, 100).delay(1, NOW + 100) <= TICK + 1e-9


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 2)), max_size=50), st.integers(9, 2000))
def test_every_frame_leaves_on_a_tick_in_time(frames: list[tuple[int, float]], streams: int) -> None:
    with contextlib.ExitStack() as stack:
        coalescer, now = busy(stack, streams), NOW
        for deltas, later in frames:
            now += later
            delay = coalescer.delay(deltas, now)
            assert 0 <= delay <= LONGEST_PAUSE
            assert leaves_well(now, delay)
