"""Trying a provider: one short question, and what one wants to know of the answer."""

from __future__ import annotations

import time

from backend_lambda.providers.base import Provider
from lambdalm.call import Call, request_id
from lambdalm.chat import ChatRequest
from lambdalm.columns import columns
from lambdalm.errors import Code, LlmError
from lambdalm.events import Answer, Collector, ReasoningDelta, TextDelta, checked
from lambdalm.timings import HopClock

_SECONDS = 60.0
_QUESTION = ChatRequest(prompt="Hello!", max_tokens=32)
_MOST = 200  # characters of the answer


def try_out(provider: Provider, address: str | None = None) -> str:
    """Lines on the provider: whether it is well, its model, time to first token, tokens a second, the answer.

    Raises LlmError where it is not well or does not answer.
    """
    check(provider)
    call = Call(request_id(None), _SECONDS, HopClock("backend"))
    collector = Collector()
    start, first = time.monotonic(), None
    for event in checked(provider.stream(_QUESTION, call)):
        if first is None and isinstance(event, TextDelta | ReasoningDelta):
            first = time.monotonic()
        collector.add(event)
    end = time.monotonic()
    answer = collector.answer()
    return columns(
        [
            ("provider", provider.name),
            *([("address", address)] if address else []),
            ("health", "ok"),
            ("model", answer.model),
            ("first token", f"{((first or end) - start) * 1000:.1f} ms"),
            ("speed", _speed(answer, end - start)),
            ("answer", " ".join(answer.text.split())[:_MOST]),
        ]
    )


def check(provider: Provider) -> None:
    """Raises `LlmError(UNAVAILABLE)` with what the provider says of itself when it cannot answer."""
    health = provider.health()
    if not health.ok:
        raise LlmError(Code.UNAVAILABLE, health.detail, origin=provider.name)


def _speed(answer: Answer, seconds: float) -> str:
    tokens = answer.usage.completion_tokens if answer.usage else None
    return f"{tokens / seconds:.0f} tokens/s ({tokens} in {seconds:.2f} s)" if tokens else "its tokens are not counted"
