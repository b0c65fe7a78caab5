"""A process whose parent holds its standard input, when that ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lambdalm import parent

WAIT = 20  # seconds until a test that waits has failed

PROGRAM = """
import os, signal, sys, threading
from lambdalm import parent
parent.end_with_it()
parent.end_with_it()
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    print(threading.active_count(), flush=True)
    threading.Event().wait()
except KeyboardInterrupt:
    sys.exit(7)
"""


def child(manner: str, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, manner],
        env={**os.environ, **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


@pytest.mark.parametrize(("manner", "status"), [("ready", 7), ("stubborn", 1)])
def test_child_ends_when_its_parent_is_gone(manner: str, status: int) -> None:
    with child(manner, parent.HELD) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"2\n", "the watch runs once"
        process.stdin.close()
        assert process.wait(WAIT) == status


def test_end_of_input_means_nothing_without_a_holder() -> None:
    with child("ready", {}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n", "nothing watches"
        process.kill()
