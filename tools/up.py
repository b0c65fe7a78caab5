"""`make up`: the three servers in the foreground, their logs prefixed, until Ctrl-C.

A hop that dies leaves the others up, which is how one sees what they do without it, and is said.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import threading

from lambdalm.testing.chain import Chain, ChainError, Hop, PortNames, taken, wanted_ports


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    ports = wanted_ports(os.environ)
    for name, port in zip(PortNames(), ports, strict=True):
        if taken(port):
            print(f"error: port {port} is taken: is the chain running already? {name} sets another", file=sys.stderr)
            return 1
    stopping = threading.Event()
    chain = Chain(ports, on_line=_say, patience=math.inf, stop_waiting=stopping)

    def stop(*_: object) -> None:
        if stopping.is_set():  # asked twice: it does not wait for what is in progress
            for hop in chain.hops.values():
                hop.process.kill()
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        with chain:
            _say("make up", f"ready: {chain.url}/query; Ctrl-C stops it")
            for hop_running in chain.hops.values():
                threading.Thread(target=_watch, args=(hop_running, stopping), daemon=True).start()
            stopping.wait()
            _say("make up", "stopping when the answers in progress have ended; Ctrl-C again: at once")
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
