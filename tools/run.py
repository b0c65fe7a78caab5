"""`make run`: start the chain, ask it something, stop it.

On a terminal the active client opens; without one the five passive prompts are asked. The exit status is the client's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

from lambdalm.testing.chain import Chain, ChainError, free_ports, taken, wanted_ports

LOGS = Path("logs")


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    LOGS.mkdir(exist_ok=True)
    ports = wanted_ports(os.environ)
    if any(taken(port) for port in ports):
        ports = free_ports()
        print(f"a port is taken; the chain uses {', '.join(map(str, ports))} instead", file=sys.stderr)
    with (LOGS / "run.log").open("w", encoding="utf-8", buffering=1) as log:
        try:
            with Chain(ports, on_line=lambda hop, line: _write(log, hop, line)) as chain:
                print(f"the chain is up at {chain.url}; its log is {log.name}", file=sys.stderr)
                return _client(ports.edge)
        except ChainError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130


def _client(port: int) -> int:
    mode = "active" if sys.stdin.isatty() else "passive"
    try:
        return subprocess.run(
            [sys.executable, "-m", "bedrest_client", mode, "--port", str(port)], check=False
        ).returncode
    except KeyboardInterrupt:
        return 130


def _write(log: TextIO, hop: str, line: str) -> None:
    print(f"{hop:>7} | {line}", file=log)


if __name__ == "__main__":
    sys.exit(main())
