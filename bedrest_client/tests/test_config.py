"""The config file, its schema, and what the command line makes of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from bedrest_client.config import DEFAULT_FILE, Config
from lambdalm.config import load


def test_the_file_holds_every_key_of_the_schema_and_no_other() -> None:
    in_file = set(yaml.safe_load(DEFAULT_FILE.read_text(encoding="utf-8")))
    assert in_file == {field.name for field in msgspec.structs.fields(Config)}


def test_the_defaults_are_the_ones_agreed_on() -> None:
    config = load(Config, DEFAULT_FILE, {}, environ={}).value
    assert config == Config(
        host="127.0.0.1",
        port=8080,
        max_tokens=256,
        timeout=120,
        model=None,
        prompts=(
            "Who are you?",
            "What is λλM?",
            "What is the capital of France?",
            "What is 27 + 35?",
            "Name three colors.",
        ),
    )


def test_the_environment_beats_the_file_and_a_flag_beats_both(bedrest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEDREST_HOST", "edge.example")
    monkeypatch.setenv("LLM_PORT", "81")
    ran = bedrest("config", "--show", "--port", "82")
    lines = {line.partition(":")[0]: line for line in ran.out.splitlines()}
    assert ran.status == 0
    assert '"edge.example"' in lines["host"]
    assert lines["host"].endswith("# environment BEDREST_HOST")
    assert "port: 82 " in lines["port"]
    assert lines["port"].endswith("# flag --port")
    assert lines["timeout"].endswith("# file")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--port", "0"),
        ("--port", "65536"),
        ("--max-tokens", "0"),
        ("--timeout", "0"),
        ("--timeout", "nan"),
        ("--timeout", "3601"),
        ("--model", ""),
        ("--host", "http://edge"),
        ("--port", "eighty"),
    ],
)
def test_a_value_out_of_bounds_is_status_2_and_a_line_that_names_the_flag(
    bedrest: Any, server: Any, flag: str, value: str
) -> None:
    ran = bedrest("ask", flag, value, "Hello")
    assert ran.status == 2
    assert flag in ran.err
    assert server.asked == []


def test_an_unknown_key_in_the_file_is_status_2(bedrest: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(DEFAULT_FILE.read_text(encoding="utf-8") + "\ncolour: red\n", encoding="utf-8")
    ran = bedrest("ask", "--config", str(file), "Hello")
    assert ran.status == 2
    assert "colour" in ran.err
    assert str(file) in ran.err


def test_a_file_without_prompts_is_refused(bedrest: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("host: h\nport: 1\nmax_tokens: 1\ntimeout: 1\nprompts: []\n", encoding="utf-8")
    ran = bedrest("passive", "--config", str(file))
    assert ran.status == 2
    assert "prompts" in ran.err


def test_an_ipv6_address_stands_in_brackets() -> None:
    config = load(Config, DEFAULT_FILE, {"host": "::1"}, environ={}).value
    assert config.address == "[::1]:8080"
