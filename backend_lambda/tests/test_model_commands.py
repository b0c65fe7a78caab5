"""The backend's own commands, against fake engines: as functions, and as commands where the command line matters."""

from __future__ import annotations

import io
import itertools
import json
import logging
from collections.abc import Iterator
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from backend_lambda import model_commands
from backend_lambda.__main__ import main
from backend_lambda.config import Config
from backend_lambda.model_commands import show_progress
from backend_lambda.providers.ollama import PullProgress
from lambdalm.config import ConfigError
from lambdalm.errors import Code, LlmError
from lambdalm.testing.chain import free_ports
from lambdalm.testing.fake_ollama import FakeOllama
from lambdalm.testing.fake_openai import FakeOpenAI

MIB = 2**20


@pytest.fixture(autouse=True)
def _log_stays() -> Iterator[None]:
    """A command logs to its stderr, which is gone with it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama() as fake:
        yield fake


def config(kind: str, **section: Any) -> Config:
    listen = {"host": "127.0.0.1", "port": 0}
    return msgspec.convert({"listen": listen, "provider": {"kind": kind, kind: section}}, Config)


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environ, catch_exceptions=False)


def rows(text: str) -> dict[str, str]:
    """A table of two columns."""
    return {line[:13].rstrip(): line[13:] for line in text.splitlines()}


def test_test_says_provider_address_health_model_speed_and_answer(ollama: FakeOllama) -> None:
    said = rows(model_commands.test(config("ollama", base_url=ollama.url, model="echo")))
    assert list(said) == ["provider", "address", "health", "model", "first token", "speed", "answer"]
    assert (said["provider"], said["address"], said["health"]) == ("ollama", ollama.url, "ok")
    assert (said["model"], said["answer"]) == ("echo", "Hello!")
    assert said["first token"].endswith(" ms")
    assert "tokens/s (" in said["speed"]


def test_test_leaves_out_the_address_of_what_has_none() -> None:
    assert "address" not in rows(model_commands.test(config("scripted")))


def test_test_does_not_make_up_a_speed(ollama: FakeOllama) -> None:
    said = rows(model_commands.test(config("ollama", base_url=ollama.url, model="no-usage")))
    assert said["speed"] == "its tokens are not counted"


def test_a_long_answer_is_one_line_of_it() -> None:
    with FakeOpenAI() as fake:
        said = model_commands.test(config("openai", base_url=f"{fake.url}/v1", model="huge"))
    assert len(rows(said)["answer"]) == 200


def test_a_provider_that_is_not_there_is_one_line_that_says_what_to_do_and_status_1() -> None:
    url = f"http://127.0.0.1:{free_ports().backend}"
    for command in ("test", "models"):
        result = run(command, "--provider", "ollama", OLLAMA_URL=url)
        assert (result.exit_code, result.stdout) == (1, "")
        assert len(result.stderr.splitlines()) == 1
        assert f"{url} cannot be reached: Connection refused; start `ollama serve`" in result.stderr


def test_a_provider_that_fails_when_asked_is_one_line_and_status_1(ollama: FakeOllama) -> None:
    result = run("test", "--provider", "ollama", "--model", "llama3.2", OLLAMA_URL=ollama.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert "backend-lambda pull --provider ollama llama3.2" in result.stderr


def test_models_is_a_table_with_the_default_marked(ollama: FakeOllama) -> None:
    head, first, *rest = model_commands.models(config("ollama", base_url=ollama.url, model="slow")).splitlines()
    assert head.split() == ["model", "context"]
    assert first.split() == ["slow", "8192", "default"]
    assert ["echo", "8192"] in [line.split() for line in rest]


def test_models_does_not_make_up_a_context_window() -> None:
    assert model_commands.models(config("scripted")).splitlines()[1].split() == ["echo", "-", "default"]


def test_pull_shows_each_step_on_stderr_and_prints_the_model(ollama: FakeOllama) -> None:
    result = run("pull", "--provider", "ollama", "llama3.2", OLLAMA_URL=ollama.url)
    assert (result.exit_code, result.stdout) == (0, "llama3.2\n")
    assert json.loads(ollama.asked[-1].body) == {"model": "llama3.2", "stream": True}
    assert result.stderr.splitlines() == [
        "pulling manifest",
        "pulling 1a1a1a1a1a1a (0.0 MiB)",
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]


def test_a_model_that_cannot_be_pulled_is_an_error(ollama: FakeOllama) -> None:
    with pytest.raises(LlmError, match="no model 'unknown-7b' to pull") as raised:
        model_commands.pull(config("ollama", base_url=ollama.url), "unknown-7b")
    assert raised.value.code is Code.NOT_FOUND


@pytest.mark.parametrize("kind", ["llamacpp", "openai", "bedrock", "scripted"])
def test_pull_with_another_provider_names_what_to_use(kind: str) -> None:
    with pytest.raises(LlmError, match=f"the provider is {kind}: use --provider ollama, or `backend-lambda download"):
        model_commands.pull(config(kind), "llama3.2")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def layer(digest: str, *done: int, total: int = 4 * MIB) -> list[PullProgress]:
    return [PullProgress(f"pulling {digest}", digest, total, completed) for completed in done]


def test_on_a_terminal_each_layer_has_a_bar_that_fills() -> None:
    terminal = Terminal()
    steps = [PullProgress("pulling manifest"), *layer("aaa", 0, MIB, 2 * MIB, 4 * MIB), *layer("bbb", 2 * MIB, 4 * MIB)]
    show_progress([*steps, PullProgress("success")], terminal)
    shown = click.unstyle(terminal.getvalue()).replace("\r", "\n").splitlines()
    seen = [(line.split()[1], line.split()[-1]) for line in shown if "%" in line]
    assert [share for share, _ in itertools.groupby(seen)] == [
        ("aaa", "0%"),
        ("aaa", "25%"),
        ("aaa", "50%"),
        ("aaa", "100%"),
        ("bbb", "0%"),
        ("bbb", "50%"),
        ("bbb", "100%"),
    ]
    assert shown[-1] == "success"
    assert "pulling aaa (4.0 MiB)" in terminal.getvalue()


def test_without_a_terminal_each_layer_is_one_line() -> None:
    out = io.StringIO()
    show_progress([*layer("aaa", 0, MIB, 4 * MIB), *layer("bbb", 0, total=0)], out)
    assert out.getvalue().splitlines() == ["pulling aaa (4.0 MiB)", "pulling bbb (0.0 MiB)"]


@pytest.mark.parametrize(
    ("kind", "key"),
    [("llamacpp", "model_path"), ("ollama", "model"), ("openai", "model"), ("bedrock", "model")],
)
def test_the_flag_model_sets_that_of_the_chosen_provider(kind: str, key: str) -> None:
    shown = run("config", "--show", "--provider", kind, "--model", "m.gguf").stdout
    (line,) = [line for line in shown.splitlines() if "m.gguf" in line]
    assert line.split() == [f"provider.{kind}.{key}:", '"m.gguf"', "#", "flag", "--model"]


def test_the_flag_model_is_refused_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match="the provider scripted has no model to set"):
        model_commands.model_key(config("scripted"))


def test_download_wants_a_file_of_the_hub() -> None:
    result = run("download", "https://example.com/x.gguf")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is not of the form hf://owner/repo/file.gguf" in result.stderr


def test_config_show_hides_the_secret_and_says_where_the_new_keys_come_from() -> None:
    environ = {"OPENAI_API_KEY": "sk-secret", "COMPUTE_DEVICE": "cpu", "OMP_NUM_THREADS": "3", "MODEL_PATH": "hf://x"}
    shown = run("config", "--show", **environ).stdout
    lines = {line.partition(":")[0]: line.partition(": ")[2].split() for line in shown.splitlines()}
    assert "sk-secret" not in shown
    assert lines["provider.openai.api_key"] == ["********", "#", "environment", "OPENAI_API_KEY"]
    assert lines["provider.llamacpp.compute_device"] == ['"cpu"', "#", "environment", "COMPUTE_DEVICE"]
    assert lines["provider.llamacpp.threads"] == ["3", "#", "environment", "OMP_NUM_THREADS"]
    assert lines["provider.llamacpp.model_path"] == ['"hf://x"', "#", "environment", "MODEL_PATH"]
    assert lines["provider.llamacpp.gpu_layers"] == ["-1", "#", "file"]
