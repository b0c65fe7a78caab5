"""Tables of results: as aligned text for people, as JSON for machines."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

Cell = str | int | float


class Table(NamedTuple):
    """One table; columns of numbers (and empty cells) are aligned to the right. `notes` are the lines below it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """The table in plain text."""
        cells = [self.columns, *(tuple(_shown(cell) for cell in row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        right = [not any(isinstance(row[at], str) and row[at] for row in self.rows) for at in range(len(widths))]
        lines = [_line(row, widths, right) for row in cells]
        rule = "  ".join("-" * width for width in widths)
        return "\n".join([self.title, "", lines[0], rule, *lines[1:], *(f"  {note}" for note in self.notes)])


Measure = Callable[[argparse.Namespace], list[Table]]
"""Measures something with a program's options; returns what was found."""


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest of `values` that at least the share `q` (0 to 1) of them does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def met(ok: bool) -> str:
    """For the column that says whether a goal was reached."""
    return "yes" if ok else "NO"


def run(about: str | None, measure: Measure, add_options: Callable[[argparse.ArgumentParser], None]) -> int:
    """The body of every program here: options, machine, tables, and the JSON file if one is asked for."""
    parser = argparse.ArgumentParser(description=about)
    add_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the tables there")
    options = parser.parse_args()
    machine = _machine()
    print(", ".join(f"{key}: {value}" for key, value in machine.items()), flush=True)
    tables = measure(options)
    if options.json:
        options.json.write_text(_as_json(machine, tables), encoding="utf-8")
    return 0


def show(table: Table) -> Table:
    """Print a table as soon as it is there; returns it."""
    print(f"\n{table.text()}", flush=True)
    return table


def progress(what: str) -> None:
    """One line on stderr for the person who waits."""
    print(f"… {what}", file=sys.stderr, flush=True)


def _machine() -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _as_json(machine: dict[str, Any], tables: list[Table]) -> str:
    return json.dumps({"machine": machine, "tables": [table._asdict() for table in tables]}, indent=2) + "\n"


def _shown(cell: Cell) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    )
    return "  ".join(padded).rstrip()
