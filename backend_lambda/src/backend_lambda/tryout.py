"""Trying a provider: one short question, and what one wants to know of the answer."""

from __future__ import annotations

import time

from backend_lambda.providers.base import Provider
from lambdalm.call import Call, request_id
from lambdalm.chat import ChatRequest
from lambdalm.events import Collector, TextDelta, checked
from lambdalm.timings import HopClock

_SECONDS = 60.0


def try_out(provider: Provider) -> str:
    """A line on the provider: model, time to first token, tokens a second, answer. Raises LlmError."""
    call = Call(request_id(None), _SECONDS, HopClock("backend"))
    collector = Collector()
    start, first = time.monotonic(), None
    for event in checked(provider.stream(ChatRequest(prompt="Hello!", max_tokens=32), call)):
        if first is None and isinstance(event, TextDelta):
            first = time.monotonic()
        collector.add(event)
    end = time.monotonic()
    answer = collector.answer()
    tokens = answer.usage.completion_tokens if answer.usage else None
    first = end if first is None else first
    speed = f"{tokens / (end - start):.0f} tokens/s" if tokens else "tokens not counted"
    wait = f"first token {(first - start) * 1000:.1f} ms"
    return f"{provider.name} answers with {answer.model}: {wait}, {speed}: {answer.text!r}"
