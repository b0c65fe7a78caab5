"""The backend as a process: `/health`, `/models`, the command `test`, and how it starts and stops."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests

from lambdalm.testing.chain import Chain
from lambdalm.testing.fake_ollama import FakeOllama
from lambdalm.testing.scripted import BEHAVIOURS

from .conftest import WAIT, running_backend


def get(chain: Chain, path: str) -> requests.Response:
    return requests.get(f"{chain.backend_url}{path}", timeout=WAIT)


def ask(chain: Chain, **body: Any) -> requests.Response:
    return requests.post(
        f"{chain.backend_url}/query", json={"prompt": "hi", **body}, stream=body.get("stream", False), timeout=WAIT
    )


def first_delta(answer: requests.Response) -> Iterator[bytes]:
    """Returns when the first delta has come; gives the lines after it."""
    lines: Iterator[bytes] = answer.iter_lines(chunk_size=None)
    next(line for line in lines if line.startswith(b"event: text_delta"))
    return lines


def until(chain: Chain, status: int, **fields: Any) -> dict[str, Any]:
    """The first word on its health that has this status and these fields: what it does sends no event."""
    deadline = time.monotonic() + WAIT
    tick = threading.Event()
    while True:
        found = get(chain, "/health")
        body: dict[str, Any] = found.json()
        if found.status_code == status and fields.items() <= body.items():
            return body
        assert time.monotonic() < deadline, body
        tick.wait(0.01)


@pytest.fixture(scope="module")
def backend() -> Iterator[Chain]:
    """With one slot."""
    with running_backend(PARALLEL_SLOTS="1") as chain:
        yield chain


def test_health_says_which_model_and_that_nothing_is_in_flight(backend: Chain) -> None:
    found = until(backend, 200, in_flight=0)
    assert found == {
        "status": "ok",
        "provider": "scripted",
        "model": "echo",
        "in_flight": 0,
        "waiting": 0,
        "slots": 1,
    }


def test_health_counts_what_is_in_flight_and_what_waits(backend: Chain) -> None:
    with ThreadPoolExecutor() as threads:
        with ask(backend, model="stall", stream=True) as holder:
            _lines = first_delta(holder)  # closed, they would close the connection
            assert until(backend, 200, in_flight=1)["waiting"] == 0
            waiter = threads.submit(ask, backend)
            until(backend, 200, in_flight=1, waiting=1)
        assert waiter.result().json()["text"] == "hi"  # its turn has come, since the holder has left
    until(backend, 200, in_flight=0, waiting=0)


def test_models_are_listed_the_default_first(backend: Chain) -> None:
    answer = get(backend, "/models")
    assert answer.status_code == 200
    assert answer.json() == {"models": [{"id": name, "provider": "scripted"} for name in BEHAVIOURS]}


def test_a_session_is_refused_by_name(backend: Chain) -> None:
    answer = ask(backend, session_id="s1")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "INVALID_ARGUMENT"
    assert answer.json()["error"]["message"].startswith("session_id:")
    assert answer.json()["error"]["origin"] == "backend"


def test_a_full_line_is_429_with_retry_after() -> None:
    with running_backend(PARALLEL_SLOTS="1", QUEUE_SIZE="0") as chain, ask(chain, model="stall", stream=True) as holder:
        _lines = first_delta(holder)  # closed, they would close the connection
        answer = ask(chain)
        assert answer.status_code == 429
        assert answer.headers["Retry-After"] == "1"
        assert answer.json()["error"]["code"] == "RESOURCE_EXHAUSTED"
        assert answer.json()["timings"]["backend"]["total_ms"] >= 0


def test_on_sigterm_health_is_503_while_new_requests_are_still_answered() -> None:
    with running_backend(DRAIN_PAUSE="600") as chain:
        until(chain, 200)
        chain.hops["backend"].process.send_signal(signal.SIGTERM)
        assert until(chain, 503)["status"] == "draining"
        assert ask(chain).json()["text"] == "hi"


def test_on_sigterm_a_running_answer_is_finished_and_the_status_is_0() -> None:
    with running_backend(PARALLEL_SLOTS="2") as chain:
        with ask(chain, model="slow", max_tokens=20, stream=True) as answer:
            lines = first_delta(answer)
            process = chain.hops["backend"].process
            process.terminate()
            assert b"event: finished" in list(lines)
        assert process.wait(WAIT) == 0


def backend_lambda(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "backend_lambda", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)


def test_the_command_test_asks_the_built_in_model() -> None:
    ran = backend_lambda("test", "--provider", "llamacpp")
    assert ran.stderr == ""
    assert ran.returncode == 0
    assert "lambdalm-demo" in ran.stdout


def test_the_command_test_asks_the_scripted_provider() -> None:
    ran = backend_lambda("test", "--provider", "scripted")
    assert ran.returncode == 0
    assert ran.stdout.endswith("Hello!\n")


@pytest.mark.parametrize("command", ["test", "serve"])
def test_a_model_that_cannot_be_read_ends_the_program_with_a_line_that_names_it(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_PATH", "no/such.gguf")
    monkeypatch.setenv("BACKEND_PORT", "0")
    ran = backend_lambda(command, "--provider", "llamacpp")
    assert ran.returncode not in (0, None)
    assert "no/such.gguf cannot be read" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_above_the_budget_of_frames_deltas_are_joined_and_none_is_lost() -> None:
    with running_backend(BACKEND_FRAMES_PER_SECOND="1") as chain:
        whole = ask(chain, model="slow", max_tokens=60).json()["text"]
        lines = list(ask(chain, model="slow", max_tokens=60, stream=True).iter_lines())
    deltas = [
        json.loads(data.removeprefix(b"data: "))["text"]
        for kind, data in pairwise(lines)
        if kind.endswith(b"text_delta")
    ]
    assert "".join(deltas) == whole
    assert len(deltas) < 50  # in the first second each token is a frame, then at least four tokens are


def test_with_a_token_only_health_is_open_and_the_token_is_logged_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("canary-token\n")
    with running_backend(BACKEND_TOKEN_FILE=str(file), LOG_LEVEL="DEBUG") as chain:
        url, lines = chain.backend_url, chain.hops["backend"].tail
        assert requests.get(f"{url}/health", timeout=WAIT).status_code == 200
        for path, ask_for in (("/models", requests.get), ("/query", requests.post)):
            refused = ask_for(url + path, timeout=WAIT)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "UNAUTHENTICATED")
        headers = {"Authorization": "Bearer canary-token"}
        answer = requests.post(f"{url}/query", json={"prompt": "hi"}, headers=headers, timeout=WAIT)
        assert answer.json()["text"] == "hi"
    assert "canary-token" not in "\n".join(lines)


def test_a_token_that_cannot_be_read_stops_the_start_with_a_line_that_names_it() -> None:
    command = [sys.executable, "-m", "backend_lambda", "serve", "--port", "0"]
    environ = {**os.environ, "PROVIDER": "scripted", "BACKEND_TOKEN_FILE": "no/such/file"}
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=WAIT, check=False)
    assert ran.returncode != 0
    assert "listen.token_file: no/such/file cannot be read" in ran.stderr


def test_who_asks_for_health_often_does_not_burden_the_engine() -> None:
    with FakeOllama() as fake:
        asked = 30
        with running_backend(PROVIDER="ollama", OLLAMA_URL=fake.url, MODEL_NAME="echo") as chain:
            for _ in range(asked):
                assert get(chain, "/health").json()["model"] == "echo"
        looks = [row.path for row in fake.asked].count("/api/version")
    assert 1 <= looks < asked


def test_health_names_the_engine_that_is_not_there_and_then_is() -> None:
    with FakeOllama() as fake:
        port = int(fake.url.rpartition(":")[2])
    with running_backend(PROVIDER="ollama", OLLAMA_URL=fake.url, MODEL_NAME="echo") as chain:
        answer = get(chain, "/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
        assert "OLLAMA_URL" in answer.json()["detail"]
        with FakeOllama(port):
            while get(chain, "/health").status_code != 200:  # what was found counts for a second
                pass


def test_ctrl_c_stops_a_server_that_still_loads_its_model(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    os.mkfifo(model)  # to open it takes until somebody writes
    command = [sys.executable, "-m", "backend_lambda", "serve", "--port", "0", "--provider", "llamacpp"]
    process = subprocess.Popen([*command, "--model", str(model)], stderr=subprocess.DEVNULL)
    try:
        descriptor = until_read(model)
        process.send_signal(signal.SIGINT)
        process.wait(20)
        os.close(descriptor)
    finally:
        process.kill()
        process.wait()


def until_read(fifo: Path) -> int:
    """Return when somebody reads from it, who from then on waits for data: a descriptor to write to."""
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # while nobody has it open
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    raise TimeoutError
