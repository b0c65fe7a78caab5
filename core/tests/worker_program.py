"""A small gRPC server with workers, for `test_workers`: `python worker_program.py PORT WORKERS [SECONDS]`.

Its calls answer with the process's id. With SECONDS, worker 1 ends by itself with status 3 after so many.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import grpc

from grpc_proxy import workers
from lambdalm.errors import LlmError
from lambdalm.listen import Listen


async def pid(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    return str(os.getpid()).encode()


async def serve(port: int) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    handlers = {"pid": grpc.unary_unary_rpc_method_handler(pid)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Test", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await stopping.wait()
    await server.stop(1)


def main(port: int, count: int, lives: float | None = None) -> None:
    def run(worker: int) -> None:
        os.write(1, f"worker {worker} pid {os.getpid()}\n".encode())  # in one piece, beside the other's
        if worker == 1 and lives is not None:
            time.sleep(lives)
            sys.exit(3)
        asyncio.run(serve(port))

    try:
        workers.run(count, [Listen("127.0.0.1", port)], run)
    except (LlmError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:]))
