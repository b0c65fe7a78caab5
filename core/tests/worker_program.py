"""A small server with workers, for `test_workers`: `python worker_program.py PORT WORKERS [SECONDS]`.

It answers each connection with the process's id. With SECONDS, worker 1 ends by itself after them, with status 3.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from lambdalm import workers
from lambdalm.errors import LlmError
from lambdalm.listen import Listen


async def pid(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(str(os.getpid()).encode())
    writer.close()


async def serve(port: int, worker: workers.Worker) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with await asyncio.start_server(pid, "127.0.0.1", port, reuse_port=True):
        worker.beat()
        await stopping.wait()


def main(port: int, count: int, lives: float | None = None) -> None:
    def run(worker: workers.Worker) -> None:
        os.write(1, f"worker {worker.number} pid {os.getpid()}\n".encode())  # in one piece, beside the other's
        if worker.number == 1 and lives is not None:
            time.sleep(lives)
            sys.exit(3)
        asyncio.run(serve(port, worker))

    try:
        workers.run(count, [Listen("127.0.0.1", port)], run)
    except (LlmError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:]))
