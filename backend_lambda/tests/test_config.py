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

import backend_lambda.__main__
from backend_lambda.config import Config
from lambdalm.config import load

FILE = Path(backend_lambda.__main__.__file__).with_name("config.yaml")
TEXT = FILE.read_text(encoding="utf-8")

ENVIRONMENT = [
    ("BACKEND_HOST", "::1", "listen.host", "::1"),
    ("BACKEND_PORT", "1234", "listen.port", 1234),
    ("BACKEND_ALLOW_PUBLIC", "true", "listen.allow_public", True),
    ("BACKEND_MAX_IN_FLIGHT", "7", "limits.max_in_flight", 7),
    ("DRAIN_PAUSE", "2.5", "limits.drain_pause", 2.5),
    ("PROVIDER", "scripted", "provider.kind", "scripted"),
    ("PARALLEL_SLOTS", "9", "provider.slots", 9),
    ("QUEUE_SIZE", "0", "provider.queue", 0),
    ("MODEL_PATH", "/models/x.gguf", "provider.llamacpp.model_path", "/models/x.gguf"),
    ("DEFAULT_CONTEXT_WINDOW", "512", "provider.llamacpp.context_tokens", 512),
    ("NUM_THREADS", "3", "provider.llamacpp.threads", 3),
    ("DEFAULT_TEMPERATURE", "0.7", "provider.llamacpp.temperature", 0.7),
    ("DEFAULT_MAX_TOKENS", "99", "provider.llamacpp.max_tokens", 99),
    ("LOG_LEVEL", "DEBUG", "log.level", "DEBUG"),
    ("LOG_FORMAT", "json", "log.format", "json"),
]


def keys(tree: Any) -> Any:
    return {name: keys(value) for name, value in tree.items()} if isinstance(tree, dict) else None


def run(*arguments: str, **environ: str) -> Result:
    """`backend-lambda`, with none of its variables set but these."""
    env = {name: None for name, *_ in ENVIRONMENT} | environ
    return CliRunner().invoke(backend_lambda.__main__.main, arguments, env=env)


def serve(file: Path, **environ: str) -> Result:
    """On a port that is taken, in case that it does start."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return run("serve", "--config", str(file), "--port", str(taken.getsockname()[1]), **environ)


def test_the_file_has_every_key_and_no_other() -> None:
    schema = msgspec.to_builtins(load(Config, FILE, {}, environ={}).value)
    assert keys(yaml.safe_load(TEXT)) == keys(schema)


def test_the_defaults_in_the_file_are_those_of_the_code() -> None:
    bare = msgspec.convert({"listen": {"host": "127.0.0.1", "port": 8500}}, Config)
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
        ("  kind:", "  colour: red\n  kind:", "provider"),
        ("  header_bytes: 16384", "  header_bytes: many", "limits.header_bytes"),
        ("  body_seconds: 30", "  body_seconds: 0", "limits.body_seconds"),
        ("${PROVIDER:-llamacpp}", "ollamacpp", "provider.kind"),
        ("${PARALLEL_SLOTS:-4}", "0", "provider.slots"),
        ("${DEFAULT_CONTEXT_WINDOW:-4096}", "63", "provider.llamacpp.context_tokens"),
        ("${DEFAULT_TEMPERATURE:-0}", "2.1", "provider.llamacpp.temperature"),
        ("${LOG_LEVEL:-INFO}", "LOUD", "log.level"),
        ("${BACKEND_HOST:-127.0.0.1}", "0.0.0.0", "listen"),
        ("${BACKEND_HOST:-127.0.0.1}", "${NO_SUCH_NAME}", "listen.host"),
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


@pytest.mark.parametrize(("name", "given", "key"), [("NUM_THREADS", "-1", "threads"), ("QUEUE_SIZE", "x", "queue")])
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
    ran = serve(FILE, PROVIDER="scripted")
    assert ran.exit_code == 1
    assert "cannot listen on 127.0.0.1:" in ran.output.splitlines()[-1]


def test_config_shows_every_value_and_where_it_came_from() -> None:
    ran = run("config", "--show", "--port", "1", "--provider", "scripted", NUM_THREADS="3")
    assert ran.exit_code == 0
    lines = {line.partition(":")[0]: line for line in ran.output.splitlines()}
    assert lines["listen.port"].split() == ["listen.port:", "1", "#", "flag", "--port"]
    assert lines["provider.kind"].split()[1:4] == ['"scripted"', "#", "flag"]
    assert lines["provider.llamacpp.threads"].split()[1:] == ["3", "#", "environment", "NUM_THREADS"]
    assert lines["limits.body_bytes"].split()[1:] == ["1048576", "#", "file"]
    assert len(lines) == len(re.findall(r"^ +\w+: +[^\s#]", TEXT, re.MULTILINE))
