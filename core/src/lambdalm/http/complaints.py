"""What clients do wrong, in the log: one line a second for each kind, so that none of them can fill a disk."""

from __future__ import annotations

import time

from lambdalm import logs

_SECONDS = 1.0

_log = logs.get(__name__)
_next: dict[str, float] = {}
_unsaid: dict[str, int] = {}


def log(kind: str, **fields: object) -> None:
    """One line at INFO, unless this kind has had one within the last second; then the next line counts it."""
    now = time.monotonic()
    if now < _next.get(kind, 0.0):
        _unsaid[kind] = _unsaid.get(kind, 0) + 1
        return
    _next[kind] = now + _SECONDS
    more = _unsaid.pop(kind, 0)
    _log.info(kind, **fields, **({"more": more} if more else {}))
