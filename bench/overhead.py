"""What the chain adds to a request: time, and CPU of each hop, for a whole answer and for each streamed token.

Whole answers are the scripted `echo`, asked over kept connections, of the backend directly and of the edge in turn, so
that what else the machine does meets both alike. Tokens are streamed in two ways: `flood`, where many are due at once
and travel joined, and `slow`, where each token is a frame of its own: what the streaming of one frame costs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import NamedTuple

import uvloop

from bench import report, streams, wire
from bench.hops import HERE, Meter, chain, room_for, used
from bench.report import Table, percentile
from lambdalm.testing.chain import Chain

_TOKENS = 200
_FLOODS = 50
_SLOW_STREAMS = 50  # 1,000 frames a second: a load, and yet each token is a frame of its own
_WARM_UP = 50
_ROUNDS = 4  # the backend and the edge take turns

_ECHO = wire.query(prompt="What goes up must come down.", model="echo")
_FLOOD = wire.query(prompt="x", model="flood", max_tokens=_TOKENS, stream=True)


class Asked(NamedTuple):
    """Latencies in ms of requests that were asked in a row, and the CPU seconds that they took of each process."""

    latencies: list[float]
    cpu: dict[str, float]


async def ask(port: int, meter: Meter, request: bytes, count: int, at_once: int) -> Asked:
    """Ask `count` times over `at_once` connections; raises ConnectionError for an answer that is not 200."""
    latencies: list[float] = []

    async def client(connection: wire.Connection, mine: int) -> None:
        for _ in range(mine):
            start = time.perf_counter()
            response = await connection.ask(request)
            latencies.append(1000 * (time.perf_counter() - start))
            if response.status != 200:
                raise ConnectionError(f"HTTP {response.status}: {response.body[:200]!r}")
        connection.close()

    connections = [await wire.Connection.open(port) for _ in range(at_once)]
    before = meter.cpu()
    await asyncio.gather(*(client(connection, count // at_once) for connection in connections))
    return Asked(latencies, used(before, meter.cpu()))


async def _in_turns(up: Chain, meter: Meter, count: int, at_once: int) -> dict[str, Asked]:
    """The same requests of the backend and of the edge."""
    found = {"backend": Asked([], {}), "edge": Asked([], {})}
    for name in found:
        await ask(getattr(up.ports, name), meter, _ECHO, _WARM_UP, at_once)
    for _ in range(_ROUNDS):
        for name, so_far in found.items():
            more = await ask(getattr(up.ports, name), meter, _ECHO, count // _ROUNDS, at_once)
            cpu = {hop: so_far.cpu.get(hop, 0.0) + seconds for hop, seconds in more.cpu.items()}
            found[name] = Asked(so_far.latencies + more.latencies, cpu)
    return found


def _latency_row(at_once: int, found: dict[str, Asked]) -> tuple[report.Cell, ...]:
    direct, through = found["backend"].latencies, found["edge"].latencies
    row: list[report.Cell] = [at_once]
    for q in (0.5, 0.99):
        a, b = percentile(direct, q), percentile(through, q)
        row += [a, b, b - a]
    return *row, len(through)


def _cpu_row(what: str, asked: Asked, units: int) -> tuple[report.Cell, ...]:
    hops = [1e6 * seconds / units for name, seconds in asked.cpu.items() if name != HERE]
    return what, *hops, sum(hops), units


async def _unary(up: Chain, count: int) -> tuple[Table, Table]:
    meter = Meter(up)
    latencies: list[tuple[report.Cell, ...]] = []
    cpu: list[tuple[report.Cell, ...]] = []
    for at_once in (1, 8):
        report.progress(f"{count} whole answers, {at_once} at once, of the backend and of the edge")
        found = await _in_turns(up, meter, count, at_once)
        latencies.append(_latency_row(at_once, found))
        cpu.append(_cpu_row(f"whole answer, {at_once} at once", found["edge"], len(found["edge"].latencies)))
    columns = ("at once", "direct p50", "chain p50", "added p50", "direct p99", "chain p99", "added p99", "requests")
    notes = ("direct: the backend alone, over the same kind of connection",)
    return Table("(10) latency of a whole answer (`echo`), in ms", columns, latencies, notes), _cpu_table(
        cpu, "request"
    )


def _cpu_table(rows: list[tuple[report.Cell, ...]], unit: str) -> Table:
    columns = ("", "backend", "proxy", "edge", "chain", f"{unit}s")
    notes = ("user and system time of all of a hop's processes, gunicorn's parent included",)
    return Table(f"(10) CPU µs per {unit}", columns, rows, notes)


async def _tokens(up: Chain) -> Table:
    meter = Meter(up)
    report.progress(f"{_FLOODS} floods of {_TOKENS} tokens, then {_SLOW_STREAMS} slow streams")
    await ask(up.ports.edge, meter, _FLOOD, 5, 1)
    flood = await ask(up.ports.edge, meter, _FLOOD, _FLOODS, 1)
    before = meter.cpu()
    run = await streams.load(up.ports.edge, meter, _SLOW_STREAMS, _TOKENS / streams.RATE, 1.0)
    slow = Asked([], used(before, meter.cpu()))
    frames = sum(len(outcome.frames) for outcome in run.outcomes)
    each = f"one at a time: {_SLOW_STREAMS} `slow` streams, {frames} frames"
    rows = [
        _cpu_row("many due at once: `flood`", flood, _FLOODS * _TOKENS),
        _cpu_row(each, slow, _SLOW_STREAMS * _TOKENS),
    ]
    return _cpu_table(rows, "token")


def measure(options: argparse.Namespace) -> list[Table]:
    with chain(room_for(_SLOW_STREAMS + 10)) as up:
        unary = uvloop.run(_unary(up, options.requests))
        tables = [*unary, uvloop.run(_tokens(up))]
    return [report.show(table) for table in tables]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=2000, help="whole answers of each kind (default 2000)")


if __name__ == "__main__":
    sys.exit(report.run(__doc__, measure, add_options))
