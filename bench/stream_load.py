"""The load of many streams: clients that hold a stream of the scripted `slow` each, and note what comes and when.

They start one after the other over a ramp, so that all of them are held at once until the first one ends. A client only
notes; what it noted is taken apart after the last stream has ended.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

from bench import wire
from bench.hops import Meter, machine_cpu, used
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import LlmError
from lambdalm.events import TextDelta
from lambdalm.stream import EventReader
from lambdalm.testing import scripted
from lambdalm.timings import HopClock

RATE = round(1 / scripted.TOKEN_SECONDS)
"""Tokens a second of one stream; the scripted model sets it."""


class Capture(asyncio.Protocol):
    """One stream as it arrives: each piece of it with its time (perf_counter seconds)."""

    def __init__(self, request: bytes) -> None:
        self.sent = 0.0
        self.pieces: list[tuple[float, bytes]] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)  # uvloop's is one without inheriting from it

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class Frame(NamedTuple):
    """Text that arrived together: when (perf_counter seconds), and how many tokens."""

    at: float
    tokens: int


class Outcome(NamedTuple):
    """One stream taken apart: its text, whether its end event came, and when text came (perf_counter seconds).

    `first_tokens` has what each hop reported: ms from the request's arrival there to its first delta.
    """

    text: str
    finished: bool
    failure: str
    sent: float
    frames: list[Frame]
    end: float
    first_tokens: dict[str, float]

    @property
    def first_token(self) -> float:
        """Milliseconds from before the connection was opened to the first text."""
        return 1000 * (self.frames[0].at - self.sent)


class Window(NamedTuple):
    """The seconds in which all streams should be held: when they began (perf_counter), how many, and the CPU seconds
    that each process used in them; `others` is what everything else on this machine used."""

    start: float
    seconds: float
    cpu: dict[str, float]
    others: float


class Load(NamedTuple):
    """What one run gave: the streams, the text that each should have, the window in which all were held, and each
    process's RSS in MiB: before the first stream, and at its peak."""

    outcomes: list[Outcome]
    expected: str
    window: Window
    idle_rss: dict[str, float]
    peak_rss: dict[str, float]

    @property
    def frames(self) -> list[Frame]:
        """Those that arrived within the window."""
        start, end = self.window.start, self.window.start + self.window.seconds
        return [frame for outcome in self.outcomes for frame in outcome.frames if start <= frame.at < end]

    @property
    def tokens(self) -> int:
        """Those that arrived within the window."""
        return sum(frame.tokens for frame in self.frames)

    @property
    def gaps(self) -> list[float]:
        """Milliseconds between frames of one stream, of all streams."""
        return [1000 * (b.at - a.at) for outcome in self.outcomes for a, b in pairwise(outcome.frames)]


def take_apart(capture: Capture) -> Outcome:
    """Read a captured stream with the pipeline's own reader."""
    reader, body, texts, frames, failure = EventReader(), wire.ChunkedBody(), list[str](), list[Frame](), ""
    try:
        for at, data in capture.pieces:
            text = "".join(event.text for event in reader.feed(body.feed(data)) if isinstance(event, TextDelta))
            if text:
                frames.append(Frame(at, text.count(" ")))  # a token of the script is a word and a blank
                texts.append(text)
        reader.close()
    except (LlmError, ValueError) as error:
        failure = str(error)
    end = capture.pieces[-1][0] if capture.pieces else capture.sent
    shares = {hop: share.first_token_ms or 0.0 for hop, share in reader.timings.items()}
    return Outcome("".join(texts), reader.finished, failure, capture.sent, frames, end, shares)


def held_at_once(outcomes: Sequence[Outcome]) -> int:
    """The most streams that were in progress at one moment, from each one's first text to its end."""
    starts = [(outcome.frames[0].at, 1) for outcome in outcomes if outcome.frames]
    ends = [(outcome.end, -1) for outcome in outcomes if outcome.frames]
    held = most = 0
    for _, step in sorted(starts + ends):
        held += step
        most = max(most, held)
    return most


async def load(port: int, meter: Meter, streams: int, seconds: float, ramp: float, **fields: Any) -> Load:
    """Hold `streams` streams of `seconds` each, started over `ramp` seconds; `fields` are added to the requests."""
    tokens, idle = round(seconds * RATE), meter.rss()
    peak = dict(idle)
    request = wire.query(close=True, prompt="go", model="slow", max_tokens=tokens, stream=True, **fields)
    gc.disable()
    start = time.perf_counter() + 0.1
    watching = asyncio.create_task(_peak_rss(meter, peak))
    window = asyncio.create_task(_window(meter, start + ramp, start + max(seconds, ramp + 1)))
    captures = await asyncio.gather(*(_stream(port, start + ramp * n / streams, request) for n in range(streams)))
    watching.cancel()
    gc.enable()
    return Load([take_apart(capture) for capture in captures], _says(tokens), await window, idle, peak)


def _says(tokens: int) -> str:
    """What `slow` says, as the script has it."""
    call = Call("expected", 60, HopClock("bench"))
    events = scripted.play(ChatRequest(prompt="x", model="flood", max_tokens=tokens), call)
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def _stream(port: int, start: float, request: bytes) -> Capture:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(start - time.perf_counter())
    capture = Capture(request)
    capture.sent = time.perf_counter()
    await loop.create_connection(lambda: capture, "127.0.0.1", port)
    await capture.ended
    return capture


async def _peak_rss(meter: Meter, peak: dict[str, float]) -> None:
    while True:
        for name, mib in meter.rss().items():
            peak[name] = max(peak[name], mib)
        await asyncio.sleep(1)


async def _window(meter: Meter, start: float, end: float) -> Window:
    await asyncio.sleep(start - time.perf_counter())
    at, before, whole = time.perf_counter(), meter.cpu(), machine_cpu()
    await asyncio.sleep(end - time.perf_counter())
    cpu = used(before, meter.cpu())
    return Window(at, time.perf_counter() - at, cpu, machine_cpu() - whole - sum(cpu.values()))
