"""`make up`: the three servers in the foreground, their logs prefixed, until Ctrl-C.

A hop that dies leaves the others up, which is how one sees what they do without it, and is said.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import threading

from lambdalm.testing.chain import DEFAULT_PORTS, MODULES, Chain, ChainError, Hop, taken


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for hop, port in zip(MODULES, DEFAULT_PORTS, strict=True):
        if taken(port):
            print(f"error: port {port}, which the {hop} needs, is taken: is the chain running already?")
            return 1
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    try:
        with Chain(DEFAULT_PORTS, on_line=_say, patience=math.inf, stop_waiting=stopping) as chain:
            _say("make up", f"ready: {chain.url}/query; Ctrl-C stops it")
            for hop_running in chain.hops.values():
                threading.Thread(target=_watch, args=(hop_running, stopping), daemon=True).start()
            stopping.wait()
            _say("make up", "stopping")
    except ChainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _watch(hop: Hop, stopping: threading.Event) -> None:
    status = hop.process.wait()
    if not stopping.is_set():
        _say("make up", f"the {hop.name} has ended with status {status}; the others stay up")


def _say(hop: str, line: str) -> None:
    sys.stdout.write(f"{hop:>7} | {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
