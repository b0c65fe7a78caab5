"""The commands that every service has, made once: `serve`, `test`, `config --show`; and how it adds its own.

    main = service_cli(Service("backend-lambda", "…", Config, file, serve, test, [PORT, LOG_LEVEL]))

Every command takes `--config FILE` and the service's flags; a flag beats the file. A config that makes no sense ends
the program with one line and exit status 2, a failure to serve or an LlmError with one line and status 1.
`serve --reload` starts the server again when the config or a .py file of the service or of lambdalm changes. A server
that is held by its parent ends with it (see `parent`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

import click

from lambdalm import config, parent
from lambdalm.errors import LlmError
from lambdalm.reload import Reloader

T = TypeVar("T")


class Flag(NamedTuple):
    """A flag that sets one key of the config; which one, a function may say of the config as it is without the flag.

    Such a function raises ConfigError where there is none.
    """

    name: str
    key: str | Callable[[Any], str]
    help: str
    type: Any = str


class Command(NamedTuple, Generic[T]):
    """A command of a service's own: `run` gets the config and, by name, its `params`; it returns what to print."""

    name: str
    help: str
    run: Callable[..., str]
    params: Sequence[click.Parameter] = ()


PORT = Flag("port", "listen.port", "the port to listen on", int)
LOG_LEVEL = Flag("log-level", "log.level", "how much to log", click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]))


class Service(NamedTuple, Generic[T]):
    """What a service's commands need. `serve` runs until SIGTERM; `test` tries what the service talks to and says, in
    a line or a few, what it found."""

    name: str
    about: str
    config: type[T]
    file: Path
    serve: Callable[[T], None]
    test: Callable[[T], str]
    flags: Sequence[Flag]
    commands: Sequence[Command[T]] = ()


def service_cli(service: Service[T]) -> click.Group:
    """The command line of one service."""

    def serve(loaded: config.Loaded[T], reload: bool) -> None:
        parent.end_with_it()
        if reload:
            file: Path = click.get_current_context().params["file"]
            watched = [file, service.file.parent, Path(__file__).parent]
            sys.exit(Reloader(watched, lambda line: click.echo(line, err=True)).run())
        service.serve(loaded.value)

    def show_config(loaded: config.Loaded[T], show: bool) -> None:
        click.echo(config.show(loaded) if show else "the config is good; --show prints it")

    def printed(run: Callable[..., str]) -> Callable[..., None]:
        return lambda loaded, **values: click.echo(run(loaded.value, **values))

    anew = click.Option(["--reload"], is_flag=True, help="start anew when the code or the config changes")
    show = click.Option(["--show"], is_flag=True, help="print the effective config, secrets masked")
    about_test = "Try what the server would talk to, and say what was found."
    about_config = "Check the config; with --show, print it and where it came from."
    commands = [
        _command(service, "serve", "Run the server until SIGTERM or Ctrl-C.", serve, [anew]),
        _command(service, "test", about_test, printed(service.test)),
        *(_command(service, own.name, own.help, printed(own.run), own.params) for own in service.commands),
        _command(service, "config", about_config, show_config, [show]),
    ]
    help_names = {"help_option_names": ["-h", "--help"]}
    return click.Group(
        service.name, {str(c.name): c for c in commands}, help=service.about, context_settings=help_names
    )


def fail(message: str, status: int) -> NoReturn:
    """End the program with one line on stderr."""
    click.echo(f"error: {message}", err=True)
    sys.exit(status)


def _command(
    service: Service[T], name: str, help: str, run: Callable[..., None], own: Sequence[click.Parameter] = ()
) -> click.Command:
    """A command that loads the config, with its flags, and hands it to `run` with the values of its own parameters."""

    def callback(file: Path, **given: Any) -> None:
        values = {str(param.name): given.pop(str(param.name)) for param in own}
        loaded = _load(service, file, given)
        try:
            run(loaded, **values)
        except LlmError as error:
            fail(f"{error.origin or service.name}: {error.message} ({error.code})", 1)
        except OSError as error:
            fail(str(error), 1)

    path = click.Path(dir_okay=False, path_type=Path)
    file = click.Option(["--config", "file"], type=path, default=service.file, help="the YAML file to read")
    flags = [
        click.Option([f"--{flag.name}", _parameter(flag)], type=flag.type, help=flag.help) for flag in service.flags
    ]
    return click.Command(name, callback=callback, params=[file, *flags, *own], help=help)


def _parameter(flag: Flag) -> str:
    """click's name for the flag's value, apart from those of a command's own parameters."""
    return f"flag_{flag.name.replace('-', '_')}"


def _load(service: Service[T], file: Path, given: dict[str, Any]) -> config.Loaded[T]:
    chosen: dict[str, Any] = {}
    names: dict[str, str] = {}
    try:
        for flag in sorted(service.flags, key=lambda flag: callable(flag.key)):  # what asks the config comes last
            value = given[_parameter(flag)]
            if value is not None:
                key = flag.key
                if callable(key):
                    key = key(config.load(service.config, file, chosen, names=names).value)
                chosen[key], names[key] = value, flag.name
        return config.load(service.config, file, chosen, names=names)
    except config.ConfigError as error:
        fail(str(error), 2)
