"""The command line, and the wiring: it loads the config and builds what the modes are made of.

Exit status: 0 all answered; 1 an answer failed; 2 the command line or the config is wrong; 130 Ctrl-C.
"""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from bedrest_client import config, passive, turn
from bedrest_client.config import Config
from bedrest_client.query import Edge
from bedrest_client.screen import Screen
from lambdalm.commands import Flag
from lambdalm.config import ConfigError, Loaded, load, show
from lambdalm.errors import LlmError

_INTERRUPTED = 130

_FLAGS = (
    Flag("host", "host", "the RESTful proxy's host"),
    Flag("port", "port", "the RESTful proxy's port", int),
    Flag("max-tokens", "max_tokens", "how long an answer may be, in tokens", int),
    Flag("model", "model", "the model to ask"),
    Flag("timeout", "timeout", "how long an answer may take, in seconds", float),
)


_NAMES = [*(flag.name.replace("-", "_") for flag in _FLAGS), "memory"]  # which are the keys, too


class _BadConfig(click.ClickException):
    exit_code = 2


def _configured(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options that all have, and the config that comes of them as its first argument."""

    @functools.wraps(command)
    def run(file: Path, **given: Any) -> int:
        flags = {name: given.pop(name) for name in _NAMES}
        try:
            loaded = load(Config, file, {key: value for key, value in flags.items() if value is not None})
        except ConfigError as error:
            raise _BadConfig(str(error)) from None
        return command(loaded, **given)

    about = "whether prompts are turns of one conversation"
    run = click.option("--memory/--no-memory", default=None, help=about)(run)
    for flag in reversed(_FLAGS):
        run = click.option(f"--{flag.name}", type=flag.type, help=flag.help)(run)
    kind = click.Path(dir_okay=False, path_type=Path)
    return click.option(
        "--config", "file", type=kind, default=config.DEFAULT_FILE, show_default=True, help="the YAML file to read"
    )(run)


def _edge(value: Config) -> Edge:
    try:
        return Edge(value.address, value.timeout, key=value.key())
    except LlmError as error:
        raise _BadConfig(error.message) from None


def _screen() -> Screen:
    return Screen(sys.stdout, sys.stderr, os.environ)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """BedREST: ask a model through the λλM pipeline."""


@cli.command("active")
@_configured
def _active(loaded: Loaded[Config]) -> int:
    """Start a session at the terminal: prompts in, answers out, until Ctrl-D."""
    if not sys.stdin.isatty():
        raise click.UsageError("active needs a terminal; in a pipe, use `bedrest ask`")
    # prompt_toolkit takes longer to import than a short answer to come.
    from prompt_toolkit.output import create_output

    from bedrest_client.history import open_history
    from bedrest_client.session import Session, reader

    edge, screen = _edge(loaded.value), _screen()
    screen.note(f"BedREST, asking {edge.address}; /help helps, Ctrl-D leaves")
    prompts = reader(open_history(os.environ), output=create_output(always_prefer_tty=True))
    Session(loaded.value, lambda request: turn.stream(edge, request, screen), edge.forget, prompts, screen).run()
    return 0


@cli.command("passive")
@_configured
def _passive(loaded: Loaded[Config]) -> int:
    """Ask the prompts of the config, one after the other."""
    value, edge, screen = loaded.value, _edge(loaded.value), _screen()
    remember = value.remembers(usually=False)

    def ask(prompt: str) -> bool:
        return turn.stream(edge, value.request(prompt, remember), screen)

    return 0 if passive.run(value.prompts, ask, screen) else 1


@cli.command("ask")
@click.argument("prompt", required=False)
@click.option("--json", "as_json", is_flag=True, help="print the whole answer as JSON")
@_configured
def _ask(loaded: Loaded[Config], prompt: str | None, as_json: bool) -> int:
    """Ask one PROMPT; `-`, or none in a pipe, reads it from stdin."""
    value, edge, screen = loaded.value, _edge(loaded.value), _screen()
    request = value.request(_prompt(prompt), value.remembers(usually=False))
    if not as_json:
        return 0 if turn.stream(edge, request, screen) else 1
    answer = turn.whole(edge, request, screen)
    if answer is None:
        return 1
    screen.line(msgspec.json.encode(answer).decode())
    return 0


@cli.command("config")
@click.option("--show", "shown", is_flag=True, help="print the effective config, and where each value came from")
@_configured
def _config(loaded: Loaded[Config], shown: bool) -> int:
    """Check the config file."""
    click.echo(show(loaded) if shown else "the config is good; --show prints it")
    return 0


def _prompt(given: str | None) -> str:
    if given is None and sys.stdin.isatty():
        raise click.UsageError("give a prompt: bedrest ask “Who are you?”")
    try:
        prompt = sys.stdin.buffer.read().decode().rstrip("\r\n") if given in (None, "-") else str(given)
        prompt.encode()
    except UnicodeError:
        raise click.UsageError("the prompt is not UTF-8") from None
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return prompt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows a question mark.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        return int(cli.main(arguments, prog_name="bedrest", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
