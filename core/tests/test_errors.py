from __future__ import annotations

import msgspec
import pytest
from google.rpc import code_pb2

from lambdalm.errors import TABLE, Code, ErrorBody, LlmError, code_of_http_status, http_status

# google/rpc/code.proto, its comments "HTTP Mapping".
CODE_PROTO = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
}


def test_the_codes_are_grpcs_canonical_ones() -> None:
    assert {code.value for code in Code} == set(code_pb2.Code.keys()) - {"OK"}


@pytest.mark.parametrize("code", Code)
def test_every_code_has_the_http_status_of_code_proto(code: Code) -> None:
    assert TABLE[code].http == CODE_PROTO[code.value]


@pytest.mark.parametrize("code", Code)
def test_every_code_has_an_openai_type(code: Code) -> None:
    assert TABLE[code].openai


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.INTERNAL])
def test_a_status_does_not_depend_on_where_the_error_happened(code: Code) -> None:
    assert http_status(LlmError(code, "x", origin="backend"), "edge") == TABLE[code].http
    assert http_status(LlmError(code, "x", origin="edge"), "edge") == TABLE[code].http


def test_an_internal_error_of_this_hop_is_a_500() -> None:
    assert http_status(LlmError(Code.INTERNAL, "x", origin="edge"), "edge") == 500
    assert http_status(LlmError(Code.INTERNAL, "x"), "edge") == 500


def test_a_full_store_is_not_the_callers_doing() -> None:
    assert http_status(LlmError(Code.RESOURCE_EXHAUSTED, "x", origin="store"), "edge") == 503
    assert http_status(LlmError(Code.RESOURCE_EXHAUSTED, "x", origin="proxy"), "edge") == 429


def test_an_internal_error_of_another_hop_is_a_bad_gateway() -> None:
    assert http_status(LlmError(Code.INTERNAL, "x", origin="backend"), "edge") == 502


@pytest.mark.parametrize(
    "code",
    # What shares its status with another code comes back as that one, and our own INTERNAL as INTERNAL.
    [
        Code.CANCELLED,
        Code.INVALID_ARGUMENT,
        Code.DEADLINE_EXCEEDED,
        Code.NOT_FOUND,
        Code.PERMISSION_DENIED,
        Code.RESOURCE_EXHAUSTED,
        Code.ABORTED,
        Code.UNIMPLEMENTED,
        Code.INTERNAL,
        Code.UNAVAILABLE,
        Code.UNAUTHENTICATED,
    ],
)
def test_a_status_leads_back_to_its_code(code: Code) -> None:
    assert code_of_http_status(TABLE[code].http) is code


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (408, Code.DEADLINE_EXCEEDED),
        (413, Code.INVALID_ARGUMENT),
        (418, Code.INVALID_ARGUMENT),
        (431, Code.INVALID_ARGUMENT),
        (502, Code.UNAVAILABLE),
        (529, Code.UNAVAILABLE),
        (302, Code.UNAVAILABLE),
        (204, Code.UNAVAILABLE),
    ],
)
def test_other_statuses_have_a_code_too(status: int, code: Code) -> None:
    assert code_of_http_status(status) is code


def test_at_says_where_unless_that_is_known() -> None:
    error = LlmError(Code.INTERNAL, "x")
    assert error.at("backend") is error
    assert error.at("proxy").origin == "backend"


def test_an_error_is_the_same_after_its_body() -> None:
    error = LlmError(Code.UNAVAILABLE, "λ", retry_after=1.5, origin="llamacpp")
    body = msgspec.json.decode(msgspec.json.encode(ErrorBody.of(error)), type=ErrorBody)
    back = body.to_error()
    assert (back.code, back.message, back.retry_after, back.origin) == (Code.UNAVAILABLE, "λ", 1.5, "llamacpp")


def test_what_an_error_does_not_know_is_absent_from_its_body() -> None:
    assert msgspec.to_builtins(ErrorBody.of(LlmError(Code.INTERNAL, "x"))) == {"code": "INTERNAL", "message": "x"}


def test_the_text_of_an_error_is_its_message() -> None:
    assert str(LlmError(Code.INTERNAL, "what happened")) == "what happened"
