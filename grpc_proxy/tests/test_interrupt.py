"""Interrupt: the error in place of what a task waits for, and never in place of its own cancellation."""

from __future__ import annotations

import asyncio

import pytest

from grpc_proxy.interrupt import Interrupt
from lambdalm.errors import Code, LlmError

from .conftest import WAIT

DEAD = LlmError(Code.UNAVAILABLE, "it is dead")


async def waits(interrupt: Interrupt, inside: asyncio.Event) -> None:
    with interrupt:
        inside.set()
        await asyncio.sleep(WAIT)


async def started() -> tuple[asyncio.Task[None], Interrupt]:
    interrupt, inside = Interrupt(), asyncio.Event()
    task = asyncio.create_task(waits(interrupt, inside))
    await inside.wait()
    return task, interrupt


async def test_the_task_gets_the_error_and_stays_uncancelled() -> None:
    task, interrupt = await started()
    interrupt.fire(DEAD)
    with pytest.raises(LlmError) as raised:
        await task
    assert raised.value is DEAD
    assert task.cancelling() == 0


@pytest.mark.parametrize("fires_first", [True, False])
async def test_a_task_that_was_cancelled_too_ends_cancelled(fires_first: bool) -> None:
    task, interrupt = await started()
    for fires in (fires_first, not fires_first):
        if fires:
            interrupt.fire(DEAD)
        else:
            task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_first_error_counts() -> None:
    task, interrupt = await started()
    interrupt.fire(DEAD)
    interrupt.fire(LlmError(Code.INTERNAL, "late"))
    with pytest.raises(LlmError) as raised:
        await task
    assert raised.value is DEAD


async def test_after_the_block_nothing_happens() -> None:
    interrupt = Interrupt()
    with interrupt:
        await asyncio.sleep(0)
    interrupt.fire(DEAD)
    await asyncio.sleep(0)


async def test_another_error_of_the_block_passes() -> None:
    with pytest.raises(ValueError, match="its own"), Interrupt():
        raise ValueError("its own")
