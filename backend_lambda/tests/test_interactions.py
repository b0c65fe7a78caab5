"""The interaction log: every interaction is one line in it, whatever became of it, and nothing waits for it."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import requests

from backend_lambda.inference import Inference
from backend_lambda.interactions import InteractionLog, InteractionsConfig, open_log
from backend_lambda.providers.scripted import ScriptedProvider
from lambdalm import logs
from lambdalm.call import Call
from lambdalm.chat import ChatRequest, Message
from lambdalm.errors import LlmError
from lambdalm.events import Finished, StreamEvent, TextDelta

from .conftest import WAIT, new_call, running_backend


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(autouse=True)
def _logging() -> None:
    """As a server's: other tests may or may not have set it up."""
    logs.configure("backend", logs.LogConfig())


class Logged:
    """Generations whose interactions go to a file; `lines` closes it and reads them."""

    def __init__(self, path: Path, log: InteractionLog | None = None, **config: Any) -> None:
        self.path = path
        self.log = log or open_log(InteractionsConfig(path=str(path), **config))
        self.inference = Inference(ScriptedProvider(), self.log)

    def stream(self, call: Call | None = None, **request: Any) -> Generator[StreamEvent, None, None]:
        asked = ChatRequest(**({} if "messages" in request else {"prompt": "hi"}) | request)
        return self.inference.stream(asked, call or new_call())

    def lines(self) -> list[dict[str, Any]]:
        self.inference.close()
        return lines(self.path)


@pytest.fixture
def logged(tmp_path: Path) -> Logged:
    return Logged(tmp_path / "made" / "for it" / "log.jsonl")


def test_a_line_says_what_was_asked_and_what_was_answered(logged: Logged) -> None:
    before = datetime.datetime.now(datetime.UTC)
    list(logged.stream(prompt="Grüße\nan λ", temperature=0.5, max_tokens=9, stop=("x",)))
    (line,) = logged.lines()
    assert before <= datetime.datetime.fromisoformat(line.pop("timestamp")) <= datetime.datetime.now(datetime.UTC)
    assert line.pop("duration_ms") >= 0
    assert line == {
        "request_id": "r1",
        "prompt": "Grüße\nan λ",
        "response": "Grüße\nan λ",
        "model": "echo",
        "parameters": {"max_tokens": 9, "temperature": 0.5, "stop": ["x"]},
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "finish_reason": "stop",
    }


def test_the_timestamp_is_iso_8601_in_utc(logged: Logged) -> None:
    list(logged.stream())
    assert logged.lines()[0]["timestamp"].endswith("Z")


def test_of_a_conversation_the_last_turn_is_the_prompt_and_the_others_its_history(logged: Logged) -> None:
    turns = (Message("system", "Be brief."), Message("user", "hi"))
    list(logged.stream(messages=turns))
    (line,) = logged.lines()
    assert (line["prompt"], line["history"]) == ("hi", [{"role": "system", "content": "Be brief."}])
    assert line["parameters"] == {}


def test_reasoning_is_apart_from_the_response(logged: Logged) -> None:
    list(logged.stream(model="thinking"))
    (line,) = logged.lines()
    assert (line["response"], line["reasoning"]) == ("Hello!", "The user said something; I shall greet them.")


@pytest.mark.parametrize(
    ("model", "response", "code"),
    [
        ("error-before", "", "UNAVAILABLE"),
        ("error-in-stream", "once upon a ", "UNAVAILABLE"),
        ("cut", "once upon a ", "UNAVAILABLE"),
        ("garbage", "once upon a ", "INTERNAL"),
        ("no-such-model", "", "NOT_FOUND"),
    ],
)
def test_a_failure_is_logged_with_what_came_before_it(logged: Logged, model: str, response: str, code: str) -> None:
    with pytest.raises(LlmError):
        list(logged.stream(model=model))
    (line,) = logged.lines()
    assert (line["response"], line["model"], line["error"]["code"]) == (response, model, code)
    assert "finish_reason" not in line


def test_a_cancelled_stream_is_logged_with_the_reason(logged: Logged) -> None:
    call = new_call()
    events = logged.stream(call, model="stall")
    next(event for event in events if isinstance(event, TextDelta))
    call.cancel("the client hung up")
    with pytest.raises(LlmError):
        list(events)
    assert logged.lines()[0]["error"]["message"] == "the client hung up"


def test_a_stream_that_its_reader_closes_is_logged(logged: Logged) -> None:
    events = logged.stream(model="stall")
    next(event for event in events if isinstance(event, TextDelta))
    events.close()
    (line,) = logged.lines()
    assert line["response"] == "once "
    assert line["error"] == {"code": "CANCELLED", "message": "the reader closed the stream before its end"}


def test_a_call_that_is_stopped_when_its_reader_closes_it_says_why(logged: Logged) -> None:
    call = new_call()
    events = logged.stream(call, model="stall")
    next(events)
    call.cancel("the client hung up")
    events.close()
    assert logged.lines()[0]["error"]["message"] == "the client hung up"


def test_a_reader_that_has_seen_the_end_has_not_left_early(logged: Logged) -> None:
    events = logged.stream()
    next(event for event in events if isinstance(event, Finished))
    events.close()
    assert "error" not in logged.lines()[0]


def test_a_bug_in_a_provider_is_logged_without_its_words(tmp_path: Path) -> None:
    class Broken(ScriptedProvider):
        def stream(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
            raise ZeroDivisionError("secret")
            yield

    made = Logged(tmp_path / "log.jsonl")
    made.inference.provider = Broken()
    with pytest.raises(ZeroDivisionError):
        list(made.stream())
    (line,) = made.lines()
    assert line["error"]["code"] == "INTERNAL"
    assert "secret" not in str(line)


def test_truncated_cuts_every_text_at_max_chars(tmp_path: Path) -> None:
    made = Logged(tmp_path / "log.jsonl", content="truncated", max_chars=10)
    turns = (Message("system", "b" * 11), Message("user", "a" * 11))
    list(made.stream(messages=turns))
    list(made.stream(model="thinking", prompt="c" * 10))
    first, second = made.lines()
    assert (first["prompt"], first["response"]) == ("a" * 10 + "…", "a" * 10 + "…")
    assert first["history"] == [{"role": "system", "content": "b" * 10 + "…"}]
    assert (second["prompt"], second["reasoning"]) == ("c" * 10, "The user s…")


def test_full_keeps_no_more_of_an_answer_than_a_file_holds(tmp_path: Path) -> None:
    made = Logged(tmp_path / "log.jsonl", max_bytes=1000, backups=1)
    tracemalloc.start()
    events = made.stream(model="flood", max_tokens=300_000)
    assert sum(len(event.text) for event in events if isinstance(event, TextDelta)) > 1_000_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(made.lines()[0]["response"]) == 1001
    assert peak < 500_000


def test_off_writes_nothing(tmp_path: Path) -> None:
    made = Logged(tmp_path / "log.jsonl", content="off")
    list(made.stream())
    made.inference.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_file_is_renamed_and_so_many_are_kept(tmp_path: Path) -> None:
    made = Logged(tmp_path / "log.jsonl", max_bytes=400, backups=2)
    for number in range(9):
        list(made.stream(prompt=f"{number}" * 100))
    made.inference.close()
    kept = sorted(tmp_path.iterdir())
    assert [path.name for path in kept] == ["log.jsonl", "log.jsonl.1", "log.jsonl.2"]
    assert [line["prompt"][0] for path in reversed(kept) for line in lines(path)] == ["6", "7", "8"]
    assert all(path.stat().st_size <= 500 for path in kept)


def test_a_line_that_a_crash_has_cut_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"prompt": "who', encoding="utf-8")
    made = Logged(path)
    list(made.stream())
    made.inference.close()
    torn, whole = path.read_text(encoding="utf-8").splitlines()
    assert torn == '{"prompt": "who'
    assert json.loads(whole)["prompt"] == "hi"


FULL_DISK = """
import resource, sys
from backend_lambda.inference import Inference
from backend_lambda.interactions import InteractionLog, InteractionsConfig
from backend_lambda.providers.scripted import ScriptedProvider
from lambdalm import logs
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.timings import HopClock

log = InteractionLog(InteractionsConfig(path=sys.argv[1]))
inference = Inference(ScriptedProvider(), log)
most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for prompt, room in (("first", most), ("second", 300), ("third", most)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))  # bytes that a file may have
    list(inference.stream(ChatRequest(prompt=prompt), Call("r1", 60, HopClock("backend"))))
    assert log.flush(60)
inference.close()
"""


def test_a_disk_that_is_full_in_the_middle_of_a_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], check=True, timeout=WAIT)
    first, torn, third = path.read_text(encoding="utf-8").splitlines()
    assert len(first) + 1 + len(torn) == 300
    assert [json.loads(line)["prompt"] for line in (first, third)] == ["first", "third"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("path", ["/dev/full", "/dev/null/log.jsonl", "/proc/log.jsonl"])
def test_what_cannot_be_written_costs_one_warning_and_no_request(path: str, caplog: pytest.LogCaptureFixture) -> None:
    made = Logged(Path(path))
    for _ in range(3):
        assert list(made.stream())
    made.inference.close()
    said = caplog.text
    assert said.count("the interaction log cannot be written") == 1
    assert path in said
    assert "Traceback" not in said


def test_when_it_can_be_written_again_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "taken"
    folder.write_text("a file where a folder must be")
    made = Logged(folder / "log.jsonl")
    assert made.log is not None
    list(made.stream(prompt="lost"))
    assert made.log.flush(WAIT)
    folder.unlink()
    list(made.stream(prompt="found"))
    assert [line["prompt"] for line in made.lines()] == ["found"]
    assert "'lost': 1" in caplog.text


def test_a_log_that_does_not_keep_up_drops_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fifo = tmp_path / "log.jsonl"
    os.mkfifo(fifo)  # to open it blocks until somebody reads
    made = Logged(fifo, InteractionLog(InteractionsConfig(path=str(fifo)), max_waiting=2 * 1024 + 10))
    for number in range(30):
        list(made.stream(prompt=f"{number:02d}"))
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.extend(fifo.read_text().splitlines()))
    reader.start()
    made.inference.close()
    reader.join(WAIT)
    assert 2 <= len(got) <= 3  # one that the writer has taken, two in line
    assert json.loads(got[0])["prompt"] == "00"
    assert caplog.text.count("interactions were dropped") == 1


def test_a_log_that_keeps_up_drops_nothing_in_the_long_run(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    made = Logged(path, InteractionLog(InteractionsConfig(path=str(path)), max_waiting=2 * 1024 + 10))
    assert made.log is not None
    for number in range(10):
        list(made.stream(prompt=f"{number}"))
        assert made.log.flush(WAIT)
    assert len(made.lines()) == 10


def test_many_short_interactions_are_bounded_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fifo = tmp_path / "log.jsonl"
    os.mkfifo(fifo)
    made = Logged(fifo, InteractionLog(InteractionsConfig(path=str(fifo)), max_waiting=100 * 1024))
    for _ in range(200):
        list(made.stream(prompt="."))
    assert "interactions were dropped" in caplog.text
    threading.Thread(target=fifo.read_text, daemon=True).start()
    made.inference.close()


def test_the_file_is_for_its_owner_alone_and_a_new_one_is_made_where_it_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "log.jsonl"
    made = Logged(path, max_bytes=600)
    assert made.log is not None
    for _ in range(5):
        list(made.stream())
    assert made.log.flush(WAIT)
    files = list(path.parent.iterdir())
    assert len(files) > 1
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    shutil.rmtree(path.parent)
    list(made.stream(prompt="again"))
    assert [line["prompt"] for line in made.lines()] == ["again"]


def test_flush_returns_when_all_is_written(logged: Logged) -> None:
    assert logged.log is not None
    for number in range(100):
        list(logged.stream(prompt=str(number)))
    assert logged.log.flush(WAIT)
    assert [line["prompt"] for line in lines(logged.path)] == [str(number) for number in range(100)]
    logged.inference.close()


def test_flush_does_not_wait_longer_than_it_may(tmp_path: Path) -> None:
    fifo = tmp_path / "log.jsonl"
    os.mkfifo(fifo)
    made = Logged(fifo)
    assert isinstance(made.log, InteractionLog)
    list(made.stream())
    assert not made.log.flush(0.01)
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    made.inference.close()
    os.close(descriptor)


def test_a_server_that_is_stopped_has_written_all(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with running_backend(INTERACTION_LOG_FILE=str(path), INTERACTION_LOG_CONTENT="full") as chain:
        for ask in ({}, {"stream": True}, {"model": "throttle"}):
            requests.post(
                f"{chain.backend_url}/query",
                json={"prompt": "hi", **ask},
                headers={"X-Request-Id": f"r-{len(ask)}-{ask.get('model', '')}"},
                timeout=WAIT,
            )
        chain.hops["backend"].process.send_signal(signal.SIGTERM)
        assert chain.hops["backend"].process.wait(WAIT) == 0
    found = [(line["request_id"], line.get("finish_reason"), "error" in line) for line in lines(path)]
    assert sorted(found) == [("r-0-", "stop", False), ("r-1-", "stop", False), ("r-1-throttle", None, True)]


def test_a_path_of_a_dash_is_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    made = Logged(Path("-"))
    list(made.stream())
    made.inference.close()
    assert json.loads(capfd.readouterr().out)["response"] == "hi"


def test_each_worker_has_a_file_of_its_own(tmp_path: Path) -> None:
    config = InteractionsConfig(path=str(tmp_path / "log.jsonl"))
    for worker, name in ((0, "log.jsonl"), (2, "log.2.jsonl")):
        logged = Logged(tmp_path / name, open_log(config, worker))
        list(logged.stream(prompt=name))
        assert [line["prompt"] for line in logged.lines()] == [name]
