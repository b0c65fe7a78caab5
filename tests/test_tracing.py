"""One trace through all hops, as a collector gets it from the chain's processes."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import NamedTuple

import grpc
import pytest

from lambdalm.testing.chain import Chain, Kind, free_ports
from lambdalm.testing.fake_openai import FakeOpenAI
from lambdalm.testing.fake_otlp import FakeCollector, Sent
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc
from tests.conftest import events_of, frames, pass_first_delta, post

EDGE = ("lambdalm-edge", "POST /query", "server")
STREAMED = ("lambdalm-proxy", "lambdalm.v1.LlmService/GenerateStream", "server")
PLAIN = ("lambdalm-proxy", "lambdalm.v1.LlmService/Generate", "server")
ATTEMPT = ("lambdalm-proxy", "POST", "client")
BACKEND = ("lambdalm-backend", "POST /query", "server")
MODEL = ("lambdalm-backend", "chat echo", "client")
CALLER = "00f067aa0ba902b7"


class Traced(NamedTuple):
    chain: Chain
    collector: FakeCollector


def exporting(collector: FakeCollector, milliseconds: int = 10) -> dict[str, str]:
    """The environment of hops that send their spans there, so often."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": str(milliseconds)}


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with (
        FakeCollector() as collector,
        Chain(free_ports(), {"PROVIDER": "scripted", **exporting(collector)}) as chain,
    ):
        yield Traced(chain, collector)


def new_trace() -> str:
    return secrets.token_hex(16)


def headers(trace: str, flags: str = "01") -> dict[str, str]:
    """Those of a caller who is at CALLER in this trace."""
    return {"traceparent": f"00-{trace}-{CALLER}-{flags}", "tracestate": "their=own"}


def line(spans: list[Sent], top: str = CALLER) -> list[Sent]:
    """The spans from the caller's child down, each the only child of the one before it."""
    found = []
    while below := [span for span in spans if span.parent == top]:
        assert len(below) == 1, below
        found += below
        top = below[0].id
    assert len(found) == len(spans), spans
    return found


def what(span: Sent) -> tuple[str, str, str]:
    return span.service, span.name, span.kind


def told(spans: list[Sent]) -> list[str | None]:
    """How each has failed."""
    assert all(span.failed == ("error.type" in span.attributes) for span in spans)
    return [span.attributes.get("error.type") for span in spans]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_trace_below_its_callers(traced: Traced, stream: bool) -> None:
    trace = new_trace()
    asked = {"prompt": "Hello, my friend", "stream": stream}
    answer = post(traced.chain.url, asked, headers={**headers(trace), "X-Request-Id": trace})
    assert answer.status_code == 200
    assert len(answer.content) > 0
    spans = line(traced.collector.wait_for(trace, 5))
    edge, proxy, attempt, backend, model = spans
    assert [what(span) for span in spans] == [
        EDGE,
        STREAMED if stream else PLAIN,
        ATTEMPT,
        BACKEND,
        ("lambdalm-backend", "chat echo", "client"),
    ]
    assert told(spans) == [None] * 5
    assert {span.attributes["lambdalm.request_id"] for span in (edge, proxy, backend)} == {trace}
    assert edge.attributes["http.route"] == "/query"
    assert proxy.name == f"{proxy.attributes['rpc.service']}/{proxy.attributes['rpc.method']}"
    assert attempt.attributes["lambdalm.attempt"] == 1
    assert attempt.attributes["http.response.status_code"] == 200
    assert attempt.attributes["server.port"] == traced.chain.ports.backend
    assert model.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "scripted",
        "gen_ai.response.model": "echo",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ["stop"],
    }


def test_the_span_of_a_model_that_was_asked_for_has_its_name(traced: Traced) -> None:
    trace = new_trace()
    post(traced.chain.url, {"prompt": "x", "model": "no-usage"}, headers=headers(trace))
    model = line(traced.collector.wait_for(trace, 5))[-1]
    assert (model.name, model.attributes["gen_ai.request.model"]) == ("chat no-usage", "no-usage")
    assert "gen_ai.usage.input_tokens" not in model.attributes


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["error-before", "error-in-stream"])
def test_an_error_is_told_by_every_hop(traced: Traced, model: str, stream: bool) -> None:
    trace = new_trace()
    with post(traced.chain.url, {"prompt": "x", "model": model, "stream": stream}, headers=headers(trace)) as answer:
        assert b"UNAVAILABLE" in answer.content
    assert told(line(traced.collector.wait_for(trace, 5))) == ["UNAVAILABLE"] * 5


def test_a_request_that_is_refused_has_a_span_where_it_came_to(traced: Traced) -> None:
    trace = new_trace()
    assert post(traced.chain.url, {"prompt": "x", "session_id": "unknown"}, headers=headers(trace)).status_code == 404
    spans = line(traced.collector.wait_for(trace, 2))
    assert [what(span) for span in spans] == [EDGE, PLAIN]
    assert told(spans) == ["NOT_FOUND"] * 2


def test_a_stream_whose_client_leaves_is_cancelled_in_every_hop(traced: Traced) -> None:
    trace = new_trace()
    asked = {"prompt": "x", "model": "stall", "stream": True}
    with post(traced.chain.url, asked, headers=headers(trace)) as answer:
        pass_first_delta(events_of(answer))
    assert told(line(traced.collector.wait_for(trace, 5))) == ["CANCELLED"] * 5


def test_a_grpc_callers_trace_goes_on(traced: Traced) -> None:
    trace = new_trace()
    with grpc.insecure_channel(traced.chain.grpc_target) as channel:
        stub = llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]
        stub.Generate(pb.LLMRequest(prompt="x"), metadata=tuple(headers(trace).items()), timeout=30)
    names = [span.name for span in line(traced.collector.wait_for(trace, 4))]
    assert names == ["lambdalm.v1.LlmService/Generate", "POST", "POST /query", "chat echo"]


@pytest.mark.parametrize("given", [{}, {"traceparent": "00-1-2-01"}])
def test_a_caller_without_a_trace_gets_one(traced: Traced, given: dict[str, str]) -> None:
    mine = secrets.token_hex(8)
    post(traced.chain.url, {"prompt": "x"}, headers={"X-Request-Id": mine, **given})
    found = traced.collector.wait_until(lambda span: span.attributes.get("lambdalm.request_id") == mine)
    assert what(line(traced.collector.wait_for(found.trace, 5), top="")[0]) == EDGE


def test_a_callers_trace_that_is_not_sampled_is_not_sent(traced: Traced) -> None:
    unsampled, sampled = new_trace(), new_trace()
    post(traced.chain.url, {"prompt": "x"}, headers=headers(unsampled, flags="00"))
    post(traced.chain.url, {"prompt": "x"}, headers=headers(sampled))
    traced.collector.wait_for(sampled, 5)
    assert traced.collector.of(unsampled) == []


def test_nobodys_words_and_no_key_are_in_any_span(traced: Traced) -> None:
    trace = new_trace()
    given = {**headers(trace), "Authorization": "Bearer canary-key", "Cookie": "x=canary-cookie"}
    asked = {"prompt": "canary-prompt", "system": "canary-system", "memory": "off"}
    assert "canary-prompt" in post(traced.chain.url, asked, headers=given).text
    traced.collector.wait_for(trace, 5)
    assert b"canary" not in b"".join(traced.collector.bodies)


def test_what_is_left_to_send_is_sent_when_a_hop_stops() -> None:
    trace = new_trace()
    with FakeCollector() as collector:
        with Chain(free_ports(), {"PROVIDER": "scripted", **exporting(collector, 3_600_000)}) as chain:
            post(chain.url, {"prompt": "x"}, headers=headers(trace))
        assert len(line(collector.of(trace))) == 5


def test_each_attempt_at_a_backend_is_seen() -> None:
    trace = new_trace()
    with FakeCollector() as collector:
        environ = {"PROVIDER": "scripted", **exporting(collector)}
        with Chain(free_ports(), environ, kinds={"backend": Kind(number=2)}) as chain:
            post(chain.url, {"prompt": "x", "model": "error-before"}, headers=headers(trace))
            spans = collector.wait_for(trace, 8)
    attempts = {span.attributes["lambdalm.attempt"]: span for span in spans if what(span) == ATTEMPT}
    assert sorted(attempts) == [1, 2]
    assert {span.attributes["error.type"] for span in attempts.values()} == {"UNAVAILABLE"}
    assert len({span.attributes["lambdalm.upstream"] for span in attempts.values()}) == 2
    assert len({span.parent for span in attempts.values()}) == 1
    assert {span.parent for span in spans if what(span) == BACKEND} == {span.id for span in attempts.values()}


def test_a_trace_goes_through_hops_that_make_no_spans_and_tell_nobody() -> None:
    trace = new_trace()
    with FakeCollector() as collector, FakeOpenAI() as engine:
        off = {**exporting(collector), "OTEL_SDK_DISABLED": "true", "BACKEND_URL": f"{engine.url}/v1"}
        with Chain(free_ports(), {"PROVIDER": "scripted", "BACKEND_DIALECT": "openai", **off}) as chain:
            frames(post(chain.url, {"prompt": "x", "stream": True}, headers=headers(trace)))
        assert collector.asked == []
    asked = next(asked for asked in engine.asked if asked.path == "/v1/chat/completions")
    assert headers(trace).items() <= asked.headers.items()
