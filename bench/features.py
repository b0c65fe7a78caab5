"""What each feature of the gRPC proxy costs: its own added time and its CPU for a request, with and without it.

One scripted backend, and for each row a proxy of its own before it; they take turns, so that what else the machine does
meets all alike. Asked is `Generate` of the scripted `echo` over gRPC, some calls at a time. The proxy's own time is
`own_ms` in the answer's timings: all but what the backend had, so the wire to the backend is in it, and the work that
is done after an answer's end (a quota settled) is in the CPU only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import uvloop

from bench import report
from bench.hops import Meter, room_for, used
from bench.report import Table, percentile
from lambdalm.testing.chain import Chain, free_ports
from lambdalm.testing.valkey import redis_server
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc

_TURNS = 10  # of a session, before a client begins another one
_WARM_UP = 50
_ROUNDS = 5  # the proxies take turns
_READY_SECONDS = 20.0

Metadata = tuple[tuple[str, str], ...]


class Row(NamedTuple):
    """One way to run the proxy and to ask it. `session` says whether clients come back to theirs."""

    name: str
    environ: Mapping[str, str]
    memory: pb.Memory
    session: bool = False
    key: str | None = None


class Found(NamedTuple):
    """Own times in ms, and CPU seconds of the proxy."""

    own: list[float]
    cpu: list[float]


class Client:
    """Asks one proxy, one call after the other, as one user."""

    def __init__(self, row: Row, channel: grpc.aio.Channel) -> None:
        self._row = row
        self._stub: Any = llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]
        self._key: Metadata = (("authorization", f"Bearer {row.key}"),) if row.key else ()
        self._cookies: Metadata = ()
        self._asked = 0

    async def ask(self) -> float:
        """The proxy's own ms."""
        if self._asked % _TURNS == 0:
            self._cookies = ()
        self._asked += 1
        request = pb.LLMRequest(prompt="What goes up must come down.", model="echo", memory=self._row.memory)
        call = self._stub.Generate(request, metadata=self._key + self._cookies, timeout=30)
        answer = await call
        if self._row.session:
            self._cookies = tuple(
                ("cookie", str(value).partition(";")[0])
                for name, value in await call.trailing_metadata()
                if name == "set-cookie"
            )
        return next(float(timing.own_ms) for timing in answer.timings if timing.hop == "proxy")


@contextlib.contextmanager
def _proxy(backend: str, environ: Mapping[str, str]) -> Iterator[Chain]:
    up = Chain(free_ports(), {"BACKEND_URL": backend, "LOG_LEVEL": "WARNING", **environ})
    up.start("proxy")
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while not _ready(up.health_url("proxy")):
            if time.monotonic() > deadline or not up.hops["proxy"].alive:
                raise RuntimeError(f"the proxy is not ready: {up.hops['proxy'].tail}")
            time.sleep(0.05)
        yield up
    finally:
        up.stop()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def _new_key(file: Path, *options: str) -> str:
    command = [sys.executable, "-m", "grpc_proxy", "key-create", f"bench{len(options)}", *options]
    ran = subprocess.run(command, env={"API_KEYS_FILE": str(file)}, capture_output=True, text=True, check=True)
    found = re.search(r"lm-\S+", ran.stdout)
    assert found is not None, ran
    return found[0]


def _rows(folder: Path, redis: str) -> list[Row]:
    """The first is what the others are compared with."""
    keys = {"API_KEYS_FILE": str(folder / "keys.yaml")}
    plain = _new_key(folder / "keys.yaml")
    limited = _new_key(folder / "keys.yaml", "--requests-per-minute", "10000000", "--tokens-per-day", "1000000000")
    in_redis = {"STORE": "redis", "REDIS_URL": redis}
    sqlite = {"STORE_SQLITE_PATH": str(folder / "bench.sqlite")}
    off, on = pb.MEMORY_OFF, pb.MEMORY_ON
    return [
        Row("without memory and keys", sqlite, off),
        Row("memory, a new session each, SQLite", sqlite, on),
        Row(f"memory, sessions of {_TURNS} turns, SQLite", sqlite, on, session=True),
        Row(f"memory, sessions of {_TURNS} turns, Redis", in_redis, on, session=True),
        Row(f"memory, sessions of {_TURNS} turns, store memory", {"STORE": "memory"}, on, session=True),
        Row("a key without limits", {**sqlite, **keys}, off, key=plain),
        Row("a key with limits, SQLite", {**sqlite, **keys}, off, key=limited),
        Row("a key with limits, Redis", {**in_redis, **keys}, off, key=limited),
        Row("memory and a key with limits, SQLite", {**sqlite, **keys}, on, session=True, key=limited),
    ]


async def _measure(rows: list[Row], ups: list[Chain], count: int, at_once: int) -> list[Found]:
    channels = [grpc.aio.insecure_channel(up.grpc_target) for up in ups]
    clients = [[Client(row, channel) for _ in range(at_once)] for row, channel in zip(rows, channels, strict=True)]
    meters = [Meter.of(up) for up in ups]
    found = [Found([], []) for _ in rows]
    for group in clients:
        await _ask(group, _WARM_UP)
    for _ in range(_ROUNDS):
        for group, meter, so_far in zip(clients, meters, found, strict=True):
            before = meter.cpu()
            so_far.own.extend(await _ask(group, count // _ROUNDS))
            so_far.cpu.append(used(before, meter.cpu())["proxy"])
    for channel in channels:
        await channel.close(None)
    return found


async def _ask(clients: list[Client], count: int) -> list[float]:
    async def each(client: Client) -> list[float]:
        return [await client.ask() for _ in range(count // len(clients))]

    return [ms for own in await asyncio.gather(*map(each, clients)) for ms in own]


def _table(rows: list[Row], found: list[Found], at_once: int) -> Table:
    cells: list[tuple[report.Cell, ...]] = []
    first = found[0]
    base = 1e6 * sum(first.cpu) / len(first.own)
    for row, one in zip(rows, found, strict=True):
        cpu = 1e6 * sum(one.cpu) / len(one.own)
        p50, p99 = percentile(one.own, 0.5), percentile(one.own, 0.99)
        cells.append((row.name, p50, p99, p50 - percentile(first.own, 0.5), cpu, cpu - base, len(one.own)))
    columns = ("", "own p50 ms", "own p99 ms", "p50 more", "CPU µs", "CPU more", "requests")
    return Table(f"(11) the proxy's own time and CPU per request, {at_once} at a time", columns, cells)


def measure(options: argparse.Namespace) -> list[Table]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-features-")))
        redis = stack.enter_context(redis_server(folder))
        rows = _rows(folder, redis.url)
        backend = Chain(free_ports(), {"PROVIDER": "scripted", "LOG_LEVEL": "WARNING", **room_for(64)})
        backend.start("backend")
        stack.callback(backend.stop)
        url = f"{backend.backend_url}/query"
        ups = [stack.enter_context(_proxy(url, row.environ)) for row in rows]
        tables = []
        for at_once in (1, 8):
            report.progress(f"{options.feature_requests} requests of each of {len(rows)} proxies, {at_once} at a time")
            found = uvloop.run(_measure(rows, ups, options.feature_requests, at_once))
            tables.append(report.show(_table(rows, found, at_once)))
        return tables


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--feature-requests", type=int, default=1000, help="requests for each row (default 1000)")


if __name__ == "__main__":
    sys.exit(report.run(__doc__, measure, add_options))
