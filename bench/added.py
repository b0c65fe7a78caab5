"""What the chain adds to the time of a plain answer: the edge and the backend are asked the same, in turns."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import uvloop

from bench import report, rounds, wire
from bench.closed_loop import Ask, Sample, ask
from bench.hops import Meter, chain, own_files
from bench.report import Cell, Table, percentile

_PROMPT = "What goes up must come down."
_ECHO = Ask(wire.query(prompt=_PROMPT, model="echo"), _PROMPT.encode())
_AT_ONCE = (1, 8)
_WARM_UP = 200
_ROUNDS = 4

Row = tuple[Cell, ...]


async def _row(ports: Sequence[int], meter: Meter, count: int, at_once: int) -> Row:
    """Latencies at the first of the ports, at the second, and their difference."""
    report.progress(f"{count} plain answers, {at_once} at once, of the backend and of the edge")

    async def take(port: int) -> Sample:
        return await ask(port, meter, _ECHO, count // _ROUNDS, at_once)

    found = await rounds.alternate(ports, take, lambda _: False, _ROUNDS)
    direct, through = ([ms for sample in samples for ms in sample.latencies] for samples in found)
    row: list[Cell] = [at_once]
    for q in (0.5, 0.99):
        a, b = percentile(direct, q), percentile(through, q)
        row += [a, b, b - a]
    return *row, len(through)


async def _rows(ports: Sequence[int], meter: Meter, count: int) -> list[Row]:
    for port in ports:
        await ask(port, meter, _ECHO, _WARM_UP, max(_AT_ONCE))
    return [await _row(ports, meter, count, at_once) for at_once in _AT_ONCE]


def measure(options: argparse.Namespace) -> list[Table]:
    with own_files() as files, chain(files) as up:
        rows = uvloop.run(_rows((up.ports.backend, up.ports.edge), Meter.of(up), options.added_requests))
    columns = ("at once", "direct p50", "chain p50", "added p50", "direct p99", "chain p99", "added p99", "requests")
    notes = ("direct: the backend alone, over the same kind of connection",)
    return [report.show(Table("(10) latency of a plain answer (`echo`), in ms", columns, rows, notes))]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--added-requests", type=int, default=2000, help="for each row (default 2000)")


if __name__ == "__main__":
    sys.exit(report.run(__doc__, measure, add_options))
