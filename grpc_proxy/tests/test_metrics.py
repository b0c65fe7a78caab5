"""What is counted, as Prometheus and GetStats see it after real calls."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from grpc_proxy.dialects import Look
from grpc_proxy.metrics import Metrics
from lambdalm.errors import Code, LlmError
from lambdalm.events import Finished, FinishReason, Started, StreamEvent, TextDelta, Usage
from lambdalm.models import ModelInfo
from lambdalm.stream import encode_event
from lambdalm.testing.raw_http import OK_SSE, Peer, RawServer, answer
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc

from .conftest import DELTAS, STARTED, USAGE, WHOLE, all_ended, failure, new_config, whole_proxy_here
from .test_service import refused

LABELS = {
    "llm_service_requests": {"method", "code"},
    "llm_service_request_duration_seconds": {"method"},
    "llm_service_tokens": {"model", "kind"},
    "llm_service_time_to_first_token_seconds": set(),
    "llm_service_inter_token_gap_seconds": set(),
    "llm_service_queue_seconds": set(),
    "llm_service_retries": {"upstream", "code"},
    "llm_service_ejections": {"upstream"},
    "llm_service_turns": {"state"},
    "llm_service_sessions": set(),
    "llm_service_refusals": {"reason"},
    "llm_service_calls_in_progress": set(),
    "llm_service_upstream_in_flight": {"upstream"},
    "llm_service_upstream_up": {"upstream"},
    "llm_service_breaker_state": {"upstream"},
    "llm_service_sessions_active": set(),
    "llm_service_store_up": set(),
}


async def whole(peer: Peer) -> None:
    await peer.send(OK_SSE + WHOLE)


async def busy(peer: Peer) -> None:
    await peer.send(answer("429 Too Many Requests", "text/plain", b"later"))


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Name and values of the labels, in the order of their names → value."""
    kind, body = metrics.exposition()
    assert kind.startswith("text/plain")
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            found[sample.name, *(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


async def stub_of(channel: Any) -> Any:
    return llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]


async def test_every_metric_has_its_name_and_labels_from_a_short_list() -> None:
    families = {family.name: family for family in text_string_to_metric_families(await _after_some_calls())}
    ours = {
        name: family
        for name, family in families.items()
        if name.startswith("llm_service") and not name.endswith("_created")
    }
    assert ours.keys() == LABELS.keys()
    for name, labels in LABELS.items():
        for sample in ours[name].samples:
            assert sample.labels.keys() - {"le"} <= labels, sample
            assert labels <= sample.labels.keys() or sample.name.endswith("_created"), sample


async def _after_some_calls() -> str:
    async with RawServer(whole) as backend, whole_proxy_here(new_config(backend.url)) as here:
        stub = await stub_of(here.channel)
        await stub.Generate(pb.LLMRequest(prompt="Who?"))
        backend.play = busy
        await refused(stub.Generate(pb.LLMRequest(prompt="Who?")))
        here.proxy.metrics.retried("main", Code.UNAVAILABLE)
        here.proxy.metrics.ejected("main")
        here.proxy.metrics.refused("quota")
        here.proxy.metrics.looked(here.proxy.pool, store_up=True)
        return here.proxy.metrics.exposition()[1].decode()


async def test_calls_tokens_sessions_and_turns_are_counted() -> None:
    async with RawServer(whole) as backend, whole_proxy_here(new_config(backend.url)) as here:
        stub, metrics = await stub_of(here.channel), here.proxy.metrics
        here.proxy.pool.members["main"].offers([ModelInfo("tiny", "p", None)])
        await stub.Generate(pb.LLMRequest(prompt="Who?"))
        events = [event async for event in stub.GenerateStream(pb.LLMRequest(prompt="Who?", memory=pb.MEMORY_OFF))]
        assert events

        async def dies(peer: Peer) -> None:
            await peer.send(OK_SSE + STARTED + DELTAS[0], failure(LlmError(Code.UNAVAILABLE, "died")))

        backend.play = dies
        await refused(stub.Generate(pb.LLMRequest(prompt="Who?")))
        await all_ended(here.proxy)
        await here.proxy.service.finish(1)
        found = samples(metrics)
        assert found["llm_service_requests_total", "OK", "Generate"] == 1
        assert found["llm_service_requests_total", "OK", "GenerateStream"] == 1
        assert found["llm_service_requests_total", "UNAVAILABLE", "Generate"] == 1
        assert found["llm_service_request_duration_seconds_count", "Generate"] == 2
        assert found["llm_service_tokens_total", "prompt", "tiny"] == 6
        assert found["llm_service_tokens_total", "completion", "tiny"] == 8
        assert found["llm_service_time_to_first_token_seconds_count",] == 3
        assert found["llm_service_queue_seconds_count",] == 3
        assert found["llm_service_sessions_total",] == 2
        assert found["llm_service_turns_total", "complete"] == 1
        assert found["llm_service_turns_total", "failed"] == 1
        assert found["llm_service_calls_in_progress",] == 0
        stats = await stub.GetStats(pb.GetStatsRequest())
        assert (stats.active_calls, stats.total_calls, stats.turns, stats.completion_tokens) == (1, 4, 1, 8)
        assert dict(stats.errors) == {"UNAVAILABLE": 1}
        assert stats.uptime_seconds > 0


async def test_callers_and_backends_make_no_labels_up() -> None:
    async def invents(peer: Peer) -> None:
        events: list[StreamEvent] = [Started("r1", f"model {len(backend.requests)}"), TextDelta("!"), Usage(1, 1)]
        await peer.send(OK_SSE, *map(encode_event, events), encode_event(Finished(FinishReason.STOP)))

    async with RawServer(invents) as backend, whole_proxy_here(new_config(backend.url)) as here:
        stub = await stub_of(here.channel)
        for number in range(5):
            call = stub.Generate(pb.LLMRequest(prompt="Who?", model=f"made up {number}", memory=pb.MEMORY_OFF))
            await call
            await refused(stub.GetSession(pb.GetSessionRequest(session_id=f"made-up-{number}")))
        found = samples(here.proxy.metrics)
        assert found["llm_service_tokens_total", "completion", "other"] == 5
        assert not [labels for labels in found if any("made" in part or "model 1" in part for part in labels)]


async def test_retries_ejections_and_breakers_are_counted_by_backend() -> None:
    async def dead(peer: Peer) -> None:
        await peer.send(answer("503 Service Unavailable", "text/plain", b""))

    async with RawServer(dead) as a, RawServer(whole) as b:
        upstreams = {"upstreams": {"a": {"url": a.url}, "b": {"url": b.url}}}
        async with whole_proxy_here(new_config(a.url, **upstreams)) as here:
            stub, metrics = await stub_of(here.channel), here.proxy.metrics
            for _ in range(12):
                await stub.Generate(pb.LLMRequest(prompt="Who?", memory=pb.MEMORY_OFF))
            here.proxy.pool.looked("b", Look("it hangs"))
            metrics.looked(here.proxy.pool, store_up=False)
            found = samples(metrics)
            assert found["llm_service_retries_total", "UNAVAILABLE", "a"] == 5
            assert found["llm_service_ejections_total", "a"] == 1
            assert (found["llm_service_breaker_state", "a"], found["llm_service_breaker_state", "b"]) == (2, 0)
            assert (found["llm_service_upstream_up", "a"], found["llm_service_upstream_up", "b"]) == (1, 0)
            assert found["llm_service_upstream_in_flight", "a"] == 0
            assert found["llm_service_store_up",] == 0


@pytest.mark.parametrize(("parts", "reason"), [({"limits": {"max_in_flight": 1}}, "calls in progress")])
async def test_refusals_are_counted_by_their_reason(parts: dict[str, Any], reason: str) -> None:
    async with RawServer(Peer.gone) as backend:
        config = new_config(backend.url, stream={"heartbeat_seconds": 0.05}, **parts)
        async with whole_proxy_here(config) as here:
            stub = await stub_of(here.channel)
            running = stub.GenerateStream(pb.LLMRequest(prompt="Who?", memory=pb.MEMORY_OFF))
            await running.read()
            await refused(stub.Generate(pb.LLMRequest(prompt="Who?")))
            running.cancel()
            assert samples(here.proxy.metrics)["llm_service_refusals_total", reason] == 1


async def test_a_repeated_answer_is_not_counted_as_new_tokens() -> None:
    async with RawServer(whole) as backend, whole_proxy_here(new_config(backend.url)) as here:
        stub = await stub_of(here.channel)
        call = stub.Generate(pb.LLMRequest(prompt="Who?"), metadata=(("x-request-id", "r-1"),))
        await call
        pairs = [value.partition(";")[0] for name, value in await call.trailing_metadata() if name == "set-cookie"]
        again = (("x-request-id", "r-1"), ("cookie", "; ".join(pairs)))
        await stub.Generate(pb.LLMRequest(prompt="Who?"), metadata=again)
        found = samples(here.proxy.metrics)
        assert found["llm_service_tokens_total", "completion", "other"] == 4
        assert found["llm_service_turns_total", "complete"] == 1
        assert USAGE in WHOLE


def test_the_end_of_a_call_that_went_well_is_ok() -> None:
    metrics = Metrics(900)
    metrics.began()
    assert (metrics.active, samples(metrics)["llm_service_calls_in_progress",]) == (1, 1)
    metrics.ended("Generate", None, 0.5)
    found: dict[Any, float] = dict(samples(metrics))
    assert found["llm_service_requests_total", "OK", "Generate"] == 1
    assert (metrics.active, metrics.total, dict(metrics.errors)) == (0, 1, {})


def test_no_two_processes_metrics_are_mixed_up() -> None:
    one, other = Metrics(900), Metrics(900)
    one.session_used("s1", is_new=True)
    assert samples(one)["llm_service_sessions_total",] == 1
    assert samples(other)["llm_service_sessions_total",] == 0
