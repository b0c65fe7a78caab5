"""What the backend's tests share: calls, and the backend as a process of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from lambdalm.call import Call
from lambdalm.testing.chain import Chain, free_ports
from lambdalm.timings import HopClock

WAIT = 45  # seconds until a test that waits has failed


def new_call(budget: float = WAIT) -> Call:
    return Call("r1", budget, HopClock("backend"))


@contextlib.contextmanager
def running_backend(**environ: str) -> Iterator[Chain]:
    """A scripted backend with this environment; `chain.backend_url` is where. What is left of it is killed."""
    listens = threading.Event()

    def on_line(hop: str, line: str) -> None:
        if "listening" in line:
            listens.set()

    chain = Chain(free_ports(), {"PROVIDER": "scripted", **environ}, on_line)
    chain.start("backend")
    hop = chain.hops["backend"]
    try:
        assert listens.wait(WAIT), hop.tail
        yield chain
    finally:
        if hop.alive:
            hop.kill()
        hop.stop()  # its log has been read to the end
