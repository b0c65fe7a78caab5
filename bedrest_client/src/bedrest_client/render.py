"""What the terminal shows besides the answer, as pure text: the line of statistics, and errors with what to try."""

from __future__ import annotations

import math
import re

from lambdalm.errors import Code, LlmError
from lambdalm.events import Answer, FinishReason
from lambdalm.timings import HopTiming, Timings

_OUTER_FIRST = ("edge", "proxy", "backend")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_PLACES = {
    None: "outside λλM",
    "client": "at this client",
    "connection": "on the connection to the RESTful proxy",
    "edge": "at the RESTful proxy",
    "proxy": "at the gRPC proxy",
    "backend": "at the LLM backend",
    "store": "at the store of the gRPC proxy",
}

_ANYWHERE = "*"
_LOGS = "the logs of that hop tell more: look for the request id"
_FOREIGN = "something else answers at {address}: host and port are in bedrest_client/config.yaml"

_HINTS: dict[tuple[Code, str | None], str] = {
    (Code.UNAVAILABLE, "client"): "is the RESTful proxy running at {address}? start it with `make up`; "
    "host and port are in bedrest_client/config.yaml",
    (Code.UNAVAILABLE, "connection"): "ask again: the answer is not whole; the RESTful proxy's log tells why",
    # A hop that is not there is named by the one before it.
    (Code.UNAVAILABLE, "edge"): "the RESTful proxy is full, or being stopped: ask again in a moment",
    (Code.UNAVAILABLE, "proxy"): "is the gRPC proxy running where restful_proxy/config.yaml says?",
    (Code.UNAVAILABLE, "backend"): "is the LLM backend running where grpc_proxy/config.yaml says?",
    (Code.UNAVAILABLE, None): "a load balancer answers, but the RESTful proxy behind it does not: is that running?",
    (Code.UNAVAILABLE, _ANYWHERE): "is the model's engine running? backend_lambda/config.yaml says where it should be",
    (Code.DEADLINE_EXCEEDED, _ANYWHERE): "give it more time with --timeout SECONDS (now {timeout:g}), "
    "or ask for less with --max-tokens",
    (Code.UNAVAILABLE, "store"): "its log tells more; --no-memory asks without, unless your key has limits",
    (Code.INVALID_ARGUMENT, None): _FOREIGN,
    (Code.NOT_FOUND, None): _FOREIGN,
    (Code.NOT_FOUND, _ANYWHERE): "is the model's name right? --model, or /model in a session, sets it",
    (Code.UNAUTHENTICATED, _ANYWHERE): "give the key that this server wants: BEDREST_API_KEY, or api_key_file in "
    "bedrest_client/config.yaml",
    (Code.PERMISSION_DENIED, _ANYWHERE): "you are not allowed to ask this; whoever runs the server can tell",
    (Code.UNIMPLEMENTED, None): _FOREIGN,
    (Code.UNIMPLEMENTED, _ANYWHERE): "that hop does not know this: are client and servers of one version?",
    (Code.INTERNAL, _ANYWHERE): _LOGS,
    (Code.UNKNOWN, _ANYWHERE): _LOGS,
    (Code.DATA_LOSS, _ANYWHERE): _LOGS,
}
"""What to try, by code and origin; `_ANYWHERE` is every origin that has no row of its own."""


def printable(text: str) -> str:
    """The text without control characters, which could steer a terminal; line ends and tabs stay."""
    return _CONTROLS.sub("\ufffd", text)


def statistics(answer: Answer, own: HopTiming) -> str:
    """One line: model, tokens, and where the time went. `own` is the client's clock, for what no hop has told."""
    usage = answer.usage.completion_tokens if answer.usage else None
    outer = next((answer.timings[hop] for hop in _OUTER_FIRST if hop in answer.timings), own)
    first = outer.first_token_ms
    parts = [
        printable(answer.model),
        f"{'?' if usage is None else usage} token{'' if usage == 1 else 's'}",
        f"first token {'?' if first is None else _duration(first)}",
        f"{_duration(outer.total_ms)} in all" + _after_colon(hops(answer.timings)),
    ]
    return " · ".join(parts)


def hops(timings: Timings) -> str:
    """Each hop's own time, outermost first: `edge 1.1, proxy 0.9, backend 0.4, engine 38.6 ms`; "" if none told.

    An engine that tells its own time is called by its name: `…, backend 1.2, ollama 37.8 ms`.
    """
    parts = [(hop, timings[hop].own_ms) for hop in _OUTER_FIRST if hop in timings]
    backend = timings.get("backend")
    if backend is not None:
        # A wait of less than what is shown is none.
        if (backend.queue_ms or 0.0) >= 0.05:
            parts.append(("queue", backend.queue_ms))
        name = next((printable(hop) for hop in timings if hop not in _OUTER_FIRST), "engine")
        parts.append((name, _engine(backend)))
    known = [f"{hop} {value:.1f}" for hop, value in parts if value is not None]
    return f"{', '.join(known)} ms" if known else ""


def _engine(backend: HopTiming) -> float | None:
    if backend.own_ms is None:
        return None
    return max(0.0, backend.total_ms - backend.own_ms - (backend.queue_ms or 0.0))


def cut_off(answer: Answer, max_tokens: int | None) -> str | None:
    """Why an answer that came whole may still look unfinished."""
    if answer.finish_reason is FinishReason.LENGTH:
        limit = "" if max_tokens is None else f" (now {max_tokens})"
        return f"cut off at the limit of tokens{limit}: --max-tokens, or /max_tokens in a session, raises it"
    if answer.finish_reason is FinishReason.CONTENT_FILTER:
        return "cut off by the model's content filter"
    return None


def failure(error: LlmError, address: str, timeout: float, id: str, timings: Timings) -> str:
    """An error for people: where, what, what to try, where the time went, and the request's id, a line each."""
    place = _PLACES.get(error.origin, f"at the model provider {error.origin}")
    lines = [f"error {place}: {error.message} ({error.code})"]
    hint = _hint(error, address, timeout)
    if hint:
        lines.append(f"  try: {hint}")
    if timings:
        lines.append(f"  time: {hops(timings)}")
    lines.append(f"  request id: {id}")
    return printable("\n".join(lines))


def _hint(error: LlmError, address: str, timeout: float) -> str | None:
    hint = _HINTS.get((error.code, error.origin)) or _HINTS.get((error.code, _ANYWHERE))
    later = "later" if error.retry_after is None else f"in {math.ceil(error.retry_after)} s"
    if hint is None:
        return None if error.retry_after is None else f"come back {later}"
    hint = hint.format(address=address, timeout=timeout, later=later)
    if error.retry_after is not None and later not in hint:
        hint += f"; come back {later}"
    return hint


def _duration(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 10_000 else f"{ms / 1000:.1f} s"


def _after_colon(text: str) -> str:
    return f": {text}" if text else ""
