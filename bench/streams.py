"""A thousand streams at once through the whole chain, load generator included: is every character there, and when?

Each stream is the scripted model `slow`: 20 tokens a second, in a new session, as shipped. Each run has a new chain,
which a few streams warm up first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence

import uvloop

from bench import report
from bench.hops import HERE, Meter, chain, own_files, room_for
from bench.report import Cell, Table, met, percentile
from bench.stream_load import RATE, Load, held_at_once, load
from lambdalm.testing import scripted

_GAP_GOAL = 250.0  # ms
_FIRST_GOAL = 200.0  # ms
_WARM_UP = 20  # streams of a second

Rows = Iterable[tuple[Cell, ...]]


def _arrived(run: Load) -> Rows:
    outcomes, count, held = run.outcomes, len(run.outcomes), held_at_once(run.outcomes)
    exact = sum(outcome.text == run.expected for outcome in outcomes)
    finished = sum(outcome.finished for outcome in outcomes)
    lost = sum(abs(len(run.expected) - len(outcome.text)) for outcome in outcomes)
    good = held == exact == finished == count and lost == 0
    yield held, exact, finished, lost, len(run.expected) * count, count, met(good)


def _failures(run: Load) -> Rows:
    """Why streams failed, the most frequent reasons first."""
    reasons = [outcome.failure for outcome in run.outcomes if outcome.failure]
    for reason in sorted(set(reasons), key=reasons.count, reverse=True)[:5]:
        yield reasons.count(reason), reason


def _when(run: Load) -> Rows:
    gaps = run.gaps or [0.0]
    pace = 1000 * scripted.TOKEN_SECONDS
    first = [outcome.first_token - pace for outcome in run.outcomes if outcome.frames] or [0.0]
    frames = sum(len(outcome.frames) for outcome in run.outcomes)
    for what, values, goal in (("gap between frames", gaps, _GAP_GOAL), ("added to first token", first, _FIRST_GOAL)):
        p99 = percentile(values, 0.99)
        yield what, percentile(values, 0.5), p99, max(values), f"p99 ≤ {goal:g}", met(p99 <= goal), frames


def _first_token(run: Load) -> Rows:
    """Where the time to the first token went: each hop's own figure, less that of the hop behind it."""
    shares: dict[str, list[float]] = {}
    for outcome in run.outcomes:
        behind = 1000 * scripted.TOKEN_SECONDS
        if outcome.finished:
            for hop, total in [*outcome.first_tokens.items(), ("before the edge", outcome.first_token)]:
                shares.setdefault(hop, []).append(total - behind)
                behind = total
    for hop, added in shares.items():
        yield hop, percentile(added, 0.5), percentile(added, 0.99), max(added)


def _what_it_took(run: Load) -> Rows:
    window, tokens = run.window, max(1, run.tokens)
    for name, seconds in window.cpu.items():
        held = 1024 * (run.peak_rss[name] - run.idle_rss[name]) / len(run.outcomes)
        rss = (run.idle_rss[name], run.peak_rss[name], "" if name == HERE else held)
        yield name, 100 * seconds / window.seconds, 1e6 * seconds / tokens, *rss
    whole = sum(window.cpu.values())
    yield "all", 100 * whole / window.seconds, 1e6 * whole / tokens, "", "", ""
    yield "other programs", 100 * window.others / window.seconds, "", "", "", ""


def _table(title: str, columns: str, rows: Callable[[Load], Rows], runs: Sequence[Load], *notes: str) -> Table:
    """The rows of all runs; `columns` are separated by commas, and the first says which run it was."""
    numbered = [(number, *row) for number, run in enumerate(runs, 1) for row in rows(run)]
    return Table(title, ("run", *columns.split(",")), numbered, notes)


def _tables(runs: Sequence[Load], what: str) -> list[Table]:
    window = ", ".join(f"{run.window.seconds:.1f}" for run in runs)
    tables = [
        _table(f"(10b) {what}: what arrived", "held,exact,ended,lost,of characters,goal,met", _arrived, runs,
               "exact: streams with exactly the expected text; ended: whose end event came; lost: or added"),
        _table("(10b) streams that failed", "streams,why", _failures, runs),
        _table("(10b) when it arrived, in ms", ",p50,p99,max,goal,met,frames", _when, runs,
               "a frame with text joins what was due together (coalescing)"),
        _table("(10b) added time to first token by hop, in ms", ",p50,p99,max", _first_token, runs,
               "before the edge: from opening the connection until the edge has the request"),
        _table("(10b) what it took", ",CPU %,CPU µs per token,idle RSS MiB,peak RSS MiB,KiB per stream", _what_it_took,
               runs, f"CPU over the {window} s in which all streams should be held; 100 % is one core",
               "KiB per stream: peak less idle RSS, divided by the streams"),
    ]  # fmt: skip
    return [table for table in tables if table.rows]


def _run(streams: int, seconds: float, ramp: float) -> Load:
    async def warmed_up(port: int, meter: Meter) -> Load:
        await load(port, meter, _WARM_UP, 1.0, 0.5)
        return await load(port, meter, streams, seconds, ramp)

    with own_files() as files, chain({**files, **room_for(streams + streams // 5)}) as up:
        return uvloop.run(warmed_up(up.ports.edge, Meter.of(up)))


def measure(options: argparse.Namespace) -> list[Table]:
    what = f"{options.streams} streams of {RATE} tokens/s"
    runs = []
    for number in range(1, options.runs + 1):
        report.progress(f"run {number} of {options.runs}: {what} for {options.seconds:g} s")
        runs.append(_run(options.streams, options.seconds, options.ramp))
    return [report.show(table) for table in _tables(runs, what)]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--streams", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each lasts (default 20)")
    parser.add_argument("--ramp", type=float, default=10.0, help="seconds over which they start (default 10)")
    parser.add_argument("--runs", type=int, default=1, help="one after the other, each with a new chain (default 1)")


if __name__ == "__main__":
    sys.exit(report.run(__doc__, measure, add_options))
