"""The line of statistics, and errors with what to try."""

from __future__ import annotations

import pytest

from bedrest_client.render import cut_off, failure, printable, statistics
from lambdalm.errors import Code, LlmError
from lambdalm.events import Answer, FinishReason, Tokens
from lambdalm.timings import HopTiming, Timings

BACKEND = HopTiming(total_ms=39.0, queue_ms=0.0, first_token_ms=10.0, own_ms=0.4)
PROXY = HopTiming(total_ms=39.9, first_token_ms=11.0, own_ms=0.9)
EDGE = HopTiming(total_ms=41.0, first_token_ms=12.0, own_ms=1.1)
OWN = HopTiming(total_ms=43.0, first_token_ms=14.0)


NINE = Tokens(4, 9)


def answer(
    timings: Timings,
    usage: Tokens | None = NINE,
    model: str = "lambdalm-demo",
    reason: FinishReason = FinishReason.STOP,
) -> Answer:
    return Answer("r1", model, "text", reason, usage=usage, timings=timings)


def error_text(error: LlmError, timings: Timings | None = None) -> str:
    return failure(error, "127.0.0.1:8080", 120.0, "abc123", timings or {})


def test_the_line_tells_model_tokens_and_every_hops_own_time() -> None:
    assert statistics(answer({"backend": BACKEND, "proxy": PROXY, "edge": EDGE}), OWN) == (
        "lambdalm-demo · 9 tokens · first token 12 ms · 41 ms in all: edge 1.1, proxy 0.9, backend 0.4, engine 38.6 ms"
    )


def test_a_wait_for_a_slot_is_not_the_engines_time() -> None:
    waited = HopTiming(total_ms=139.0, queue_ms=100.0, own_ms=0.4)
    assert statistics(answer({"backend": waited}), OWN).endswith(
        "139 ms in all: backend 0.4, queue 100.0, engine 38.6 ms"
    )


def test_an_engine_that_tells_its_time_is_called_by_its_name() -> None:
    timings = {"ollama": HopTiming(total_ms=37.8), "backend": HopTiming(total_ms=39.0, own_ms=1.2)}
    assert statistics(answer(timings), OWN).endswith("39 ms in all: backend 1.2, ollama 37.8 ms")


def test_unknown_usage_stays_a_question_mark() -> None:
    assert "· ? tokens ·" in statistics(answer({}, usage=None), OWN)
    assert "· ? tokens ·" in statistics(answer({}, usage=Tokens(4, None)), OWN)


def test_no_tokens_are_not_unknown_tokens() -> None:
    assert "· 0 tokens ·" in statistics(answer({}, usage=Tokens(4, 0)), OWN)
    assert "· 1 token ·" in statistics(answer({}, usage=Tokens(4, 1)), OWN)


def test_hops_that_tell_nothing_leave_the_clients_own_clock() -> None:
    assert statistics(answer({}), OWN) == "lambdalm-demo · 9 tokens · first token 14 ms · 43 ms in all"
    assert "first token ?" in statistics(answer({}), HopTiming(total_ms=43.0))


def test_a_backend_that_does_not_tell_its_own_time_makes_no_engine_time() -> None:
    line = statistics(answer({"backend": HopTiming(total_ms=39.0), "edge": EDGE}), OWN)
    assert line.endswith("41 ms in all: edge 1.1 ms")


def test_long_times_are_seconds() -> None:
    assert "12.3 s in all" in statistics(answer({"edge": HopTiming(total_ms=12_345.0)}), OWN)


def test_an_answer_cut_off_by_its_limit_says_what_to_do() -> None:
    cut = answer({}, reason=FinishReason.LENGTH)
    assert "(now 256): --max-tokens" in (cut_off(cut, 256) or "")
    assert cut_off(answer({}), 256) is None


@pytest.mark.parametrize(
    ("code", "origin", "place", "hint"),
    [
        (
            Code.UNAVAILABLE,
            "client",
            "at this client",
            "is the RESTful proxy running at 127.0.0.1:8080? start it with `make up`",
        ),
        (Code.UNAVAILABLE, "connection", "on the connection", "not whole"),
        (Code.UNAVAILABLE, "edge", "at the RESTful proxy", "full, or being stopped"),
        (Code.UNAVAILABLE, "proxy", "at the gRPC proxy", "is the gRPC proxy running"),
        (Code.UNAVAILABLE, "backend", "at the LLM backend", "is the LLM backend running"),
        (Code.UNAVAILABLE, "ollama", "at the model provider ollama", "engine running"),
        (Code.UNAVAILABLE, None, "outside λλM", "load balancer"),
        (Code.DEADLINE_EXCEEDED, "proxy", "at the gRPC proxy", "--timeout SECONDS (now 120)"),
        (Code.UNAVAILABLE, "store", "at the store of the gRPC proxy", "--no-memory asks without"),
        (Code.NOT_FOUND, "proxy", "at the gRPC proxy", "--model"),
        (Code.INTERNAL, "backend", "at the LLM backend", "request id"),
    ],
)
def test_an_error_says_where_what_and_what_to_try(code: Code, origin: str | None, place: str, hint: str) -> None:
    text = error_text(LlmError(code, "it broke", origin=origin))
    first, second, *_ = text.splitlines()
    assert first.startswith(f"error {place}")
    assert first.endswith(f": it broke ({code})")
    assert second.startswith("  try: ")
    assert hint in second
    assert text.endswith("request id: abc123")


@pytest.mark.parametrize("code", list(Code))
@pytest.mark.parametrize("origin", [None, "client", "connection", "edge", "proxy", "backend", "{odd}"])
def test_every_error_has_a_text(code: Code, origin: str | None) -> None:
    text = error_text(LlmError(code, "{it} broke", origin=origin, retry_after=2))
    assert "{it} broke" in text
    assert "2 s" in text
    assert "{address}" not in text


def test_an_invalid_argument_speaks_for_itself() -> None:
    text = error_text(LlmError(Code.INVALID_ARGUMENT, "prompt: must not be empty", origin="edge"))
    assert "try:" not in text


def test_retry_after_is_told_in_seconds() -> None:
    assert "come back in 3 s" in error_text(LlmError(Code.RESOURCE_EXHAUSTED, "full", origin="proxy", retry_after=3))
    assert "come back in 2 s" in error_text(LlmError(Code.UNAVAILABLE, "down", origin="proxy", retry_after=2))


def test_an_error_tells_where_the_time_went() -> None:
    assert "time: edge 1.1, proxy 0.9 ms" in error_text(LlmError(Code.INTERNAL, "x"), {"proxy": PROXY, "edge": EDGE})


def test_nothing_that_a_server_says_can_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\x9b\x7f\r\n\tλ") == "a\ufffd[2Jb\ufffd\ufffd\ufffd\ufffd\n\tλ"
    assert "\x1b" not in error_text(LlmError(Code.INTERNAL, "\x1b]0;owned\x07", origin="\x1b[2J"))
    assert "\x1b" not in statistics(answer({}, model="\x1b[2J"), OWN)
