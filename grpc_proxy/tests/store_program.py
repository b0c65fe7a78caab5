"""What `test_store_faults` does in processes of its own: `python store_program.py fill|write|count FILE [N]`.

fill   fills the disk on which FILE lies, and says as JSON what it saw.
write  puts records until it is killed; says each one's number when it is acknowledged.
count  adds 1 to a shared counter N times.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import apsw

from grpc_proxy.store.base import Key, Record
from grpc_proxy.store.sqlite import Sqlite
from lambdalm.errors import LlmError

LATER = time.time() + 900
COUNTER = Key("o", "counter")


def numbered(n: int, size: int) -> Record:
    return Record(str(n).encode().ljust(size, b"."), str(n), b"", LATER)


async def fill(store: Sqlite, file: Path) -> None:
    """The disk is filled by records, beside another file, whose end then makes room again."""
    ballast = file.parent / "ballast"
    ballast.write_bytes(bytes(512 * 1024))
    saw: dict[str, Any] = {"kept": 0}
    try:
        for n in itertools.count():
            await store.put(Key("o", str(n)), numbered(n, 20_000), None)
            saw["kept"] += 1
    except LlmError as error:
        saw["refusal"], saw["why"] = error.code, error.message
    # Several that wait together, where there is room for the small ones.
    os.truncate(ballast, 384 * 1024)
    mixed = [store.put(Key("m", str(n)), numbered(n, 300_000 if n % 2 else 1), None) for n in range(4)]
    saw["together"] = [
        getattr(verdict, "code", verdict) for verdict in await asyncio.gather(*mixed, return_exceptions=True)
    ]
    saw["read"] = [await store.get(Key("o", str(n))) == numbered(n, 20_000) for n in range(saw["kept"])]
    saw["listed"] = len(await store.list("o", 1000))
    saw["integrity"] = apsw.Connection(str(file)).pragma("integrity_check")
    ballast.unlink()
    saw["put after"] = await store.put(Key("o", "after"), numbered(0, 20_000), None)
    await store.close()
    saw["integrity after"] = apsw.Connection(str(file)).pragma("integrity_check")
    print(json.dumps(saw))


async def write(store: Sqlite) -> None:
    def acknowledge(task: asyncio.Task[bool]) -> None:
        os.write(1, f"{task.get_name()}\n".encode())

    for first in itertools.count(step=8):  # eight at once, so that they share commits
        puts = [
            asyncio.create_task(store.put(Key("o", str(n)), numbered(n, 3000), None), name=str(n))
            for n in range(first, first + 8)
        ]
        for put in puts:
            put.add_done_callback(acknowledge)
        await asyncio.gather(*puts)


async def count(store: Sqlite, times: int) -> None:
    while times:
        held = await store.get(COUNTER)
        new = Record(str(int(held.value if held else 0) + 1).encode(), uuid.uuid4().hex, b"", LATER)
        times -= await store.put(COUNTER, new, held.version if held else None)
    await store.close()


async def main(what: str, path: str, *more: str) -> None:
    store = Sqlite(path, time.time)
    await store.open()
    if what == "fill":
        await fill(store, Path(path))
    elif what == "write":
        await write(store)
    else:
        await count(store, int(more[0]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
