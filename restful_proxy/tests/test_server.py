"""The edge as a process, with no proxy behind it: alive is not ready."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import requests

from lambdalm.events import Heartbeat
from lambdalm.rpc import messages
from lambdalm.testing.chain import free_ports
from lambdalm_proto.v1 import llm_pb2 as pb

from .conftest import LINES, WAIT, Proxy, edge_process


def test_without_a_proxy_it_is_alive_and_not_ready_and_says_why() -> None:
    with edge_process() as chain:
        alive = requests.get(f"{chain.url}/healthz", timeout=WAIT)
        assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
        ready = requests.get(f"{chain.url}/readyz", timeout=WAIT)
        assert ready.status_code == 503
        assert ready.json()["status"] == "not ready"
        assert f"the gRPC proxy at {chain.grpc_target} cannot be reached" in ready.json()["detail"]


def test_without_a_proxy_a_query_is_503_with_retry_after_and_where_it_happened() -> None:
    with edge_process() as chain:
        for body in ({"prompt": "hi"}, {"prompt": "hi", "stream": True}):
            found = requests.post(f"{chain.url}/query", json=body, timeout=WAIT)
            assert found.status_code == 503
            assert found.headers["Retry-After"] == "1"
            error = found.json()["error"]
            assert (error["code"], error["origin"]) == ("UNAVAILABLE", "proxy")
            assert chain.grpc_target in error["message"]
            assert list(found.json()["timings"]) == ["edge"]


def test_on_sigterm_it_is_not_ready_while_it_is_alive(proxy: Proxy) -> None:
    host, port = proxy.target.split(":")
    with edge_process(DRAIN_PAUSE="600", GRPC_HOST=host, GRPC_PORT=port) as chain:
        ready = f"{chain.url}/readyz"
        assert requests.get(ready, timeout=WAIT).json() == {"status": "ready"}
        chain.hops["edge"].process.send_signal(signal.SIGTERM)
        deadline, tick = time.monotonic() + WAIT, threading.Event()
        while (found := requests.get(ready, timeout=WAIT)).status_code == 200:  # a process sends no event
            assert time.monotonic() < deadline
            tick.wait(0.01)
        assert (found.status_code, found.json()["detail"]) == (503, "shutting down")
        assert requests.get(f"{chain.url}/healthz", timeout=WAIT).status_code == 200


def test_a_full_edge_still_says_how_things_are(proxy: Proxy) -> None:
    def play(request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:
        yield messages.event_to_proto(Heartbeat())
        proxy.hold()

    proxy.play = play
    host, port = proxy.target.split(":")
    with edge_process(LLM_MAX_CONNECTIONS="1", GRPC_HOST=host, GRPC_PORT=port) as chain:
        query = f"{chain.url}/query"
        with requests.post(query, json={"prompt": "hi", "stream": True}, timeout=WAIT, stream=True):
            assert requests.post(query, json={"prompt": "hi"}, timeout=WAIT).status_code == 503
            for path in ("healthz", "readyz", "metrics"):
                assert requests.get(f"{chain.url}/{path}", timeout=WAIT).status_code == 200
            for path in ("chain", "stats"):  # this proxy does not have them
                assert requests.get(f"{chain.url}/{path}", timeout=WAIT).json()["error"]["origin"] == "proxy"


def test_two_workers_share_the_port_and_answer(proxy: Proxy) -> None:
    proxy.answer = lambda request, context: pb.LLMResponse(text="λ", finish_reason=pb.FINISH_REASON_STOP)
    host, port = proxy.target.split(":")
    with edge_process(NUM_WORKERS="2", GRPC_HOST=host, GRPC_PORT=port) as chain:
        deadline, tick = time.monotonic() + WAIT, threading.Event()
        while sum(" listening " in line for line in LINES) < 2:  # a process sends no event
            assert time.monotonic() < deadline
            tick.wait(0.01)
        for _ in range(8):
            found = requests.post(f"{chain.url}/query", json={"prompt": "hi"}, timeout=WAIT)
            assert (found.status_code, found.json()["text"]) == (200, "λ")


def restful_proxy(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "restful_proxy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)


def test_the_command_test_says_whether_the_proxy_is_serving(proxy: Proxy) -> None:
    ran = restful_proxy("test", "--grpc", proxy.target)
    assert ran.returncode == 0
    assert ran.stdout == f"the gRPC proxy at {proxy.target} is serving, and so is the backend behind it\n"


def test_the_command_test_says_when_nothing_is_there() -> None:
    target = f"127.0.0.1:{free_ports().proxy}"
    ran = restful_proxy("test", "--grpc", target)
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"error: proxy: the gRPC proxy at {target} cannot be reached")
