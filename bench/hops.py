"""The chain under measurement: its processes, what they use, and the backend's own word on what it is doing."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Self

import psutil

from lambdalm.testing.chain import MODULES, Chain, Kind, free_ports

HERE = "load generator"
"""The name of this process, beside those of the hops."""

UPSTREAM = "upstream"
"""The name of a server behind the hops that a program here brings with it."""

AROUND = (UPSTREAM, HERE)
"""Processes that a measurement needs and does not measure."""


def chain(environ: Mapping[str, str], kinds: Mapping[str, Kind] = {}) -> Chain:
    """The three hops on free ports, the scripted provider behind them unless `environ` says otherwise."""
    _raise_open_files()
    return Chain(free_ports(), {"PROVIDER": "scripted", **environ}, kinds=kinds)


def chain_of(python: Path, environ: Mapping[str, str]) -> Chain:
    """The three hops as another interpreter has them installed."""
    elsewhere = {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}  # nothing of the sources that this process sees
    return chain({**elsewhere, **environ}, {kind: Kind(python=str(python)) for kind in MODULES})


@contextlib.contextmanager
def own_files() -> Iterator[dict[str, str]]:
    """The environment in which a chain keeps sessions and interaction log in a new folder, which goes afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield {"STORE_SQLITE_PATH": f"{folder}/store.sqlite", "INTERACTION_LOG_FILE": f"{folder}/interactions.jsonl"}


def room_for(streams: int) -> dict[str, str]:
    """The environment in which every hop takes `streams` at a time."""
    names = ("BACKEND_MAX_IN_FLIGHT", "UPSTREAM_MAX_IN_FLIGHT", "PARALLEL_SLOTS", "QUEUE_SIZE", "LLM_MAX_CONNECTIONS")
    return {name: str(streams) for name in names}


class Meter:
    """CPU time and memory of programs, each with all of its processes, and of this process.

    `pids` has the first process of each. Make it when they are up: it looks for their children once.
    """

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._processes = {name: _with_children(pid) for name, pid in pids.items()}
        self._processes[HERE] = [psutil.Process()]

    @classmethod
    def of(cls, chain: Chain, more: Mapping[str, int] = {}) -> Self:
        """Of a chain's hops, and of the programs in `more`."""
        return cls({**{name: hop.process.pid for name, hop in chain.hops.items()}, **more})

    @property
    def names(self) -> list[str]:
        return list(self._processes)

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU (user and system) used since each started."""
        return {name: sum(map(_cpu, processes)) for name, processes in self._processes.items()}

    def rss(self) -> dict[str, float]:
        """Resident memory in MiB; pages that a hop's processes share count once for each."""
        return {
            name: sum(process.memory_info().rss for process in processes) / 2**20
            for name, processes in self._processes.items()
        }


def machine_cpu() -> float:
    """Seconds of CPU that all processes of this machine have used."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def used(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What came between two readings of a Meter."""
    return {name: after[name] - before[name] for name in before}


class Engine(NamedTuple):
    """What the backend's /health says: requests that hold a slot, and those that wait for one."""

    in_flight: int
    waiting: int


class BackendHealth:
    """Asks the backend's /health over one kept connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def engine(self) -> Engine:
        self._connection.request("GET", "/health")
        body = json.loads(self._connection.getresponse().read())
        return Engine(body["in_flight"], body["waiting"])

    def wait(self, engine: Engine, pause: float = 0.001, limit: float = 20.0) -> float:
        """Look until it says so; returns when it did (perf_counter seconds). Raises TimeoutError after `limit`."""
        end = time.perf_counter() + limit
        while self.engine() != engine:
            if time.perf_counter() > end:
                raise TimeoutError(f"the backend does not come to {engine}; it says {self.engine()}")
            time.sleep(pause)
        return time.perf_counter()

    def close(self) -> None:
        self._connection.close()


def _with_children(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _cpu(process: psutil.Process) -> float:
    """Seconds of CPU. On Linux from the process's own clock (clock_getcpuclockid(3)), which counts nanoseconds;
    elsewhere in ticks of 10 ms."""
    if sys.platform == "linux":
        return time.clock_gettime((~process.pid << 3) | 2)
    times = process.cpu_times()
    return float(times.user + times.system)


def _raise_open_files() -> None:
    """Each stream is a socket or two at every hop; children inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
