"""How long after its client hung up does the engine still work for a request? From hang-up at the edge to a free slot.

The clock starts when the client closes its socket and stops when the backend's /health, probed again and again over one
kept connection, first says that the slot is free (or that no request waits for one): so each time is an upper bound,
too high by at most one probe. The backend gives a slot back after the engine has stopped. Right before each hang-up the
engine is seen to be at work, and what it works at would last for ever, or for as long as the table says.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from bench import report, wire
from bench.hops import BackendHealth, Engine, chain
from bench.report import Table, met, percentile
from lambdalm.events import TextDelta
from lambdalm.stream import EventReader
from lambdalm.testing.chain import Chain

_GOAL = 100.0  # ms, p99
_IDLE = Engine(in_flight=0, waiting=0)
_BUSY = Engine(in_flight=1, waiting=0)
_LINE = Engine(in_flight=1, waiting=1)
_SECONDS = 20.0  # for anything to come

_PAUSE = 0.0005  # seconds between two looks

# Rewarded for repeating itself, the demo model counts until max_tokens: a second or more.
_LONG = {"prompt": "Count from 1 to 100.", "frequency_penalty": -2, "max_tokens": 2000, "stream": True}


class Case(NamedTuple):
    """A request, the state in which it is hung up on, and the state that says that it is over.

    `words` are read from the stream first; `held` is a request that keeps the only slot meanwhile.
    """

    name: str
    environ: Mapping[str, str]
    fields: Mapping[str, Any]
    before: Engine
    after: Engine = _IDLE
    words: int = 0
    held: bool = False


_ONE_SLOT = {"PARALLEL_SLOTS": "1"}
CASES = (
    Case("before the first token", _ONE_SLOT, {"prompt": "x", "model": "stall-first", "stream": True}, _BUSY),
    Case("in the middle, llama.cpp", {"PROVIDER": "llamacpp"}, _LONG, _BUSY, words=3),
    Case("in the middle, no token due", _ONE_SLOT, {"prompt": "x", "model": "stall", "stream": True}, _BUSY, words=3),
    Case("during a plain answer", _ONE_SLOT, {"prompt": "x", "model": "stall"}, _BUSY),
    Case("while waiting for a slot", _ONE_SLOT, {"prompt": "x", "model": "stall"}, _LINE, _BUSY, held=True),
)


class Round(NamedTuple):
    """Milliseconds from hang-up to the engine's stop, and how far apart the looks were."""

    stop: float
    look: float


@contextmanager
def _asked(port: int, fields: Mapping[str, Any], id: str) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as sock:
        sock.sendall(wire.query(id, **fields))
        yield sock


def _read_words(sock: socket.socket, count: int) -> None:
    """Read the stream until its text has `count` words (a frame may hold several)."""
    body, reader, text = wire.ChunkedBody(), EventReader(), ""
    while text.count(" ") < count:
        for event in reader.feed(body.feed(sock.recv(4096))):
            text += event.text if isinstance(event, TextDelta) else ""


def _hang_up(case: Case, up: Chain, health: BackendHealth, id: str) -> Round:
    with _asked(up.ports.edge, case.fields, id) as sock:
        _read_words(sock, case.words)
        health.wait(case.before)
        start = time.perf_counter()
    looks = 0
    while True:
        looks += 1
        engine = health.engine()
        stop = time.perf_counter()
        if engine == case.after:
            return Round(1000 * (stop - start), 1000 * (stop - start) / looks)
        if stop - start > _SECONDS:
            raise TimeoutError(f"{case.name}: the engine has not stopped after {_SECONDS:g} s; it says {engine}")
        time.sleep(_PAUSE)


def _rounds(case: Case, up: Chain, count: int) -> list[Round]:
    health = BackendHealth(up.ports.backend)
    rounds = []
    for number in range(count):
        health.wait(case.after)
        rounds.append(_hang_up(case, up, health, f"hangup-{number}-of-{count}"))
        time.sleep(0.01)
    health.close()
    return rounds


def _undisturbed(case: Case, up: Chain) -> report.Cell:
    """How long the generation takes undisturbed, in ms; the scripted ones that are used here never end."""
    if "model" in case.fields:
        return "for ever"
    start = time.perf_counter()
    with _asked(up.ports.edge, case.fields, "undisturbed") as sock:
        while b"event: finished" not in sock.recv(65536):
            pass
    return 1000 * (time.perf_counter() - start)


def _case(case: Case, count: int) -> tuple[report.Cell, ...]:
    report.progress(f"hang-up {case.name}, {count} times")
    with chain(case.environ) as up:
        undisturbed = _undisturbed(case, up)
        with _asked(up.ports.edge, case.fields, "the-holder") if case.held else nullcontext():
            rounds = _rounds(case, up, count)
    stops = [found.stop for found in rounds]
    p99 = percentile(stops, 0.99)
    look = percentile([found.look for found in rounds], 0.5)
    return case.name, percentile(stops, 0.5), p99, max(stops), met(p99 <= _GOAL), look, undisturbed


def measure(options: argparse.Namespace) -> list[Table]:
    rows = [_case(case, options.rounds) for case in CASES]
    columns = ("hang-up", "p50 ms", "p99 ms", "max ms", f"p99 ≤ {_GOAL:g}", "ms a probe", "undisturbed ms")
    notes = (
        f"{options.rounds} rounds each, one request at a time; each time is too high by at most a probe",
        "undisturbed: how long that generation lasts without a hang-up",
    )
    return [report.show(Table("(4) from hang-up to the engine's stop", columns, rows, notes))]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=50, help="hang-ups of each kind (default 50)")


if __name__ == "__main__":
    sys.exit(report.run(__doc__, measure, add_options))
