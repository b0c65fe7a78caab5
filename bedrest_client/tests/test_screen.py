"""What goes to which stream, and in which colour."""

from __future__ import annotations

import io

import pytest

from bedrest_client.screen import Screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(screen: Screen) -> None:
    screen.reasoning("hm")
    screen.text("Par\x1b[2J")
    screen.text("is")
    screen.note("9 tokens")
    screen.error("it broke")


def test_in_a_pipe_there_is_no_colour_and_the_text_is_exact() -> None:
    out, err = io.StringIO(), io.StringIO()
    show(Screen(out, err, {}))
    assert out.getvalue() == "Par\x1b[2Jis\n"
    assert err.getvalue() == "9 tokens\nit broke\n"


def test_a_terminal_gets_colour_and_reasoning_but_no_control_characters() -> None:
    out, err = Terminal(), Terminal()
    show(Screen(out, err, {"TERM": "xterm"}))
    assert out.getvalue() == "Par\ufffd[2Jis\n"
    assert err.getvalue() == "\x1b[2mhm\x1b[0m\n\x1b[2m9 tokens\x1b[0m\n\x1b[31mit broke\x1b[0m\n"


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_whoever_wants_no_colour_gets_none(environ: dict[str, str]) -> None:
    err = Terminal()
    show(Screen(Terminal(), err, environ))
    assert err.getvalue() == "hm\n9 tokens\nit broke\n"


def test_a_text_that_ends_its_line_gets_no_second_end() -> None:
    out = io.StringIO()
    screen = Screen(out, io.StringIO(), {})
    screen.text("Paris\n")
    screen.end_line()
    assert out.getvalue() == "Paris\n"
