from __future__ import annotations

import contextlib

import pytest

from lambdalm.call import Call
from lambdalm.errors import Code, LlmError, http_status
from lambdalm.timings import HopClock
from lambdalm.web.inflight import InFlight


def new_call() -> Call:
    return Call("r1", 100, HopClock("edge"))


def refused(flight: InFlight) -> LlmError:
    with pytest.raises(LlmError) as caught, flight.admit(new_call()):
        pass
    return caught.value


def test_so_many_calls_are_admitted_and_one_more_is_refused() -> None:
    flight = InFlight(2)
    with flight.admit(new_call()), flight.admit(new_call()):
        assert len(flight) == 2
        error = refused(flight)
        assert (error.code, http_status(error, "edge")) == (Code.RESOURCE_EXHAUSTED, 503)
        assert error.retry_after is not None
        assert error.retry_after > 0
        assert len(flight) == 2


def test_a_call_that_ends_makes_room() -> None:
    flight = InFlight(1)
    with flight.admit(new_call()):
        pass
    with contextlib.suppress(ZeroDivisionError), flight.admit(new_call()):
        raise ZeroDivisionError
    assert len(flight) == 0
    with flight.admit(new_call()):
        assert len(flight) == 1


def test_stopping_cancels_every_call_and_admits_no_more() -> None:
    flight = InFlight(3)
    first, second, third = new_call(), new_call(), new_call()
    with flight.admit(third):
        pass
    with flight.admit(first), flight.admit(second):
        flight.stop_all("the server is shutting down")
    for call in (first, second):
        with pytest.raises(LlmError, match="shutting down") as caught:
            call.check()
        assert caught.value.code is Code.UNAVAILABLE
    assert not third.cancelled
    assert "shutting down" in refused(flight).message


def test_a_call_that_is_woken_may_leave_at_once() -> None:
    flight = InFlight(1)
    call = new_call()
    admitted = contextlib.ExitStack()
    admitted.enter_context(flight.admit(call))
    with call.on_cancel(admitted.close):
        flight.stop_all("the server is shutting down")
    assert len(flight) == 0
