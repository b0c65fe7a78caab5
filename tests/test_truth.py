"""For each behaviour and fault of the scripted provider: what an HTTP client, a gRPC client and BedREST see.

`SEEN` is the table that docs/scripted.md prints for people. None of the three may take a cut stream for a whole answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from lambdalm.errors import Code
from lambdalm.rpc.status import STATUS
from lambdalm.testing.chain import Chain
from lambdalm.testing.scripted import BEHAVIOURS
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc
from tests.conftest import bedrest, frames, idle, post, text_of, until

THREE = "once upon a "
BUDGET = "1"  # seconds, for the behaviours that never end


class Seen(NamedTuple):
    """How a request to one behaviour ends. `code` is None for success; `status` is that of a plain answer."""

    status: int
    code: Code | None
    text: str
    reason: str | None = None
    in_stream: bool = False
    """Whether the failure comes after the first delta, so that a stream's HTTP status is 200."""


SEEN: dict[str, Seen] = {
    "echo": Seen(200, None, "Hello there, λλM!", "stop"),
    "slow": Seen(200, None, "once upon a ", "length"),
    "flood": Seen(200, None, "once upon a ", "length"),
    "huge": Seen(200, None, "λ" * 2**19, "stop"),
    "thinking": Seen(200, None, "Hello!", "stop"),
    "empty": Seen(200, None, "", "stop"),
    "filtered": Seen(200, None, "I would rather ", "content_filter"),
    "no-usage": Seen(200, None, "Uncounted.", "stop"),
    "stall-first": Seen(504, Code.DEADLINE_EXCEEDED, ""),
    "stall": Seen(504, Code.DEADLINE_EXCEEDED, THREE, in_stream=True),
    "error-before": Seen(503, Code.UNAVAILABLE, ""),
    "error-in-stream": Seen(503, Code.UNAVAILABLE, THREE, in_stream=True),
    "throttle": Seen(429, Code.RESOURCE_EXHAUSTED, ""),
    "cut": Seen(503, Code.UNAVAILABLE, THREE, in_stream=True),
    "garbage": Seen(502, Code.INTERNAL, THREE, in_stream=True),
}

HOPS = ["backend", "proxy", "edge"]


def body(model: str, stream: bool) -> dict[str, object]:
    return {"prompt": "Hello there, λλM!", "model": model, "max_tokens": 3, "stream": stream}


def test_every_behaviour_has_its_row_here_and_in_the_docs() -> None:
    assert set(SEEN) == set(BEHAVIOURS)
    page = (Path(__file__).parent.parent / "docs" / "scripted.md").read_text(encoding="utf-8")
    for model, seen in SEEN.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{model}` |"))
        assert str(seen.status) in row
        assert (seen.code or seen.reason or "") in row


@pytest.mark.parametrize("model", SEEN)
def test_a_plain_answer_over_http(scripted: Chain, model: str) -> None:
    seen = SEEN[model]
    response = post(scripted.url, body(model, stream=False), headers={"X-Request-Timeout": BUDGET})
    assert response.status_code == seen.status
    answer = response.json()
    assert list(answer["timings"]) == HOPS
    for hop in HOPS:
        assert f"{hop};dur=" in response.headers["Server-Timing"]
    if seen.code is None:
        assert answer["text"] == seen.text
        assert answer["finish_reason"] == seen.reason
    else:
        assert answer["error"]["code"] == seen.code
        assert answer["error"]["message"]
        assert "text" not in answer
    assert ("usage" in answer) == (seen.code is None and model != "no-usage")
    if model == "throttle":
        assert response.headers["Retry-After"] == "2"
        assert answer["error"]["retry_after"] == 2


@pytest.mark.parametrize("model", SEEN)
def test_a_stream_over_http(scripted: Chain, model: str) -> None:
    seen = SEEN[model]
    response = post(scripted.url, body(model, stream=True), headers={"X-Request-Timeout": BUDGET})
    if seen.code is not None and not seen.in_stream:
        assert response.status_code == seen.status
        assert response.json()["error"]["code"] == seen.code
        return
    assert response.status_code == 200
    events = frames(response)
    assert events[0]["type"] == "started"
    assert events[0]["model"] == model
    assert text_of(events) == seen.text
    assert [event["type"] for event in events].count("finished") == (seen.code is None)
    end = events[-1]
    assert list(end["timings"]) == HOPS
    if seen.code is None:
        assert (end["type"], end["reason"]) == ("finished", seen.reason)
    else:
        assert (end["type"], end["error"]["code"]) == ("error", seen.code)


@pytest.mark.parametrize("model", SEEN)
def test_a_stream_over_grpc(channel: grpc.Channel, model: str) -> None:
    seen = SEEN[model]
    stub = llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]
    parameters = pb.LLMRequest.Parameters(max_tokens=3)
    request = pb.LLMRequest(prompt="Hello there, λλM!", model=model, parameters=parameters)
    call = stub.GenerateStream(request, timeout=float(BUDGET))
    kinds, text, status = [], "", grpc.StatusCode.OK
    try:
        for event in call:
            kinds.append(event.WhichOneof("event"))
            text += event.text_delta.text
    except grpc.RpcError as error:
        status = error.code()
    assert text == seen.text
    assert status is (grpc.StatusCode.OK if seen.code is None else STATUS[seen.code])
    assert kinds.count("finished") == (seen.code is None)
    if seen.code is not None and not seen.in_stream:
        assert kinds == []


@pytest.mark.parametrize("model", SEEN)
def test_a_whole_answer_over_grpc(channel: grpc.Channel, model: str) -> None:
    seen = SEEN[model]
    stub = llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]
    parameters = pb.LLMRequest.Parameters(max_tokens=3)
    request = pb.LLMRequest(prompt="Hello there, λλM!", model=model, parameters=parameters)
    if seen.code is None:
        assert stub.Generate(request, timeout=5).text == seen.text
    else:
        with pytest.raises(grpc.RpcError) as failed:
            stub.Generate(request, timeout=float(BUDGET))
        assert failed.value.code() is STATUS[seen.code]


@pytest.mark.parametrize("model", SEEN)
def test_bedrest(scripted: Chain, model: str) -> None:
    seen = SEEN[model]
    arguments = ["--model", model, "--max-tokens", "3", "--timeout", BUDGET, "Hello there, λλM!"]
    ended = bedrest(scripted, "ask", *arguments)
    assert ended.returncode == (0 if seen.code is None else 1)
    assert ended.stdout.strip() == seen.text.strip()
    if seen.code is not None:
        assert seen.code in ended.stderr


def test_after_all_faults_the_engine_is_idle(scripted: Chain) -> None:
    until(lambda: idle(scripted), "the engine is idle")
