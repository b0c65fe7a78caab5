"""`bedrest ask` and `bedrest passive`, from the command line to the exit status."""

from __future__ import annotations

import io
import json
import signal
from typing import Any

import pytest

from bedrest_client import turn
from bedrest_client.query import Edge
from bedrest_client.screen import Screen
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code
from lambdalm.events import Finished, FinishReason, Tokens

LINE = "lambdalm-demo · 9 tokens · first token 12 ms · 41 ms in all: edge 1.1, proxy 0.9, backend 0.4, engine 38.6 ms\n"


def test_the_answer_is_on_stdout_and_the_statistics_are_on_stderr(bedrest: Any, server: Any) -> None:
    server.whole("Par", "is λ")
    assert bedrest("ask", "Where?") == (0, "Paris λ\n", LINE)
    assert server.asked[0].body["prompt"] == "Where?"
    assert server.asked[0].body["max_tokens"] == 256


def test_flags_reach_the_request(bedrest: Any, server: Any) -> None:
    server.whole("x")
    bedrest("ask", "--model", "big", "--max-tokens", "3", "--timeout", "9.5", "Where?")
    body = {"prompt": "Where?", "model": "big", "max_tokens": 3, "memory": "off", "stream": True}
    assert server.asked[0].body == body
    assert server.asked[0].headers["x-request-timeout"] == "9.5"


def test_unknown_usage_is_a_question_mark(bedrest: Any, server: Any) -> None:
    server.whole("x", end=Finished(FinishReason.STOP))
    ran = bedrest("ask", "Where?")
    assert ran.status == 0
    assert "? tokens" in ran.err


def test_an_answer_at_its_limit_says_so(bedrest: Any, server: Any) -> None:
    server.whole("x", end=Finished(FinishReason.LENGTH, Tokens(1, 256)))
    ran = bedrest("ask", "Where?")
    assert ran.status == 0
    assert "cut off" in ran.err
    assert "256" in ran.err


@pytest.mark.parametrize("arguments", [("-",), ()])
def test_the_prompt_may_come_from_stdin(bedrest: Any, server: Any, arguments: tuple[str, ...]) -> None:
    server.whole("x")
    assert bedrest("ask", *arguments, stdin="Wo?\nλ\n".encode()).status == 0
    assert server.asked[0].body["prompt"] == "Wo?\nλ"


@pytest.mark.parametrize("stdin", [b"", b" \n", b"\xff"])
def test_a_prompt_that_is_none_is_status_2(bedrest: Any, server: Any, stdin: bytes) -> None:
    ran = bedrest("ask", stdin=stdin)
    assert ran.status == 2
    assert "prompt" in ran.err
    assert server.asked == []


@pytest.mark.parametrize("chunked", [True, False])
def test_a_cut_stream_shows_what_came_and_is_never_a_success(
    bedrest: Any, server: Any, wire: Any, chunked: bool
) -> None:
    server.stream(wire.started("Par"), chunked=chunked, unfinished=True)
    ran = bedrest("ask", "Where?")
    assert ran.status == 1
    assert ran.out == "Par\n"
    assert "error on the connection to the RESTful proxy" in ran.err
    assert "broke off before" in ran.err
    assert "tokens" not in ran.err


def test_an_error_in_the_stream_is_status_1(bedrest: Any, server: Any, wire: Any) -> None:
    server.stream(wire.started("Par"), wire.error(Code.UNAVAILABLE, "the backend died", origin="proxy"))
    ran = bedrest("ask", "Where?")
    assert (ran.status, ran.out) == (1, "Par\n")
    assert "error at the gRPC proxy: the backend died (UNAVAILABLE)" in ran.err
    assert server.asked[0].headers["x-request-id"] in ran.err


def test_an_error_answer_is_status_1(bedrest: Any, server: Any) -> None:
    server.answer(
        504, "application/json", b'{"error":{"code":"DEADLINE_EXCEEDED","message":"late","origin":"backend"}}'
    )
    ran = bedrest("ask", "Where?")
    assert (ran.status, ran.out) == (1, "")
    assert "error at the LLM backend: late" in ran.err
    assert "--timeout" in ran.err


def test_a_load_balancers_page_is_status_1(bedrest: Any, server: Any) -> None:
    server.answer(502, "text/html", b"<title>502 Bad Gateway</title>")
    ran = bedrest("ask", "Where?")
    assert (ran.status, ran.out) == (1, "")
    assert "error outside λλM: HTTP 502 Bad Gateway" in ran.err


def test_a_refused_connection_says_how_to_start_the_proxy(bedrest: Any) -> None:
    ran = bedrest("ask", "--port", "1", "Where?")
    assert (ran.status, ran.out) == (1, "")
    assert "127.0.0.1:1" in ran.err
    assert "make up" in ran.err


def test_json_is_the_whole_answer(bedrest: Any, server: Any) -> None:
    server.whole("Par", "is")
    ran = bedrest("ask", "--json", "Where?")
    answer = json.loads(ran.out)
    assert (ran.status, ran.err) == (0, "")
    assert answer["text"] == "Paris"
    assert answer["finish_reason"] == "stop"
    assert answer["timings"]["edge"]["total_ms"] == 41.0


def test_json_of_a_cut_answer_is_nothing(bedrest: Any, server: Any, wire: Any) -> None:
    server.stream(wire.started("Par"))
    ran = bedrest("ask", "--json", "Where?")
    assert (ran.status, ran.out) == (1, "")
    assert "broke off" in ran.err


@pytest.mark.parametrize("arguments", [("ask", "Where?"), ("ask", "--json", "Where?"), ("passive",)])
def test_ctrl_c_hangs_up_and_is_status_130(program: Any, server: Any, wire: Any, arguments: tuple[str, ...]) -> None:
    server.held(wire.started("Par"))
    process = program(*arguments)
    if "--json" not in arguments:
        while process.stdout.read(1) != b"P":  # "Par" is shown while the stream is open
            pass
    else:
        while not server.asked:
            process.poll()
    process.send_signal(signal.SIGINT)
    assert server.hung_up.wait(wire.wait)
    assert process.wait(wire.wait) == 130
    assert b"Traceback" not in process.stderr.read()
    assert process.stdout.read().startswith(b"" if "--json" in arguments else b"ar\n")


def test_ctrl_c_while_the_answer_is_being_shown_hangs_up_at_once(server: Any, wire: Any) -> None:
    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:
            raise KeyboardInterrupt

    server.held(wire.started("Par"))
    edge = Edge(server.address, 10)
    with pytest.raises(KeyboardInterrupt) as raised:
        turn.stream(edge, ChatRequest(prompt="Where?"), Screen(Interrupted(), io.StringIO(), {}))
    assert server.hung_up.wait(wire.wait)
    assert raised.traceback  # which still holds the generator: it was closed, not collected


def test_ctrl_c_before_the_first_byte_of_an_answer_hangs_up_too(program: Any, server: Any, wire: Any) -> None:
    server.silent()
    process = program("ask", "Where?")
    while not server.asked:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert server.hung_up.wait(wire.wait)
    assert process.wait(wire.wait) == 130


def test_passive_asks_the_five_prompts_one_after_the_other(bedrest: Any, server: Any) -> None:
    server.whole("one")
    server.whole("two")
    ran = bedrest("passive")
    assert ran.status == 0
    assert [asked.body["prompt"] for asked in server.asked] == [
        "Who are you?",
        "What is λλM?",
        "What is the capital of France?",
        "What is 27 + 35?",
        "Name three colors.",
    ]
    assert ran.out.startswith("> Who are you?\none\n\n> What is λλM?\ntwo\n\n")
    assert ran.err == LINE * 5 + "5 of 5 answered\n"


def test_passive_goes_on_after_a_failure_and_is_status_1(bedrest: Any, server: Any, wire: Any) -> None:
    server.whole("one")
    server.stream(wire.started("tw"))
    server.whole("three")
    ran = bedrest("passive")
    assert ran.status == 1
    assert len(server.asked) == 5
    assert ran.err.endswith("4 of 5 answered\n")
    assert "broke off" in ran.err


def test_active_without_a_terminal_is_status_2(bedrest: Any) -> None:
    ran = bedrest("active")
    assert ran.status == 2
    assert "terminal" in ran.err


def test_a_wrong_command_line_is_status_2(program: Any, wire: Any) -> None:
    process = program("sing")
    assert process.wait(wire.wait) == 2
