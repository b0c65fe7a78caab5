"""When a backend is left out, against a model of the rules that reliability.md gives."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from grpc_proxy.breaker import Breaker, BreakerConfig

CONFIG = BreakerConfig()
LEFT_OUT = [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(CONFIG)
    for _ in range(CONFIG.failures):
        breaker.failed(now, may_open=True, on_trial=False)
    return breaker


def test_it_opens_at_the_fifth_failure_in_a_row_and_says_so_once() -> None:
    breaker = Breaker(CONFIG)
    assert [breaker.failed(0, may_open=True, on_trial=False) for _ in range(6)] == [False] * 4 + [True, False]
    assert breaker.state(0) == "open"
    assert not breaker.allows(0)


def test_a_whole_answer_ends_the_row() -> None:
    breaker = Breaker(CONFIG)
    for _ in range(3):
        for _ in range(4):
            breaker.failed(0, may_open=True, on_trial=False)
        breaker.succeeded()
    assert breaker.state(0) == "closed"


def test_an_answer_that_only_begins_does_not_end_the_row() -> None:
    breaker = Breaker(CONFIG)
    for _ in range(5):
        breaker.answered(0, on_trial=True)
        breaker.failed(0, may_open=True, on_trial=False)
    assert breaker.state(0) == "open"


def test_it_is_left_out_30_seconds_times_how_often_at_most_300() -> None:
    breaker, now, found = opened(), 0.0, []
    for _ in LEFT_OUT:
        assert breaker.state(breaker.until - 0.001) == "open"
        assert breaker.state(breaker.until) == "half-open"
        found.append(breaker.until - now)
        now = breaker.until
        assert breaker.failed(now, may_open=True, on_trial=True)
    assert found == LEFT_OUT


def test_half_open_one_request_at_a_time_may_try_it() -> None:
    breaker = opened()
    assert breaker.allows(30)
    breaker.began(30)
    assert not breaker.allows(30)
    breaker.trial_over()
    assert breaker.allows(31)


def test_one_that_tries_and_hangs_keeps_others_out_for_30_seconds_only() -> None:
    breaker = opened()
    assert breaker.began(30)
    assert not breaker.allows(59.9)
    assert breaker.allows(60)
    assert breaker.began(60)
    assert not breaker.allows(60), "now another tries"


def test_what_becomes_of_a_request_of_before_changes_nothing_while_it_is_out() -> None:
    breaker = opened()
    assert not Breaker(CONFIG).began(0)
    assert not breaker.failed(29, may_open=True, on_trial=False)
    assert breaker.began(30)
    breaker.answered(30, on_trial=False)
    assert not breaker.failed(30, may_open=True, on_trial=False)
    assert breaker.state(30) == "half-open"
    assert breaker.until == 30
    assert not breaker.allows(30), "the one that tries still does"


def test_the_first_delta_closes_it_and_the_next_failure_opens_it_again_for_longer() -> None:
    breaker = opened()
    breaker.began(30)
    breaker.answered(30, on_trial=True)
    assert breaker.state(30) == "closed"
    assert breaker.failed(31, may_open=True, on_trial=False)
    assert breaker.until == 31 + 60


def test_after_a_whole_answer_it_takes_five_failures_again() -> None:
    breaker = opened()
    breaker.began(30)
    breaker.answered(30, on_trial=True)
    breaker.succeeded()
    assert [breaker.failed(31, may_open=True, on_trial=False) for _ in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize(("later", "left_out"), [(299, 60), (301, 30)])
def test_how_often_is_forgotten_after_a_long_time_without(later: float, left_out: float) -> None:
    breaker = opened()
    breaker.began(30)
    breaker.answered(30, on_trial=True)
    breaker.succeeded()
    for _ in range(5):
        breaker.failed(30 + later, may_open=True, on_trial=False)
    assert breaker.until == 30 + later + left_out


def test_the_last_one_stays_in_and_opens_at_the_next_failure_once_it_is_not_the_last() -> None:
    breaker = Breaker(CONFIG)
    assert not any(breaker.failed(0, may_open=False, on_trial=False) for _ in range(20))
    assert breaker.allows(0)
    assert breaker.failed(1, may_open=True, on_trial=False)


class Rules(RuleBasedStateMachine):
    """The rules, told another way: how many failures in a row, how often out, until when, who tries."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(CONFIG)
        self.now = 1000.0
        self.row = 0
        self.times = 0
        self.until: float | None = None
        self.trying_since: float | None = None
        self.closed_at = 0.0

    @property
    def half_open(self) -> bool:
        return self.until is not None and self.now >= self.until

    @property
    def trying(self) -> bool:
        return self.trying_since is not None and self.now < self.trying_since + 30

    @rule(seconds=st.sampled_from([0.5, 10, 29, 30, 31, 300, 1000]))
    def time_goes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def trial_ends(self) -> None:
        self.breaker.trial_over()
        self.trying_since = None

    @precondition(lambda self: self.breaker.allows(self.now))
    @rule()
    def begins(self) -> None:
        assert self.breaker.began(self.now) is (self.until is not None)
        if self.half_open:
            self.trying_since = self.now

    @rule(on_trial=st.booleans())
    def answers(self, on_trial: bool) -> None:
        self.breaker.answered(self.now, on_trial)
        if on_trial and self.until is not None:
            self.until, self.row, self.closed_at = None, 4, self.now

    @rule()
    def is_whole(self) -> None:
        self.breaker.succeeded()
        self.row = 0

    @rule(may_open=st.booleans(), on_trial=st.booleans())
    def fails(self, may_open: bool, on_trial: bool) -> None:
        now = self.now
        self.row += 1
        opens = (self.half_open and on_trial) or (self.until is None and self.row >= 5)
        if opens and may_open:
            if not self.half_open and self.now - self.closed_at > 300:
                self.times = 0
            self.times += 1
            self.until = self.now + min(30 * self.times, 300)
        elif opens:
            self.until = None
        assert self.breaker.failed(now, may_open, on_trial) is (opens and may_open)

    @invariant()
    def they_agree(self) -> None:
        expected = "closed" if self.until is None else "half-open" if self.half_open else "open"
        assert self.breaker.state(self.now) == expected
        assert self.breaker.allows(self.now) is (expected == "closed" or (expected == "half-open" and not self.trying))


TestRules = Rules.TestCase
