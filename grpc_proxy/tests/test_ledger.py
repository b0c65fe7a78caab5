"""What a key is given: never more than its limits, never charged twice, and not held up by clocks that are set."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_proxy.ledger import DAY, MINUTE, Ledger, Limits, Refusal, reserve, settle

NOON = 20_000 * DAY + DAY / 2
HOUR = 3600.0
PER_MINUTE = 100


def granted(ledger: Ledger, limits: Limits, id: str, tokens: int = 1, now: float = NOON, until: float = 0.0) -> Ledger:
    after = reserve(ledger, limits, id, tokens, until or now + 10 * MINUTE, now)
    assert isinstance(after, Ledger), after
    return after


def refused(ledger: Ledger, limits: Limits, tokens: int = 1, now: float = NOON) -> Refusal:
    after = reserve(ledger, limits, "refused", tokens, now + 10 * MINUTE, now)
    assert isinstance(after, Refusal), after
    return after


class Step(NamedTuple):
    """So many seconds later a request of so many tokens comes, held for so long, and an older one ends."""

    later: float
    tokens: int
    hold: float
    ends: int
    share: float | None  # of its tokens, that it took


class Admitted(NamedTuple):
    at: float
    tokens: int  # charged in the end


STEPS = st.lists(
    st.builds(
        Step,
        later=st.one_of(st.just(0.0), st.floats(0, 90)),
        tokens=st.integers(0, PER_MINUTE + 5),
        hold=st.floats(1, 300),
        ends=st.integers(0, 60),
        share=st.one_of(st.none(), st.floats(0, 1)),
    ),
    max_size=60,
)


def play(steps: list[Step], limits: Limits) -> tuple[dict[str, Admitted], Ledger]:
    """What was admitted, and what each was charged, when the steps were gone."""
    ledger, now, admitted = Ledger(), NOON, dict[str, Admitted]()
    for number, step in enumerate(steps):
        now += step.later
        after = reserve(ledger, limits, str(number), step.tokens, now + step.hold, now)
        if isinstance(after, Ledger):
            ledger = after
            admitted[str(number)] = Admitted(now, step.tokens)
        ended = str(step.ends)
        if ended in ledger.held:
            cost = admitted[ended].tokens
            taken = None if step.share is None else int(cost * step.share)
            ledger = settle(ledger, ended, taken)
            admitted[ended] = Admitted(admitted[ended].at, cost if taken is None else taken)
    return admitted, ledger


def worst_stretch(charges: list[tuple[float, int]], per_minute: int) -> float:
    """The most that any stretch of time was given above what drained in it; the budget is the bound."""
    level, last, worst = 0.0, charges[0][0] if charges else 0.0, 0.0
    for at, charge in charges:
        level = max(0.0, level - (at - last) * per_minute / MINUTE) + charge
        worst, last = max(worst, level), at
    return worst


@given(STEPS)
def test_no_stretch_of_time_gets_more_tokens_than_its_minutes_have(steps: list[Step]) -> None:
    admitted, _ = play(steps, Limits(tokens_per_minute=PER_MINUTE))
    assert worst_stretch([(one.at, one.tokens) for one in admitted.values()], PER_MINUTE) <= PER_MINUTE + 0.01


@given(STEPS)
def test_no_stretch_of_time_gets_more_requests_than_its_minutes_have(steps: list[Step]) -> None:
    admitted, _ = play(steps, Limits(requests_per_minute=3))
    assert worst_stretch([(one.at, 1) for one in admitted.values()], 3) <= 3.01


@given(STEPS)
def test_no_day_gets_more_tokens_than_it_has_and_they_are_counted_to_the_last(steps: list[Step]) -> None:
    slow = [step._replace(later=step.later * 60) for step in steps]  # so that days pass
    admitted, ledger = play(slow, Limits(tokens_per_day=150))
    days = {int(one.at // DAY) for one in admitted.values()}
    used = {day: sum(one.tokens for one in admitted.values() if one.at // DAY == day) for day in days}
    assert all(tokens <= 150 for tokens in used.values())
    assert ledger.day_tokens <= 150


@given(STEPS)
def test_within_a_day_the_ledger_has_exactly_what_was_charged(steps: list[Step]) -> None:
    admitted, ledger = play(steps, Limits(requests_per_minute=60))
    assert ledger.day_tokens == sum(one.tokens for one in admitted.values())


@given(STEPS)
def test_no_more_are_in_flight_than_may_be(steps: list[Step]) -> None:
    ledger, now = Ledger(), NOON
    for number, step in enumerate(steps):
        now += step.later
        after = reserve(ledger, Limits(max_in_flight=2), str(number), step.tokens, now + step.hold, now)
        if isinstance(after, Ledger):
            ledger = after
        assert len(ledger.held) <= 2
        ledger = settle(ledger, str(step.ends), None)


@given(STEPS, st.integers(0, 9))
def test_a_reservation_is_counted_once_however_often_it_is_made_and_settled(steps: list[Step], again: int) -> None:
    _, ledger = play(steps, Limits())
    once = granted(ledger, Limits(), "x", 7, ledger.at)
    assert reserve(once, Limits(), "x", 7, once.at + 1, once.at) == once
    ended = settle(once, "x", 5)
    assert settle(ended, "x", again) == ended
    assert ended.day_tokens == 5 + (ledger.day_tokens if ledger.day == once.day else 0)


@given(STEPS, st.integers(1, PER_MINUTE))
def test_who_comes_back_when_told_is_let_in(steps: list[Step], tokens: int) -> None:
    limits = Limits(requests_per_minute=3, tokens_per_minute=PER_MINUTE, tokens_per_day=300)
    _, ledger = play(steps, limits)
    now = max(NOON, ledger.at)
    after = reserve(ledger, limits, "x", tokens, now + 1, now)
    if isinstance(after, Refusal):
        assert after.retry_after is not None
        granted(ledger, limits, "x", tokens, now + after.retry_after)


def test_a_minutes_worth_may_come_at_once_and_comes_back_bit_by_bit() -> None:
    limits = Limits(requests_per_minute=6)
    *_, ledger = accumulate(range(6), lambda ledger, n: granted(ledger, limits, str(n)), initial=Ledger())
    refusal = refused(ledger, limits)
    assert refusal.limit == "requests_per_minute"
    assert refusal.retry_after == pytest.approx(10)
    assert refusal.message == "the key's 6 requests a minute are used up; come back in 10 s"
    ledger = granted(ledger, limits, "7", now=NOON + 10.001)
    refused(ledger, limits, now=NOON + 10.002)


def test_a_refusal_says_what_is_left_and_when_to_come_back() -> None:
    limits = Limits(tokens_per_minute=100, tokens_per_day=1000)
    ledger = granted(Ledger(), limits, "1", 70)
    refusal = refused(ledger, limits, 60)
    assert refusal.retry_after == pytest.approx(18)
    assert refusal.message == (
        "the key has 30 of its 100 tokens a minute left, and the request may take 60; come back in 18 s, "
        "or lower max_tokens"
    )


def test_of_several_limits_the_one_that_lasts_longest_is_named() -> None:
    limits = Limits(requests_per_minute=1, tokens_per_minute=100, tokens_per_day=100, max_in_flight=1)
    refusal = refused(granted(Ledger(), limits, "1", 100), limits)
    assert (refusal.limit, refusal.retry_after) == ("tokens_per_day", DAY / 2)
    assert "come back in 12 h" in refusal.message


def test_what_can_never_fit_is_not_asked_to_come_back() -> None:
    refusal = refused(Ledger(), Limits(tokens_per_minute=100), 101)
    assert refusal.retry_after is None
    assert "may take 101 tokens, and the key has 100 a minute" in refusal.message


def test_unknown_usage_stays_at_the_estimate() -> None:
    limits = Limits(tokens_per_day=100)
    assert settle(granted(Ledger(), limits, "1", 60), "1", None).day_tokens == 60


def test_what_was_not_used_is_given_back_at_once() -> None:
    limits = Limits(tokens_per_minute=100, tokens_per_day=100)
    ledger = settle(granted(Ledger(), limits, "1", 100), "1", 10)
    refused(ledger, limits, 91)
    granted(ledger, limits, "2", 90)


def test_more_than_was_reserved_is_charged_and_has_to_drain() -> None:
    limits = Limits(tokens_per_minute=100)
    ledger = settle(granted(Ledger(), limits, "1", 10), "1", 300)
    assert refused(ledger, limits, 50).retry_after == pytest.approx(150)
    granted(ledger, limits, "2", 50, NOON + 150.001)


def test_what_drained_while_it_was_held_is_not_given_back_again() -> None:
    limits = Limits(tokens_per_minute=100)
    ledger = granted(Ledger(), limits, "old", 100)
    ledger = granted(ledger, limits, "new", 100, NOON + MINUTE)
    refused(settle(ledger, "old", 0), limits, 1, NOON + MINUTE)


def test_what_is_held_drains_one_after_the_other() -> None:
    limits = Limits(tokens_per_minute=100)
    ledger = granted(granted(Ledger(), limits, "1", 50), limits, "2", 50)
    refused(ledger, limits, 51, NOON + MINUTE / 2)
    granted(ledger, limits, "3", 50, NOON + MINUTE / 2)


def test_what_drained_while_it_was_held_is_not_charged_again() -> None:
    limits = Limits(tokens_per_minute=100)
    ledger = granted(Ledger(), limits, "old", 100)
    ledger = settle(granted(ledger, limits, "new", 50, NOON + MINUTE), "old", 100)
    granted(ledger, limits, "third", 50, NOON + MINUTE)


def test_what_a_dead_proxy_held_is_spent_and_no_longer_in_flight() -> None:
    limits = Limits(tokens_per_day=100, max_in_flight=1)
    ledger = granted(Ledger(), limits, "1", 60, until=NOON + 5)
    assert refused(ledger, limits, now=NOON + 4).limit == "max_in_flight"
    ledger = granted(ledger, limits, "2", 40, NOON + 5)
    assert (ledger.day_tokens, list(ledger.held)) == (100, ["2"])
    assert settle(ledger, "1", 0) == ledger


def test_a_new_day_begins_at_midnight_utc_and_old_reservations_give_it_nothing() -> None:
    limits = Limits(tokens_per_day=100)
    midnight = 20_001 * DAY
    ledger = granted(Ledger(), limits, "1", 100, midnight - 1)
    refused(ledger, limits, now=midnight - 0.5)
    ledger = granted(ledger, limits, "2", 100, midnight)
    assert settle(ledger, "1", 0).day_tokens == 100
    assert settle(ledger, "1", 130).day_tokens == 130


@pytest.mark.parametrize("jump", [HOUR, 61.0, -59.0, -61.0, -119.0, -HOUR, -DAY, DAY])
def test_a_clock_that_is_set_holds_nobody_up_for_more_than_a_minute_longer(jump: float) -> None:
    limits = Limits(requests_per_minute=1, tokens_per_minute=100, max_in_flight=1)
    ledger = settle(granted(Ledger(), limits, "1", 100), "1", None)
    now = NOON + 2 * MINUTE
    ledger = granted(ledger, limits, "2", 100, now, until=now + MINUTE)
    refusals = [isinstance(reserve(ledger, limits, "3", 100, now, now + jump + s), Refusal) for s in range(400)]
    assert max(len(run) for run in "".join("x" if no else " " for no in refusals).split(" ")) <= 2 * MINUTE


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_clock_that_is_set_within_a_day_does_not_give_the_day_anew(jump: float) -> None:
    limits = Limits(tokens_per_day=100)
    ledger = granted(Ledger(), limits, "1", 100)
    assert refused(ledger, limits, now=NOON + jump).retry_after == DAY / 2 - jump


def test_a_machine_whose_clock_is_a_little_behind_gets_no_more() -> None:
    limits = Limits(requests_per_minute=1, tokens_per_day=10)
    midnight = 20_001 * DAY
    ledger = granted(Ledger(), limits, "1", 10, midnight + 0.1)
    assert refused(ledger, limits, 10, midnight - 0.1).limit == "tokens_per_day"


def test_a_ledger_comes_back_from_its_bytes() -> None:
    ledger = settle(granted(granted(Ledger(), Limits(), "1", 5), Limits(), "2", 7), "1", 3)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(ledger), type=Ledger) == ledger
