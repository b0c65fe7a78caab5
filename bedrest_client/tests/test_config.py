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
        memory=None,
        api_key=None,
        api_key_file=None,
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


@pytest.mark.parametrize(
    ("said", "usually", "remembers"),
    [
        ("", True, True),
        ("", False, False),
        ("on", False, True),
        ("off", True, False),
        ("${BEDREST_MEMORY:-on}", False, True),
        ("${BEDREST_MEMORY:-off}", True, False),
    ],
)
def test_memory_is_as_the_file_says_or_as_the_mode_usually_does(
    tmp_path: Path, said: str, usually: bool, remembers: bool
) -> None:
    file = tmp_path / "config.yaml"
    text = DEFAULT_FILE.read_text(encoding="utf-8").replace("${BEDREST_MEMORY:-}", said)
    file.write_text(text, encoding="utf-8")
    assert load(Config, file, {}, environ={}).value.remembers(usually) is remembers


def test_passive_remembers_when_it_is_told_to(bedrest: Any, server: Any) -> None:
    server.whole("x")
    bedrest("passive")
    assert {asked.body.get("memory") for asked in server.asked} == {"off"}
    del server.asked[:]
    bedrest("passive", "--memory")
    assert {asked.body.get("memory") for asked in server.asked} == {None}


def test_the_key_is_masked(bedrest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEDREST_API_KEY", "canary-key")
    ran = bedrest("config", "--show")
    assert ran.status == 0
    assert "api_key: ********" in ran.out
    assert "canary" not in ran.out + ran.err


def test_a_key_is_sent_from_a_file_and_a_file_that_is_not_there_is_status_2(
    bedrest: Any, server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.whole("x")
    file = tmp_path / "key"
    monkeypatch.setenv("BEDREST_API_KEY_FILE", str(file))
    ran = bedrest("ask", "Where?")
    assert ran.status == 2
    assert f"api_key_file: {file} cannot be read" in ran.err
    file.write_text("canary-key\n", encoding="utf-8")
    assert bedrest("ask", "Where?").status == 0
    assert [asked.headers["authorization"] for asked in server.asked] == ["Bearer canary-key"]


def test_an_ipv6_address_stands_in_brackets() -> None:
    config = load(Config, DEFAULT_FILE, {"host": "::1"}, environ={}).value
    assert config.address == "[::1]:8080"
