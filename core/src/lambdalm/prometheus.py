"""Metrics of a server for Prometheus, also where several worker processes serve one port.

With several workers each process counts for itself in files that `prometheus_client` shares (its multiprocess mode, on
where PROMETHEUS_MULTIPROC_DIR is set); the worker that is asked then answers for all.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

_SHARED = "PROMETHEUS_MULTIPROC_DIR"


def exposition(registry: CollectorRegistry) -> tuple[str, bytes]:
    """Content type and body of `/metrics`."""
    if _SHARED in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return CONTENT_TYPE_LATEST, generate_latest(registry)


@contextlib.contextmanager
def shared(workers: int) -> Iterator[Callable[[int], None]]:
    """Around the processes that count together; gives a function for the process id of each that has ended."""
    if workers == 1 or _SHARED in os.environ:
        yield lambda pid: None
        return
    with tempfile.TemporaryDirectory(prefix="lambdalm-metrics-", ignore_cleanup_errors=True) as folder:
        os.environ[_SHARED] = folder
        yield partial(mark_process_dead, path=folder)


def gauge(name: str, about: str, labels: list[str], registry: CollectorRegistry, mode: str) -> Gauge:
    """A gauge; `mode` says how the values of several workers become one (`livesum`, `livemax`, `livemin`)."""
    return Gauge(name, about, labels, registry=registry, multiprocess_mode=mode)  # type: ignore[arg-type]
