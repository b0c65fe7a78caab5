"""Health checks of an engine that may hang: one at a time, in a thread, and none that holds a request up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from backend_lambda import probe_cache
from backend_lambda.probe_cache import ProbeCache
from backend_lambda.providers.base import ProviderHealth
from backend_lambda.providers.scripted import ScriptedProvider
from lambdalm.models import ModelInfo

from .conftest import WAIT


class Engine(ScriptedProvider):
    """One whose health check hangs while it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.says = ProviderHealth(ok=True)

    def health(self) -> ProviderHealth:
        self.asked += 1
        assert self.go_on.wait(WAIT)
        return self.says

    def models(self) -> Sequence[ModelInfo]:
        return [ModelInfo("m1", "scripted")] if self.says.ok else [ModelInfo("default", "scripted")]


@pytest.fixture
def engine() -> Engine:
    return Engine()


def outdate(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found counts no longer."""
    monkeypatch.setattr(probe_cache, "_FRESH_SECONDS", 0.0)


async def test_simultaneous_requests_share_one_check(engine: Engine) -> None:
    cache = ProbeCache(engine)
    found = await asyncio.gather(*(cache.current() for _ in range(20)))
    assert {probe.health.ok for probe in found} == {True}
    assert {probe.models[0].id for probe in found} == {"m1"}
    assert engine.asked == 1
    await cache.current()  # a moment later, too
    assert engine.asked == 1


async def test_while_the_engine_hangs_its_last_word_counts(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ProbeCache(engine)
    assert (await cache.current()).health.detail == ""
    outdate(monkeypatch)
    engine.go_on.clear()
    for _ in range(3):
        found = await cache.current()
        assert found.health.ok
        assert "a health check has had no answer for" in found.health.detail
    assert engine.asked == 2
    engine.says = ProviderHealth(False, "it is gone")
    engine.go_on.set()
    await cache.close()
    assert await cache.current() == (ProviderHealth(False, "it is gone"), [ModelInfo("m1", "scripted")])
    await cache.close()


async def test_what_the_engine_said_last_is_not_lost_in_the_note(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.says = ProviderHealth(False, "start it")
    cache = ProbeCache(engine)
    await cache.current()
    outdate(monkeypatch)
    engine.go_on.clear()
    found = await cache.current()
    assert not found.health.ok
    assert found.health.detail.startswith("start it (a health check has had no answer for")
    engine.go_on.set()
    await cache.close()


async def test_the_first_check_is_waited_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_cache, "_PATIENCE_SECONDS", 0.0)
    engine.go_on.clear()
    cache = ProbeCache(engine)
    asking = asyncio.create_task(cache.current())
    await asyncio.sleep(0.01)
    assert not asking.done()
    engine.go_on.set()
    assert (await asyncio.wait_for(asking, WAIT)).health.ok


async def test_a_check_that_raises_is_a_failed_check(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> ProviderHealth:
        raise ZeroDivisionError("secret")

    engine.health = broken  # type: ignore[method-assign]
    found = await ProbeCache(engine).current()
    assert not found.health.ok
    assert "the backend's log has it" in found.health.detail
    assert "secret" not in found.health.detail


async def test_a_request_that_is_cancelled_does_not_stop_the_check(engine: Engine) -> None:
    engine.go_on.clear()
    cache = ProbeCache(engine)
    leaver, stayer = asyncio.create_task(cache.current()), asyncio.create_task(cache.current())
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.wait([leaver])
    engine.go_on.set()
    assert (await asyncio.wait_for(stayer, WAIT)).health.ok
    assert engine.asked == 1
