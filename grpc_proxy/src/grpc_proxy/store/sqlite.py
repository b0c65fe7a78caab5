"""Records in a SQLite file, the one store that needs nothing else; the processes of one machine may share it.

Theory of operation. Two connections, each with a thread of its own and used in no other: one writes and checkpoints,
one reads and so does not wait while the other one syncs. Writes that come while a commit is under way are gathered by
the loop and share the next one, each with a verdict of its own; nobody has it before the commit is on the disk.

A connection that cannot be made (the disk is full, another process holds the file) is tried again by the next call.

WAL and FULL sync: https://www.sqlite.org/wal.html. The version of the schema is SQLite's `user_version`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import apsw

from grpc_proxy.store.base import Key, Listed, Record
from lambdalm.errors import Code, LlmError

T = TypeVar("T")

_SCHEMA_VERSION = 1
# `records` has rowids: large values would leave an index-organised table few branches.
_SCHEMA = """
    CREATE TABLE records (
        owner TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL,
        value BLOB NOT NULL, summary BLOB NOT NULL, expires REAL NOT NULL,
        PRIMARY KEY (owner, name)
    ) STRICT;
    CREATE INDEX by_owner ON records (owner, expires);
    CREATE INDEX by_time ON records (expires);
    PRAGMA user_version = 1;
"""
_BUSY_MS = 2000
_TOGETHER = 64  # writes that share a commit, at most
_SWEEP_SECONDS = 10.0
SWEEP_RECORDS = 256  # at once: a write waits no longer than that takes

_HOPELESS = (
    apsw.CorruptError, apsw.NotADBError, apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError, OSError,
)  # fmt: skip
"""When the file is opened: nothing but an operator mends them."""


class _Write(NamedTuple):
    """One that waits for a commit."""

    work: Callable[[apsw.Connection], bool]
    done: asyncio.Future[bool]


class Sqlite:
    """`path` is the file, made with its folder if it is missing, for this user alone."""

    name = "sqlite"
    max_value_bytes: int | None = None

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        file = _located(path)
        self._clock = clock
        self._writer = _Connection(file, "sqlite-writer")
        self._reader = _Connection(file, "sqlite-reader")
        self._waiting: list[_Write] = []
        self._writing: asyncio.Task[None] | None = None
        self._sweep_at = 0.0

    async def open(self) -> None:
        await self._writer.open()
        await self._reader.open()

    async def get(self, key: Key) -> Record | None:
        return await self._reader.run(partial(_get, key, self._clock()))

    async def list(self, owner: str, limit: int) -> Sequence[Listed]:
        return await self._reader.run(partial(_list, owner, limit, self._clock()))

    async def put(self, key: Key, record: Record, after: str | None) -> bool:
        if after is None:
            return await self._write(partial(_insert, key, record, self._clock))
        return await self._write(partial(_update, key, record, after, self._clock))

    async def delete(self, key: Key) -> bool:
        return await self._write(partial(_delete, key, self._clock))

    async def close(self) -> None:
        if self._writing is not None:
            await self._writing
        await self._reader.close(lambda db: None)
        await self._writer.close(_checkpoint)

    async def _write(self, work: Callable[[apsw.Connection], bool]) -> bool:
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Write(work, done))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        return await done

    async def _write_all(self) -> None:
        while self._waiting:
            together, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
            try:
                verdicts = await self._writer.run(partial(_commit, [write.work for write in together]))
            except Exception as error:  # noqa: BLE001  # whatever it was, those who wait must hear of it
                verdicts = [error] * len(together)
            for write, verdict in zip(together, verdicts, strict=True):
                _tell(write.done, verdict)
            await self._sweep()

    async def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._sweep_at:
            return
        # What hinders it hinders the writes as well, and they say so.
        with contextlib.suppress(LlmError):
            swept = await self._writer.run(partial(_delete_expired, self._clock()))
            self._sweep_at = now if swept == SWEEP_RECORDS else now + _SWEEP_SECONDS


class _Connection:
    """A connection to the file and the one thread that uses it."""

    def __init__(self, file: Path, name: str) -> None:
        self._file = file
        self._db: apsw.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def open(self) -> None:
        """Raises LlmError where no later try could succeed."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    async def run(self, work: Callable[[apsw.Connection], T]) -> T:
        """What `work` gives; apsw's errors become LlmError."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    async def close(self, last: Callable[[apsw.Connection], None]) -> None:
        """Do `last` and close, whether or not it works."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close, last)
        self._thread.shutdown()

    def _open(self) -> None:
        try:
            self._run(lambda db: None)
        except LlmError as error:
            hopeless = error.code is Code.UNAVAILABLE and isinstance(error.__cause__, _HOPELESS)
            if hopeless or error.code is Code.FAILED_PRECONDITION:
                raise LlmError(Code.FAILED_PRECONDITION, error.message, origin="store") from None

    def _run(self, work: Callable[[apsw.Connection], T]) -> T:
        try:
            return work(self._connected())
        except (apsw.Error, OSError) as error:
            raise _failure(error, self._file, self._db) from error

    def _connected(self) -> apsw.Connection:
        if self._db is None:
            self._db = _connect(self._file)
        return self._db

    def _close(self, last: Callable[[apsw.Connection], None]) -> None:
        if self._db is not None:
            with contextlib.suppress(apsw.Error):
                last(self._db)
            self._db.close()


def _located(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        why = f"there is no home directory for store.sqlite.path {path}: give it without ~"
        raise LlmError(Code.FAILED_PRECONDITION, why, origin="store") from None


def _connect(file: Path) -> apsw.Connection:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Not where the file is there: to close it would drop the locks that SQLite holds on it for this process.
    with contextlib.suppress(FileExistsError):
        file.touch(mode=0o600, exist_ok=False)
    db = apsw.Connection(str(file))
    try:
        db.set_busy_timeout(_BUSY_MS)
        db.pragma("journal_mode", "wal")
        db.pragma("synchronous", "full")
        if db.pragma("user_version") == 0:
            _transaction(db, _make_schema)
        _check_schema(db, file)
    except BaseException:
        db.close()
        raise
    return db


def _make_schema(db: apsw.Connection) -> None:
    if db.pragma("user_version") == 0:  # still: another process may have been first
        db.execute(_SCHEMA)


def _check_schema(db: apsw.Connection, file: Path) -> None:
    if (version := db.pragma("user_version")) != _SCHEMA_VERSION:
        why = f"{file} is of schema version {version}, and this λλM knows {_SCHEMA_VERSION}: update λλM or move it away"
        raise LlmError(Code.FAILED_PRECONDITION, why, origin="store")


def _transaction(db: apsw.Connection, work: Callable[[apsw.Connection], T]) -> T:
    db.execute("BEGIN IMMEDIATE")
    try:
        result = work(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # some errors have rolled it back already
            db.execute("ROLLBACK")
        raise
    return result


def _commit(works: Sequence[Callable[[apsw.Connection], bool]], db: apsw.Connection) -> list[bool | Exception]:
    """Do them in one transaction. Where one asks for too much, each has its own, so that only that one fails."""
    try:
        return list(_transaction(db, lambda db: [work(db) for work in works]))
    except (apsw.FullError, apsw.TooBigError) as error:
        if len(works) == 1:
            return [_failure(error, Path(db.filename), db)]
        return [verdict for work in works for verdict in _commit([work], db)]


def _insert(key: Key, record: Record, clock: Callable[[], float], db: apsw.Connection) -> bool:
    sql = """
        INSERT INTO records (owner, name, version, value, summary, expires) VALUES (?, ?, ?, ?, ?, ?)
        ON CONFLICT (owner, name) DO UPDATE
        SET version = excluded.version, value = excluded.value, summary = excluded.summary, expires = excluded.expires
        WHERE records.expires <= ?
    """
    db.execute(sql, (*key, record.version, record.value, record.summary, record.expires, clock()))
    return db.changes() > 0


def _update(key: Key, record: Record, after: str, clock: Callable[[], float], db: apsw.Connection) -> bool:
    sql = """
        UPDATE records SET version = ?, value = ?, summary = ?, expires = ?
        WHERE owner = ? AND name = ? AND version = ? AND expires > ?
    """
    db.execute(sql, (record.version, record.value, record.summary, record.expires, *key, after, clock()))
    return db.changes() > 0


def _delete(key: Key, clock: Callable[[], float], db: apsw.Connection) -> bool:
    db.execute("DELETE FROM records WHERE owner = ? AND name = ? AND expires > ?", (*key, clock()))
    return db.changes() > 0


def _get(key: Key, now: float, db: apsw.Connection) -> Record | None:
    sql = "SELECT value, version, summary, expires FROM records WHERE owner = ? AND name = ? AND expires > ?"
    row = db.execute(sql, (*key, now)).get
    return None if row is None else Record(*row)


def _list(owner: str, limit: int, now: float, db: apsw.Connection) -> Sequence[Listed]:
    sql = """
        SELECT name, summary, expires FROM records WHERE owner = ? AND expires > ? ORDER BY expires DESC LIMIT ?
    """
    return [Listed(*row) for row in db.execute(sql, (owner, now, limit))]


def _delete_expired(now: float, db: apsw.Connection) -> int:
    sql = "DELETE FROM records WHERE rowid IN (SELECT rowid FROM records WHERE expires <= ? LIMIT ?)"
    db.execute(sql, (now, SWEEP_RECORDS))
    return db.changes()


def _checkpoint(db: apsw.Connection) -> None:
    db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


def _tell(done: asyncio.Future[bool], verdict: bool | Exception) -> None:
    if done.done():  # its caller has left
        return
    if isinstance(verdict, Exception):
        done.set_exception(verdict)
    else:
        done.set_result(verdict)


def _failure(error: apsw.Error | OSError, file: Path, db: apsw.Connection | None) -> LlmError:
    code, why = _judge(error, file, db)
    return LlmError(code, why, origin="store")


def _judge(error: apsw.Error | OSError, file: Path, db: apsw.Connection | None) -> tuple[Code, str]:
    if isinstance(error, apsw.FullError) or _errno(error, db) in (errno.ENOSPC, errno.EDQUOT):
        return Code.RESOURCE_EXHAUSTED, f"the disk is full: make room where {file} is"
    if isinstance(error, (apsw.BusyError, apsw.LockedError)):
        return Code.UNAVAILABLE, f"another process holds {file}"
    if isinstance(error, apsw.TooBigError):
        return Code.FAILED_PRECONDITION, "the record is larger than SQLite takes"
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
        return Code.UNAVAILABLE, f"{file} is damaged, or no SQLite database: restore it, or move it away"
    what = getattr(error, "strerror", None) or type(error).__name__
    return Code.UNAVAILABLE, f"{file} cannot be used: {what}"


def _errno(error: apsw.Error | OSError, db: apsw.Connection | None) -> int | None:
    if isinstance(error, apsw.IOError) and db is not None:
        return db.system_errno
    return error.errno if isinstance(error, OSError) else None
