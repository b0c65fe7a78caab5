"""Coalescer: nothing under the budget, active streams / budget above it, and back again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_proxy.coalesce import Coalescer

BUDGET = 1000


def pauses(coalescer: Coalescer, per_second: int, start: float, seconds: float = 1.0) -> list[float]:
    """The pauses of frames of one delta, evenly spread from `start` on."""
    count = int(per_second * seconds)
    return [coalescer.pause(1, start + index / per_second) for index in range(count)]


def coalescer(streams: int) -> Coalescer:
    made = Coalescer(BUDGET)
    for _ in range(streams):
        made.stream_starts()
    return made


@pytest.mark.parametrize("per_second", [1, 100, 900])
@pytest.mark.parametrize("start", [0.0, 1e6])
def test_under_the_budget_nobody_ever_waits(per_second: int, start: float) -> None:
    assert set(pauses(coalescer(50), per_second, start, 3)) == {0.0}


@pytest.mark.parametrize("streams", [1, 50])
def test_over_the_budget_each_stream_waits_for_its_share(streams: int) -> None:
    busy = coalescer(streams)
    pauses(busy, 2 * BUDGET, 1e6)
    assert set(pauses(busy, 2 * BUDGET, 1e6 + 1)) == {streams / BUDGET}


def test_the_budget_counts_deltas_not_frames() -> None:
    busy = coalescer(10)
    found = [busy.pause(20, 1e6 + index / 100) for index in range(200)]  # 100 frames/s of 20 deltas each
    assert set(found[100:]) == {10 / BUDGET}


def test_the_share_follows_the_streams_that_come_and_go() -> None:
    busy = coalescer(10)
    pauses(busy, 2 * BUDGET, 1e6)
    busy.stream_starts()
    assert busy.pause(1, 1e6 + 1) == 11 / BUDGET
    for _ in range(6):
        busy.stream_ends()
    assert busy.pause(1, 1e6 + 1) == 5 / BUDGET


def test_when_the_crowd_has_left_nobody_waits_any_more() -> None:
    busy = coalescer(10)
    pauses(busy, 2 * BUDGET, 1e6)
    calm = pauses(busy, 100, 1e6 + 1)
    assert calm[0] > 0
    assert set(calm[50:]) == {0.0}


def test_after_a_silence_the_first_delta_does_not_wait() -> None:
    busy = coalescer(10)
    pauses(busy, 2 * BUDGET, 1e6)
    assert busy.pause(1, 1e6 + 100) == 0


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 2)), max_size=50))
def test_a_pause_is_none_or_the_share_whatever_comes_when(frames: list[tuple[int, float]]) -> None:
    some, now = coalescer(7), 1e6
    for deltas, later in frames:
        now += later
        assert some.pause(deltas, now) in (0.0, 7 / BUDGET)
