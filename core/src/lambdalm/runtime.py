"""How a server's Python process is set up for many streams at once.

Measured with 1,000 streams on two cores (bench.streams). Both settings are of the process, so only commands set them.
"""

from __future__ import annotations

import gc
import sys

_SWITCH_SECONDS = 0.1
_ALLOCATIONS = 20_000


def settle() -> None:
    """Call it when all is imported and before requests come.

    A full garbage collection looks at every object there is: 100 ms of standstill among a thousand streams. What is
    there now stays, so it is never looked at again, and collections come more seldom: reference counts free nearly
    all of what a request makes.

    A thread that waits for the interpreter's lock wakes up every switch interval to ask for it. Hundreds that wait
    ask so often that nobody gets on, and the server stays slow when the load has gone. Threads here give the lock up
    themselves, at each read, write and wait; nobody has to ask.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS, 20, 100)
    sys.setswitchinterval(_SWITCH_SECONDS)
