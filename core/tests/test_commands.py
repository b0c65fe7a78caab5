from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from msgspec import Struct

from lambdalm import commands
from lambdalm.commands import LOG_LEVEL, PORT, Command, Flag, service_cli
from lambdalm.config import ConfigError
from lambdalm.errors import Code, LlmError
from lambdalm.listen import Listen
from lambdalm.logs import LogConfig

FILE = """
listen: {host: 127.0.0.1, port: "${TEST_PORT:-8500}"}
log: {level: INFO}
model: echo
api_key: ${TEST_API_KEY:-}
words: {echo: hello, huge: HELLO}
"""


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    listen: Listen
    log: LogConfig
    model: str
    api_key: str | None = None
    words: dict[str, str] = {}


def word_key(config: Config) -> str:
    if config.model not in config.words:
        raise ConfigError(f"--word: {config.model} has none")
    return f"words.{config.model}"


class Service:
    """A small service and its command line."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.served: list[Config] = []
        flags = [PORT, LOG_LEVEL, Flag("word", word_key, "what it says"), Flag("model", "model", "what answers")]
        options = [click.Argument(["model"]), click.Option(["--loud"], is_flag=True)]
        own = [Command("say", "Say it.", self.say, options)]
        self.cli: click.Group = service_cli(
            commands.Service("toy", "A toy.", Config, file, self.served.append, self.look, flags, own)
        )

    def look(self, config: Config) -> str:
        if config.model == "gone":
            raise LlmError(Code.UNAVAILABLE, "nobody answers", origin="engine")
        if config.model == "lost":
            raise LlmError(Code.NOT_FOUND, "no such model")
        return f"found {config.model}"

    def say(self, config: Config, model: str, loud: bool) -> str:
        if model == "gone":
            raise LlmError(Code.UNAVAILABLE, "nobody answers", origin="engine")
        text = f"{config.model} says {config.words[config.model]} to {model}"
        return text.upper() if loud else text

    def run(self, *arguments: str, **environ: str) -> Result:
        return CliRunner().invoke(self.cli, arguments, env=environ, catch_exceptions=False)


@pytest.fixture
def toy(tmp_path: Path) -> Service:
    service = Service(tmp_path / "config.yaml")
    service.file.write_text(FILE)
    return service


@pytest.mark.parametrize("command", ["serve", "test", "config"])
def test_a_bad_config_ends_every_command_with_one_line_and_status_2(toy: Service, command: str) -> None:
    toy.file.write_text(FILE.replace("model: echo", "model: 7"))
    result = toy.run(command)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == f"error: {toy.file}: model: Expected `str`, got `int`\n"
    assert toy.served == []


def test_a_config_that_is_not_there_ends_with_status_2(toy: Service) -> None:
    result = toy.run("serve", "--config", "nowhere/config.yaml")
    assert result.exit_code == 2
    assert result.stderr == "error: nowhere/config.yaml: cannot be read: No such file or directory\n"


def test_a_public_address_is_refused_by_its_key(toy: Service) -> None:
    toy.file.write_text(FILE.replace("127.0.0.1", "0.0.0.0"))
    result = toy.run("config")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {toy.file}: listen: host 0.0.0.0 can be reached")
    assert len(result.stderr.splitlines()) == 1


def test_a_bad_variable_is_named(toy: Service) -> None:
    result = toy.run("config", TEST_PORT="99999")
    assert result.exit_code == 2
    assert result.stderr == f"error: {toy.file}: listen.port: Expected `int` <= 65535 (from environment TEST_PORT)\n"


def test_config_says_that_the_config_is_good(toy: Service) -> None:
    result = toy.run("config")
    assert (result.exit_code, result.stdout) == (0, "the config is good; --show prints it\n")


def test_config_show_prints_values_sources_and_no_secrets(toy: Service) -> None:
    result = toy.run("config", "--show", "--model", "huge", TEST_PORT="1234", TEST_API_KEY="s3cret")
    assert result.exit_code == 0
    lines = {line.partition(":")[0]: line.partition(": ")[2].split() for line in result.stdout.splitlines()}
    assert lines["listen.host"] == ['"127.0.0.1"', "#", "file"]
    assert lines["listen.port"] == ["1234", "#", "environment", "TEST_PORT"]
    assert lines["model"] == ['"huge"', "#", "flag", "--model"]
    assert lines["api_key"] == ["********", "#", "environment", "TEST_API_KEY"]
    assert "s3cret" not in result.output


def test_serve_gets_the_config_with_the_flags_in_it(toy: Service) -> None:
    assert toy.run("serve", "--port", "0", "--log-level", "DEBUG", TEST_PORT="1234").exit_code == 0
    assert toy.served == [
        Config(Listen("127.0.0.1", 0), LogConfig("DEBUG"), "echo", words={"echo": "hello", "huge": "HELLO"})
    ]


def test_another_file_may_be_read(toy: Service, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(FILE.replace("echo", "other"))
    assert toy.run("serve", "--config", str(other)).exit_code == 0
    assert [config.model for config in toy.served] == ["other"]


def test_a_bad_flag_ends_with_status_2(toy: Service) -> None:
    for arguments in (["--port", "x"], ["--port", "65536"], ["--log-level", "LOUD"], ["--nonsense"]):
        result = toy.run("serve", *arguments)
        assert result.exit_code == 2
        assert arguments[0].removeprefix("--") in result.stderr
    assert toy.served == []


def test_test_says_what_was_found(toy: Service) -> None:
    result = toy.run("test")
    assert (result.exit_code, result.stdout) == (0, "found echo\n")


@pytest.mark.parametrize(
    ("model", "line"),
    [("gone", "error: engine: nobody answers (UNAVAILABLE)\n"), ("lost", "error: toy: no such model (NOT_FOUND)\n")],
)
def test_a_failed_test_is_one_line_and_status_1(toy: Service, model: str, line: str) -> None:
    result = toy.run("test", "--model", model)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", line)


def test_a_command_of_its_own_gets_the_config_and_its_parameters(toy: Service) -> None:
    result = toy.run("say", "you")
    assert (result.exit_code, result.stdout) == (0, "echo says hello to you\n")
    assert toy.run("say", "--loud", "you").stdout == "ECHO SAYS HELLO TO YOU\n"


def test_a_parameter_may_be_called_as_a_flag_is(toy: Service) -> None:
    assert toy.run("say", "--model", "huge", "echo").stdout == "huge says HELLO to echo\n"


def test_a_failed_command_of_its_own_is_one_line_and_status_1(toy: Service) -> None:
    result = toy.run("say", "gone")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "error: engine: nobody answers (UNAVAILABLE)\n")


def test_a_flag_may_ask_the_config_and_the_other_flags_which_key_it_sets(toy: Service) -> None:
    assert toy.run("say", "--word", "hey", "you").stdout == "echo says hey to you\n"
    assert toy.run("say", "--word", "hey", "--model", "huge", "you").stdout == "huge says hey to you\n"
    assert 'words.echo: "hey"' in toy.run("config", "--show", "--word", "hey").stdout
    assert "# flag --word" in toy.run("config", "--show", "--word", "hey").stdout


def test_a_flag_that_finds_no_key_ends_with_status_2(toy: Service) -> None:
    result = toy.run("say", "--word", "hey", "--model", "other", "you")
    assert (result.exit_code, result.stderr) == (2, "error: --word: other has none\n")


def test_help_names_the_commands_and_flags(toy: Service) -> None:
    assert all(command in toy.run("-h").stdout for command in ("serve", "test", "config"))
    assert all(flag in toy.run("serve", "--help").stdout for flag in ("--config", "--port", "--log-level", "--model"))
