"""Error answers of servers that are not ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdalm.errors import Code, LlmError
from lambdalm.foreign_errors import error_answer, error_event

WHO = "the server"
GATEWAY = [
    {"x-amzn-RequestId": "a"},
    {"Apigw-Requestid": "a"},
    {"x-amzn-ErrorType": "InternalServerErrorException"},
    {"x-amz-apigw-id": "a"},
]


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (
            400,
            b'{"error": {"message": "too  long\\n", "type": "invalid_request_error", "code": 400}}',
            Code.INVALID_ARGUMENT,
            "the server answered HTTP 400: too long",
        ),
        (404, b'{"error": "no such model"}', Code.NOT_FOUND, "the server answered HTTP 404: no such model"),
        (
            500,
            b'{"object": "error", "message": "it died", "code": 500}',
            Code.INTERNAL,
            "the server answered HTTP 500: it died",
        ),
        (401, b'{"detail": "who is it?"}', Code.UNAUTHENTICATED, "the server answered HTTP 401: who is it?"),
        (
            422,
            b'{"detail": [{"loc": ["body", "top_p"], "msg": "too high"}, {"loc": ["body"], "msg": "bad"}, 3]}',
            Code.INVALID_ARGUMENT,
            "the server answered HTTP 422: body.top_p: too high; body: bad",
        ),
        (504, b'{"message": "\\u03bb"}', Code.DEADLINE_EXCEEDED, "the server answered HTTP 504: λ"),
        (502, b"<html><h1>502 Bad Gateway</h1>nginx</html>", Code.UNAVAILABLE, "the server answered HTTP 502"),
        (503, b"", Code.UNAVAILABLE, "the server answered HTTP 503"),
        (503, b'{"error": {"message": ["?"]}}', Code.UNAVAILABLE, "the server answered HTTP 503"),
        (503, b"[" * 5000, Code.UNAVAILABLE, "the server answered HTTP 503"),
    ],
)
def test_what_it_says_is_passed_on_and_else_its_status(status: int, body: bytes, code: Code, message: str) -> None:
    error = error_answer(status, body, WHO)
    assert (error.code, error.message, error.retry_after) == (code, message, None)


@pytest.mark.parametrize("headers", GATEWAY)
@pytest.mark.parametrize(
    ("status", "said", "code", "hint"),
    [
        (504, "Endpoint request timed out", Code.DEADLINE_EXCEEDED, "29 s for REST APIs, 30 s for HTTP APIs"),
        (502, "Internal server error", Code.UNAVAILABLE, "the function failed"),
        (403, "Missing Authentication Token", Code.PERMISSION_DENIED, "is the URL right"),
        (403, "Forbidden", Code.PERMISSION_DENIED, "the key or signature"),
        (429, "Too Many Requests", Code.RESOURCE_EXHAUSTED, "throttling"),
    ],
)
def test_api_gateways_own_errors_say_so_and_what_is_likely_behind_them(
    headers: dict[str, str], status: int, said: str, code: Code, hint: str
) -> None:
    for name in ("message", "Message"):  # a REST API's, a function URL's
        error = error_answer(status, f'{{"{name}": "{said}"}}'.encode(), WHO, 3, headers)
        assert error.message.startswith(f"the API gateway answered HTTP {status}: {said}; ")
        assert hint in error.message
        assert not error.message.endswith("…")
        assert (error.code, error.retry_after) == (code, 3)


def test_other_errors_of_the_gateway_say_what_it_said() -> None:
    error = error_answer(500, b'{"message": null}', WHO, None, GATEWAY[0])
    assert (error.code, error.message) == (Code.INTERNAL, "the API gateway answered HTTP 500")
    error = error_answer(413, b'{"message": "Request Too Long"}', WHO, None, GATEWAY[0])
    assert (error.code, error.message) == (
        Code.INVALID_ARGUMENT,
        "the API gateway answered HTTP 413: Request Too Long",
    )


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"message": "timed out"}', {"Server": "nginx"}),
        (b'{"message": "timed out"}', {}),
        (b'{"error": {"message": "timed out"}}', GATEWAY[0]),
        (b'{"message": "timed out", "code": 504}', GATEWAY[0]),
        (b"<html>504</html>", GATEWAY[0]),
    ],
    ids=["no header of AWS", "no header", "OpenAI's, through it", "vLLM's, through it", "HTML, through it"],
)
def test_an_answer_of_who_is_behind_the_gateway_is_not_taken_for_the_gateways(
    body: bytes, headers: dict[str, str]
) -> None:
    error = error_answer(504, body, WHO, None, headers)
    assert error.message in ("the server answered HTTP 504: timed out", "the server answered HTTP 504")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ("it died", Code.INTERNAL, "the server failed in the middle of its answer: it died"),
        (
            {"message": "slow down", "code": 429},
            Code.RESOURCE_EXHAUSTED,
            "the server failed in the middle of its answer: slow down",
        ),
        ({"type": "overloaded_error"}, Code.UNAVAILABLE, "the server failed in the middle of its answer"),
        ({"type": "?", "code": "x", "message": 3}, Code.INTERNAL, "the server failed in the middle of its answer"),
        (None, Code.INTERNAL, "the server failed in the middle of its answer"),
    ],
)
def test_an_error_in_a_stream_has_its_code_where_it_gives_one(error: object, code: Code, message: str) -> None:
    found = error_event(error, WHO)
    assert (found.code, found.message) == (code, message)


SAYING = st.from_regex(rb'\{"(message|error|detail)": .*\}')


@given(st.integers(300, 599), st.binary() | SAYING, st.sampled_from(GATEWAY))
def test_any_answer_is_an_error(status: int, body: bytes, headers: dict[str, str]) -> None:
    assert isinstance(error_answer(status, body, WHO, None, headers), LlmError)
