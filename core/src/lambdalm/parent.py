"""The process that started this one: a server that its parent holds ends with it, even when the parent is killed.

Theory of operation. The standard input of such a server is a pipe or a socket whose other end its parent keeps open, so
that its end of input means that the parent is gone. An environment variable says that standard input is one: a server
that was started by hand, by systemd or in a container pays no attention to its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

_VARIABLE = "LAMBDALM_PARENT_HOLDS_STDIN"
_LAST_WORDS_SECONDS = 0.8  # twice that, for a worker and its parent in turn, is less than 2 s
_STDIN = 0

HELD = {_VARIABLE: "1"}
"""For the environment of a child whose standard input its parent holds."""


def end_with_it() -> None:
    """Watch the parent, if it holds this process: when it is gone, stop as on Ctrl-C, and 0.8 s later in any case.

    Call it first thing in a server; called again it does nothing.
    """
    if os.environ.pop(_VARIABLE, None) is not None:  # children of this process have other parents
        threading.Thread(target=_end_with_it, name="parent", daemon=True).start()


def _end_with_it() -> None:
    with contextlib.suppress(OSError):  # a socket is reset when the parent had not read all that came
        while os.read(_STDIN, 64):
            pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(_LAST_WORDS_SECONDS)
    os._exit(1)
