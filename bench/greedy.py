"""Slow and greedy clients at the edge, as it is shipped: what they get, and what the others notice.

Half-sent headers: 200 sockets send half a request and no more. When is each closed, and how do others fare meanwhile?
A reader that stops: it asks for an endless stream and reads nothing. Does memory grow, and when is it closed?
Too many: the edge is full of requests, and 50 more come at once. How fast are they refused?
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import uvloop

from bench import report, wire
from bench.hops import BackendHealth, Engine, Meter, chain, room_for
from bench.report import Table, met, percentile
from lambdalm.testing.chain import Chain

_HALF = b"POST /query HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nX-Half: "
_SOCKETS = 200
_HEADER_SECONDS = 10.0  # limits.header_seconds of the edge's config.yaml
_WRITE_SECONDS = 60.0  # limits.write_seconds of the edge's config.yaml
_MAX_IN_FLIGHT = 64  # limits.max_in_flight of the edge's config.yaml
_TOO_MANY = 50
_LATE = 1.5  # seconds: the edge looks for late headers once a second
_GROWN = 16.0  # MiB that one stream may cost a hop, however long it is
_OTHERS = 4  # well-behaved clients, each asking again when it has its answer
_ECHO = wire.query(prompt="Is anybody there?", model="echo")


# Half-sent headers.


async def _half_sent(port: int) -> float:
    """Send half a request; seconds until the edge closes it (or 4 × its deadline, if it does not)."""
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_HALF)
    with contextlib.suppress(TimeoutError, ConnectionError):
        await asyncio.wait_for(reader.read(), 4 * _HEADER_SECONDS)
    writer.close()
    return time.perf_counter() - start


async def _others(port: int, until: asyncio.Event) -> list[float]:
    """Latencies in ms of clients that behave, until the event is set."""
    latencies: list[float] = []

    async def client() -> None:
        connection = await wire.Connection.open(port)
        while not until.is_set():
            start = time.perf_counter()
            response = await connection.ask(_ECHO)
            latencies.append(1000 * (time.perf_counter() - start) if response.status == 200 else 1e9)
        connection.close()

    await asyncio.gather(*(client() for _ in range(_OTHERS)))
    return latencies


@contextlib.asynccontextmanager
async def _beside_others(port: int, latencies: list[float]) -> AsyncIterator[None]:
    """While inside, clients that behave ask the edge; afterwards `latencies` (ms) has what they saw."""
    over = asyncio.Event()
    asking = asyncio.create_task(_others(port, over))
    try:
        yield
    finally:
        over.set()
        latencies += await asking


async def _headers(up: Chain) -> Table:
    report.progress(f"others alone for {_HEADER_SECONDS:g} s, then beside {_SOCKETS} sockets with half-sent headers")
    warm, alone, beside = list[float](), list[float](), list[float]()
    async with _beside_others(up.ports.edge, warm):
        await asyncio.sleep(1)
    async with _beside_others(up.ports.edge, alone):
        await asyncio.sleep(_HEADER_SECONDS)
    async with _beside_others(up.ports.edge, beside):
        closed = await asyncio.gather(*(_half_sent(up.ports.edge) for _ in range(_SOCKETS)))
    in_time = sum(seconds <= _HEADER_SECONDS + _LATE for seconds in closed)
    before, during = percentile(alone, 0.99), percentile(beside, 0.99)
    rows: list[tuple[report.Cell, ...]] = [
        ("sockets closed in time", str(in_time), str(_SOCKETS), met(in_time == _SOCKETS)),
        ("first closed after", f"{min(closed):.2f} s", f"{_HEADER_SECONDS:g} s", met(min(closed) >= _HEADER_SECONDS)),
        ("last closed after", f"{max(closed):.2f} s", f"≤ {_HEADER_SECONDS + _LATE:g} s", ""),
        ("others' p50 without them", f"{percentile(alone, 0.5):.2f} ms", "", ""),
        ("others' p50 beside them", f"{percentile(beside, 0.5):.2f} ms", "", ""),
        ("others' p99 without them", f"{before:.2f} ms", "", ""),
        ("others' p99 beside them", f"{during:.2f} ms", "≤ 2×", met(during <= 2 * before)),
    ]
    notes = (f"others: {_OTHERS} clients with `echo`, {len(alone)} requests without and {len(beside)} beside them",)
    return Table(f"(9) {_SOCKETS} sockets with half-sent headers", ("", "found", "goal", "met"), rows, notes)


# A reader that stops.


class _Stopped(NamedTuple):
    """Seconds that the edge sent until nothing fitted into the kernel any more, and from then to the engine's stop.

    RSS of each process in MiB, before and at its peak; `unsent` is what the kernel held for the reader, in bytes.
    """

    sent: float
    blocked: float
    unsent: int
    before: dict[str, float]
    peak: dict[str, float]


def _unsent(server: int, client: int) -> int:
    """Bytes in the kernel's send queue of the server's end of a connection of 127.0.0.1, by its two ports."""
    ends = f"0100007F:{server:04X} 0100007F:{client:04X} "
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines():
        if ends in line:
            return int(line.split()[4].partition(":")[0], 16)
    return 0


def _stop_reading(up: Chain, seconds: float) -> _Stopped:
    """Ask for an endless stream and read nothing, until the engine is stopped (or for `seconds`)."""
    meter, health = Meter.of(up), BackendHealth(up.ports.backend)
    before = meter.rss()
    peak, unsent = dict(before), 0
    with socket.create_connection(("127.0.0.1", up.ports.edge)) as sock:
        sock.sendall(wire.query(prompt="x", model="flood", stream=True))
        health.wait(Engine(1, 0))
        start = full = now = time.perf_counter()
        while health.engine().in_flight and now - start < seconds:
            queued = _unsent(up.ports.edge, sock.getsockname()[1])
            unsent, full = (queued, now) if queued > unsent else (unsent, full)
            peak = {name: max(mib, peak[name]) for name, mib in meter.rss().items()}
            time.sleep(0.2)
            now = time.perf_counter()
    health.wait(Engine(0, 0))
    health.close()
    return _Stopped(full - start, now - full, unsent, before, peak)


def _reader(up: Chain) -> list[Table]:
    report.progress(f"a reader that stops, for {_WRITE_SECONDS:g} s and more")
    found = _stop_reading(up, 3 * _WRITE_SECONDS)
    limit = _WRITE_SECONDS + 5
    rows: list[tuple[report.Cell, ...]] = [
        ("sent until the kernel's buffers were full, s", found.sent, "", ""),
        ("from then to the engine's stop, s", found.blocked, f"≤ {limit:g}", met(found.blocked <= limit)),
        ("held for it in the kernel, KiB", found.unsent / 1024, "", ""),
    ]
    for name in up.hops:
        grown = found.peak[name] - found.before[name]
        rows.append((f"RSS of {name} grown at its peak, MiB", grown, f"≤ {_GROWN:g}", met(grown <= _GROWN)))
        rows.append(("    from, MiB", found.before[name], "", ""))
    return [Table("(9) a reader of an endless stream who stops reading", ("", "found", "goal", "met"), rows)]


# Too many at once.


async def _hold(port: int, count: int) -> list[asyncio.StreamWriter]:
    held = []
    for _ in range(count):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(wire.query(prompt="x", model="stall"))
        held.append(writer)
    return held


async def _refused(port: int) -> tuple[float, bool]:
    """One request too many: its latency in ms, connecting included, and whether it was told when to come back."""
    start = time.perf_counter()
    connection = await wire.Connection.open(port)
    response = await connection.ask(_ECHO)
    connection.close()
    return 1000 * (time.perf_counter() - start), response.status == 503 and "retry-after" in response.headers


async def _alive(port: int, until: asyncio.Event) -> list[float]:
    """Latencies of /healthz in ms until the event is set; infinite for an answer that is not 200."""
    connection, latencies = await wire.Connection.open(port), list[float]()
    while not until.is_set():
        start = time.perf_counter()
        response = await connection.ask(wire.get("/healthz"))
        latencies.append(1000 * (time.perf_counter() - start) if response.status == 200 else float("inf"))
        await asyncio.sleep(0.005)
    connection.close()
    return latencies


async def _too_many(up: Chain, rounds: int) -> Table:
    report.progress(f"{_MAX_IN_FLIGHT} requests in flight and {_TOO_MANY} more at once, {rounds} times")
    health = BackendHealth(up.ports.backend)
    held = await _hold(up.ports.edge, _MAX_IN_FLIGHT)
    await asyncio.to_thread(health.wait, Engine(_MAX_IN_FLIGHT, 0))
    over = asyncio.Event()
    looking = asyncio.create_task(_alive(up.ports.edge, over))
    refusals = []
    for _ in range(rounds):
        refusals += await asyncio.gather(*(_refused(up.ports.edge) for _ in range(_TOO_MANY)))
        await asyncio.sleep(0.1)
    over.set()
    alive = await looking
    for writer in held:
        writer.close()
    latencies, told = [ms for ms, _ in refusals], sum(ok for _, ok in refusals)
    p99, health_p99 = percentile(latencies, 0.99), percentile(alive, 0.99)
    rows: list[tuple[report.Cell, ...]] = [
        ("answered 503 with Retry-After", told, str(len(refusals)), met(told == len(refusals))),
        ("refusal p50, ms", percentile(latencies, 0.5), "", ""),
        ("refusal p99, ms", p99, "≤ 50", met(p99 <= 50)),
        ("/healthz p99, ms", health_p99, "answers 200", met(health_p99 < float("inf"))),
    ]
    notes = (f"{rounds} times {_TOO_MANY} at once, each on a connection of its own, while {_MAX_IN_FLIGHT} are held",)
    title = f"(9) {_TOO_MANY} requests more than max_in_flight ({_MAX_IN_FLIGHT})"
    return Table(title, ("", "found", "goal", "met"), rows, notes)


def measure(options: argparse.Namespace) -> list[Table]:
    environ = room_for(4 * _MAX_IN_FLIGHT) | {"LLM_MAX_CONNECTIONS": str(_MAX_IN_FLIGHT)}
    with chain(environ) as up:
        tables = [report.show(uvloop.run(_headers(up)))]
        tables.append(report.show(uvloop.run(_too_many(up, options.bursts))))
        tables += map(report.show, _reader(up))
    return tables


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bursts", type=int, default=10, help="bursts of requests too many (default 10)")


if __name__ == "__main__":
    sys.exit(report.run(__doc__, measure, add_options))
