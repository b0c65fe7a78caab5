"""The spans of `lambdalm.tracing`, made and sent by OpenTelemetry's SDK; the extra `otel`.

Only `tracing.start` imports it, so that without traces nothing of OpenTelemetry is loaded. Where spans go, how they are
sampled and how many may wait, the SDK reads from its own variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER,
OTEL_BSP_…). A thread of its own sends them; what it cannot send is lost, and requests do not notice.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import threading
import time

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from lambdalm import logs
from lambdalm.errors import Code, LlmError
from lambdalm.tracing import Attributes, Kind, Recorder, Span, Trace

_FLUSH_SECONDS = 2.0
_WORD_SECONDS = 60.0  # between two lines of the log
_KINDS = {"server": trace.SpanKind.SERVER, "client": trace.SpanKind.CLIENT}

_log = logs.get(__name__)


class _Recorded(Span):
    def __init__(self, span: trace.Span, state: str) -> None:
        context = span.get_span_context()
        ids = f"{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        super().__init__(Trace(f"00-{ids}", state, remote=False))
        self.recording = span.is_recording()
        self._span = span

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def failed(self, error: BaseException) -> None:
        self._failed(_type_of(error))

    def end(self, code: Code | None = None) -> None:
        if code is not None:
            self._failed(code.value)
        self._span.end()

    def _failed(self, type: str) -> None:
        self._span.set_attribute("error.type", type)
        self._span.set_status(trace.StatusCode.ERROR)


def _type_of(error: BaseException) -> str:
    """The value of `error.type`: the code of an LlmError, CANCELLED for work that nobody wants any more."""
    if isinstance(error, LlmError):
        return error.code.value
    cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit)
    return Code.CANCELLED.value if cancelled else type(error).__qualname__


class _Complaints(logging.Handler):
    """What the SDK logs becomes one line of ours a minute at most."""

    _next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _WORD_SECONDS
            _log.warning("traces are not complete; requests go on", why=record.getMessage()[:200])


def start(service: str) -> Recorder:
    """Send the spans that the recorder makes, as this service's."""
    complaints = logging.getLogger("opentelemetry")
    complaints.handlers, complaints.propagate = [_Complaints()], False
    resource = Resource.create({SERVICE_NAME: service})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _flush_at_exit(provider)
    return functools.partial(_begin, provider.get_tracer("lambdalm"))


def _begin(tracer: trace.Tracer, name: str, kind: Kind, parent: Trace, attributes: Attributes) -> Span:
    above = Context()  # empty: else the SDK would look for a parent in the current thread or task
    if parent.parent:
        above = trace.set_span_in_context(_place(parent), above)
    return _Recorded(tracer.start_span(name, above, _KINDS[kind], attributes), parent.state)


def _place(at: Trace) -> trace.Span:
    _, trace_id, span_id, flags = at.parent.split("-")
    state = trace.TraceState.from_header([at.state]) if at.state else None
    context = trace.SpanContext(int(trace_id, 16), int(span_id, 16), at.remote, trace.TraceFlags(int(flags, 16)), state)
    return trace.NonRecordingSpan(context)


def _flush_at_exit(provider: TracerProvider) -> None:
    """The SDK would wait for 30 s. The thread is made now: at the end of a process none can be."""
    ending = threading.Event()

    def flush() -> None:
        ending.wait()
        provider.shutdown()

    thread = threading.Thread(target=flush, name="flush-traces", daemon=True)
    thread.start()

    def wait() -> None:
        ending.set()
        thread.join(_FLUSH_SECONDS)

    atexit.register(wait)
