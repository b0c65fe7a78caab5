"""One trace through all hops: the headers that carry it, and the spans that hops make.

W3C's `traceparent` and `tracestate` (https://www.w3.org/TR/trace-context-1/) go through every hop as they came. Where
`start` found that the environment asks for spans, and the extra `otel` is installed, each hop makes its own and is the
parent of what comes behind it:

    with tracing.span("POST /query", "server", tracing.read(headers.get)) as span:
        ask_the_next_hop(headers=span.trace.headers())

Else `span` costs next to nothing and `span.trace` is the trace that came. A span's parent is always named: generators
of streams are closed in other threads and tasks than they were begun in. No span holds a prompt or an answer, nor an
error's words, which may have some of them: errors are told by their code.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Self

from lambdalm import logs
from lambdalm.errors import Code

Kind = Literal["server", "client"]
Attributes = Mapping[str, str | int | Sequence[str]]

_TRACEPARENT = "traceparent"
_TRACESTATE = "tracestate"
# Compiled by `re` when first used: a Lambda function is to start without.
_PARENT = r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?"
_KEY = r"[a-z][_0-9a-z\-*/]{0,255}|[a-z0-9][_0-9a-z\-*/]{0,240}@[a-z][_0-9a-z\-*/]{0,13}"
_MEMBER = rf"({_KEY})=[ -+\--<>-~]{{0,255}}[!-+\--<>-~]"
_MAX_MEMBERS = 32
_MAX_STATE = 512  # characters that everybody has to carry; more would not fit into gRPC's metadata

_log = logs.get(__name__)


class Trace(NamedTuple):
    """A place in a trace, as the two headers; both are empty where there is none."""

    parent: str = ""
    state: str = ""
    remote: bool = True
    """Whether it came from another process."""

    def headers(self) -> tuple[tuple[str, str], ...]:
        """What the next hop gets."""
        given = ((_TRACEPARENT, self.parent), (_TRACESTATE, self.state))
        return tuple(header for header in given if header[1])


def read(header: Callable[[str], str | None]) -> Trace:
    """The trace that a request's headers name; what makes no sense counts as not sent, as W3C wants it."""
    found = re.fullmatch(_PARENT, (header(_TRACEPARENT) or "").strip())
    if found is None or (found[1] == "00" and found[3]):
        return Trace()
    return Trace(f"00-{found[2]}", _state(header(_TRACESTATE) or ""))


def _state(header: str) -> str:
    members = [member for part in header.split(",") if (member := part.strip(" \t"))]
    found = [re.fullmatch(_MEMBER, member) for member in members]
    keys = {match[1] for match in found if match}
    if len(keys) < len(members) or len(members) > _MAX_MEMBERS:  # one is no member, or there twice
        return ""
    while len(state := ",".join(members)) > _MAX_STATE:
        members.pop()
    return state


class Span:
    """A piece of work, a context manager. This one records nothing and passes on the trace that came."""

    recording = False

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def set(self, attributes: Attributes) -> None:
        """Tell more of it."""

    def rename(self, name: str) -> None:
        """Call it by a name that was not known at its beginning."""

    def failed(self, error: BaseException) -> None:
        """It has not done what it was to do; it goes on until its end."""

    @contextlib.contextmanager
    def blamed(self) -> Iterator[None]:
        """What is raised inside has failed it: for streams, whose errors become events before they reach its end."""
        try:
            yield
        except BaseException as error:
            self.failed(error)
            raise

    def end(self, code: Code | None = None) -> None:
        """It is over, and with a `code` has failed; for those who cannot use it as a context manager."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None:
            self.failed(error)
        self.end()


UNTRACED = Span(Trace())


Recorder = Callable[[str, Kind, Trace, Attributes], Span]
"""Begins a span that is recorded."""

_recorder: Recorder | None = None


def span(name: str, kind: Kind, parent: Trace, attributes: Attributes = {}) -> Span:  # noqa: B006  # nobody writes
    """A span that begins now, below `parent`, or at the root of a trace of its own."""
    return Span(parent) if _recorder is None else _recorder(name, kind, parent, attributes)


def start(hop: str) -> None:
    """Record spans from here on, if the environment asks for it (docs/tracing.md). Call it in the process that serves,
    once; what is left to send is sent at its end, for which it takes 2 s at most."""
    if not wanted(os.environ):
        return
    try:
        from lambdalm import otel
    except ImportError:
        _log.warning("no traces: the environment asks for them, and they need the extra lambdalm[otel]")
        return
    global _recorder
    _recorder = otel.start(os.environ.get("OTEL_SERVICE_NAME") or f"lambdalm-{hop}")
    _log.info("traces are sent")


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether the standard variables of OpenTelemetry ask for spans, by OTLP, which is the only way here."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "")
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none":
        return False
    if exporter not in ("", "otlp"):
        _log.warning("no traces: OTEL_TRACES_EXPORTER may be otlp or none here", given=exporter)
        return False
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return bool(exporter or any(environ.get(name) for name in endpoints))
