"""Active mode: keys in a pipe for what the session does with them, and a real terminal for Ctrl-C and what is seen."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from bedrest_client.config import DEFAULT_FILE, Config
from bedrest_client.history import open_history
from bedrest_client.screen import Screen
from bedrest_client.session import Session, reader
from lambdalm.chat import ChatRequest
from lambdalm.config import load

CTRL_C, CTRL_D, CTRL_R, ENTER, UP = "\x03", "\x04", "\x12", "\r", "\x1b[A"

FORGOT = "[forgot]\n"


def session(*keys: str, history: History | None = None, memory: bool | None = None) -> tuple[list[ChatRequest], str]:
    """Type these keys, and leave; gives the requests that were asked, and what was noted (FORGOT among it)."""
    asked: list[ChatRequest] = []
    err = io.StringIO()
    config = load(Config, DEFAULT_FILE, {"memory": memory}, environ={}).value

    def forget() -> None:
        err.write(FORGOT)

    def ask(request: ChatRequest) -> bool:
        asked.append(request)
        return True

    with create_pipe_input() as keyboard:
        prompts = reader(history or InMemoryHistory(), keyboard, DummyOutput())
        for key in (*keys, CTRL_D):
            keyboard.send_text(key)
        Session(config, ask, forget, prompts, Screen(io.StringIO(), err, {})).run()
    return asked, err.getvalue()


def prompts_of(*keys: str, history: History | None = None) -> list[str | None]:
    return [request.prompt for request in session(*keys, history=history)[0]]


def test_each_line_is_a_prompt() -> None:
    assert prompts_of("Who are you?", ENTER, "λ?", ENTER) == ["Who are you?", "λ?"]


def test_prompts_are_turns_of_one_conversation_until_new() -> None:
    asked, noted = session("one", ENTER, "/new", ENTER, "two", ENTER)
    assert [(request.prompt, request.memory) for request in asked] == [("one", None), ("two", None)]
    assert noted == f"{FORGOT}a new conversation\n"


def test_without_memory_each_prompt_stands_alone() -> None:
    asked, noted = session("one", ENTER, "/new", ENTER, memory=False)
    assert [(request.prompt, request.memory) for request in asked] == [("one", "off")]
    assert noted.endswith("memory is off: each prompt stands alone\n")


def test_help_tells_how_to_start_anew() -> None:
    assert "/new " in session("/help", ENTER)[1]


def test_an_empty_line_asks_nothing() -> None:
    assert prompts_of(ENTER, "  ", ENTER, '""""""', ENTER) == []


def test_three_quotes_hold_several_lines() -> None:
    assert prompts_of('"""one', ENTER, "", ENTER, 'two"""', ENTER, "three", ENTER) == ["one\n\ntwo", "three"]


def test_three_quotes_hold_a_prompt_that_looks_like_a_command() -> None:
    assert prompts_of('"""/quit"""', ENTER) == ["/quit"]


def test_quit_leaves() -> None:
    assert prompts_of("/quit", ENTER, "never", ENTER) == []


def test_ctrl_c_drops_a_half_typed_prompt_without_a_word() -> None:
    asked, noted = session("half", CTRL_C, "whole", ENTER)
    assert [request.prompt for request in asked] == ["whole"]
    assert noted == ""


def test_ctrl_c_at_an_empty_prompt_tells_how_to_leave() -> None:
    asked, noted = session(CTRL_C, "still here", ENTER)
    assert [request.prompt for request in asked] == ["still here"]
    assert "Ctrl-D" in noted


def test_model_and_max_tokens_count_from_then_on() -> None:
    asked, _ = session("a", ENTER, "/model big", ENTER, "/max_tokens 5", ENTER, "b", ENTER, "/model", ENTER, "c", ENTER)
    assert [(r.prompt, r.model, r.max_tokens) for r in asked] == [("a", None, 256), ("b", "big", 5), ("c", None, 5)]


@pytest.mark.parametrize("line", ["/max_tokens many", "/max_tokens 0", "/max_tokens", f"/model {'x' * 300}", "/sing"])
def test_a_wrong_command_says_so_and_changes_nothing(line: str) -> None:
    asked, noted = session(line, ENTER, "a", ENTER)
    assert [(r.prompt, r.model, r.max_tokens) for r in asked] == [("a", None, 256)]
    assert line.split()[0] in noted


def test_help_names_every_command() -> None:
    _, noted = session("/help", ENTER)
    for command in ("/model", "/max_tokens", "/help", "/quit", '"""', "Ctrl-D"):
        assert command in noted


def test_history_outlives_the_session_and_can_be_searched(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    prompts_of("first question", ENTER, "second question", ENTER, history=open_history(environ))
    assert (tmp_path / "bedrest" / "history").stat().st_mode & 0o777 == 0o600
    with_search = prompts_of(CTRL_R, "first", ENTER, ENTER, history=open_history(environ))
    assert with_search == ["first question"]


def test_without_a_writable_place_history_is_in_memory(tmp_path: Path) -> None:
    (tmp_path / "bedrest").write_text("a file is in the way", encoding="utf-8")
    assert isinstance(open_history({"XDG_STATE_HOME": str(tmp_path)}), InMemoryHistory)


class Terminal:
    """A terminal with `bedrest active` in it."""

    def __init__(self, port: int, wait: float) -> None:
        self._wait = wait
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        self.screen = ""
        self._seen = 0
        start = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
            "os.execv(sys.executable, [sys.executable, '-m', 'bedrest_client', 'active', '--port', sys.argv[1]])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", start, str(port)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        )
        os.close(slave)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def see(self, text: str) -> None:
        """Wait until `text` is shown, after what was seen before."""
        while text not in self.screen[self._seen :]:
            ready, _, _ = select.select([self._master], [], [], self._wait)
            assert ready, f"waited for {text!r}, saw {self.screen!r}"
            self.screen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(self._master, 65536).decode(errors="replace"))
        self._seen = self.screen.index(text, self._seen) + len(text)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(server: Any, wire: Any) -> Iterator[Terminal]:
    with contextlib.closing(Terminal(server.port, wire.wait)) as terminal:
        yield terminal


def test_in_a_terminal_ctrl_c_stops_the_answer_and_not_the_program(terminal: Any, server: Any, wire: Any) -> None:
    server.held(wire.started("Par"))
    server.whole("Paris")
    terminal.see("λλM>")
    terminal.type("Where?\r")
    terminal.see("\nPar")
    terminal.type(CTRL_C)
    assert server.hung_up.wait(wire.wait)
    terminal.see("[stopped]")
    terminal.see("λλM>")
    terminal.type("Where again?\r")
    terminal.see("\nParis")
    terminal.see("9 tokens")
    terminal.see("λλM>")
    terminal.type(CTRL_D)
    assert terminal.process.wait(wire.wait) == 0
    assert "Traceback" not in terminal.screen


def test_in_a_terminal_an_error_does_not_end_the_session(terminal: Any, server: Any, wire: Any) -> None:
    server.stream(wire.started("Par"))
    terminal.see("λλM>")
    terminal.type("Where?\r")
    terminal.see("broke off")
    terminal.see("λλM>")
    terminal.type("/quit\r")
    assert terminal.process.wait(wire.wait) == 0
