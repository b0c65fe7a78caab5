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

import grpc_proxy.__main__
from grpc_proxy.config import Config
from lambdalm.config import load

FILE = Path(grpc_proxy.__main__.__file__).with_name("config.yaml")
TEXT = FILE.read_text(encoding="utf-8")

ENVIRONMENT = [
    ("GRPC_LISTEN_HOST", "::1", "listen.host", "::1"),
    ("HOST", "localhost", "listen.host", "localhost"),
    ("GRPC_PORT", "1234", "listen.port", 1234),
    ("PORT", "1235", "listen.port", 1235),
    ("GRPC_ALLOW_PUBLIC", "true", "listen.allow_public", True),
    ("BACKEND_URL", "https://x:1/query", "upstream.url", "https://x:1/query"),
    ("BACKEND_PORT", "1236", "upstream.url", "http://127.0.0.1:1236/query"),
    ("WORKER_THREADS", "7", "limits.max_in_flight", 7),
    ("GRPC_KEEPALIVE_TIME_MS", "1", "keepalive.time_ms", 1),
    ("GRPC_KEEPALIVE_TIMEOUT_MS", "2", "keepalive.timeout_ms", 2),
    ("GRPC_KEEPALIVE_PERMIT_WITHOUT_CALLS", "false", "keepalive.permit_without_calls", False),
    ("HTTP2_MIN_PING_INTERVAL_MS", "3", "keepalive.min_ping_interval_ms", 3),
    ("HTTP2_MAX_PINGS_WITHOUT_DATA", "4", "keepalive.max_pings_without_data", 4),
    ("LOG_LEVEL", "DEBUG", "log.level", "DEBUG"),
    ("LOG_FORMAT", "json", "log.format", "json"),
]


def keys(tree: Any) -> Any:
    return {name: keys(value) for name, value in tree.items()} if isinstance(tree, dict) else None


def run(*arguments: str, **environ: str) -> Result:
    """`grpc-proxy`, with none of its variables set but these."""
    env = {name: None for name, *_ in ENVIRONMENT} | environ
    return CliRunner().invoke(grpc_proxy.__main__.main, arguments, env=env)


def serve(file: Path, **environ: str) -> Result:
    """On a port that is taken, in case that it does start."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return run("serve", "--config", str(file), "--port", str(taken.getsockname()[1]), **environ)


def test_the_file_has_every_key_and_no_other() -> None:
    schema = msgspec.to_builtins(load(Config, FILE, {}, environ={}).value)
    assert keys(yaml.safe_load(TEXT)) == keys(schema)


def test_the_defaults_in_the_file_are_those_of_the_code() -> None:
    bare = msgspec.convert(
        {"listen": {"host": "127.0.0.1", "port": 50051}, "upstream": {"url": "http://127.0.0.1:8500/query"}}, Config
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
        ("  connect_seconds:", "  colour: red\n  connect_seconds:", "upstream"),
        ("connect_seconds: 5", "connect_seconds: soon", "upstream.connect_seconds"),
        ("heartbeat_seconds: 15", "heartbeat_seconds: 0", "stream.heartbeat_seconds"),
        ("frames_per_second: 4000", "frames_per_second: 0", "stream.frames_per_second"),
        ("/query}", "}", "upstream.url"),
        ("${WORKER_THREADS:-4096}", "0", "limits.max_in_flight"),
        ("${GRPC_ALLOW_PUBLIC:-false}", "maybe", "listen.allow_public"),
        ("${LOG_LEVEL:-INFO}", "LOUD", "log.level"),
        ("${GRPC_LISTEN_HOST:-${HOST:-127.0.0.1}}", "0.0.0.0", "listen"),
        ("${GRPC_LISTEN_HOST:-${HOST:-127.0.0.1}}", "${NO_SUCH_NAME}", "listen.host"),
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
    ("name", "given", "key"),
    [("WORKER_THREADS", "-1", "limits.max_in_flight"), ("BACKEND_URL", "ftp://x", "upstream.url")],
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
    ran = run("config", "--show", "--port", "1", WORKER_THREADS="3")
    assert ran.exit_code == 0
    lines = {line.partition(":")[0]: line for line in ran.output.splitlines()}
    assert lines["listen.port"].split() == ["listen.port:", "1", "#", "flag", "--port"]
    assert lines["limits.max_in_flight"].split()[1:] == ["3", "#", "environment", "WORKER_THREADS"]
    assert lines["stream.write_seconds"].split()[1:] == ["60.0", "#", "file"]
    assert len(lines) == len(re.findall(r"^ +\w+: +[^\s#]", TEXT, re.MULTILINE))
