from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lambdalm.timings import HopClock, HopTiming, Timings, decode, encode

from . import strategies

_hops = st.from_regex(r"[a-z]{1,12}", fullmatch=True)


class Clock:
    """Time that a test sets, in seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@given(strategies.hop_timings(strategies.milliseconds_of_a_second, _hops))
def test_timings_survive_a_header(timings: Timings) -> None:
    assert decode(encode(timings)) == timings
    assert list(decode(encode(timings))) == list(timings)


@given(strategies.milliseconds)
def test_so_do_those_of_requests_that_take_minutes(ms: float) -> None:
    timings = {"backend": HopTiming(total_ms=ms)}
    assert decode(encode(timings)) == timings


def test_a_header_is_server_timing_syntax() -> None:
    timings = {"backend": HopTiming(total_ms=41.2, queue_ms=0.125, first_token_ms=7), "proxy": HopTiming(total_ms=42)}
    assert encode(timings) == "backend;dur=41.2, backend-queue;dur=0.125, backend-first-token;dur=7, proxy;dur=42"


def test_entries_of_other_makers_are_passed_over() -> None:
    header = 'miss, cdn-cache; desc=HIT, db;dur=5;desc="x", edge;dur=7, own-x;desc=1, ,;'
    assert decode(header) == {"edge": HopTiming(total_ms=7)}


def test_nothing_is_no_timings() -> None:
    assert encode({}) == ""
    assert decode("") == {}


@given(st.text())
def test_any_header_can_be_read(header: str) -> None:
    decode(header)


def test_a_hop_knows_only_its_total_when_nothing_was_told() -> None:
    clock = Clock()
    hop = HopClock("edge", clock)
    clock.now += 0.25
    assert hop.timings() == {"edge": HopTiming(total_ms=250, own_ms=250)}


def test_the_innermost_hop_shares_its_time_between_queue_engine_and_itself() -> None:
    clock = Clock()
    hop = HopClock("backend", clock)
    clock.now += 0.002  # its own
    hop.queue_starts()
    clock.now += 0.5
    hop.slot_taken()
    clock.now += 0.125
    hop.first_delta()
    clock.now += 1.0
    hop.first_delta()  # only the first one counts
    clock.now += 1.0
    hop.engine_done()
    clock.now += 0.003  # its own
    assert hop.timings() == {
        "backend": HopTiming(total_ms=2630, queue_ms=500, first_token_ms=627, generation_ms=2000, own_ms=5)
    }


def test_a_request_still_in_the_queue_has_waited_so_far() -> None:
    clock = Clock()
    hop = HopClock("backend", clock)
    hop.queue_starts()
    clock.now += 0.25
    assert hop.timings() == {"backend": HopTiming(total_ms=250, queue_ms=250, own_ms=0)}


def test_an_engine_still_at_work_has_generated_so_far() -> None:
    clock = Clock()
    hop = HopClock("backend", clock)
    hop.slot_taken()
    clock.now += 0.5
    hop.first_delta()
    clock.now += 0.25
    assert hop.timings() == {"backend": HopTiming(total_ms=750, first_token_ms=500, generation_ms=250, own_ms=0)}


def test_the_own_time_of_an_outer_hop_is_the_difference_of_the_totals() -> None:
    clock = Clock()
    hop = HopClock("edge", clock)
    clock.now += 0.0425
    backend, proxy = HopTiming(total_ms=40, own_ms=40), HopTiming(total_ms=41.5, own_ms=1.5)
    hop.behind = {"backend": backend, "proxy": proxy}
    timings = hop.timings()
    assert list(timings) == ["backend", "proxy", "edge"]
    assert timings == {"backend": backend, "proxy": proxy, "edge": HopTiming(total_ms=42.5, own_ms=1)}


def test_a_hop_with_slots_in_front_of_an_engine_that_tells_its_time_keeps_the_wait_apart() -> None:
    now = 0.0
    hop = HopClock("backend", lambda: now)
    hop.queue_starts()
    now = 0.5
    hop.slot_taken()
    hop.behind = {"ollama": HopTiming(total_ms=200)}
    now = 0.71
    hop.engine_done()
    assert hop.timings()["backend"] == HopTiming(total_ms=710, queue_ms=500, own_ms=10)


def test_own_time_is_never_negative() -> None:
    clock = Clock()
    hop = HopClock("edge", clock)
    clock.now += 0.04
    hop.behind = {"proxy": HopTiming(total_ms=50)}
    assert hop.timings()["edge"] == HopTiming(total_ms=40, own_ms=0)


def test_the_own_times_of_nested_hops_add_up_to_the_outermost_total() -> None:
    clock = Clock()
    edge = HopClock("edge", clock)
    clock.now += 0.001
    proxy = HopClock("proxy", clock)
    clock.now += 0.002
    backend = HopClock("backend", clock)
    clock.now += 0.003
    proxy.behind = backend.timings()
    clock.now += 0.004
    edge.behind = proxy.timings()
    clock.now += 0.005
    timings = edge.timings()
    assert {hop: share.own_ms for hop, share in timings.items()} == {"backend": 3, "proxy": 6, "edge": 6}
    assert timings["edge"].total_ms == 15
