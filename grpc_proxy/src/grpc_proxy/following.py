"""Files that may change while the proxy runs: a thread looks at them from time to time, since reading takes long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable


@contextlib.asynccontextmanager
async def followed(look: Callable[[], None], seconds: float) -> AsyncIterator[None]:
    """While inside, call `look` every `seconds`; it has to deal with its own errors."""
    following = asyncio.create_task(_follow(look, seconds))
    try:
        yield
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


async def _follow(look: Callable[[], None], seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(look)
