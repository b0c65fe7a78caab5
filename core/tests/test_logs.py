from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdalm import logs

PROGRAM = """
import logging, sys, structlog
from lambdalm import logs
early = logs.get("early")
logs.configure("edge", logs.LogConfig(level=sys.argv[1], format=sys.argv[2]))
early.info("ready", listen="127.0.0.1:80")
logging.getLogger("uvicorn.error").warning("worker %s", "lost")
logging.getLogger("uvicorn.error").debug("chatter")
with structlog.contextvars.bound_contextvars(request_id="r1"):
    logs.get("late").info("answered", prompt="\\x1b[2Jhi\\r\\x9b")
try:
    1 / 0
except ZeroDivisionError as error:
    logs.get("late").error("a bug", exc_info=error)
"""


def logged(level: str, format: str) -> str:
    """What a program that logs four lines, and a fifth for DEBUG, writes to stderr."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM, level, format], capture_output=True, text=True, check=True)
    assert ran.stdout == ""
    return ran.stderr


def test_json_lines_are_the_same_whoever_logs() -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in logged("INFO", "json").splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("ready", "info"),
        ("worker lost", "warning"),
        ("answered", "info"),
        ("a bug", "error"),
    ]
    assert all(line["hop"] == "edge" and line["timestamp"].endswith("Z") for line in lines)
    assert lines[0]["listen"] == "127.0.0.1:80"
    assert [line.get("request_id") for line in lines] == [None, None, "r1", None]
    assert "ZeroDivisionError" in lines[3]["exception"]
    assert lines[2]["prompt"] == "\x1b[2Jhi\r\x9b"


def test_lines_for_people_have_no_colours_in_a_file() -> None:
    text = logged("INFO", "console")
    assert "\x1b[" not in text
    assert "worker lost" in text
    assert "request_id=r1" in text
    assert "ZeroDivisionError: division by zero" in text


def test_what_is_logged_cannot_steer_the_terminal_that_shows_it() -> None:
    people, machines = logged("INFO", "console"), logged("INFO", "json")
    assert all(char.isprintable() or char == "\n" for char in people + machines)
    assert "\N{MIDDLE DOT}[2Jhi\N{MIDDLE DOT}\N{MIDDLE DOT}" in people


def test_the_level_says_how_much_is_logged() -> None:
    assert "chatter" in logged("DEBUG", "console")
    quiet = logged("ERROR", "console")
    assert "a bug" in quiet
    assert not any(event in quiet for event in ("ready", "worker lost", "answered"))


FIELDS = st.dictionaries(
    st.sampled_from(["request_id", "prompt", "ms", "session", "a", "z", "why", "retries"]),
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["a b", "a=b", "\x1b[2J'", ""]),
)
FORMATS: list[logs.Format] = ["console", "json"]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logs._requests.follow("", "console", None)


def written(format: logs.Format, level: logs.Level, log: Callable[[], None]) -> str:
    """What `log` writes in a process that is configured like this, without times."""
    logs.configure("edge", logs.LogConfig(level, format))
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream := io.StringIO())
    log()
    times = r'"timestamp": "[^"]+Z"' if format == "json" else r"^\S+Z "
    return re.sub(times, "", stream.getvalue(), flags=re.MULTILINE)


@pytest.mark.parametrize("format", FORMATS)
@given(event=st.sampled_from(["answered", "the caller left\x1b", "x" * 40]) | st.text(), fields=FIELDS)
def test_a_requests_line_is_what_structlog_would_write(format: logs.Format, event: str, fields: dict[str, Any]) -> None:
    ours = written(format, "INFO", lambda: logs.request_line(event, **fields))
    assert ours == written(format, "INFO", lambda: logs.get("late").info(event, **fields))
    assert ours.endswith("\n")


@pytest.mark.parametrize("format", FORMATS)
def test_a_requests_line_is_left_out_above_info(format: logs.Format) -> None:
    assert written(format, "WARNING", lambda: logs.request_line("answered")) == ""


@pytest.mark.parametrize("format", FORMATS)
def test_a_closed_stderr_ends_no_request(format: logs.Format) -> None:
    def log() -> None:
        (handler,) = logging.getLogger().handlers
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(closed := io.StringIO())
        closed.close()
        logs.request_line("answered")

    assert written(format, "INFO", log) == ""


def test_a_requests_line_needs_no_configured_log() -> None:
    program = (
        "import sys; from lambdalm import logs; assert 'structlog' not in sys.modules; logs.request_line('hello', n=1)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "hello" in ran.stdout + ran.stderr
