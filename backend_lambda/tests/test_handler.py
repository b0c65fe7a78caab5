"""The Lambda function, run by AWS's own runtime client against a runtime API on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend_lambda import handler
from lambdalm.stream import EventReader
from lambdalm.testing.fake_lambda_runtime import FakeLambdaRuntime, Result
from lambdalm.testing.scripted import BEHAVIOURS

from .test_lambda_events import http_api, rest_api

HANDLER = "backend_lambda.handler.lambda_handler"
MARGIN = 0.5  # seconds that the handler keeps for the way out

with_awslambdaric = pytest.mark.skipif(
    importlib.util.find_spec("awslambdaric") is None,
    reason="awslambdaric is not installed: its wheels are for Linux only, elsewhere it compiles",
)


class Function:
    """The function's process and the runtime that invokes it; `errors` is what it wrote to stderr."""

    def __init__(self, runtime: FakeLambdaRuntime, process: subprocess.Popen[str]) -> None:
        self.runtime = runtime
        self.process = process

    def __call__(self, event: Any, seconds: float = 30) -> dict[str, Any]:
        """What it returns for an event."""
        result = self.runtime.invoke(event, seconds)
        assert result.kind == "response", result.payload
        found: dict[str, Any] = result.json()
        return found

    def end(self) -> tuple[str, str]:
        """Kill it, as Lambda does; returns what it wrote to stdout and stderr."""
        self.process.kill()
        return self.process.communicate()


@contextlib.contextmanager
def function(entry: str = HANDLER, **environ: str) -> Iterator[Function]:
    # A log that is in the way of no other test's, and names that would change the config out of the way.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("INTERACTION_", "LOG_"))}
    with FakeLambdaRuntime() as runtime:
        process = subprocess.Popen(
            [sys.executable, "-m", "awslambdaric", entry],
            env={**clean, "PROVIDER": "scripted", "AWS_LAMBDA_RUNTIME_API": runtime.address, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield Function(runtime, process)
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def scripted() -> Iterator[Function]:
    with function() as running:
        yield running


def asking(make: Any = http_api, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
    """An event that asks; without a prompt given it says hi."""
    event: dict[str, Any] = make(body=json.dumps({"prompt": "hi", **body}))
    event["headers"] = {"content-type": "application/json", **(headers or {})}
    event.pop("multiValueHeaders", None)
    return event


def body(result: dict[str, Any]) -> dict[str, Any]:
    assert result["isBase64Encoded"] is False
    found: dict[str, Any] = json.loads(result["body"])
    return found


def error(result: dict[str, Any], status: int, code: str) -> str:
    """The message of the error that it answers, of which it must say these two."""
    failed = body(result)["error"]
    assert (result["statusCode"], failed["code"]) == (status, code)
    assert result["headers"]["Server-Timing"].startswith("backend;dur=")
    assert result["headers"]["X-Request-Id"]
    message: str = failed["message"]
    return message


@with_awslambdaric
@pytest.mark.parametrize("make", [rest_api, http_api])
def test_a_query_is_answered_over_each_kind_of_api(scripted: Function, make: Any) -> None:
    result = scripted(make(body='{"prompt": "Grüße 🦙"}'))
    assert result["statusCode"] == 200
    headers = result["headers"]
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Request-Id"] == "r1"
    answer = body(result)
    assert (answer["id"], answer["text"], answer["model"]) == ("r1", "Grüße 🦙", "echo")
    assert answer["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 1}
    times = answer["timings"]["backend"]
    assert 0 <= times["first_token_ms"] <= times["total_ms"]
    assert headers["Server-Timing"].startswith("backend;dur=")


@with_awslambdaric
@pytest.mark.parametrize(
    "event", [rest_api(path="/v1/query"), http_api(rawPath="/prod/query")], ids=["base path", "stage"]
)
def test_a_prefix_of_the_path_does_not_matter(scripted: Function, event: dict[str, Any]) -> None:
    assert body(scripted(event))["text"] == "Grüße"


@with_awslambdaric
def test_health_and_models_are_those_of_the_server(scripted: Function) -> None:
    health = scripted(http_api("GET", rawPath="/health", body=None))
    assert health["statusCode"] == 200
    assert body(health) == {
        "status": "ok",
        "provider": "scripted",
        "model": "echo",
        "in_flight": 0,
        "waiting": 0,
        "slots": 4,
    }
    models = scripted(rest_api(httpMethod="GET", path="/models", body=None))
    assert body(models) == {"models": [{"id": name, "provider": "scripted"} for name in BEHAVIOURS]}


@with_awslambdaric
def test_health_is_503_while_the_engine_cannot_answer(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    nobody = "http://127.0.0.1:1/v1"
    file.write_text(
        f"listen: {{host: 127.0.0.1, port: 0}}\nprovider: {{kind: openai, openai: {{base_url: {nobody!r}}}}}\n",
        encoding="utf-8",
    )
    with function(BACKEND_CONFIG=str(file)) as running:
        result = running(http_api("GET", rawPath="/health", body=None))
    assert result["statusCode"] == 503
    assert nobody in body(result)["detail"]


@with_awslambdaric
def test_with_a_token_only_health_and_a_direct_invocation_are_open() -> None:
    with function(PROVIDER="scripted", BACKEND_TOKEN="canary-token") as running:
        assert running(http_api("GET", rawPath="/health", body=None))["statusCode"] == 200
        assert "Authorization: Bearer" in error(running(asking(prompt="hi")), 401, "UNAUTHENTICATED")
        wrong = running(asking(headers={"authorization": "Bearer other"}, prompt="hi"))
        assert (wrong["statusCode"], wrong["headers"]["WWW-Authenticate"]) == (401, "Bearer")
        right = asking(headers={"authorization": "Bearer canary-token"}, prompt="hi")
        assert body(running(right))["text"] == "hi"
        assert running({"prompt": "hi"})["text"] == "hi"


@with_awslambdaric
def test_what_is_not_there_is_404_and_a_wrong_method_405(scripted: Function) -> None:
    assert "POST /nothing" in error(scripted(http_api(rawPath="/nothing")), 404, "NOT_FOUND")
    wrong = scripted(rest_api(httpMethod="GET"))
    assert "GET /query" in error(wrong, 405, "INVALID_ARGUMENT")
    assert wrong["headers"]["Allow"] == "POST"


@with_awslambdaric
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "the body is not JSON"),
        ("{", "the body is not JSON"),
        ('{"prompt": 7}', "prompt: Expected"),
        ('{"prompt": "hi", "colour": "red"}', "colour"),
        ('{"prompt": "hi", "session_id": "s1"}', "session_id: the backend keeps no sessions"),
    ],
)
def test_a_bad_body_is_400_and_says_why(scripted: Function, given: str, said: str) -> None:
    assert said in error(scripted(http_api(body=given)), 400, "INVALID_ARGUMENT")


@with_awslambdaric
def test_the_limits_of_the_server_hold(scripted: Function) -> None:
    assert "1048576 bytes" in error(scripted(asking(prompt="x" * 2**20)), 413, "INVALID_ARGUMENT")
    text = asking(headers={"content-type": "text/plain"})
    assert "Content-Type: application/json" in error(scripted(text), 415, "INVALID_ARGUMENT")
    wrong = asking(headers={"x-request-id": "no spaces"})
    assert error(scripted(wrong), 400, "INVALID_ARGUMENT").startswith("X-Request-Id")
    wrong = asking(headers={"x-request-timeout": "soon"})
    assert error(scripted(wrong), 400, "INVALID_ARGUMENT").startswith("X-Request-Timeout")


@with_awslambdaric
def test_an_event_that_makes_no_sense_is_400(scripted: Function) -> None:
    assert "API Gateway" in error(scripted(http_api(rawPath=7)), 400, "INVALID_ARGUMENT")


@with_awslambdaric
def test_an_error_has_its_status_and_says_when_to_come_back(scripted: Function) -> None:
    result = scripted(asking(model="throttle"))
    error(result, 429, "RESOURCE_EXHAUSTED")
    assert result["headers"]["Retry-After"] == "2"
    assert body(result)["error"]["origin"] == "scripted"
    error(scripted(asking(model="garbage")), 500, "INTERNAL")


@with_awslambdaric
def test_the_functions_deadline_ends_an_answer_before_lambda_does(scripted: Function) -> None:
    result = scripted(asking(model="stall-first"), seconds=MARGIN + 0.3)
    assert "time budget of 0." in error(result, 504, "DEADLINE_EXCEEDED")


@with_awslambdaric
def test_a_request_that_has_no_time_is_not_begun(scripted: Function) -> None:
    error(scripted(asking(), seconds=MARGIN / 2), 504, "DEADLINE_EXCEEDED")


@with_awslambdaric
def test_requests_budget_runs_while_the_function_starts() -> None:
    with function() as cold:
        assert "time budget" in error(cold(asking(headers={"x-request-timeout": "0.001"})), 504, "DEADLINE_EXCEEDED")


@with_awslambdaric
def test_a_requests_own_budget_counts_too(scripted: Function) -> None:
    result = scripted(asking(model="stall-first", headers={"x-request-timeout": "0.05"}))
    assert "time budget of 0.05 s" in error(result, 504, "DEADLINE_EXCEEDED")


@with_awslambdaric
@pytest.mark.parametrize("ask", [{"stream": True}, {"headers": {"accept": "text/event-stream"}}])
def test_a_stream_comes_whole_at_once(scripted: Function, ask: dict[str, Any]) -> None:
    result = scripted(asking(prompt="one two three four", **ask))
    assert (result["statusCode"], result["headers"]["Content-Type"]) == (200, "text/event-stream")
    reader = EventReader()
    names = [type(event).__name__ for event in reader.feed(result["body"].encode())]
    reader.close()
    assert names == ["Started", "TextDelta", "Usage", "Finished"]
    assert reader.timings["backend"].total_ms >= 0


@with_awslambdaric
def test_a_stream_that_fails_in_the_middle_has_its_status(scripted: Function) -> None:
    error(scripted(asking(model="error-in-stream", stream=True)), 503, "UNAVAILABLE")
    error(scripted(asking(model="cut", stream=True)), 503, "UNAVAILABLE")


@with_awslambdaric
@pytest.mark.parametrize("execution", ["AWS_Lambda_python3.11", "AWS_Lambda_python3.13"])
def test_an_answer_above_6_mb_is_an_error_that_says_what_to_do(execution: str) -> None:
    with function(AWS_EXECUTION_ENV=execution) as running:
        message = error(running(asking(model="flood", max_tokens=1_600_000)), 400, "OUT_OF_RANGE")
        assert "max_tokens" in message
        assert "Lambda Web Adapter" in message
        assert body(running(asking(model="huge")))["text"] == "λ" * 2**19


@with_awslambdaric
def test_a_direct_invocation_is_answered_with_the_answer_itself(scripted: Function) -> None:
    answer = scripted({"prompt": "hi"})
    assert (answer["text"], answer["finish_reason"]) == ("hi", "stop")
    assert scripted({"prompt": "hi", "model": "throttle"})["error"]["code"] == "RESOURCE_EXHAUSTED"
    assert scripted("hi")["error"]["code"] == "INVALID_ARGUMENT"


@with_awslambdaric
@pytest.mark.parametrize(
    ("model", "seen"), [("echo", '"finish_reason":"stop"'), ("error-in-stream", '"response":"once upon a "')]
)
def test_each_interaction_is_logged_before_the_answer_goes_out(model: str, seen: str) -> None:
    with function() as running:
        running(asking(model=model))
        out, _ = running.end()
    (line,) = out.splitlines()
    assert seen in line
    assert json.loads(line)["prompt"] == "hi"


@with_awslambdaric
def test_its_own_log_is_json_and_names_the_invocation() -> None:
    with function() as running:
        running({"prompt": "hi", "model": "throttle"})
        _, errors = running.end()
    failed = json.loads(errors.splitlines()[-1])
    assert (failed["event"], failed["hop"], failed["code"]) == ("failed", "backend", "RESOURCE_EXHAUSTED")
    assert len(failed["request_id"]) == 36


@with_awslambdaric
@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"BACKEND_CONFIG": "no/such.yaml"}, "no/such.yaml: cannot be read"),
        ({"PROVIDER": "llamacpp", "MODEL_PATH": "no/such.gguf"}, "no/such.gguf"),
    ],
)
def test_a_function_that_cannot_start_answers_503_and_logs_why(environ: dict[str, str], said: str) -> None:
    with function(**environ) as running:
        assert "its log says why" in error(running(asking()), 503, "UNAVAILABLE")
        assert "its log says why" in error(running(asking()), 503, "UNAVAILABLE")
        out, errors = running.end()
    assert out == ""
    assert said in json.loads(errors.splitlines()[0])["why"]


@with_awslambdaric
def test_backend_config_names_the_config_which_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    config = "listen: {host: 127.0.0.1, port: 0}\nprovider: {kind: scripted, slots: %d}\n"
    health = http_api("GET", rawPath="/health", body=None)
    with function(BACKEND_CONFIG=str(file)) as running:
        for slots in (7, 8):
            file.write_text(config % slots, encoding="utf-8")
            assert body(running(health))["slots"] == 7


@with_awslambdaric
def test_a_handler_that_is_not_there_is_told_to_lambda() -> None:
    with function("backend_lambda.handler.no_such_handler") as running:
        assert b"HandlerNotFound" in running.runtime.init_errors.get(timeout=45)


def test_to_import_the_handler_imports_no_server_and_no_engine() -> None:
    program = "import sys, backend_lambda.handler; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"flask", "werkzeug", "uvicorn", "uvloop", "httptools", "prometheus_client", "asyncio"}
    heavy |= {"boto3", "botocore", "xllamacpp", "structlog", "rich", "click"}
    assert heavy.isdisjoint(ran.stdout.split())


def test_the_fake_runtime_takes_no_more_than_lambda_does() -> None:
    with FakeLambdaRuntime() as runtime:
        assert runtime.give("nobody's", Result("response", b"{}")) == 400


def test_the_functions_time_counts_from_when_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cold start has used up some of it."""
    started: list[int] = []

    class Context:
        aws_request_id = "r1"

        def get_remaining_time_in_millis(self) -> int:
            started.append(handler._function.cache_info().currsize)
            return 10_000

    monkeypatch.setenv("PROVIDER", "scripted")
    handler._function.cache_clear()
    try:
        assert handler.lambda_handler({"prompt": "hi"}, Context())["text"] == "hi"
    finally:
        handler._function().inference.close()
        handler._function.cache_clear()
    assert started == [1]
