"""SIGTERM to the proxy under a hundred streams: first it is not ready, then it takes no new calls; none is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import requests

from lambdalm.testing.chain import Chain, free_ports
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc
from tests.conftest import WAIT, Load, events_of, pass_first_delta, post, until, wait_for

STREAMS = 100


@contextmanager
def roomy(**environ: str) -> Iterator[Chain]:
    """A chain that takes on all these streams at a time."""
    limits = ("PARALLEL_SLOTS", "BACKEND_MAX_IN_FLIGHT", "UPSTREAM_MAX_IN_FLIGHT", "LLM_MAX_CONNECTIONS")
    room = dict.fromkeys(limits, "256")
    with Chain(free_ports(), {"PROVIDER": "scripted", **room, **environ}) as chain:
        yield chain


@contextmanager
def streams(chain: Chain, tokens: int) -> Iterator[Load]:
    """So many, each of which has had its first delta."""
    with Load(chain.url, STREAMS) as load:
        load.ask(STREAMS, model="slow", max_tokens=tokens)
        wait_for(load.begun, STREAMS)
        yield load


def terminate(chain: Chain) -> Callable[[], int]:
    """SIGTERM to the proxy; gives what waits for its exit status."""
    process = chain.hops["proxy"].process
    process.terminate()
    return lambda: process.wait(WAIT)


def test_a_hundred_streams_are_finished_on_sigterm() -> None:
    with roomy() as chain, streams(chain, 100) as load:
        status = terminate(chain)
        outcomes = load.outcomes()
        assert [outcome.end for outcome in outcomes if not outcome.finished] == []
        assert len({outcome.text for outcome in outcomes}) == 1
        assert len(outcomes[0].text.split()) == 100
        assert status() == 0


def test_past_the_grace_period_each_of_a_hundred_streams_is_told_why_it_ends() -> None:
    with roomy(GRPC_GRACE="1") as chain, requests.Session() as jar:
        body = {"prompt": "remember me", "model": "slow", "max_tokens": 1000, "stream": True}
        with streams(chain, 1000) as load, jar.post(f"{chain.url}/query", json=body, stream=True, timeout=30) as own:
            events = events_of(own)
            pass_first_delta(events)
            status = terminate(chain)
            ends = [outcome.end for outcome in load.outcomes()]
            *_, end = events
        assert len(ends) == STREAMS
        for said in [*ends, end]:
            assert (said["type"], said["error"]["code"], said["error"]["origin"]) == ("error", "UNAVAILABLE", "proxy")
            assert "shutting down" in said["error"]["message"]
        assert status() == 0

        chain.start("proxy")
        chain.wait_ready()
        (turn,) = only_session(chain, jar)["turns"]
        assert (turn["prompt"], turn["state"]) == ("remember me", "failed")
        assert turn["text"].startswith("once upon a ")


def only_session(chain: Chain, jar: requests.Session) -> dict[str, Any]:
    """The one that this client has."""
    (listed,) = jar.get(f"{chain.url}/sessions", timeout=5).json()["sessions"]
    found: dict[str, Any] = jar.get(f"{chain.url}/sessions/{listed['id']}", timeout=5).json()
    return found


def refusal(chain: Chain) -> grpc.StatusCode | None:
    """Of a new call on a connection of its own."""
    with grpc.insecure_channel(chain.grpc_target) as channel:
        stub = llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            stub.Generate(pb.LLMRequest(prompt="x"), timeout=10)
        except grpc.RpcError as error:
            return error.code()
    return None


def ready(chain: Chain) -> bool:
    return requests.get(chain.health_url("proxy"), timeout=5).status_code == 200


def test_on_sigterm_it_is_not_ready_first_and_then_refuses_new_calls_and_finishes_old_ones() -> None:
    with roomy(DRAIN_PAUSE="3") as chain:
        body = {"prompt": "x", "model": "slow", "max_tokens": 160}
        with post(chain.url, {**body, "stream": True}) as response:
            events = events_of(response)
            pass_first_delta(events)
            status = terminate(chain)
            until(lambda: not ready(chain), "not ready")
            assert refusal(chain) is None  # balancers have not all noticed yet
            until(lambda: refusal(chain) is grpc.StatusCode.UNAVAILABLE, "new calls are refused")
            assert not ready(chain)
            through_edge = post(chain.url, {"prompt": "x"})
            assert (through_edge.status_code, through_edge.json()["error"]["code"]) == (503, "UNAVAILABLE")
            *_, end = events
        assert end["type"] == "finished"
        assert status() == 0


def test_a_stopped_proxy_is_the_first_broken_hop(own_scripted: Chain) -> None:
    assert terminate(own_scripted)() == 0
    answer = requests.get(f"{own_scripted.url}/chain", timeout=5)
    assert (answer.status_code, answer.json()["first_broken"]) == (503, "proxy")
