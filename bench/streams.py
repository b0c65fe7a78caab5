"""A thousand streams at once through the whole chain, load generator included: is every character there, and when?

Each stream is the scripted model `slow`: 20 tokens a second. They start one after the other over `--ramp` seconds, so
that all of them are held at once until the first one ends. The client only notes what came and when; it is taken apart
after the last stream has ended.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import uvloop

from bench import report, wire
from bench.hops import Meter, chain, machine_cpu, room_for, used
from bench.report import Table, met, percentile
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import LlmError
from lambdalm.events import TextDelta
from lambdalm.stream import EventReader
from lambdalm.testing import scripted
from lambdalm.timings import HopClock

RATE = round(1 / scripted.TOKEN_SECONDS)
"""Tokens a second of one stream; the scripted model sets it."""

_GAP_GOAL = 250.0  # ms
_SETTLE = 1.0  # seconds between a chain's start and the load


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


class Outcome(NamedTuple):
    """One stream taken apart: its text, whether its end event came, and when text came (perf_counter seconds).

    `first_tokens` has what each hop reported: ms from the request's arrival there to its first delta.
    """

    text: str
    finished: bool
    failure: str
    sent: float
    frames: list[float]
    end: float
    first_tokens: dict[str, float]

    @property
    def first_token(self) -> float:
        """Milliseconds from before the connection was opened to the first text."""
        return 1000 * (self.frames[0] - self.sent)


class Load(NamedTuple):
    """What one run gave: the streams, the CPU of each process over `window` seconds of all held, their peak RSS.

    `others` is the CPU that everything else on this machine used over the same seconds.
    """

    outcomes: list[Outcome]
    window: float
    cpu: dict[str, float]
    others: float
    rss: dict[str, float]


def expected_text(tokens: int) -> str:
    """What `slow` says, as the script has it."""
    call = Call("expected", 60, HopClock("bench"))
    events = scripted.play(ChatRequest(prompt="x", model="flood", max_tokens=tokens), call)
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def take_apart(capture: Capture) -> Outcome:
    """Read a captured stream with the pipeline's own reader."""
    reader, body, texts, frames, failure = EventReader(), wire.ChunkedBody(), list[str](), list[float](), ""
    try:
        for at, data in capture.pieces:
            deltas = [event.text for event in reader.feed(body.feed(data)) if isinstance(event, TextDelta)]
            frames += [at] if deltas else []
            texts += deltas
        reader.close()
    except (LlmError, ValueError) as error:
        failure = str(error)
    end = capture.pieces[-1][0] if capture.pieces else capture.sent
    shares = {hop: share.first_token_ms or 0.0 for hop, share in reader.timings.items()}
    return Outcome("".join(texts), reader.finished, failure, capture.sent, frames, end, shares)


async def _stream(port: int, start: float, tokens: int) -> Capture:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(start - time.perf_counter())
    capture = Capture(wire.query(close=True, prompt="go", model="slow", max_tokens=tokens, stream=True))
    capture.sent = time.perf_counter()
    await loop.create_connection(lambda: capture, "127.0.0.1", port)
    await capture.ended
    return capture


async def _peak_rss(meter: Meter, peak: dict[str, float]) -> None:
    while True:
        for name, mib in meter.rss().items():
            peak[name] = max(peak.get(name, 0.0), mib)
        await asyncio.sleep(1)


async def _window(meter: Meter, start: float, end: float) -> tuple[float, dict[str, float], float]:
    await asyncio.sleep(start - time.perf_counter())
    at, before, whole = time.perf_counter(), meter.cpu(), machine_cpu()
    await asyncio.sleep(end - time.perf_counter())
    cpu = used(before, meter.cpu())
    return time.perf_counter() - at, cpu, machine_cpu() - whole - sum(cpu.values())


async def load(port: int, meter: Meter, streams: int, seconds: float, ramp: float) -> Load:
    """Hold `streams` streams of `seconds` each, started over `ramp` seconds."""
    tokens, peak = round(seconds * RATE), dict[str, float]()
    gc.disable()
    start = time.perf_counter() + 0.1
    watching = asyncio.create_task(_peak_rss(meter, peak))
    window = asyncio.create_task(_window(meter, start + ramp, start + max(seconds, ramp + 1)))
    captures = await asyncio.gather(*(_stream(port, start + ramp * n / streams, tokens) for n in range(streams)))
    watching.cancel()
    gc.enable()
    return Load([take_apart(capture) for capture in captures], *(await window), peak)


def held_at_once(outcomes: Sequence[Outcome]) -> int:
    """The most streams that were in progress at one moment, from each one's first text to its end."""
    starts = [(outcome.frames[0], 1) for outcome in outcomes if outcome.frames]
    ends = [(outcome.end, -1) for outcome in outcomes if outcome.frames]
    held = most = 0
    for _, step in sorted(starts + ends):
        held += step
        most = max(most, held)
    return most


def _what_arrived(run: Load, tokens: int) -> Table:
    expected = expected_text(tokens)
    outcomes, count = run.outcomes, len(run.outcomes)
    exact = sum(outcome.text == expected for outcome in outcomes)
    finished = sum(outcome.finished for outcome in outcomes)
    held = held_at_once(outcomes)
    lost = sum(abs(len(expected) - len(outcome.text)) for outcome in outcomes)
    failures = sorted({outcome.failure for outcome in outcomes if outcome.failure})
    rows: list[tuple[report.Cell, ...]] = [
        ("streams held at once", held, count, met(held >= count)),
        ("streams with exactly the expected text", exact, count, met(exact == count)),
        ("streams whose end event came", finished, count, met(finished == count)),
        ("characters lost or added", lost, 0, met(lost == 0)),
        ("characters in all", len(expected) * count, "", ""),
    ]
    notes = tuple(f"failed: {failure}" for failure in failures[:5])
    return Table(f"(10b) {count} streams of {RATE} tokens/s: what arrived", ("", "found", "goal", "met"), rows, notes)


def _when(run: Load) -> Table:
    gaps = [1000 * (b - a) for outcome in run.outcomes for a, b in pairwise(outcome.frames)] or [0.0]
    pace = 1000 * scripted.TOKEN_SECONDS
    first = [outcome.first_token - pace for outcome in run.outcomes if outcome.frames] or [0.0]
    rows: list[tuple[report.Cell, ...]] = []
    for what, values, goal in (("gap between frames", gaps, _GAP_GOAL), ("added time to first token", first, None)):
        p99 = percentile(values, 0.99)
        goals = (f"p99 ≤ {goal:g}", met(p99 <= goal)) if goal else ("", "")
        rows.append((what, percentile(values, 0.5), p99, max(values), *goals))
    frames = sum(len(outcome.frames) for outcome in run.outcomes)
    notes = (f"{frames} frames with text; a frame joins what was due together (coalescing)",)
    return Table("(10b) when it arrived, in ms", ("", "p50", "p99", "max", "goal", "met"), rows, notes)


def _first_token(run: Load) -> Table:
    """Where the time to the first token went: each hop's own figure, less that of the hop behind it."""
    shares: dict[str, list[float]] = {}
    for outcome in run.outcomes:
        behind = 1000 * scripted.TOKEN_SECONDS
        if outcome.finished:
            for hop, total in [*outcome.first_tokens.items(), ("before the edge", outcome.first_token)]:
                shares.setdefault(hop, []).append(total - behind)
                behind = total
    rows: list[tuple[report.Cell, ...]] = [
        (hop, percentile(added, 0.5), percentile(added, 0.99), max(added)) for hop, added in shares.items()
    ]
    notes = ("before the edge: from opening the connection until a thread of the edge has the request",)
    return Table("(10b) added time to first token by hop, in ms", ("", "p50", "p99", "max"), rows, notes)


def _what_it_took(run: Load, streams: int) -> Table:
    tokens = streams * RATE * run.window
    rows: list[tuple[report.Cell, ...]] = [
        (name, 100 * seconds / run.window, 1e6 * seconds / tokens, run.rss[name]) for name, seconds in run.cpu.items()
    ]
    whole = sum(run.cpu.values())
    rows.append(("all", 100 * whole / run.window, 1e6 * whole / tokens, sum(run.rss.values())))
    notes = (
        f"CPU over the {run.window:.1f} s in which all streams should be held; 100 % is one core",
        f"other processes of this machine used {100 * run.others / run.window:.0f} % meanwhile",
    )
    return Table("(10b) what it took", ("", "CPU %", "CPU µs per token", "peak RSS MiB"), rows, notes)


def measure(options: argparse.Namespace) -> list[Table]:
    streams, seconds, ramp = options.streams, options.seconds, options.ramp
    report.progress(f"{streams} streams of {RATE} tokens/s for {seconds:g} s")
    with chain(room_for(streams + streams // 5)) as up:
        time.sleep(_SETTLE)
        run = uvloop.run(load(up.ports.edge, Meter(up), streams, seconds, ramp))
    tables = (_what_arrived(run, round(seconds * RATE)), _when(run), _first_token(run), _what_it_took(run, streams))
    return [report.show(table) for table in tables]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--streams", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each lasts (default 20)")
    parser.add_argument("--ramp", type=float, default=10.0, help="seconds over which they start (default 10)")


if __name__ == "__main__":
    sys.exit(report.run(__doc__, measure, add_options))
