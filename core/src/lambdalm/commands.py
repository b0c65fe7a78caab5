"""The commands that every service has, made once: `serve`, `config --show`, `test`.

    cli = service_cli("backend-lambda", "…", Config, default_file, serve=…, test=…, flags={"port": "listen.port"})

Every command takes `--config FILE` and the flags named; a flag beats the file. Config errors end the program with
one line and exit status 2, an LlmError with one line and status 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from lambdalm import config
from lambdalm.errors import LlmError

T = TypeVar("T")


class Flag(NamedTuple):
    """A flag that sets one key of the config."""

    name: str
    key: str
    help: str
    type: Any = str


PORT = Flag("port", "listen.port", "the port to listen on", int)
LOG_LEVEL = Flag("log-level", "log.level", "how much to log", click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]))


def service_cli(
    name: str,
    about: str,
    kind: type[T],
    default_file: Path,
    serve: Callable[[T], None],
    test: Callable[[T], str],
    flags: Sequence[Flag],
) -> click.Group:
    """The command line of one service; `test` tries what the service talks to and says in a line what it found."""

    @click.group(name=name, help=about, context_settings={"help_option_names": ["-h", "--help"]})
    def group() -> None:
        pass

    def command(about: str) -> Callable[[Callable[..., None]], click.Command]:
        def decorate(function: Callable[..., None]) -> click.Command:
            options = [
                click.Option(
                    ["--config", "file"],
                    type=click.Path(dir_okay=False, path_type=Path),
                    default=default_file,
                    show_default=True,
                    help="the YAML file to read",
                ),
                *(click.Option([f"--{flag.name}"], type=flag.type, help=flag.help) for flag in flags),
            ]

            def run(file: Path, **given: Any) -> None:
                extra = {key: given.pop(key) for key in list(given) if key == "show"}
                function(_load(kind, file, flags, given), **extra)

            made = click.Command(function.__name__.rstrip("_"), callback=run, params=[*options], help=about)
            group.add_command(made)
            return made

        return decorate

    @command("Run the server until SIGTERM or Ctrl-C.")
    def serve_(loaded: config.Loaded[T]) -> None:
        try:
            serve(loaded.value)
        except OSError as error:
            fail(str(error), 1)

    @command("Try what the server would talk to, and say what was found.")
    def test_(loaded: config.Loaded[T]) -> None:
        try:
            click.echo(test(loaded.value))
        except LlmError as error:
            fail(f"{error.origin or name}: {error.message} ({error.code})", 1)

    @command("Check the config file; with --show, print the effective config and where each value came from.")
    def config_(loaded: config.Loaded[T], show: bool) -> None:
        click.echo(config.show(loaded) if show else "the config is good; --show prints it")

    config_.params.append(click.Option(["--show"], is_flag=True, help="print the effective config, secrets masked"))
    return group


def fail(message: str, status: int) -> None:
    """End the program with one line on stderr."""
    click.echo(f"error: {message}", err=True)
    sys.exit(status)


def _load(kind: type[T], file: Path, flags: Sequence[Flag], given: dict[str, Any]) -> config.Loaded[T]:
    keys = {flag.name.replace("-", "_"): flag.key for flag in flags}
    chosen = {keys[name]: value for name, value in given.items() if value is not None}
    try:
        return config.load(kind, file, chosen, names={flag.key: flag.name for flag in flags})
    except config.ConfigError as error:
        fail(str(error), 2)
        raise
