"""An error that one part of the loop puts in place of what a task waits for: asyncio.timeout with another trigger.

    with Interrupt() as interrupt:
        watchdog.add(interrupt)      # which may call interrupt.fire(error)
        await answer()

`fire` cancels the task, and the `with` block turns that cancellation, and no other, into the error: a task that was
also cancelled by its owner stays cancelled.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from lambdalm.errors import LlmError


class Interrupt:
    """For one task, used once, as a context manager."""

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._error: LlmError | None = None

    def fire(self, error: LlmError) -> None:
        """Let the `with` block end with `error`; without effect when it has ended or the error was there before."""
        if self._task is not None and self._error is None:
            self._error = error
            self._task.cancel()

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _traceback: TracebackType | None) -> None:
        task, self._task = self._task, None
        if self._error is None or task is None:
            return
        if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self._error from None
