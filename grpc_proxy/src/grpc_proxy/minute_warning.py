"""Warnings that many requests give cause for at once, such as a store that is down: one line a minute."""

from __future__ import annotations

import time
from typing import Any

from lambdalm import logs

_SECONDS = 60.0

_log = logs.get(__name__)


class MinuteWarning:
    """The warning `event`, logged once a minute at most; the next line counts those that were left out (`more`)."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._next = 0.0
        self._more = 0

    def log(self, **fields: Any) -> None:
        now = time.monotonic()
        if now < self._next:
            self._more += 1
            return
        more, self._more = self._more, 0
        self._next = now + _SECONDS
        _log.warning(self._event, **fields, **({"more": more} if more else {}))
