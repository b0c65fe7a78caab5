"""Coalescer: nothing under the budget; above it a stream's share, and back again."""

from __future__ import annotations

import contextlib
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdalm.coalesce import LONGEST_PAUSE, Coalescer

BUDGET = 1000


def pauses(coalescer: Coalescer, per_second: int, start: float, seconds: float = 1.0) -> list[float]:
    """The pauses of frames of one delta, evenly spread from `start` on."""
    count = int(per_second * seconds)
    return [coalescer.pause(1, start + index / per_second) for index in range(count)]


def busy(streams: int) -> tuple[Coalescer, contextlib.ExitStack]:
    """A coalescer with so many streams in it; they end with the stack."""
    made, stack = Coalescer(BUDGET), contextlib.ExitStack()
    for _ in range(streams):
        stack.enter_context(made.stream())
    return made, stack


@pytest.mark.parametrize("per_second", [1, 100, 900])
@pytest.mark.parametrize("start", [0.0, 1e6])
def test_under_the_budget_nobody_ever_waits(per_second: int, start: float) -> None:
    assert set(pauses(busy(50)[0], per_second, start, 3)) == {0.0}


@pytest.mark.parametrize("streams", [1, 50])
def test_over_the_budget_each_stream_waits_for_its_share(streams: int) -> None:
    coalescer, _ = busy(streams)
    pauses(coalescer, 2 * BUDGET, 1e6)
    assert set(pauses(coalescer, 2 * BUDGET, 1e6 + 1)) == {streams / BUDGET}


def test_nobody_waits_longer_than_a_reader_bears() -> None:
    coalescer, _ = busy(BUDGET)
    pauses(coalescer, 2 * BUDGET, 1e6)
    assert coalescer.pause(1, 1e6 + 1) == LONGEST_PAUSE < 1


def test_the_budget_counts_deltas_not_frames() -> None:
    coalescer, _ = busy(10)
    found = [coalescer.pause(20, 1e6 + index / 100) for index in range(200)]  # 100 frames/s of 20 deltas each
    assert set(found[100:]) == {10 / BUDGET}


def test_the_share_follows_the_streams_that_come_and_go() -> None:
    coalescer, stack = busy(10)
    pauses(coalescer, 2 * BUDGET, 1e6)
    with coalescer.stream():
        assert coalescer.pause(1, 1e6 + 1) == 11 / BUDGET
    assert coalescer.pause(1, 1e6 + 1) == 10 / BUDGET
    stack.close()
    assert coalescer.pause(1, 1e6 + 1) == 0


def test_joined_deltas_that_look_like_fewer_do_not_end_the_joining() -> None:
    coalescer, _ = busy(10)
    pauses(coalescer, 2 * BUDGET, 1e6)
    assert set(pauses(coalescer, BUDGET * 6 // 10, 1e6 + 1, 3)) == {10 / BUDGET}


def test_when_the_crowd_has_left_nobody_waits_any_more() -> None:
    coalescer, _ = busy(10)
    pauses(coalescer, 2 * BUDGET, 1e6)
    calm = pauses(coalescer, 100, 1e6 + 1, 3)
    assert calm[0] > 0
    assert set(calm[200:]) == {0.0}


def test_after_a_silence_the_first_delta_does_not_wait() -> None:
    coalescer, _ = busy(10)
    pauses(coalescer, 2 * BUDGET, 1e6)
    assert coalescer.pause(1, 1e6 + 100) == 0


def test_streams_of_many_threads_are_counted_right() -> None:
    coalescer = Coalescer(BUDGET)

    def come_and_go() -> None:
        for _ in range(2000):
            with coalescer.stream():
                pass

    threads = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with coalescer.stream():
        pauses(coalescer, 2 * BUDGET, 1e6)
        assert coalescer.pause(1, 1e6 + 1) == 1 / BUDGET


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 2)), max_size=50))
def test_a_pause_is_none_or_the_share_whatever_comes_when(frames: list[tuple[int, float]]) -> None:
    coalescer, now = busy(7)[0], 1e6
    for deltas, later in frames:
        now += later
        assert coalescer.pause(deltas, now) in (0.0, 7 / BUDGET)
