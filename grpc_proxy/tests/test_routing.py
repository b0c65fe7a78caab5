"""Who is asked, and how often once more: for any backends and any course of requests."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_proxy import routing
from grpc_proxy.breaker import Breaker, BreakerConfig
from grpc_proxy.routing import RetryBudget, RetryConfig, RoutingConfig, Target
from lambdalm.errors import Code, LlmError

CONFIG = BreakerConfig()


def target(name: str, in_flight: int = 0, **parts: Any) -> Target:
    """A backend; `models`, `fixed` and `down` as its attributes, `open_until` for one that is left out."""
    made = Target(name, parts.get("weight", 1), parts.get("max_in_flight", 100), 10, Breaker(CONFIG))
    made.in_flight = in_flight
    made.models, made.fixed, made.down = parts.get("models"), parts.get("fixed", False), parts.get("down")
    if "open_until" in parts:
        for _ in range(CONFIG.failures):
            made.breaker.failed(parts["open_until"] - CONFIG.seconds, may_open=True, on_trial=False)
    return made


def names(targets: list[Target]) -> list[str]:
    return [one.name for one in targets]


@st.composite
def some_targets(draw: st.DrawFn) -> list[Target]:
    return [
        target(
            f"t{number}",
            draw(st.integers(0, 5)),
            weight=draw(st.sampled_from([0.5, 1, 2, 3])),
            max_in_flight=draw(st.integers(1, 5)),
        )
        for number in range(draw(st.integers(0, 5)))
    ]


@given(some_targets(), st.none() | st.sampled_from(["t0", "t1", "elsewhere"]))
def test_who_has_the_least_in_flight_for_its_weight_is_asked_but_the_sticky_one_first(
    targets: list[Target], sticky: str | None
) -> None:
    chosen = routing.choose(targets, sticky)
    with_room = {one.name: one for one in targets if one.in_flight < one.max_in_flight}
    if not with_room:
        assert chosen is None
        return
    assert chosen is not None
    if sticky in with_room:
        assert chosen is with_room[sticky]
    else:
        loads = {one.name: (one.in_flight + 1) / one.weight for one in with_room.values()}
        assert loads[chosen.name] == min(loads.values())


def test_equals_take_turns() -> None:
    targets = [target(name) for name in "abc"]
    found = []
    for turn in range(1, 7):
        chosen = routing.choose(targets, None)
        assert chosen is not None
        found.append(chosen.name)
        chosen.began(turn, 0.0)
        chosen.in_flight -= 1
    assert sorted(found[:3]) == ["a", "b", "c"]
    assert found[3:] == found[:3]


def test_a_weight_is_a_share() -> None:
    heavy, light = target("heavy", weight=3), target("light")
    for turn in range(1, 41):
        chosen = routing.choose([light, heavy], None)
        assert chosen is not None
        chosen.began(turn, 0.0)
    assert (heavy.in_flight, light.in_flight) == (30, 10)


def test_the_unhealthy_and_those_left_out_are_not_asked() -> None:
    well, ill, out = target("well"), target("ill", down="gone"), target("out", open_until=30.0)
    assert names(routing.available([ill, out, well], 1.0)) == ["well"]
    assert names(routing.available([ill, out, well], 30.0)) == ["out", "well"]
    assert routing.available([ill], 1.0) == []


def test_where_all_healthy_ones_are_left_out_the_one_that_is_back_first_stays() -> None:
    targets = [target("late", open_until=40.0), target("soon", open_until=31.0), target("ill", down="gone")]
    assert names(routing.available(targets, 11.0)) == ["soon"]


def test_one_may_be_left_out_only_while_another_is_in() -> None:
    one, well = target("one"), target("well")
    ill, out = target("ill", down="gone"), target("out", open_until=30.0)
    assert routing.another_stays([one, ill, out, well], one, 1.0)
    assert not routing.another_stays([one, ill, out], one, 1.0)
    assert not routing.another_stays([one, ill, out], one, 31.0)  # it may be back, which nobody knows yet
    assert not routing.another_stays([one], one, 1.0)


def test_a_model_is_asked_for_where_it_is_known() -> None:
    lists = target("lists", models=frozenset({"big"}))
    unknown = target("unknown")
    assert names(routing.serving([lists, unknown], "big")) == ["lists"]
    assert names(routing.serving([lists, unknown], None)) == ["lists", "unknown"]


def test_a_model_that_nobody_lists_is_asked_for_where_there_may_be_more_than_is_listed() -> None:
    fixed = target("fixed", models=frozenset({"big"}), fixed=True)
    lists = target("lists", models=frozenset({"tiny"}))
    assert names(routing.serving([fixed, lists], "new")) == ["lists"]
    assert routing.serving([fixed], "new") == []


def test_fallbacks_follow_the_model_asked_for_in_order() -> None:
    config = RoutingConfig(fallbacks={"big": ("small", "tiny")})
    assert config.models("big") == ("big", "small", "tiny")
    assert config.models("tiny") == ("tiny",)
    assert config.models(None) == (None,)


@pytest.mark.parametrize("code", Code)
def test_what_another_could_mend_is_tried_again_and_what_is_broken_counts(code: Code) -> None:
    error = LlmError(code, "")
    mendable = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL", "UNKNOWN", "UNAUTHENTICATED"}
    assert routing.is_mendable(error) is (code.value in mendable)
    faults = {"UNAVAILABLE", "INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAUTHENTICATED"}
    assert routing.is_fault(error) is (code.value in faults)


@given(st.lists(st.booleans(), max_size=400), st.sampled_from([0.0, 0.1, 0.2, 1.0]), st.integers(0, 20))
def test_retries_are_at_most_ten_and_a_share_of_the_requests(course: list[bool], share: float, saved: int) -> None:
    """`course` has True for a request, and False for a wish to try one once more."""
    budget = RetryBudget(RetryConfig(budget=share, saved=saved))
    requests = retries = 0
    for is_request in course:
        if is_request:
            budget.request()
            requests += 1
        else:
            retries += budget.take()
        assert retries <= 10 + share * requests + 1e-6
        assert retries <= saved + share * requests + 1e-6


def test_what_is_saved_up_is_bounded_and_can_be_spent_at_once() -> None:
    budget = RetryBudget(RetryConfig(budget=0.2, saved=100))
    assert sum(budget.take() for _ in range(50)) == 10
    for _ in range(10_000):
        budget.request()
    assert sum(budget.take() for _ in range(500)) == 100
