from __future__ import annotations

import threading

import pytest

from lambdalm.call import Call, budget, request_id
from lambdalm.errors import Code, LlmError
from lambdalm.timings import HopClock

WAIT = 20  # seconds until a test that waits has failed


def new_call(seconds: float = 100) -> Call:
    return Call("r1", seconds, HopClock("backend"))


def test_cancel_wakes_each_waiter_once() -> None:
    call = new_call()
    woken: list[str] = []
    with call.on_cancel(lambda: woken.append("a")), call.on_cancel(lambda: woken.append("b")):
        call.cancel("gone")
        call.cancel("gone again")
    assert woken == ["a", "b"]


def test_cancel_from_another_thread_wakes_a_blocked_one() -> None:
    call = new_call()
    blocked, woken = threading.Event(), threading.Event()

    def block() -> None:
        with call.on_cancel(woken.set):
            blocked.set()
            assert woken.wait(WAIT)

    thread = threading.Thread(target=block)
    thread.start()
    assert blocked.wait(WAIT)
    call.cancel("gone")
    thread.join(WAIT)
    assert not thread.is_alive()


def test_the_first_reason_stays() -> None:
    call = new_call()
    call.cancel("the client hung up")
    call.cancel("the server is shutting down", Code.UNAVAILABLE)
    with pytest.raises(LlmError, match="the client hung up") as caught:
        call.check()
    assert caught.value.code is Code.CANCELLED
    assert caught.value.origin == "backend"


def test_a_call_may_be_stopped_with_another_code() -> None:
    call = new_call()
    call.cancel("the server is shutting down", Code.UNAVAILABLE)
    with pytest.raises(LlmError) as caught:
        call.check()
    assert caught.value.code is Code.UNAVAILABLE


def test_who_registers_after_the_cancellation_is_woken_at_once() -> None:
    call = new_call()
    call.cancel("gone")
    woken = threading.Event()
    with call.on_cancel(woken.set):
        assert woken.is_set()


def test_who_has_left_is_not_woken() -> None:
    call = new_call()
    woken: list[str] = []
    with call.on_cancel(lambda: woken.append("outer")):
        with call.on_cancel(lambda: woken.append("inner")):
            pass
        call.cancel("gone")
    assert woken == ["outer"]


def test_who_leaves_with_an_error_is_not_woken() -> None:
    call = new_call()
    woken: list[str] = []
    with pytest.raises(ZeroDivisionError), call.on_cancel(lambda: woken.append("x")):
        raise ZeroDivisionError
    call.cancel("gone")
    assert woken == []


def test_a_callback_may_look_at_the_call_and_register_another() -> None:
    call = new_call()
    seen: list[bool] = []

    def nested() -> None:
        with call.on_cancel(lambda: seen.append(call.cancelled)):
            call.cancel("again")

    with call.on_cancel(nested):
        call.cancel("gone")
    assert seen == [True]


def test_many_threads_that_cancel_wake_a_waiter_once() -> None:
    for _ in range(50):
        call = new_call()
        woken: list[int] = []
        start = threading.Barrier(8)

        def race(call: Call = call, start: threading.Barrier = start) -> None:
            start.wait(WAIT)
            call.cancel("gone")

        with call.on_cancel(lambda woken=woken: woken.append(1)):  # type: ignore[misc]
            threads = [threading.Thread(target=race) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(WAIT)
        assert woken == [1]


def test_check_passes_while_there_is_time_and_nobody_cancels() -> None:
    call = new_call()
    call.check()
    assert not call.cancelled
    assert 0 < call.remaining() <= 100


def test_a_call_without_time_left_has_exceeded_its_deadline() -> None:
    call = new_call(0)
    assert call.remaining() == 0
    with pytest.raises(LlmError, match="X-Request-Timeout") as caught:
        call.check()
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert caught.value.origin == "backend"


def test_being_cancelled_comes_before_being_late() -> None:
    call = new_call(0)
    call.cancel("gone")
    with pytest.raises(LlmError, match="gone"):
        call.check()


def test_the_next_hop_gets_a_little_less_than_what_is_left() -> None:
    call = new_call(100)
    most = call.remaining()
    passed = call.passed_on()
    assert call.remaining() - 0.051 < passed < most


def test_of_almost_nothing_the_next_hop_gets_the_most() -> None:
    call = new_call()
    call.deadline -= 100 - 1e-3
    assert 0 < call.passed_on() <= 0.9e-3
    assert new_call(0).passed_on() == 0


def test_an_id_that_was_given_is_used() -> None:
    assert request_id("abc-DEF_0.9:7") == "abc-DEF_0.9:7"
    assert request_id("x" * 128) == "x" * 128


def test_without_an_id_each_request_gets_its_own() -> None:
    made = request_id(None)
    assert made != request_id(None)
    assert request_id(made) == made


@pytest.mark.parametrize("given", ["", " ", "a b", "x" * 129, "a\n", "a\r\nX: y", "λ", "a/b", "a\x00"])
def test_an_id_that_could_not_be_passed_on_is_refused(given: str) -> None:
    with pytest.raises(LlmError, match="X-Request-Id") as caught:
        request_id(given)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(None, 120), ("30", 30), ("0.5", 0.5), ("0", 0), ("900", 900), ("901", 900), ("1e9", 900), ("1e-3", 0.001)],
)
def test_a_budget_is_what_was_asked_for_up_to_the_maximum(given: str | None, seconds: float) -> None:
    assert budget(given, 120, 900) == seconds


def test_the_default_budget_is_no_more_than_the_maximum() -> None:
    assert budget(None, 120, 60) == 60


@pytest.mark.parametrize("given", ["", "x", "-1", "-0.001", "nan", "-nan", "inf", "-inf", "1e999", "30s", "1,5"])
def test_a_budget_that_is_no_number_of_seconds_is_refused(given: str) -> None:
    with pytest.raises(LlmError, match="X-Request-Timeout") as caught:
        budget(given, 120, 900)
    assert caught.value.code is Code.INVALID_ARGUMENT
