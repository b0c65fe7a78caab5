"""What of a request's headers goes with its gRPC call, and what does not."""

from __future__ import annotations

import pytest
from werkzeug.datastructures import Headers

from lambdalm.errors import Code, LlmError
from restful_proxy.caller import Caller, read


def test_what_says_who_calls_is_passed_on_as_it_came_and_nothing_else() -> None:
    headers = Headers(
        {
            "Cookie": 'a=1; b="2"',
            "Authorization": "Bearer k",
            "X-API-Key": "k",
            "traceparent": "00-1-2-01",
            "tracestate": "x=y",
            "User-Agent": "curl",
            "X-Forwarded-For": "10.0.0.1",
        }
    )
    assert read(headers).metadata == (
        ("cookie", 'a=1; b="2"'),
        ("authorization", "Bearer k"),
        ("x-api-key", "k"),
    )


def test_a_caller_who_says_nothing_has_no_metadata() -> None:
    assert read(Headers({"Cookie": ""})).metadata == ()


@pytest.mark.parametrize("name", ["Cookie", "Authorization", "X-Api-Key"])
@pytest.mark.parametrize("value", ["λ-canary".encode().decode("latin-1"), "canary\t1", "canary\x7f", "canary\x00"])
def test_a_value_that_grpc_cannot_carry_is_refused_by_name_and_not_repeated(name: str, value: str) -> None:
    with pytest.raises(LlmError, match=f"^{name}: ") as raised:
        read(Headers({name: value}))
    assert raised.value.code is Code.INVALID_ARGUMENT
    assert "canary" not in raised.value.message


def test_headers_too_long_for_grpc_are_refused_and_the_longest_is_named() -> None:
    with pytest.raises(LlmError, match=r"^Cookie: too long") as raised:
        read(Headers({"Authorization": "x" * 1000, "Cookie": "x" * 5145}))
    assert raised.value.code is Code.INVALID_ARGUMENT
    assert read(Headers({"Authorization": "x" * 1000, "Cookie": "x" * 5144})).metadata


def test_cookies_that_came_twice_are_set_once() -> None:
    caller = Caller()
    for metadata in (None, [("x", "y")], [("set-cookie", "a=1"), ("set-cookie", "b=2")], [("set-cookie", "a=1")]):
        caller.answered(metadata)
    assert caller.cookies == ("a=1", "b=2")
