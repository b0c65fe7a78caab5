"""config.yaml is the reference: it has every key, its defaults are those of the code, and nonsense stops the start."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner, Result

import restful_proxy.__main__
from lambdalm.config import load
from restful_proxy.config import Config

FILE = Path(restful_proxy.__main__.__file__).with_name("config.yaml")
TEXT = FILE.read_text(encoding="utf-8")

ENVIRONMENT = [
    ("LLM_HOST", "::1", "listen.host", "::1"),
    ("LLM_PORT", "1234", "listen.port", 1234),
    ("LLM_ALLOW_PUBLIC", "true", "listen.allow_public", True),
    ("LLM_MAX_CONNECTIONS", "7", "limits.max_in_flight", 7),
    ("DRAIN_PAUSE", "2.5", "limits.drain_pause", 2.5),
    ("GRPC_HOST", "proxy.example", "grpc.target", "proxy.example:50051"),
    ("GRPC_PORT", "1235", "grpc.target", "127.0.0.1:1235"),
    ("LOG_LEVEL", "DEBUG", "log.level", "DEBUG"),
    ("LOG_FORMAT", "json", "log.format", "json"),
]


def keys(tree: Any) -> Any:
    return {name: keys(value) for name, value in tree.items()} if isinstance(tree, dict) else None


def run(*arguments: str, **environ: str) -> Result:
    """`restful-proxy`, with none of its variables set but these."""
    env = {name: None for name, *_ in ENVIRONMENT} | environ
    return CliRunner().invoke(restful_proxy.__main__.main, arguments, env=env)


def serve(file: Path, **environ: str) -> Result:
    """On a port that is taken, in case that it does start."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return run("serve", "--config", str(file), "--port", str(taken.getsockname()[1]), **environ)


def test_the_file_has_every_key_and_no_other() -> None:
    schema = msgspec.to_builtins(load(Config, FILE, {}, environ={}).value)
    assert keys(yaml.safe_load(TEXT)) == keys(schema)


def test_the_defaults_in_the_file_are_those_of_the_code() -> None:
    bare = msgspec.convert(
        {"listen": {"host": "127.0.0.1", "port": 8080}, "grpc": {"target": "127.0.0.1:50051"}}, Config
    )
    assert load(Config, FILE, {}, environ={}).value == bare


@pytest.mark.parametrize(("name", "given", "key", "value"), ENVIRONMENT)
def test_an_environment_variable_sets_its_key_and_config_says_so(name: str, given: str, key: str, value: Any) -> None:
    loaded = load(Config, FILE, {}, environ={name: given})
    found = msgspec.to_builtins(loaded.value)
    for part in key.split("."):
        found = found[part]
    assert found == value
    assert loaded.sources == {key: f"environment {name}"}


def test_the_file_names_no_other_variables() -> None:
    assert set(re.findall(r"\$\{([A-Z0-9_]+)", str(yaml.safe_load(TEXT)))) == {name for name, *_ in ENVIRONMENT}


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("log:", "colour: red\nlog:", "colour"),
        ("  keepalive_seconds:", "  colour: red\n  keepalive_seconds:", "grpc"),
        ("header_bytes: 16384", "header_bytes: many", "limits.header_bytes"),
        ("body_seconds: 30", "body_seconds: 0", "limits.body_seconds"),
        ("keepalive_seconds: 30", "keepalive_seconds: 9.9", "grpc.keepalive_seconds"),
        (":${GRPC_PORT:-50051}", "", "grpc.target"),
        ("${LLM_MAX_CONNECTIONS:-64}", "10001", "limits.max_in_flight"),
        ("${LLM_ALLOW_PUBLIC:-false}", "maybe", "listen.allow_public"),
        ("${LOG_LEVEL:-INFO}", "LOUD", "log.level"),
        ("${LLM_HOST:-127.0.0.1}", "0.0.0.0", "listen"),
        ("${LLM_HOST:-127.0.0.1}", "${NO_SUCH_NAME}", "listen.host"),
    ],
)
def test_a_file_that_makes_no_sense_stops_the_start_with_a_line_that_names_file_and_key(
    tmp_path: Path, old: str, new: str, key: str
) -> None:
    assert old in TEXT
    file = tmp_path / "config.yaml"
    file.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    ran = serve(file)
    assert ran.exit_code == 2
    (line,) = ran.output.splitlines()
    assert str(file) in line
    assert key in line


@pytest.mark.parametrize(
    ("name", "given", "key"), [("LLM_MAX_CONNECTIONS", "-1", "max_in_flight"), ("GRPC_PORT", "x", "grpc.target")]
)
def test_nonsense_in_the_environment_stops_the_start_with_a_line_that_names_the_variable(
    name: str, given: str, key: str
) -> None:
    ran = serve(FILE, **{name: given})
    assert ran.exit_code == 2
    (line,) = ran.output.splitlines()
    assert key in line
    assert name in line


def test_a_missing_file_stops_the_start() -> None:
    ran = serve(Path("no/such/file.yaml"))
    assert ran.exit_code == 2
    assert "no/such/file.yaml: cannot be read" in ran.output


def test_a_taken_port_stops_the_start_with_a_line_that_names_it() -> None:
    ran = serve(FILE)
    assert ran.exit_code == 1
    assert "cannot listen on 127.0.0.1:" in ran.output.splitlines()[-1]


def test_config_shows_every_value_and_where_it_came_from() -> None:
    ran = run("config", "--show", "--port", "1", GRPC_PORT="3")
    assert ran.exit_code == 0
    lines = {line.partition(":")[0]: line for line in ran.output.splitlines()}
    assert lines["listen.port"].split() == ["listen.port:", "1", "#", "flag", "--port"]
    assert lines["grpc.target"].split()[1:] == ['"127.0.0.1:3"', "#", "environment", "GRPC_PORT"]
    assert lines["limits.body_bytes"].split()[1:] == ["1048576", "#", "file"]
    assert len(lines) == len(re.findall(r"^ +\w+: +[^\s#]", TEXT, re.MULTILINE))
