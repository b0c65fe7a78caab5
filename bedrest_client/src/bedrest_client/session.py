"""Active mode: a session at the terminal.

A line is a prompt, or a command when it starts with `/`. A line that starts with three quotes goes on until three
quotes end it, and is always a prompt. Ctrl-C stops an answer and drops a half-typed prompt; it never ends the session.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.output import Output

from bedrest_client.config import Config
from bedrest_client.screen import Screen
from lambdalm.chat import ChatRequest, Count, Name

_QUOTES = '"""'

HELP = """\
/new              start a new conversation: the model forgets this one
/model NAME       ask this model; without NAME, the server chooses
/max_tokens N     let answers be this long, in tokens
/help             this text
/quit             leave; so does Ctrl-D
\"""text\"""        a prompt of several lines, or one that starts with /
Ctrl-C            stop the answer
Up, Ctrl-R        earlier prompts; search them"""

_HOW_TO_LEAVE = "Ctrl-D or /quit leaves"


def reader(history: History, input: Input | None = None, output: Output | None = None) -> PromptSession[str]:
    """What reads a line of the user's, or several in three quotes."""
    return PromptSession(
        "λλM> ",
        history=history,
        enable_history_search=True,
        multiline=Condition(lambda: _is_open(get_app().current_buffer.text)),
        prompt_continuation="...  ",
        input=input,
        output=output,
    )


class Session:
    """One session. `ask` asks a prompt and shows its answer; KeyboardInterrupt comes out of it on Ctrl-C.

    `forget` makes the next prompt the first of a new conversation.
    """

    def __init__(
        self,
        config: Config,
        ask: Callable[[ChatRequest], bool],
        forget: Callable[[], None],
        reader: PromptSession[str],
        screen: Screen,
    ) -> None:
        self._config = config
        self._remembers = config.remembers(usually=True)
        self._ask = ask
        self._forget = forget
        self._reader = reader
        self._screen = screen
        self._left = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/new": self._new,
            "/model": self._model,
            "/max_tokens": self._max_tokens,
            "/quit": self._quit,
        }

    def run(self) -> None:
        """Until the user leaves."""
        while not self._left:
            # A Ctrl-C between an answer's end and the next prompt stops nothing.
            with contextlib.suppress(KeyboardInterrupt):
                self._step()

    def _step(self) -> None:
        try:
            line = self._reader.prompt()
        except EOFError:
            self._left = True
            return
        except KeyboardInterrupt:
            if not self._reader.default_buffer.text:
                self._screen.note(_HOW_TO_LEAVE)
            return
        try:
            self._take(line.strip())
        except KeyboardInterrupt:
            self._screen.note("[stopped]")

    def _take(self, line: str) -> None:
        if line.startswith("/"):
            self._command(line)
            return
        prompt = _unquoted(line)
        if prompt.strip():
            self._ask(self._config.request(prompt, self._remembers))

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        command = self._commands.get(name)
        if command is None:
            self._screen.error(f'no command {name}: /help lists them; """{name} …""" asks it as a prompt')
            return
        command(argument.strip())

    def _help(self, _: str) -> None:
        self._screen.note(HELP)

    def _new(self, _: str) -> None:
        self._forget()
        self._screen.note("a new conversation" if self._remembers else "memory is off: each prompt stands alone")

    def _quit(self, _: str) -> None:
        self._left = True

    def _model(self, name: str) -> None:
        try:
            model = msgspec.convert(name, Name) if name else None
        except msgspec.ValidationError as error:
            self._screen.error(f"/model: {error}")
            return
        self._config = msgspec.structs.replace(self._config, model=model)
        self._screen.note(f"model: {model or 'the server chooses'}")

    def _max_tokens(self, number: str) -> None:
        try:
            max_tokens = msgspec.convert(number, Count, strict=False)
        except msgspec.ValidationError as error:
            self._screen.error(f"/max_tokens: {error}")
            return
        self._config = msgspec.structs.replace(self._config, max_tokens=max_tokens)
        self._screen.note(f"max_tokens: {max_tokens}")


def _is_open(text: str) -> bool:
    text = text.strip()
    return text.startswith(_QUOTES) and not _is_quoted(text)


def _is_quoted(text: str) -> bool:
    return text.startswith(_QUOTES) and text.endswith(_QUOTES) and len(text) >= 2 * len(_QUOTES)


def _unquoted(text: str) -> str:
    return text[len(_QUOTES) : -len(_QUOTES)].strip("\n") if _is_quoted(text) else text
