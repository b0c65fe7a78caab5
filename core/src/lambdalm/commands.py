"""The commands that every service has, made once: `serve`, `test`, `config --show`.

    main = service_cli(Service("backend-lambda", "…", Config, file, serve, test, [PORT, LOG_LEVEL]))

Every command takes `--config FILE` and the service's flags; a flag beats the file. A config that makes no sense ends
the program with one line and exit status 2, a failure to serve or an LlmError with one line and status 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

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


class Service(NamedTuple, Generic[T]):
    """What a service's commands need. `serve` runs until SIGTERM; `test` tries what the service talks to and says, in
    a line, what it found."""

    name: str
    about: str
    config: type[T]
    file: Path
    serve: Callable[[T], None]
    test: Callable[[T], str]
    flags: Sequence[Flag]


def service_cli(service: Service[T]) -> click.Group:
    """The command line of one service."""

    def serve(loaded: config.Loaded[T]) -> None:
        service.serve(loaded.value)

    def test(loaded: config.Loaded[T]) -> None:
        click.echo(service.test(loaded.value))

    def show_config(loaded: config.Loaded[T], show: bool) -> None:
        click.echo(config.show(loaded) if show else "the config is good; --show prints it")

    show = click.Option(["--show"], is_flag=True, help="print the effective config, secrets masked")
    commands = [
        _command(service, "serve", "Run the server until SIGTERM or Ctrl-C.", serve),
        _command(service, "test", "Try what the server would talk to, and say what was found.", test),
        _command(
            service, "config", "Check the config; with --show, print it and where it came from.", show_config, show
        ),
    ]
    help_names = {"help_option_names": ["-h", "--help"]}
    return click.Group(
        service.name, {str(c.name): c for c in commands}, help=service.about, context_settings=help_names
    )


def fail(message: str, status: int) -> NoReturn:
    """End the program with one line on stderr."""
    click.echo(f"error: {message}", err=True)
    sys.exit(status)


def _command(service: Service[T], name: str, help: str, run: Callable[..., None], *own: click.Option) -> click.Command:
    """A command that loads the config, with its flags, and hands it to `run` with the values of its own options."""

    def callback(file: Path, **given: Any) -> None:
        options = {str(option.name): given.pop(str(option.name)) for option in own}
        loaded = _load(service, file, given)
        try:
            run(loaded, **options)
        except LlmError as error:
            fail(f"{error.origin or service.name}: {error.message} ({error.code})", 1)
        except OSError as error:
            fail(str(error), 1)

    path = click.Path(dir_okay=False, path_type=Path)
    file = click.Option(["--config", "file"], type=path, default=service.file, help="the YAML file to read")
    flags = [click.Option([f"--{flag.name}"], type=flag.type, help=flag.help) for flag in service.flags]
    return click.Command(name, callback=callback, params=[file, *flags, *own], help=help)


def _load(service: Service[T], file: Path, given: dict[str, Any]) -> config.Loaded[T]:
    flags = {flag.name.replace("-", "_"): flag for flag in service.flags}
    chosen = {flags[name].key: value for name, value in given.items() if value is not None}
    try:
        return config.load(service.config, file, chosen, names={flag.key: flag.name for flag in service.flags})
    except config.ConfigError as error:
        fail(str(error), 2)
