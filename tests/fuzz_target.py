"""A hop under fuzz: what it holds before and after, what it logs, and what a run has found."""

from __future__ import annotations

import argparse
import collections
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import psutil

from lambdalm.testing.chain import Chain, free_ports

MIB = 2**20

_GROWN = 24.0  # MiB that a hop may be larger after any number of requests
_SETTLE_SECONDS = 20.0  # for a hop to close what it was left with
_FAULTS = ("Traceback", "Exception in", "a bug:", '"level": "error"', " error ")


class Target(NamedTuple):
    """One server: its name, port and process."""

    name: str
    port: int
    pid: int


class Held(NamedTuple):
    """What a server's processes hold: resident memory in MiB, and open connections."""

    rss: float
    connections: int


class Found(NamedTuple):
    """What a run has found. `answers` counts statuses, `faults` are sentences; there should be none."""

    target: Target
    requests: int
    seconds: float
    answers: collections.Counter[str]
    before: Held
    after: Held
    faults: list[str]

    def __str__(self) -> str:
        answers = ", ".join(f"{status}: {number}" for status, number in sorted(self.answers.items()))
        lines = [
            f"{self.target.name}: {self.requests} in {self.seconds:.0f} s; {answers}",
            f"  memory {self.before.rss:.1f} → {self.after.rss:.1f} MiB; open connections {self.before.connections} → "
            f"{self.after.connections}",
            *(f"  FAULT: {fault}" for fault in self.faults),
        ]
        return "\n".join(lines)


class Logs:
    """The lines of a chain's logs that speak of a fault in a hop. Give `line` to the Chain."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = collections.defaultdict(list)

    def line(self, hop: str, line: str) -> None:
        if any(fault in line for fault in _FAULTS) and len(self._lines[hop]) < 10:
            self._lines[hop].append(line)

    def faults(self) -> list[str]:
        return [f"the {hop} logs: {line}" for hop, lines in self._lines.items() for line in lines]


def held(target: Target) -> Held:
    """What the server holds now."""
    parent = psutil.Process(target.pid)
    processes = [parent, *parent.children(recursive=True)]
    rss = sum(process.memory_info().rss for process in processes) / MIB
    connections = [
        connection
        for process in processes
        for connection in process.net_connections(kind="tcp")
        if connection.laddr and connection.laddr.port == target.port and connection.raddr
    ]
    return Held(rss, len(connections))


def settled(target: Target, connections: int) -> Held:
    """What it holds when it has no more connections than these, or should have."""
    end = time.monotonic() + _SETTLE_SECONDS
    while (now := held(target)).connections > connections and time.monotonic() < end:
        time.sleep(0.1)
    return now


def remaining_faults(before: Held, after: Held, answers: bool) -> Iterator[str]:
    """What is wrong with a server after a run; `answers` tells whether it still does."""
    if after.connections > before.connections:
        yield f"{after.connections - before.connections} connections are left open"
    if after.rss > before.rss + _GROWN:
        yield f"its memory has grown by {after.rss - before.rss:.1f} MiB"
    if not answers:
        yield "it does not answer any more"


@contextlib.contextmanager
def chain_of(hops: tuple[str, ...]) -> Iterator[tuple[list[Target], Logs]]:
    """A scripted chain, and these hops of it."""
    logs = Logs()
    with Chain(free_ports(), {"PROVIDER": "scripted"}, logs.line) as chain:
        yield [Target(name, chain.port(name), chain.hops[name].process.pid) for name in hops], logs


def run(about: str | None, requests: int, hops: tuple[str, ...], fuzz: Callable[[Target, int, int], Found]) -> int:
    """The body of both programs: options, a chain, a run against each of these hops; 1 where there are faults."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--requests", type=int, default=requests, help=f"for each hop (default {requests})")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    faults: list[str] = []
    with chain_of(hops) as (targets, logs):
        for target in targets:
            found = fuzz(target, options.requests, options.seed)
            print(found, flush=True)
            faults += found.faults
        faults += logs.faults()
    for fault in logs.faults():
        print(f"FAULT: {fault}")
    return 1 if faults else 0


def main(about: str | None, requests: int, hops: tuple[str, ...], fuzz: Callable[[Target, int, int], Found]) -> None:
    sys.exit(run(about, requests, hops, fuzz))
