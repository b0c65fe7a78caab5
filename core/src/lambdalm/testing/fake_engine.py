"""What the fake engines share: their model names, which are behaviours and faults.

    with FakeOllama() as fake:            # or: python -m lambdalm.testing.fake_ollama --port 11434
        ask(fake.url, model="error-in-stream")

A fake is an engine's wire format (`FakeEngine`, a subclass each in `fake_ollama`, `fake_openai`, `fake_bedrock`); what
is said over it is the same for all (`BEHAVIOURS`), so that one test can be run against each.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from lambdalm.testing.fake_http import Exchange, FakeServer, Reply

WORDS = ("once ", "upon ", "a ", "time ")
"""What an engine says before it fails."""

THOUGHT = ("The user said ", "something.")
TOKEN_SECONDS = 0.05
_CUT = 7  # characters of a piece of `echo`


class Request(NamedTuple):
    """What a behaviour has to know of a request."""

    model: str
    prompt: str
    max_tokens: int | None
    stream: bool
    counted: bool = True
    """Whether the answer is to tell its tokens."""


class Said(NamedTuple):
    """A whole answer; `tokens` are those of prompt and answer, None where the engine does not count.

    `seconds` have passed since the request came, `first_seconds` until the first word.
    """

    text: str
    reasoning: str
    reason: str
    tokens: tuple[int, int] | None
    first_seconds: float = 0.0
    seconds: float = 0.0


class FakeEngine(FakeServer):
    """An engine's wire format. Its `answer` routes, and has those requests that ask the model answered by `play`."""

    name: str
    stream_type: str
    """The content type of a stream."""

    @abstractmethod
    def opening(self, request: Request) -> bytes:
        """What comes before the first word."""

    @abstractmethod
    def text(self, request: Request, piece: str) -> bytes:
        """A piece of the answer."""

    @abstractmethod
    def reasoning(self, request: Request, piece: str) -> bytes:
        """A piece of the reasoning."""

    @abstractmethod
    def ending(self, request: Request, said: Said) -> bytes:
        """All that comes after the last word. `said.reason` is stop, length or content_filter."""

    @abstractmethod
    def whole(self, request: Request, said: Said) -> bytes:
        """An answer in one piece, for a request that wants no stream."""

    @abstractmethod
    def failure(self, request: Request) -> bytes:
        """The engine's error in the middle of a stream."""

    @abstractmethod
    def garbage(self, request: Request) -> bytes:
        """Something that the protocol does not allow."""

    @abstractmethod
    def refusal(self, request: Request, why: str) -> Reply:
        """The engine's error before a stream: `why` is error-before, throttle or unknown."""

    def play(self, request: Request, exchange: Exchange) -> None:
        """Answer as the model that was asked for does."""
        BEHAVIOURS.get(request.model, _unknown)(Play(self, request, exchange))


class Play:
    """One answer, as a behaviour gives it."""

    def __init__(self, engine: FakeEngine, request: Request, exchange: Exchange) -> None:
        self.request = request
        self._engine = engine
        self._exchange = exchange
        self._said: list[str] = []
        self._thought: list[str] = []
        self._began = time.monotonic()
        self._first: float | None = None

    def start(self) -> None:
        """Headers, and what comes before the first word."""
        if self.request.stream:
            self._exchange.begin(self._engine.stream_type)
            self._exchange.send(self._engine.opening(self.request))

    def say(self, *pieces: str) -> None:
        self._said += pieces
        self._send(self._engine.text, pieces)

    def think(self, *pieces: str) -> None:
        self._thought += pieces
        self._send(self._engine.reasoning, pieces)

    def end(self, reason: str = "stop", counted: bool = True) -> None:
        tokens: tuple[int, int] | None = (len(self.request.prompt.split()), len(self._said) + len(self._thought))
        if not (counted and self.request.counted):
            tokens = None
        seconds = time.monotonic() - self._began
        first = seconds if self._first is None else self._first
        said = Said("".join(self._said), "".join(self._thought), reason, tokens, first, seconds)
        if self.request.stream:
            self._exchange.send(self._engine.ending(self.request, said))
            self._exchange.end()
        else:
            self._exchange.reply(Reply(200, self._engine.whole(self.request, said)))

    def fail(self) -> None:
        """The engine's own error in the middle of the stream."""
        if self.request.stream:
            self._exchange.send(self._engine.failure(self.request))
            self._exchange.end()
        else:
            self.refuse("error-before")

    def talk_nonsense(self) -> None:
        self.start_unless_streaming()
        self._exchange.send(self._engine.garbage(self.request))
        self._exchange.end()

    def start_unless_streaming(self) -> None:
        if not self.request.stream:
            self._exchange.begin("application/json")

    def refuse(self, why: str) -> None:
        self._exchange.reply(self._engine.refusal(self.request, why))

    def stop_early(self) -> None:
        """The body ends, and the answer does not."""
        self.start_unless_streaming()
        self._exchange.end()

    def cut(self) -> None:
        self._exchange.cut()

    def stall(self) -> None:
        self._engine.stalling.release()
        self._exchange.pause(None)

    def pause(self, seconds: float) -> None:
        self._exchange.pause(seconds)

    def _send(self, encode: Callable[[Request, str], bytes], pieces: tuple[str, ...]) -> None:
        if self._first is None:
            self._first = time.monotonic() - self._began
        if self.request.stream:
            for piece in pieces:
                self._exchange.send(encode(self.request, piece))


def _echo(play: Play) -> None:
    """says the last message back, in pieces"""
    prompt = play.request.prompt
    play.start()
    play.say(*(prompt[at : at + _CUT] for at in range(0, len(prompt), _CUT)))
    play.end()


def _slow(play: Play) -> None:
    """20 tokens a second, max_tokens of them (default 40)"""
    play.start()
    for said in range(play.request.max_tokens or 40):
        play.pause(TOKEN_SECONDS)
        play.say(WORDS[said % len(WORDS)])
    play.end("length")


def _huge(play: Play) -> None:
    """one piece of 1 MiB"""
    play.start()
    play.say("λ" * 2**19)
    play.end()


def _thinking(play: Play) -> None:
    """reasoning first, then the text"""
    play.start()
    play.think(*THOUGHT)
    play.say("Hello!")
    play.end()


def _length(play: Play) -> None:
    """ends because of max_tokens"""
    play.start()
    play.say(*WORDS)
    play.end("length")


def _filtered(play: Play) -> None:
    """ends because of a content filter"""
    play.start()
    play.say("I would rather ")
    play.end("content_filter")


def _no_usage(play: Play) -> None:
    """does not count tokens"""
    play.start()
    play.say("Uncounted.")
    play.end(counted=False)


def _stall_headers(play: Play) -> None:
    """never sends headers"""
    play.stall()


def _stall_first(play: Play) -> None:
    """sends headers, and no word"""
    play.start()
    play.stall()


def _stall(play: Play) -> None:
    """says four words, then falls silent"""
    play.start()
    play.say(*WORDS)
    play.stall()


def _error_before(play: Play) -> None:
    """fails before its first word"""
    play.refuse("error-before")


def _throttle(play: Play) -> None:
    """has no room"""
    play.refuse("throttle")


def _unknown(play: Play) -> None:
    """a model that there is not"""
    play.refuse("unknown")


def _error_in_stream(play: Play) -> None:
    """fails after four words"""
    play.start()
    play.say(*WORDS)
    play.fail()


def _cut_off(play: Play) -> None:
    """the connection breaks after four words"""
    play.start()
    play.say(*WORDS)
    play.cut()


def _ends_early(play: Play) -> None:
    """after four words the body ends, without the protocol's end"""
    play.start()
    play.say(*WORDS)
    play.stop_early()


def _garbage(play: Play) -> None:
    """says four words, and then something that is not its protocol"""
    play.start()
    play.say(*WORDS)
    play.talk_nonsense()


BEHAVIOURS: dict[str, Callable[[Play], None]] = {
    "echo": _echo,
    "slow": _slow,
    "huge": _huge,
    "thinking": _thinking,
    "length": _length,
    "filtered": _filtered,
    "no-usage": _no_usage,
    "stall-headers": _stall_headers,
    "stall-first": _stall_first,
    "stall": _stall,
    "error-before": _error_before,
    "throttle": _throttle,
    "error-in-stream": _error_in_stream,
    "cut": _cut_off,
    "ends-early": _ends_early,
    "garbage": _garbage,
}
"""Model name → what it does; any other name is a model that the engine does not have."""


def main(fake: type[FakeEngine], port: int) -> None:
    """The program of a fake: serves until Ctrl-C."""
    parser = argparse.ArgumentParser(description=fake.__doc__, epilog=f"models: {', '.join(BEHAVIOURS)}")
    parser.add_argument("--port", type=int, default=port, help="default %(default)s; 0 takes a free one")
    engine = fake(parser.parse_args().port)
    print(f"a fake {engine.name} listens on {engine.url}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        engine.serve_forever()


def now() -> int:
    """Seconds since the epoch, as engines stamp their answers."""
    return int(time.time())
