"""A client that hangs up stops the generation at the last hop, whatever the request was doing."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import grpc
import pytest

from lambdalm.testing.chain import Chain, free_ports
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc
from tests.conftest import events_of, health, idle, pass_first_delta, post, until


def send_and_keep(port: int, body: str) -> socket.socket:
    """A request sent by hand, its socket kept open."""
    sock = socket.create_connection(("127.0.0.1", port))
    head = "POST /query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return sock


def busy(chain: Chain) -> bool:
    return bool(health(chain)["in_flight"] == 1)


@pytest.fixture
def port(scripted: Chain, request: pytest.FixtureRequest) -> int:
    """Of the edge, or of the backend alone."""
    until(lambda: idle(scripted), "the engine is idle")
    return int(getattr(scripted.ports, request.param))


BOTH = pytest.mark.parametrize("port", ["edge", "backend"], indirect=True)


@BOTH
@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_hang_up_before_the_first_token(scripted: Chain, port: int, stream: str) -> None:
    with send_and_keep(port, f'{{"prompt":"x","model":"stall-first","stream":{stream}}}'):
        until(lambda: busy(scripted), "the engine works")
    until(lambda: idle(scripted), "the engine is idle")


@BOTH
@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_hang_up_in_the_middle(scripted: Chain, port: int, stream: str) -> None:
    with send_and_keep(port, f'{{"prompt":"x","model":"stall","stream":{stream}}}') as sock:
        if stream == "true":
            assert sock.recv(1)
        until(lambda: busy(scripted), "the engine works")
    until(lambda: idle(scripted), "the engine is idle")


def test_a_hang_up_in_the_middle_on_llamacpp(llamacpp: Chain) -> None:
    body = {"prompt": "Count from 1 to 50.", "stream": True, "temperature": 2.0, "max_tokens": 4000}
    with post(llamacpp.url, body) as response:
        events = events_of(response)
        pass_first_delta(events)
    until(lambda: idle(llamacpp), "the engine is idle")
    assert post(llamacpp.url, {"prompt": "Hello!"}).json()["finish_reason"] == "stop"


def test_a_grpc_client_that_cancels(scripted: Chain, channel: grpc.Channel) -> None:
    stub = llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]
    call = stub.GenerateStream(pb.LLMRequest(prompt="x", model="stall"))
    assert next(call).HasField("started")
    until(lambda: busy(scripted), "the engine works")
    call.cancel()
    until(lambda: idle(scripted), "the engine is idle")


@pytest.fixture(scope="module")
def one_slot() -> Iterator[Chain]:
    with Chain(free_ports(), {"PROVIDER": "scripted", "PARALLEL_SLOTS": "1"}) as chain:
        yield chain


def test_a_hang_up_while_it_waits_for_a_slot(one_slot: Chain) -> None:
    with send_and_keep(one_slot.ports.edge, '{"prompt":"x","model":"stall"}'):
        until(lambda: busy(one_slot), "the engine works")
        with send_and_keep(one_slot.ports.edge, '{"prompt":"x","model":"echo"}'):
            until(lambda: health(one_slot)["waiting"] == 1, "a request waits")
        until(lambda: health(one_slot)["waiting"] == 0, "it waits no more")
        assert health(one_slot)["in_flight"] == 1
    until(lambda: idle(one_slot), "the engine is idle")


def test_a_request_out_of_time_leaves_an_idle_engine(scripted: Chain) -> None:
    for stream in (True, False):
        body = {"prompt": "x", "model": "stall-first", "stream": stream}
        response = post(scripted.url, body, headers={"X-Request-Timeout": "0.3"})
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "DEADLINE_EXCEEDED"
        until(lambda: idle(scripted), "the engine is idle")


def test_a_budget_of_nothing_is_refused_at_once(scripted: Chain) -> None:
    response = post(scripted.url, {"prompt": "x"}, headers={"X-Request-Timeout": "0"})
    assert response.status_code == 504
    assert list(response.json()["timings"]) == ["edge"]


def test_a_wait_for_a_slot_counts_against_the_budget(one_slot: Chain) -> None:
    with send_and_keep(one_slot.ports.edge, '{"prompt":"x","model":"stall"}'):
        until(lambda: busy(one_slot), "the engine works")
        response = post(one_slot.url, {"prompt": "x"}, headers={"X-Request-Timeout": "0.3"})
    assert response.status_code == 504
    assert response.json()["timings"]["backend"]["queue_ms"] > 100
    until(lambda: idle(one_slot), "the engine is idle")
