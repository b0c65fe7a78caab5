"""Ten times what the chain can do, with one second for each request: is every client answered or refused in time?

The peak is measured first: 64 clients that ask again when they have their answer. Then requests arrive at ten times
that rate, evenly, whether or not those before have their answers (an open loop), each with `X-Request-Timeout: 1`, on
kept connections, of which there are as many as it takes. All of it is CPU-bound: the scripted `flood` makes its tokens
as fast as they are read. The generator runs in this process, on the same cores; its share is in the table.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

import uvloop

from bench import report, wire
from bench.hops import HERE, Meter, chain, used
from bench.report import Table, met, percentile
from lambdalm.testing.chain import Chain

_TOKENS = (10_000, 50_000)  # of a plain answer: some 50 and 250 kB
_CLIENTS = 64
_TIMES = 10
_BUDGET = 1.0  # seconds
_ANSWERED = 1.1  # seconds in which every request is to be answered or refused
_REFUSED = 50.0  # ms, p99
_GOODPUT = 0.9  # of the peak
_LOST = 5.0  # seconds after which a request counts as never answered


class Outcome(NamedTuple):
    """One request: its status (0: none came), how long that took in seconds, and whether it says when to come back."""

    status: int
    seconds: float
    comes_back: bool


class Overload(NamedTuple):
    """What one spell of overload gave; `cpu` has the seconds of CPU of each process."""

    outcomes: list[Outcome]
    seconds: float
    cpu: Mapping[str, float]


def request_of(tokens: int) -> bytes:
    """A request for a plain answer of this many tokens, within the budget."""
    query = wire.query(prompt="x", model="flood", max_tokens=tokens, memory="off")
    return query.replace(b"\r\n\r\n", b"\r\nX-Request-Timeout: %g\r\n\r\n" % _BUDGET, 1)


async def peak(port: int, request: bytes, seconds: float) -> float:
    """Answers a second that the chain gives to clients that ask again when they have their answer."""
    end = time.perf_counter() + seconds
    answered = 0

    async def client() -> None:
        nonlocal answered
        connection = await wire.Connection.open(port)
        while time.perf_counter() < end:
            response = await connection.ask(request)
            answered += response.status == 200
        connection.close()

    await asyncio.gather(*(client() for _ in range(_CLIENTS)))
    return answered / seconds


class _Clients:
    """Connections that are kept; a request that finds none idle opens one."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self._idle: list[wire.Connection] = []

    async def ask(self, start: float) -> Outcome:
        """Ask once; `start` is when the request arrived, on perf_counter's clock."""
        try:
            async with asyncio.timeout(_LOST):
                connection = self._idle.pop() if self._idle else await wire.Connection.open(self._port)
                response = await connection.ask(self._request)
        except (TimeoutError, OSError):
            return Outcome(0, time.perf_counter() - start, False)
        self._idle.append(connection)
        return Outcome(response.status, time.perf_counter() - start, "retry-after" in response.headers)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


async def overload(port: int, request: bytes, meter: Meter, rate: float, seconds: float) -> Overload:
    """Send `rate` requests a second for `seconds`, whether or not earlier ones were answered."""
    clients = _Clients(port, request)
    start, before = time.perf_counter(), meter.cpu()
    asked: list[asyncio.Task[Outcome]] = []
    while (now := time.perf_counter()) < start + seconds:
        due = int((now - start) * rate) - len(asked)
        asked += [asyncio.create_task(clients.ask(now)) for _ in range(due)]
        await asyncio.sleep(0.001)
    took, cpu = time.perf_counter() - start, used(before, meter.cpu())
    outcomes = await asyncio.gather(*asked)
    clients.close()
    return Overload(outcomes, took, cpu)


def _table(found: Overload, most: float, tokens: int) -> Table:
    answered = [one for one in found.outcomes if one.status == 200]
    refused = [one for one in found.outcomes if one.status in (429, 503)]
    late = [one for one in found.outcomes if one.status == 504]
    others = len(found.outcomes) - len(answered) - len(refused) - len(late)
    slowest = max(one.seconds for one in found.outcomes)
    p99 = 1000 * percentile([one.seconds for one in refused] or [0.0], 0.99)
    silent = sum(not one.comes_back for one in refused)
    goodput = len(answered) / found.seconds
    rows: list[tuple[report.Cell, ...]] = [
        ("answers a second at the peak", f"{most:.0f}", "", ""),
        ("requests a second", f"{len(found.outcomes) / found.seconds:.0f}", f"{_TIMES} × the peak", ""),
        ("answered (goodput) a second", f"{goodput:.0f}", f"≥ {_GOODPUT:.0%}", met(goodput >= _GOODPUT * most)),
        ("answered, p99", f"{percentile([one.seconds for one in answered] or [0.0], 0.99):.2f} s", "", ""),
        ("refused a second", f"{len(refused) / found.seconds:.0f}", "", ""),
        ("refused, p99", f"{p99:.1f} ms", f"< {_REFUSED:g} ms", met(p99 < _REFUSED)),
        ("refused without Retry-After", str(silent), "0", met(silent == 0)),
        ("out of time (504)", str(len(late)), "", ""),
        ("slowest of all", f"{slowest:.2f} s", f"≤ {_ANSWERED:g} s", met(slowest <= _ANSWERED)),
        ("anything else", str(others), "0", met(others == 0)),
    ]
    shares = ", ".join(f"{name} {100 * seconds / found.seconds:.0f} %" for name, seconds in found.cpu.items())
    notes = (f"CPU of a core meanwhile: {shares} (of {HERE}: this program)",)
    title = f"(2) {_TIMES} × CPU-bound overload for {found.seconds:.0f} s, plain answers of {tokens} tokens"
    return Table(title, ("", "found", "goal", "met"), rows, notes)


async def _measure(up: Chain, tokens: int, seconds: float) -> Table:
    meter, request = Meter.of(up), request_of(tokens)
    await peak(up.ports.edge, request, 2)  # warm up
    report.progress(f"the peak, for {seconds / 2:g} s")
    most = await peak(up.ports.edge, request, seconds / 2)
    report.progress(f"{_TIMES} times {most:.0f} requests a second, for {seconds:g} s")
    return _table(await overload(up.ports.edge, request, meter, _TIMES * most, seconds), most, tokens)


def measure(options: argparse.Namespace) -> list[Table]:
    with chain({}) as up:
        tables = (uvloop.run(_measure(up, tokens, options.overload_seconds)) for tokens in _TOKENS)
        return [report.show(table) for table in tables]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overload-seconds", type=float, default=20.0, help="of overload (default 20)")


if __name__ == "__main__":
    sys.exit(report.run(__doc__, measure, add_options))
