"""This chain beside LiteLLM's proxy, before the same OpenAI-style server: CPU, rate and latency.

Three sides take turns: the edge and the proxy, which asks the server itself; all three hops, whose backend asks it; and
LiteLLM's proxy, one worker without database, telemetry and keys. The chain makes a new session for each request, as
shipped, which LiteLLM does not; `three hops, off` is without.

The first use installs LiteLLM from PyPI (`requirements/litellm.txt`) in an environment of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import uvloop

from bench import costs, litellm, report, upstream, wire
from bench.closed_loop import Ask, Sample, ask
from bench.costs import Case, Found, Side
from bench.hops import UPSTREAM, Meter, chain, own_files, room_for
from bench.report import Table
from bench.upstream import INSTANT, PACED, TEXT, TOKENS
from lambdalm.events import TextDelta
from lambdalm.stream import EventReader
from lambdalm.testing.chain import Kind

_TWO, _THREE, _OFF, _PEER = "edge + proxy", "three hops", "three hops, off", "LiteLLM"
_PROMPT = "What goes up must come down."
_AT_ONCE = (1, 8, 64)
_REQUEST_GOAL = 1 / 5
_TOKEN_GOAL = 1 / 4


def _request(side: str, model: str, stream: bool) -> bytes:
    if side == _PEER:
        messages = [{"role": "user", "content": _PROMPT}]
        return wire.post("/v1/chat/completions", {"model": model, "messages": messages, "stream": stream})
    memory: dict[str, Any] = {"memory": "off"} if side == _OFF else {}
    return wire.query(model=model, prompt=_PROMPT, stream=stream, **memory)


def _ask(side: str, model: str, stream: bool) -> Ask:
    if not stream:
        return Ask(_request(side, model, stream), TEXT.encode())
    end = b"[DONE]" if side == _PEER else b'"type":"finished"'
    return Ask(_request(side, model, stream), end, TOKENS)


async def _take(side: Side, model: str, stream: bool, count: int, at_once: int) -> Sample:
    return await ask(side.port, side.meter, _ask(side.name, model, stream), count, at_once)


def _cases(requests: int) -> Iterator[Case]:
    kinds: list[tuple[str, str, float, dict[str, Any]]] = [
        ("plain", "request", _REQUEST_GOAL, {"model": INSTANT, "stream": False, "count": requests}),
        ("tokens at once", "token", _TOKEN_GOAL, {"model": INSTANT, "stream": True, "count": requests // 4}),
        ("20 tokens/s", "token", _TOKEN_GOAL, {"model": PACED, "stream": True, "count": 1}),
    ]
    for name, unit, goal, how in kinds:
        for at_once in _AT_ONCE:
            yield Case(f"{name}, {at_once} at once", unit, goal, partial(_take, at_once=at_once, **how))


async def _check(side: Side) -> None:
    """Raises ConnectionError when a side's stream is not the upstream's text."""
    connection = await wire.Connection.open(side.port)
    response = await connection.ask(_request(side.name, INSTANT, True))
    connection.close()
    text = _chunks_text(response.body) if side.name == _PEER else _events_text(response.body)
    if text != TEXT:
        raise ConnectionError(f"{side.name} does not stream the text: HTTP {response.status}, {response.body[:500]!r}")


def _events_text(body: bytes) -> str:
    return "".join(event.text for event in EventReader().feed(body) if isinstance(event, TextDelta))


def _chunks_text(body: bytes) -> str:
    datas = [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: {")]
    choices = [choice for data in datas for choice in json.loads(data)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def _measure(sides: Sequence[Side], options: argparse.Namespace) -> list[Found]:
    for side in sides:
        await _check(side)
        await _take(side, INSTANT, False, options.peer_requests // 2, max(_AT_ONCE))
    sides = await costs.with_idle(sides)
    base = len(sides) - 1
    return [await costs.compare(case, sides, base, options.peer_rounds) for case in _cases(options.peer_requests)]


@contextlib.contextmanager
def _chain(environ: Mapping[str, str], up: upstream.Running, backends: int) -> Iterator[tuple[int, Meter]]:
    """The edge's port, and a meter of the hops and of the upstream."""
    with own_files() as files, chain({**files, **room_for(200), **environ}, {"backend": Kind(backends)}) as hops:
        yield hops.ports.edge, Meter.of(hops, {UPSTREAM: up.pid})


@contextlib.contextmanager
def _sides() -> Iterator[list[Side]]:
    """LiteLLM is the last one."""
    with contextlib.ExitStack() as stack:
        up = stack.enter_context(upstream.running())
        direct = {"BACKEND_URL": up.url, "BACKEND_DIALECT": "openai"}
        behind = {"PROVIDER": "openai", "OPENAI_BASE_URL": up.url}
        two = stack.enter_context(_chain(direct, up, 0))
        three = stack.enter_context(_chain(behind, up, 1))
        peer = stack.enter_context(litellm.running(up.url, (INSTANT, PACED)))
        meter = Meter({_PEER: peer.pid, UPSTREAM: up.pid})
        yield [Side(_TWO, *two), Side(_THREE, *three), Side(_OFF, *three), Side(_PEER, peer.port, meter)]


def _tables(found: Sequence[Found]) -> Iterator[Table]:
    for unit in ("request", "token"):
        these = [one for one in found if one.case.unit == unit]
        yield costs.cost_table(f"CPU µs per {unit}, beside LiteLLM", these, "p50 and p99: of the whole answer")
        yield costs.ratio_table(f"CPU per {unit}, over that of LiteLLM", these, len(these[0].sides) - 1)


def measure(options: argparse.Namespace) -> list[Table]:
    with _sides() as sides:
        found = uvloop.run(_measure(sides, options))
    return [report.show(table) for table in _tables(found)]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer-requests", type=int, default=200, help="plain answers a round and side (default 200)")
    parser.add_argument("--peer-rounds", type=int, default=6, help="at most; four if they are within 3 %% (default 6)")


if __name__ == "__main__":
    sys.exit(report.run(__doc__, measure, add_options))
