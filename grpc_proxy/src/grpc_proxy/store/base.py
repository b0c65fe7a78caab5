"""What lasts, as the proxy sees it: records that are read, replaced whole, listed and deleted.

Theory of operation. A record is bytes under a key, with a version. `put` replaces it only if its version is still the
one that the writer has read (None: if there is none), in one atomic statement of the store. So what a record means,
and how it may change, is decided by pure code on what was read (`conversation.py`, `ledger.py`), the same for every
store; two writers at once do not lose each other's work, since the second is refused and reads again. A version is
random, chosen by the writer: a record that was deleted and made anew never has the version of the old one.

A key has an owner, and nothing is ever found without naming it: what is one owner's cannot be shown to another.

A record whose time is up is gone for every call, whether or not the store has swept it away yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Key(NamedTuple):
    """`owner` is whose it is, `name` which of theirs. Both are printable ASCII, at most 256 characters."""

    owner: str
    name: str


class Record(NamedTuple):
    """What is kept under a key. `summary` is what lists show of it; `expires` is in seconds since 1970."""

    value: bytes
    version: str
    summary: bytes = b""
    expires: float = 0.0


class Listed(NamedTuple):
    """One record of a list."""

    name: str
    summary: bytes
    expires: float


class Store(Protocol):
    """One store. Every call raises `LlmError`, origin "store": UNAVAILABLE where it cannot be reached or does not
    answer in time, RESOURCE_EXHAUSTED where it has no room."""

    name: str
    """Of its kind, as in the config: sqlite, redis, dynamodb or memory."""
    max_value_bytes: int | None
    """What a record's value may have, None where that does not matter. Above: `LlmError(FAILED_PRECONDITION)`."""

    async def open(self) -> None:
        """Make ready what is needed; call it once, in the loop that uses the store. Raises LlmError only for what
        no later call could mend (a path that cannot be written, a table that is not there)."""
        ...

    async def get(self, key: Key) -> Record | None:
        """The record, None where there is none."""
        ...

    async def put(self, key: Key, record: Record, after: str | None) -> bool:
        """Keep `record` until it expires if the one there has the version `after`; if not, False and nothing changes.

        When it returns, the record outlives the process (but for the store `memory`).
        """
        ...

    async def delete(self, key: Key) -> bool:
        """Forget the record; False where there is none."""
        ...

    async def list(self, owner: str, limit: int) -> Sequence[Listed]:
        """The owner's records, the one that expires last first, at most so many."""
        ...

    async def close(self) -> None:
        """Finish what was begun; no call comes after it."""
        ...
