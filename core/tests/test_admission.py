from __future__ import annotations

import pytest

from lambdalm.call import Call
from lambdalm.errors import Code, LlmError, http_status
from lambdalm.http.admission import InFlight
from lambdalm.timings import HopClock


def new_call() -> Call:
    return Call("r1", 100, HopClock("edge"))


def test_one_call_above_the_limit_is_refused() -> None:
    flight = InFlight(2)
    flight.enter(new_call())
    flight.enter(new_call())
    with pytest.raises(LlmError) as caught:
        flight.enter(new_call())
    assert (caught.value.code, http_status(caught.value, "edge")) == (Code.RESOURCE_EXHAUSTED, 503)
    assert caught.value.retry_after is not None
    assert len(flight) == 2


def test_call_that_ends_makes_room() -> None:
    flight, call = InFlight(1), new_call()
    flight.enter(call)
    assert flight.refusal() is not None
    flight.leave(call)
    assert flight.refusal() is None
    assert len(flight) == 0


def test_stopping_cancels_every_call_and_admits_no_more() -> None:
    flight = InFlight(3)
    first, second, third = new_call(), new_call(), new_call()
    for call in (first, second, third):
        flight.enter(call)
    flight.leave(third)
    flight.stop_all()
    for call in (first, second):
        with pytest.raises(LlmError, match="shutting down") as caught:
            call.check()
        assert caught.value.code is Code.UNAVAILABLE
    assert not third.cancelled
    with pytest.raises(LlmError, match="shutting down"):
        flight.enter(new_call())
