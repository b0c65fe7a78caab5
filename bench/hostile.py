"""Hostile clients of each HTTP hop, one attack after the other: what the others notice, and what is left afterwards.

The attackers of `lambdalm.testing.hostile` run in a process of their own. Meanwhile well-behaved clients ask the same
hop, streams are read from it, and it is asked whether it is alive.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import uvloop

from bench import report, wire
from bench.hops import chain, own_files, room_for
from bench.report import Table, met, percentile
from core.tests.hop import running
from lambdalm.testing.hostile import ATTACKS

_OTHERS = 4  # clients, each asking every _PAUSE seconds
_PAUSE = 0.02
_STREAMS = 10
_ALONE_SECONDS = 5.0
_TOKENS_A_SECOND = 20  # of the scripted `slow`
_ROOM = 1000  # calls in flight that each hop takes, so that readers who take nothing leave room for others
_SETTLE_SECONDS = 15.0
_LAG = 0.05  # seconds
_ALIVE = 100.0  # ms
_GROWN = 16.0  # MiB
_SPARE_FILES = 4  # what a hop opens once, whatever its clients do
_ECHO = wire.query(prompt="Is anybody there?", model="echo")


class _Target(NamedTuple):
    """A server, its process, and a path that it answers at once."""

    name: str
    port: int
    pid: int
    alive: str


class _Seen(NamedTuple):
    """What others saw while something went on: latencies in ms, infinite for what was not answered with 200."""

    others: list[float]
    alive: list[float]


class _Held(NamedTuple):
    """Open files, and resident memory in MiB."""

    files: int
    rss: float


async def _ask_again_and_again(port: int, request: bytes, until: asyncio.Event, latencies: list[float]) -> None:
    connection = await wire.Connection.open(port)
    while not until.is_set():
        start = time.perf_counter()
        response = await connection.ask(request)
        latencies.append(1000 * (time.perf_counter() - start) if response.status == 200 else float("inf"))
        await asyncio.sleep(_PAUSE)
    connection.close()


@contextlib.asynccontextmanager
async def _others(target: _Target) -> AsyncIterator[_Seen]:
    """What they see while inside."""
    seen, over = _Seen([], []), asyncio.Event()
    asking = [_ask_again_and_again(target.port, _ECHO, over, seen.others) for _ in range(_OTHERS)]
    looking = _ask_again_and_again(target.port, wire.get(target.alive), over, seen.alive)
    tasks = asyncio.gather(looking, *asking)
    try:
        yield seen
    finally:
        over.set()
        await tasks


async def _stream(port: int, tokens: int) -> bool:
    """Whether a stream of this many tokens came to its end."""
    connection = await wire.Connection.open(port)
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        response = await connection.ask(wire.query(prompt="x", model="slow", max_tokens=tokens, stream=True))
        connection.close()
        return f'"completion_tokens":{tokens}'.encode() in response.body
    return False


@contextlib.asynccontextmanager
async def _attackers(port: int, name: str) -> AsyncIterator[None]:
    """The attack goes on while inside."""
    program = [sys.executable, "-m", "lambdalm.testing.hostile", str(port), name]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*program, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    assert process.stdin is not None
    await process.stdout.readline()
    try:
        yield
    finally:
        process.stdin.close()
        await process.wait()


async def _lag(target: _Target) -> float:
    """The longest standstill of its loop in the last 10 s, in seconds, by its own word."""
    connection = await wire.Connection.open(target.port)
    response = await connection.ask(wire.get("/metrics"))
    connection.close()
    found = re.search(rb"^lambdalm_loop_lag_seconds (\S+)$", response.body, re.MULTILINE)
    return float(found[1]) if found else float("inf")


def _held(target: _Target) -> _Held:
    process = psutil.Process(target.pid)
    return _Held(process.num_fds(), process.memory_info().rss / 2**20)


async def _settled(target: _Target, files: int) -> _Held:
    """What it holds when it has closed what was left open, or should have; and its loop's lag is that of now."""
    end = time.perf_counter() + _SETTLE_SECONDS
    while time.perf_counter() < end:
        await asyncio.sleep(0.2)
        if _held(target).files <= files and await _lag(target) < _LAG / 2:
            break
    return _held(target)


async def _row(target: _Target, name: str, alone: float, seconds: float) -> tuple[report.Cell, ...]:
    before = _held(target)
    tokens = int((seconds + 1) * _TOKENS_A_SECOND)
    streams = [asyncio.create_task(_stream(target.port, tokens)) for _ in range(_STREAMS)]
    async with _others(target) as seen, _attackers(target.port, name):
        await asyncio.sleep(seconds)
        lag = await _lag(target)
    whole = sum(await asyncio.gather(*streams))
    after = await _settled(target, before.files + _SPARE_FILES)
    p99, alive, grown = percentile(seen.others, 0.99), max(seen.alive), after.rss - before.rss
    ok = p99 <= 2 * alone + 20 and alive < _ALIVE and whole == _STREAMS and lag < _LAG
    ok = ok and after.files <= before.files + _SPARE_FILES and grown <= _GROWN
    left = max(0, after.files - before.files)
    return (name, ATTACKS[name].number, p99, alive, 1000 * lag, f"{whole} of {_STREAMS}", left, grown, met(ok))


async def _attacked(target: _Target, seconds: float) -> Table:
    async with _others(target):
        await asyncio.sleep(1)
    async with _others(target) as seen:
        await asyncio.sleep(_ALONE_SECONDS)
    alone = percentile(seen.others, 0.99)
    rows: list[tuple[report.Cell, ...]] = [
        ("(no attack)", 0, alone, max(seen.alive), 1000 * await _lag(target), "", 0, 0.0, "")
    ]
    for name in ATTACKS:
        report.progress(f"{target.name}: {name}")
        rows.append(await _row(target, name, alone, seconds))
    columns = ("attack", "clients", "others p99 ms", f"{target.alive} max ms", "lag ms", "streams whole")
    goals = (
        f"met: others' p99 ≤ 2 × {alone:.1f} + 20 ms, {target.alive} < {_ALIVE:g} ms, lag < {1000 * _LAG:g} ms, no",
        f"stream cut; afterwards no file more than {_SPARE_FILES} left open, and RSS grown by ≤ {_GROWN:g} MiB",
        f"others: {_OTHERS} clients, each asking `echo` every {1000 * _PAUSE:g} ms and more; lag: by /metrics",
    )
    return Table(f"attacks on the {target.name}", (*columns, "files left", "MiB more", "met"), rows, goals)


@contextlib.contextmanager
def _small() -> Iterator[_Target]:
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "log", max_in_flight=_ROOM) as hop:
        yield _Target("small hop", hop.port, hop.pid, "/things")


@contextlib.contextmanager
def _of_chain(name: str, alive: str) -> Iterator[_Target]:
    with own_files() as files, chain(room_for(_ROOM) | files) as up:
        yield _Target(name, up.port(name), up.hops[name].process.pid, alive)


def measure(options: argparse.Namespace) -> list[Table]:
    tables = []
    targets = {
        "small hop": _small(),
        "edge": _of_chain("edge", "/healthz"),
        "backend": _of_chain("backend", "/health"),
    }
    for name in options.attacked.split(","):
        with targets[name] as attacked:
            tables.append(report.show(uvloop.run(_attacked(attacked, options.attack_seconds))))
    return tables


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--attacked", default="small hop,edge,backend", help="hops (default: %(default)s)")
    parser.add_argument("--attack-seconds", type=float, default=4, help="length of each attack (default 4)")


if __name__ == "__main__":
    sys.exit(report.run(__doc__, measure, add_options))
