"""A closed-loop load generator: clients on kept connections, each of which asks again when it has its answer."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from bench import wire
from bench.hops import Meter, used


class Sample(NamedTuple):
    """What a spell of load gave: how much was done (requests or tokens), the CPU seconds that each process used for it,
    how long it took in seconds, and each request's latency in ms."""

    units: int
    cpu: dict[str, float]
    seconds: float
    latencies: list[float]


class Ask(NamedTuple):
    """A request, what its answer must have in it, and the units that it counts for."""

    request: bytes
    expected: bytes
    units: int = 1


async def ask(port: int, meter: Meter, what: Ask, count: int, at_once: int) -> Sample:
    """Ask at least `count` times in all over `at_once` connections.

    Raises ConnectionError for an answer that is not 200, or does not have in it what is expected.
    """
    latencies: list[float] = []
    each = -(-count // at_once)

    async def client(connection: wire.Connection) -> None:
        for _ in range(each):
            start = time.perf_counter()
            response = await connection.ask(what.request)
            latencies.append(1000 * (time.perf_counter() - start))
            if response.status != 200 or what.expected not in response.body:
                raise ConnectionError(f"HTTP {response.status}: {response.body[:500]!r}")
        connection.close()

    connections = [await wire.Connection.open(port) for _ in range(at_once)]
    start, before = time.perf_counter(), meter.cpu()
    await asyncio.gather(*map(client, connections))
    return Sample(what.units * each * at_once, used(before, meter.cpu()), time.perf_counter() - start, latencies)
