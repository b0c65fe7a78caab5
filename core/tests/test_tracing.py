"""The headers of a trace, and spans as a collector gets them; programs that make them run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lambdalm import tracing
from lambdalm.testing.fake_http import Exchange
from lambdalm.testing.fake_otlp import FakeCollector, Sent
from lambdalm.tracing import Trace

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
STARTED = "from lambdalm import tracing; tracing.start('hop'); "
WAIT = 20  # seconds until a program that does not end has failed


class Hanging(FakeCollector):
    """Takes spans and never says a word."""

    def answer(self, exchange: Exchange) -> None:
        exchange.pause(None)


@pytest.fixture
def collector() -> Iterator[FakeCollector]:
    with FakeCollector() as fake:
        yield fake


def read(traceparent: str | None, tracestate: str | None = None) -> Trace:
    """The trace of a request with these headers."""
    return tracing.read({"traceparent": traceparent, "tracestate": tracestate}.get)


def run(program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A program with only these of OpenTelemetry's variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", program], env=clean | environ, capture_output=True, text=True, timeout=WAIT, check=True
    )


def sent(collector: FakeCollector, program: str, **environ: str) -> list[Sent]:
    """The spans that a program has sent when it is over."""
    run(STARTED + program, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **environ)
    return collector.spans


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (PARENT, PARENT),
        (f" {PARENT} ", PARENT),
        (PARENT[:-2] + "00", PARENT[:-2] + "00"),
        (f"cc-{TRACE}-{SPAN}-01", PARENT),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", PARENT),
        (f"{PARENT}-more", ""),
        (f"cc-{TRACE}-{SPAN}-01more", ""),
        (f"ff-{TRACE}-{SPAN}-01", ""),
        (f"00-{'0' * 32}-{SPAN}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (PARENT.upper(), ""),
        (f"{PARENT},{PARENT}", ""),
        (PARENT[:-1], ""),
        (PARENT + "\n-", ""),
        ("00-1-2-01", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_a_traceparent_is_read_as_w3c_says_and_nonsense_is_dropped(given: str | None, found: str) -> None:
    assert read(given).headers() == ((("traceparent", found),) if found else ())


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("a=b", "a=b"),
        ("a=b , \t,tenant@system=x/y:z~!", "a=b,tenant@system=x/y:z~!"),
        (",".join(f"k{n}=v" for n in range(32)), ",".join(f"k{n}=v" for n in range(32))),
        (",".join(f"k{n}=v" for n in range(33)), ""),
        ("a=b,a=c", ""),
        ("A=b", ""),
        ("a=", ""),
        ("a=b=c", ""),
        ("a=λ", ""),
        ("a", ""),
        ("", ""),
    ],
)
def test_a_tracestate_is_read_as_w3c_says_and_nonsense_is_dropped(given: str, found: str) -> None:
    assert read(PARENT, given) == Trace(PARENT, found)


def test_a_tracestate_without_a_traceparent_is_none() -> None:
    assert read("nonsense", "a=b") == Trace()


def test_of_a_long_tracestate_as_many_characters_go_on_as_all_must_carry() -> None:
    members = [f"k{n}={'v' * 60}" for n in range(9)]
    assert read(PARENT, ",".join(members)).state == ",".join(members[:8])


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, False),
        ({"OTEL_TRACES_EXPORTER": "zipkin", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, False),
        ({"OTEL_SDK_DISABLED": "True", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, False),
    ],
)
def test_the_standard_variables_say_whether_spans_are_made(environ: dict[str, str], wanted: bool) -> None:
    assert tracing.wanted(environ) is wanted


def test_without_spans_the_trace_goes_on_as_it_came() -> None:
    came = read(PARENT, "a=b")
    with tracing.span("x", "server", came) as span:
        span.set({"a": "b"})
        assert not span.recording
    assert span.trace.headers() == (("traceparent", PARENT), ("tracestate", "a=b"))


@pytest.mark.parametrize("environ", [{}, {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}])
def test_without_spans_nothing_of_opentelemetry_is_loaded(environ: dict[str, str]) -> None:
    ran = run(STARTED + "import sys; print(*sys.modules)", **environ)
    assert not [name for name in ran.stdout.split() if name.startswith("opentelemetry")]


def test_without_the_extra_it_is_said_and_the_program_goes_on() -> None:
    ran = run(f"import sys; sys.modules['opentelemetry'] = None; {STARTED} print('on')", OTEL_TRACES_EXPORTER="otlp")
    assert ran.stdout.endswith("on\n")
    assert "lambdalm[otel]" in ran.stdout + ran.stderr


def test_a_span_is_below_the_one_that_the_headers_name_and_above_its_children(collector: FakeCollector) -> None:
    program = f"""
with tracing.span("outer", "server", tracing.Trace("{PARENT}", "a=b"), {{"n": 1, "list": ["x"]}}) as outer:
    with tracing.span("inner", "client", outer.trace) as inner:
        inner.set({{"late": "set"}})
        inner.rename("known now")
assert dict(inner.trace.headers())["tracestate"] == "a=b"
"""
    inner, outer = sent(collector, program)
    assert (outer.service, outer.name, outer.kind) == ("lambdalm-hop", "outer", "server")
    assert (outer.trace, outer.parent, outer.failed) == (TRACE, SPAN, False)
    assert outer.attributes == {"n": 1, "list": ["x"]}
    assert (inner.name, inner.kind, inner.trace, inner.parent) == ("known now", "client", TRACE, outer.id)
    assert inner.attributes == {"late": "set"}


def test_a_span_without_a_parent_begins_a_trace_of_its_own(collector: FakeCollector) -> None:
    program = """
with tracing.span("one", "server", tracing.Trace()), tracing.span("two", "server", tracing.Trace()):
    pass
"""
    one, two = sent(collector, program, OTEL_SERVICE_NAME="mine")
    assert (one.parent, two.parent) == ("", "")
    assert one.trace != two.trace
    assert {one.service, two.service} == {"mine"}


def test_a_failure_is_told_by_its_code_and_never_by_its_words(collector: FakeCollector) -> None:
    program = """
import asyncio, contextlib
from lambdalm.errors import Code, LlmError
left = asyncio.CancelledError("canary"), GeneratorExit()
for error in (LlmError(Code.UNAVAILABLE, "canary"), *left, ValueError("canary")):
    with contextlib.suppress(BaseException), tracing.span("x", "client", tracing.Trace()):
        raise error
with tracing.span("stream", "server", tracing.Trace()) as span:
    with contextlib.suppress(ValueError), span.blamed():
        raise ValueError("canary")
tracing.span("by hand", "server", tracing.Trace()).end(Code.NOT_FOUND)
"""
    spans = sent(collector, program)
    told = [span.attributes["error.type"] for span in spans]
    assert told == ["UNAVAILABLE", "CANCELLED", "CANCELLED", "ValueError", "ValueError", "NOT_FOUND"]
    assert all(span.failed for span in spans)
    assert b"canary" not in b"".join(collector.bodies)


@pytest.mark.parametrize(
    ("parent", "sampler"), [(PARENT[:-2] + "00", ""), ("", "always_off"), (PARENT, "always_off")], ids=str
)
def test_what_is_not_sampled_is_not_sent_and_the_next_hop_is_told_so(
    collector: FakeCollector, parent: str, sampler: str
) -> None:
    program = f"""
with tracing.span("x", "server", tracing.Trace("{parent}")) as span:
    assert not span.recording
    assert int(dict(span.trace.headers())["traceparent"][-2:], 16) & 1 == 0
"""
    assert sent(collector, program, OTEL_TRACES_SAMPLER=sampler or "parentbased_always_on") == []


def test_a_collector_that_refuses_is_told_of_once_and_hurts_nobody(collector: FakeCollector) -> None:
    collector.answers = 400
    program = """
for n in range(20):
    with tracing.span("x", "server", tracing.Trace()):
        pass
print("done")
"""
    environ = {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    ran = run(STARTED + program, **environ)
    assert "done" in ran.stdout
    assert len(collector.asked) == 20
    assert (ran.stdout + ran.stderr).count("traces are not complete") == 1


def test_a_collector_that_hangs_does_not_hold_the_end_of_a_program() -> None:
    program = STARTED + "tracing.span('x', 'server', tracing.Trace()).end()"
    with Hanging() as hanging:
        run(program, OTEL_EXPORTER_OTLP_ENDPOINT=hanging.url, OTEL_EXPORTER_OTLP_TIMEOUT="3600")
        assert hanging.hung_up.acquire(timeout=WAIT)
