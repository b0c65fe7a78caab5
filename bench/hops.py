"""The chain under measurement: its processes, what they use, and the backend's own word on what it is doing."""

from __future__ import annotations

import http.client
import json
import resource
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import psutil

from lambdalm.testing.chain import Chain, free_ports

HERE = "load generator"
"""The name of this process, beside those of the hops."""

_NO_PROXY_LOG: Callable[[str, str], None] = lambda hop, line: None  # noqa: E731


def chain(environ: Mapping[str, str], on_line: Callable[[str, str], None] = _NO_PROXY_LOG) -> Chain:
    """The three hops on free ports, the scripted provider behind them unless `environ` says otherwise."""
    _raise_open_files()
    return Chain(free_ports(), {"PROVIDER": "scripted", **environ}, on_line)


def room_for(streams: int) -> dict[str, str]:
    """The environment in which every hop takes `streams` at a time."""
    names = ("BACKEND_MAX_IN_FLIGHT", "UPSTREAM_MAX_IN_FLIGHT", "PARALLEL_SLOTS", "QUEUE_SIZE", "LLM_MAX_CONNECTIONS")
    return {name: str(streams) for name in names}


class Meter:
    """CPU time and memory of each hop, with all of its processes, and of this process. Make it when the chain is up."""

    def __init__(self, chain: Chain) -> None:
        self._processes = {name: _with_children(hop.process.pid) for name, hop in chain.hops.items()}
        self._processes[HERE] = [psutil.Process()]

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
    """Seconds of CPU that all processes of this machine have used, whoever's they are."""
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
    times = process.cpu_times()
    return float(times.user + times.system)


def _raise_open_files() -> None:
    """Each stream is a socket or two at every hop; children inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
