"""`serve --reload`: the server as a child process, which is started again when a file changes. For developing.

A fork would keep the modules and the config of its parent, so that the child is a process of its own: the same command
without `--reload`. It has a process group of its own, too, so that Ctrl-C reaches it once, through here. Signals are
passed on, and this process ends when its child has ended; after SIGKILL the child ends by itself (see `parent`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from lambdalm import parent

_LOOK_SECONDS = 0.2
_PATIENCE = 60.0  # seconds for a child to stop; more than a server's grace

_Stamps = dict[Path, tuple[int, int]]


class Reloader:
    """Runs this program's own command over and over. `watched` are files, and folders with their .py files."""

    def __init__(self, watched: Sequence[Path], tell: Callable[[str], None]) -> None:
        self._watched = watched
        self._tell = tell
        self._asked: int | None = None  # the signal to stop, when one has come

    def run(self) -> int:
        """Returns the exit status of the last child, when SIGTERM or Ctrl-C has stopped it."""
        with self._listening():
            while True:
                stamps = self._stamps()
                with _child() as child:
                    changed = self._wait_for_change(child, stamps)
                    self._stop(child)
                if self._asked is not None:
                    return max(child.returncode, 0)
                self._tell(f"{', '.join(sorted(path.name for path in changed))} changed: starting anew")

    def _wait_for_change(self, child: subprocess.Popen[bytes], stamps: _Stamps) -> set[Path]:
        """The files that are not as they were, or none when the signal to stop has come."""
        running = True
        while self._asked is None:
            if running and child.poll() is not None:
                running = False
                self._tell(f"the server has ended (status {child.returncode}): waiting for a change")
            now = self._stamps()
            if now != stamps:
                return {path for path, _ in now.items() ^ stamps.items()}
            time.sleep(_LOOK_SECONDS)
        return set()

    def _stop(self, child: subprocess.Popen[bytes]) -> None:
        """Pass the signal on, and further ones; without one it is SIGINT, for which servers do not wait long."""
        deadline = time.monotonic() + _PATIENCE
        sent = None
        while child.poll() is None:
            wanted = self._asked or signal.SIGINT
            if wanted != sent:
                child.send_signal(wanted)
                sent = wanted
            if time.monotonic() > deadline:
                os.killpg(child.pid, signal.SIGKILL)
            time.sleep(_LOOK_SECONDS)

    def _stamps(self) -> _Stamps:
        """When each file was written, and its size."""
        stamps: _Stamps = {}
        for path in self._watched:
            for file in path.rglob("*.py") if path.is_dir() else [path]:
                with contextlib.suppress(OSError):  # it is being replaced
                    stat = file.stat()
                    stamps[file] = stat.st_mtime_ns, stat.st_size
        return stamps

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Remember signals: whoever raises in the middle of a start would leave a child behind."""

        def remember(number: int, _frame: FrameType | None) -> None:
            self._asked = number

        before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _child() -> subprocess.Popen[bytes]:
    """This program as it was called, without `--reload`; held by this process."""
    command = [sys.executable, *(argument for argument in sys.orig_argv[1:] if argument != "--reload")]
    environ = {**os.environ, **parent.HELD}
    return subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, process_group=0)  # noqa: S603  # our own command
