"""What the chain costs: CPU of each hop for a plain answer, for a streamed frame and for a token.

Plain answers are the scripted `echo`, asked over kept connections: each in a new session, as shipped, and without
sessions. Frames are those of the scripted `slow`, 20 tokens a second, as they arrive at the client: each has one token
until there are many streams. Tokens are those of `flood`, where many are due at once and travel joined.

With `--before COMMIT` a chain of that commit runs, too, and the two take turns: one is idle while the other is asked.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import uvloop

from bench import costs, environments, report, stream_load, wire
from bench.closed_loop import Ask, Sample, ask
from bench.costs import Case, Found, Side
from bench.hops import Meter, chain, chain_of, own_files, room_for
from bench.report import Table

_PROMPT = "What goes up must come down."
_SESSIONS: dict[str, dict[str, Any]] = {"on": {}, "off": {"memory": "off"}}  # fields of a request; on: as shipped
_AT_ONCE = (1, 8, 64)
_STREAMS = (1, 30, 100, 300)
_STREAMS_STARTED = 100  # a second
_FLOOD_TOKENS = 200
_FLOODS = 20  # a round
_WARM_UP = 300  # requests
_PLAIN_GOAL = 0.5
_FRAME_GOAL = 0.45
_NOTES = {
    "frame": ("p50 and p99 are the gaps between the frames of a stream; a stream has 20 tokens a second",),
    "token": ("p50 and p99 are those of the whole answer",),
}

_ECHO = {
    sessions: Ask(wire.query(prompt=_PROMPT, model="echo", **fields), _PROMPT.encode())
    for sessions, fields in _SESSIONS.items()
}
_FLOOD = Ask(
    wire.query(prompt="x", model="flood", max_tokens=_FLOOD_TOKENS, stream=True), b'"type":"finished"', _FLOOD_TOKENS
)


async def _asked(side: Side, what: Ask, count: int, at_once: int) -> Sample:
    return await ask(side.port, side.meter, what, count, at_once)


async def _streamed(side: Side, streams: int, seconds: float) -> Sample:
    """The seconds in which all streams are held; its latencies are the gaps between frames of a stream.

    Raises ConnectionError for a stream that is not as it should be.
    """
    ramp = streams / _STREAMS_STARTED
    run = await stream_load.load(side.port, side.meter, streams, ramp + seconds, ramp)
    for outcome in run.outcomes:
        if outcome.text != run.expected:
            raise ConnectionError(f"{side.name}: a stream of {len(outcome.text)} characters: {outcome.failure}")
    return Sample(len(run.frames), run.window.cpu, run.window.seconds, run.gaps)


def _cases(requests: int, seconds: float) -> Iterator[Case]:
    for sessions, what in _ECHO.items():
        for at_once in _AT_ONCE:
            take = partial(_asked, what=what, count=requests, at_once=at_once)
            yield Case(f"{at_once} at once, sessions {sessions}", "request", _PLAIN_GOAL, take)
    for streams in _STREAMS:
        yield Case(f"{streams} × `slow`", "frame", _FRAME_GOAL, partial(_streamed, streams=streams, seconds=seconds))
    yield Case("1 × `flood`", "token", _FRAME_GOAL, partial(_asked, what=_FLOOD, count=_FLOODS, at_once=1))


async def _measure(sides: Sequence[Side], options: argparse.Namespace) -> list[Found]:
    for side in sides:
        await ask(side.port, side.meter, _ECHO["on"], _WARM_UP, 8)
    sides = await costs.with_idle(sides)
    cases = _cases(options.requests, options.stream_seconds)
    return [await costs.compare(case, sides, 0, options.rounds) for case in cases]


@contextlib.contextmanager
def _sides(before: str | None) -> Iterator[list[Side]]:
    """The chain as it is, after that of the commit `before`."""
    room = room_for(max(_STREAMS) + 100)
    with contextlib.ExitStack() as stack:
        chains = {}
        if before:
            old = environments.of_commit(before)
            chains["before"] = stack.enter_context(chain_of(old, {**room, **stack.enter_context(own_files())}))
        chains["now"] = stack.enter_context(chain({**room, **stack.enter_context(own_files())}))
        yield [Side(name, up.ports.edge, Meter.of(up)) for name, up in chains.items()]


def _tables(found: Sequence[Found]) -> Iterator[Table]:
    for unit in ("request", "frame", "token"):
        these = [one for one in found if one.case.unit == unit]
        yield costs.cost_table(f"(10) CPU µs per {unit}", these, *_NOTES.get(unit, ()))
        if len(these[0].sides) > 1:
            yield costs.ratio_table(f"(10) CPU per {unit}, all hops: now over before", these, 0)


def measure(options: argparse.Namespace) -> list[Table]:
    with _sides(options.before) as sides:
        found = uvloop.run(_measure(sides, options))
    return [report.show(table) for table in _tables(found)]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--before", metavar="COMMIT", help="compare with the chain of this commit, in turns")
    parser.add_argument("--requests", type=int, default=600, help="plain answers a round (default 600)")
    parser.add_argument("--stream-seconds", type=float, default=8.0, help="of streams, a round (default 8)")
    parser.add_argument("--rounds", type=int, default=8, help="at most; four if they are within 3 %% (default 8)")


if __name__ == "__main__":
    sys.exit(report.run(__doc__, measure, add_options))
