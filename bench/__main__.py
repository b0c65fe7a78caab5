"""All measurements of this chain, one after the other; `make bench` runs this. Takes about ten minutes."""

from __future__ import annotations

import argparse
import sys

from bench import added, cancel, features, greedy, overhead, overload, report, streams
from bench.report import Table

_PROGRAMS = (added, overhead, streams, cancel, greedy, overload, features)


def measure(options: argparse.Namespace) -> list[Table]:
    return [table for program in _PROGRAMS for table in program.measure(options)]


def add_options(parser: argparse.ArgumentParser) -> None:
    for program in _PROGRAMS:
        program.add_options(parser)


if __name__ == "__main__":
    sys.exit(report.run(__doc__, measure, add_options))
