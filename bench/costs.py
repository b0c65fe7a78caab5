"""What a unit of work costs in CPU: sides that are compared take turns at each kind of load, and two tables say it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from bench import report, rounds
from bench.closed_loop import Sample
from bench.hops import AROUND, Meter, used
from bench.report import Cell, Table, met, percentile

_IDLE_SECONDS = 10.0


class Side(NamedTuple):
    """What is measured: who answers on `port`, the processes that `meter` sees, and `idle`, the CPU seconds that each
    uses in a second without load."""

    name: str
    port: int
    meter: Meter
    idle: Mapping[str, float] = {}

    def costs(self, sample: Sample) -> dict[str, float]:
        """CPU µs of each process for one unit, less what it would have used without load."""
        return {
            name: 1e6 * (seconds - self.idle.get(name, 0.0) * sample.seconds) / sample.units
            for name, seconds in sample.cpu.items()
            if name not in AROUND
        }

    def cost(self, sample: Sample) -> float:
        """CPU µs for one unit, of all processes together."""
        return sum(self.costs(sample).values())


class Case(NamedTuple):
    """One kind of load. `goal` is the ratio of costs that it should reach at most."""

    name: str
    unit: str
    goal: float
    take: Callable[[Side], Awaitable[Sample]]


class Found(NamedTuple):
    """A case, and each side's samples, round by round."""

    case: Case
    sides: Sequence[Side]
    samples: Sequence[Sequence[Sample]]

    def costs(self, index: int) -> list[float]:
        """CPU µs for one unit at a side, round by round."""
        return list(map(self.sides[index].cost, self.samples[index]))

    def ratios(self, index: int, base: int) -> list[float]:
        """A side's cost over that of the side `base`, round by round."""
        return [a / b for a, b in zip(self.costs(index), self.costs(base), strict=True)]

    def spread(self, base: int) -> float:
        """The widest of the ratios; where nothing is compared, that of the cost."""
        others = [self.ratios(index, base) for index in range(len(self.sides)) if index != base]
        return max(map(rounds.spread, others or [self.costs(base)]))


async def with_idle(sides: Sequence[Side]) -> list[Side]:
    """The same with what they use while nothing is asked of any of them."""
    report.progress(f"what the processes use without load, for {_IDLE_SECONDS:g} s")
    before = [side.meter.cpu() for side in sides]
    await asyncio.sleep(_IDLE_SECONDS)
    after = [side.meter.cpu() for side in sides]
    shares = [
        {name: seconds / _IDLE_SECONDS for name, seconds in used(a, b).items()}
        for a, b in zip(before, after, strict=True)
    ]
    return [side._replace(idle=idle) for side, idle in zip(sides, shares, strict=True)]


async def compare(case: Case, sides: Sequence[Side], base: int, most: int) -> Found:
    """The sides in turns, until their ratios to the side `base` are precise, or for `most` rounds."""
    report.progress(f"CPU of a {case.unit}: {case.name}")

    def precise(samples: Sequence[Sequence[Sample]]) -> bool:
        return Found(case, sides, samples).spread(base) <= rounds.PRECISE

    return Found(case, sides, await rounds.alternate(sides, case.take, precise, most))


def cost_table(title: str, found: Sequence[Found], *notes: str) -> Table:
    """A row for each case and side."""
    names = list(dict.fromkeys(name for one in found for side in one.sides for name in side.meter.names))
    measured = [name for name in names if name not in AROUND]
    around = [name for name in names if name in AROUND]
    columns = ("", "side", *measured, "sum", "± %", "idle", "p50 ms", "p99 ms", "a second")
    rows = [_cost_row(one, index, measured, around) for one in found for index in range(len(one.sides))]
    about = (
        "± %: half of the 95 % interval of the sum; idle: subtracted from the sum, what the processes use without load",
        "in % of a core: what stands around that which is measured",
    )
    return Table(title, (*columns, *(f"{name} %" for name in around), "units", "rounds"), rows, (*about, *notes))


def _cost_row(one: Found, index: int, measured: Sequence[str], around: Sequence[str]) -> tuple[Cell, ...]:
    side, whole = one.sides[index], _whole(one.samples[index])
    costs = side.costs(whole)
    idle = 1e6 * whole.seconds / whole.units * sum(side.idle.get(name, 0.0) for name in costs)
    spread = _percent(rounds.spread(one.costs(index)))
    times = [percentile(whole.latencies, q) if whole.latencies else "" for q in (0.5, 0.99)]
    shares = [100 * whole.cpu[name] / whole.seconds for name in around]
    return (
        one.case.name, side.name, *(costs.get(name, "") for name in measured), sum(costs.values()), spread, idle,
        *times, whole.units / whole.seconds, *shares, whole.units, len(one.samples[index]),
    )  # fmt: skip


def _whole(samples: Sequence[Sample]) -> Sample:
    """All rounds of a side as one."""
    return Sample(
        sum(sample.units for sample in samples),
        {name: sum(sample.cpu[name] for sample in samples) for name in samples[0].cpu},
        sum(sample.seconds for sample in samples),
        [ms for sample in samples for ms in sample.latencies],
    )


def _percent(spread: float) -> Cell:
    return 100 * spread if math.isfinite(spread) else ""


def ratio_table(title: str, found: Sequence[Found], base: int, *notes: str) -> Table:
    """A row for each case and each side but `base`: its cost over that of `base`, and whether the goal was reached."""
    rows = list(_ratio_rows(found, base))
    name = found[0].sides[base].name
    return Table(title, ("", "side", "CPU µs", f"{name} µs", "ratio", "± %", "goal", "met"), rows, notes)


def _ratio_rows(found: Sequence[Found], base: int) -> Iterator[tuple[Cell, ...]]:
    for one in found:
        against = one.sides[base].cost(_whole(one.samples[base]))
        for index, side in enumerate(one.sides):
            if index != base:
                cost, goal = side.cost(_whole(one.samples[index])), one.case.goal
                ratio, spread = cost / against, _percent(rounds.spread(one.ratios(index, base)))
                yield one.case.name, side.name, cost, against, ratio, spread, f"≤ {goal:g}", met(ratio <= goal)
