from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from lambdalm.errors import Code, LlmError
from lambdalm.rpc.status import DETAILS, STATUS, details, from_rpc_error

WAIT = 20  # seconds until a test that waits has failed
Handle = Callable[[bytes, grpc.ServicerContext], bytes]
Fail = Callable[[LlmError], LlmError]


@contextlib.contextmanager
def serving(handle: Handle) -> Iterator[grpc.Channel]:
    """A channel to a real server whose method /t.T/Call is `handle`."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    method = grpc.unary_unary_rpc_method_handler(handle)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {"Call": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        server.stop(None).wait(WAIT)


def call(channel: grpc.Channel) -> LlmError:
    """How a call of the method fails, as the caller's hop reads it."""
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.T/Call", None, None)(b"", timeout=WAIT)
    failed: Any = caught.value
    return from_rpc_error(failed, tuple(failed.trailing_metadata()), "proxy")


@pytest.fixture(scope="module")
def fail() -> Iterator[Fail]:
    """Sends an LlmError through a real server and gives what arrives."""
    sent: list[LlmError] = []

    def handle(_request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata(details(sent[-1]))
        context.abort(STATUS[sent[-1].code], sent[-1].message)

    with serving(handle) as channel:

        def send(error: LlmError) -> LlmError:
            sent.append(error)
            return call(channel)

        yield send


def same(error: LlmError) -> tuple[Code, str, str | None, float | None]:
    return error.code, error.message, error.origin, error.retry_after


@pytest.mark.parametrize("code", Code)
def test_every_code_arrives(fail: Fail, code: Code) -> None:
    assert fail(LlmError(code, "what happened")).code is code


@pytest.mark.parametrize("origin", [None, "llamacpp"])
@pytest.mark.parametrize("retry_after", [None, 0.0, 0.25, 2.0, 4.35, 86400.0])
def test_where_it_happened_and_when_to_come_back_arrive(
    fail: Fail, origin: str | None, retry_after: float | None
) -> None:
    arrived = fail(LlmError(Code.RESOURCE_EXHAUSTED, "no room", origin=origin, retry_after=retry_after))
    assert arrived.origin == (origin or "proxy")
    assert arrived.retry_after == (None if retry_after is None else pytest.approx(retry_after, abs=1e-6))


@pytest.mark.parametrize("message", ["λ 👩 \u2028", "100 % \r\n\t", "x" * 400, "é" * 400])
def test_any_message_arrives(fail: Fail, message: str) -> None:
    assert fail(LlmError(Code.INTERNAL, message, origin="backend")).message == message


@pytest.mark.parametrize("message", ["x" * 20_000, "λ" * 3_000, "👩" * 3_000])
def test_an_error_with_a_long_message_keeps_its_code_and_origin(fail: Fail, message: str) -> None:
    arrived = fail(LlmError(Code.INVALID_ARGUMENT, message, origin="backend"))
    assert arrived.code is Code.INVALID_ARGUMENT
    assert arrived.origin == "backend"
    assert arrived.message == message[:399] + "…"


def _abort_barely(_request: bytes, context: grpc.ServicerContext) -> bytes:
    context.abort(grpc.StatusCode.NOT_FOUND, "")


def _raise(_request: bytes, _context: grpc.ServicerContext) -> bytes:
    raise ZeroDivisionError


def _garbage(_request: bytes, context: grpc.ServicerContext) -> bytes:
    context.set_trailing_metadata(((DETAILS, b"\xff\xff\xff"),))
    context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


def test_a_status_without_details_happened_where_the_caller_thinks() -> None:
    with serving(_abort_barely) as channel:
        assert same(call(channel)) == (Code.NOT_FOUND, "NOT_FOUND", "proxy", None)


def test_details_that_make_no_sense_are_passed_over() -> None:
    with serving(_garbage) as channel:
        assert same(call(channel)) == (Code.UNAVAILABLE, "gone", "proxy", None)


def test_a_server_that_raised_is_unknown() -> None:
    with serving(_raise) as channel:
        assert call(channel).code is Code.UNKNOWN


def test_nobody_there_is_unavailable() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        assert call(channel).code is Code.UNAVAILABLE


def test_every_code_has_a_status_of_its_own() -> None:
    assert set(STATUS) == set(Code)
    assert len(set(STATUS.values())) == len(Code)
