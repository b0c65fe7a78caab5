from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

PROGRAM = """
import logging, sys, structlog
from lambdalm import logs
early = logs.get("early")
logs.configure("edge", logs.LogConfig(level=sys.argv[1], format=sys.argv[2]))
early.info("ready", listen="127.0.0.1:80")
logging.getLogger("gunicorn.error").warning("worker %s", "lost")
logging.getLogger("gunicorn.error").debug("chatter")
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
