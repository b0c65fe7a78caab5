"""A collector of OpenTelemetry's spans, OTLP over HTTP: keeps them for a test, or as a program prints them, a line of
JSON each: `python -m lambdalm.testing.fake_otlp`.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgspec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from lambdalm.testing.fake_http import Exchange, FakeServer, Reply

_WAIT = 20.0  # seconds until spans that do not come have failed a test


class Sent(NamedTuple):
    """A span as it was sent; ids are in hexadecimal, and `parent` is empty for the root of a trace."""

    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    failed: bool
    attributes: dict[str, Any]
    nanoseconds: int


class FakeCollector(FakeServer):
    """`answers` is how it answers: 200, or a status that refuses."""

    def __init__(self, port: int = 0, told: Callable[[Sent], None] = lambda span: None) -> None:
        self.answers = 200
        self.spans: list[Sent] = []
        self.bodies: list[bytes] = []
        self._told = told
        self._changed = threading.Condition()
        super().__init__(port)

    def wait_for(self, trace: str, count: int) -> list[Sent]:
        """The spans of this trace, as soon as there are so many."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.of(trace)) >= count, _WAIT)
            return self.of(trace)

    def wait_until(self, wanted: Callable[[Sent], bool]) -> Sent:
        """The first span that is wanted, as soon as it has come."""
        with self._changed:
            self._changed.wait_for(lambda: any(map(wanted, self.spans)), _WAIT)
            return next(filter(wanted, self.spans))

    def of(self, trace: str) -> list[Sent]:
        return [span for span in self.spans if span.trace == trace]

    def answer(self, exchange: Exchange) -> None:
        if self.answers == 200 and exchange.asked.path == "/v1/traces":
            body = exchange.asked.body
            self._keep(gzip.decompress(body) if exchange.asked.headers.get("content-encoding") == "gzip" else body)
        exchange.reply(Reply(self.answers, b"", "application/x-protobuf"))

    def _keep(self, body: bytes) -> None:
        found = list(_spans(ExportTraceServiceRequest.FromString(body)))
        with self._changed:
            self.bodies.append(body)
            self.spans += found
            self._changed.notify_all()
        for span in found:
            self._told(span)


def _spans(request: ExportTraceServiceRequest) -> Iterator[Sent]:
    for resource in request.resource_spans:
        service = _attributes(resource.resource.attributes).get("service.name", "")
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield _sent(service, span)


def _sent(service: str, span: trace_pb2.Span) -> Sent:
    return Sent(
        service=service,
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        attributes=_attributes(span.attributes),
        nanoseconds=span.end_time_unix_nano - span.start_time_unix_nano,
    )


def _attributes(given: Iterable[KeyValue]) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in given}


def _value(given: AnyValue) -> Any:
    kind = given.WhichOneof("value")
    if kind == "array_value":
        return [_value(value) for value in given.array_value.values]
    return getattr(given, kind) if kind else None


def _print(span: Sent) -> None:
    print(msgspec.json.encode(span._asdict()).decode(), flush=True)


def main() -> None:
    """The program: prints until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=4318, help="default %(default)s; 0 takes a free one")
    collector = FakeCollector(parser.parse_args().port, _print)
    print(f"a fake collector listens on {collector.url}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        collector.serve_forever()


if __name__ == "__main__":
    main()
