"""Sessions in real stores: whose they are, what a repeated request finds, and what two writers leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from grpc_proxy.callers import Caller, Callers, StickyConfig
from grpc_proxy.conversation import Ending, State
from grpc_proxy.sessions import Begun, Opened, Sessions, SessionsConfig, no_such_session
from grpc_proxy.store.base import Key, Record, Store
from grpc_proxy.store.memory import Memory
from grpc_proxy.store.table import RedisConfig, SqliteConfig, StoreConfig, make_store
from lambdalm import logs
from lambdalm.errors import Code, LlmError

from .stores import LATER, Clock, redis_server

CALLERS = Callers(StickyConfig(), None, 900)
BUDGET = 60.0
ADA = CALLERS.identify({})._replace(is_new=False)  # they have been here before
EVE = CALLERS.identify({})._replace(is_new=False)


@pytest.fixture(autouse=True)
def _logging() -> None:
    """As a server's: other tests may or may not have set it up."""
    logs.configure("proxy", logs.LogConfig())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    file = SqliteConfig(str(tmp_path / "sessions.sqlite"))
    store = make_store(StoreConfig(kind=request.param, operation_seconds=30, sqlite=file), clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def sessions(store: Store, clock: Clock) -> Sessions:
    return Sessions(store, SessionsConfig(), clock)


async def opened(
    sessions: Sessions, request_id: str, prompt: str = "λ?", session_id: str | None = None, caller: Caller = ADA
) -> Opened:
    found = await sessions.open(caller, session_id, request_id, prompt)
    assert found is not None
    return found


async def begun(sessions: Sessions, request_id: str, prompt: str = "λ?", **parts: Any) -> Begun:
    found = await opened(sessions, request_id, prompt, **parts)
    return await sessions.store(sessions.begin(found, request_id, prompt, None), BUDGET)


async def turn(sessions: Sessions, request_id: str, prompt: str = "λ?", text: str = "λ!", **parts: Any) -> str:
    """The id of the session in which this was asked and answered."""
    work = await begun(sessions, request_id, prompt, **parts)
    await sessions.end(work, Ending(State.COMPLETE, text, "tiny"))
    return work.key.name


async def texts(sessions: Sessions, session_id: str, caller: Caller = ADA) -> list[tuple[str, str]]:
    return [(turn.prompt, turn.text) for turn in (await sessions.get(caller, session_id)).turns]


async def fails(work: Any, code: Code) -> LlmError:
    with pytest.raises(LlmError) as raised:
        await work
    assert raised.value.code is code
    return raised.value


async def test_a_session_has_its_turns_in_order(sessions: Sessions, clock: Clock) -> None:
    kept = await turn(sessions, "r1", "Who?", "Ada.")
    clock.now += 5
    assert await turn(sessions, "r2", "When?", "1815.", session_id=kept) == kept
    assert await texts(sessions, kept) == [("Who?", "Ada."), ("When?", "1815.")]
    (listed,) = await sessions.list(ADA, 0)
    assert (listed.id, listed.summary.turns, listed.summary.title) == (kept, 2, "Who?")
    assert listed.summary.used - listed.summary.created == 5


async def test_the_users_words_are_stored_before_anything_is_answered(sessions: Sessions) -> None:
    work = await begun(sessions, "r1", "Who?")
    (kept,) = (await sessions.get(ADA, work.key.name)).turns
    assert (kept.state, kept.prompt, kept.text) == (State.PENDING, "Who?", "")


async def test_words_that_are_begun_unstored_are_stored_with_their_answer(sessions: Sessions) -> None:
    work = sessions.begin(await opened(sessions, "r1", "Who?"), "r1", "Who?", "Be brief.")
    await fails(sessions.get(ADA, work.key.name), Code.NOT_FOUND)
    await sessions.end(work, Ending(State.COMPLETE, "Ada.", "tiny"))
    assert await texts(sessions, work.key.name) == [("Who?", "Ada.")]
    assert (await sessions.get(ADA, work.key.name)).system == "Be brief."


@pytest.mark.parametrize("other", [State.PENDING, State.FAILED])
async def test_unstored_words_take_over_from_a_repetition_without_an_answer(sessions: Sessions, other: State) -> None:
    work = sessions.begin(await opened(sessions, "r1", "Who?"), "r1", "Who?", None)
    repetition = await begun(sessions, "r1", "Who?")
    if other is not State.PENDING:
        await sessions.end(repetition, Ending(other))
    await sessions.end(work, Ending(State.COMPLETE, "Ada.", "tiny"))
    assert await texts(sessions, work.key.name) == [("Who?", "Ada.")]
    if other is State.PENDING:
        await fails(sessions.end(repetition, Ending(State.COMPLETE, "Eve.", "tiny")), Code.ABORTED)


async def test_unstored_words_give_way_to_a_repetition_that_was_answered(sessions: Sessions) -> None:
    work = sessions.begin(await opened(sessions, "r1", "Who?"), "r1", "Who?", None)
    await turn(sessions, "r1", "Who?", "Ada.")
    await fails(sessions.end(work, Ending(State.COMPLETE, "Eve.", "tiny")), Code.ABORTED)
    assert await texts(sessions, work.key.name) == [("Who?", "Ada.")]


@pytest.mark.parametrize("state", [State.CANCELLED, State.FAILED])
async def test_unstored_words_without_an_answer_leave_the_repetition_alone(sessions: Sessions, state: State) -> None:
    work = sessions.begin(await opened(sessions, "r1", "Who?"), "r1", "Who?", None)
    repetition = await begun(sessions, "r1", "Who?")
    await sessions.end(work, Ending(state))
    await sessions.end(repetition, Ending(State.COMPLETE, "Ada.", "tiny"))
    await sessions.end(work, Ending(state))
    assert await texts(sessions, work.key.name) == [("Who?", "Ada.")]


async def test_words_in_a_known_session_may_be_stored_with_their_end(sessions: Sessions) -> None:
    kept = await turn(sessions, "r1", "Who?", "Ada.")
    work = sessions.begin(await opened(sessions, "r2", "When?", session_id=kept), "r2", "When?", None)
    await turn(sessions, "r3", "Where?", "London.", session_id=kept)
    await sessions.end(work, Ending(State.CANCELLED, "18"))
    assert await texts(sessions, kept) == [("Who?", "Ada."), ("Where?", "London."), ("When?", "18")]


async def test_an_end_does_not_bring_a_deleted_session_back(sessions: Sessions) -> None:
    kept = await turn(sessions, "r1", "Who?", "Ada.")
    work = sessions.begin(await opened(sessions, "r2", "When?", session_id=kept), "r2", "When?", None)
    await sessions.delete(ADA, kept)
    await fails(sessions.end(work, Ending(State.CANCELLED)), Code.NOT_FOUND)
    await fails(sessions.get(ADA, kept), Code.NOT_FOUND)


@pytest.mark.parametrize("stored", [True, False])
async def test_an_end_that_is_stored_again_changes_nothing(sessions: Sessions, stored: bool) -> None:
    work = sessions.begin(await opened(sessions, "r1", "Who?"), "r1", "Who?", None)
    if stored:
        work = await sessions.store(work, BUDGET)
    await sessions.end(work, Ending(State.COMPLETE, "Ada.", "tiny"))
    await sessions.end(work, Ending(State.COMPLETE, "Ada.", "tiny"))
    await sessions.end(work, Ending(State.FAILED, "A"))
    assert await texts(sessions, work.key.name) == [("Who?", "Ada.")]


async def test_only_a_new_session_in_a_healthy_store_may_be_stored_once(store: Store, clock: Clock) -> None:
    trouble: list[str] = []
    sessions = Sessions(store, SessionsConfig(), clock, lambda: next(iter(trouble), None))
    assert sessions.may_store_once(await opened(sessions, "r1"))
    kept = await turn(sessions, "r1")
    assert not sessions.may_store_once(await opened(sessions, "r2", session_id=kept))
    trouble.append("it is down")
    assert not sessions.may_store_once(await opened(sessions, "r3"))


async def test_nobody_finds_the_session_of_another(sessions: Sessions) -> None:
    kept = await turn(sessions, "r1", "my secret")
    assert await sessions.open(EVE, kept, "r2", "λ?") is None
    assert await sessions.list(EVE, 0) == []
    never = str(no_such_session())
    for work in (
        sessions.get(EVE, kept),
        sessions.delete(EVE, kept),
        sessions.get(EVE, "never"),
        sessions.get(EVE, "/.."),
    ):
        assert str(await fails(work, Code.NOT_FOUND)) == never
    assert await texts(sessions, kept) == [("my secret", "λ!")]


async def test_the_same_request_id_of_two_callers_makes_two_sessions(sessions: Sessions) -> None:
    mine = await turn(sessions, "r1", "mine")
    hers = await turn(sessions, "r1", "hers", caller=EVE)
    assert mine != hers
    assert await texts(sessions, mine) == [("mine", "λ!")]


async def test_ids_of_sessions_cannot_be_told_from_the_requests(sessions: Sessions) -> None:
    callers = [CALLERS.identify({}) for _ in range(50)]
    found = {(await opened(sessions, "r1", caller=caller)).key.name for caller in callers}
    assert len(found) == 50
    assert all(len(name) == 22 for name in found)  # 128 bits


async def test_a_repeated_request_finds_its_session_and_its_answer(sessions: Sessions) -> None:
    kept = await turn(sessions, "r1", "Who?", "Ada.")
    for session_id in (None, kept):
        again = await opened(sessions, "r1", "Who?", session_id)
        assert again.key.name == kept
        assert again.answered is not None
        assert again.answered.text == "Ada."
    assert (await opened(sessions, "r2", "When?", kept)).answered is None


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, None])
async def test_a_repeated_request_takes_a_turn_over_that_has_no_answer(sessions: Sessions, state: State | None) -> None:
    work = await begun(sessions, "r1")
    if state is not None:
        await sessions.end(work, Ending(state, "half"))
    assert (await opened(sessions, "r1")).answered is None
    assert await turn(sessions, "r1", text="whole") == work.key.name
    assert await texts(sessions, work.key.name) == [("λ?", "whole")]


async def test_an_attempt_that_was_taken_over_may_not_end_the_turn(sessions: Sessions) -> None:
    old = await begun(sessions, "r1")
    new = await begun(sessions, "r1")
    await fails(sessions.end(old, Ending(State.COMPLETE, "old")), Code.ABORTED)
    await sessions.end(new, Ending(State.COMPLETE, "new"))
    assert await texts(sessions, new.key.name) == [("λ?", "new")]


async def test_two_first_attempts_at_once_are_one_turn(sessions: Sessions) -> None:
    first, second = await opened(sessions, "r1"), await opened(sessions, "r1")
    old = await sessions.store(sessions.begin(first, "r1", "λ?", None), BUDGET)
    new = await sessions.store(sessions.begin(second, "r1", "λ?", None), BUDGET)
    await sessions.end(new, Ending(State.COMPLETE, "new"))
    await fails(sessions.end(old, Ending(State.COMPLETE, "old")), Code.ABORTED)
    assert await texts(sessions, new.key.name) == [("λ?", "new")]


async def test_a_request_that_was_answered_meanwhile_is_not_begun_again(sessions: Sessions) -> None:
    late = await opened(sessions, "r1")
    await turn(sessions, "r1")
    error = await fails(sessions.store(sessions.begin(late, "r1", "λ?", None), BUDGET), Code.ABORTED)
    assert error.retry_after is not None


async def test_an_id_that_comes_with_another_prompt_is_refused(sessions: Sessions) -> None:
    kept = await turn(sessions, "r1", "Who?")
    for session_id in (None, kept):
        await fails(sessions.open(ADA, session_id, "r1", "When?"), Code.ALREADY_EXISTS)


async def test_many_writers_at_once_lose_nothing(sessions: Sessions) -> None:
    kept = await turn(sessions, "r0", "0")
    await asyncio.gather(*(turn(sessions, f"r{number}", f"{number}", session_id=kept) for number in range(1, 8)))
    assert sorted(await texts(sessions, kept)) == [(f"{number}", "λ!") for number in range(8)]


async def test_a_session_is_forgotten_so_long_after_its_last_use(sessions: Sessions, clock: Clock) -> None:
    kept = await turn(sessions, "r1")
    clock.now += 899
    await turn(sessions, "r2", session_id=kept)
    clock.now += 899
    assert len(await texts(sessions, kept)) == 2
    clock.now += 2
    await fails(sessions.get(ADA, kept), Code.NOT_FOUND)
    assert await sessions.open(ADA, kept, "r3", "λ?") is None
    assert await sessions.list(ADA, 0) == []


async def test_a_session_outlives_an_answer_that_takes_long(sessions: Sessions, clock: Clock) -> None:
    work = await begun(sessions, "r1")
    clock.now += 900 + BUDGET - 1
    await sessions.end(work, Ending(State.COMPLETE, "at last"))
    clock.now += 899
    assert await texts(sessions, work.key.name) == [("λ?", "at last")]


async def test_what_is_deleted_while_it_is_answered_stays_deleted(sessions: Sessions) -> None:
    work = await begun(sessions, "r1")
    await sessions.delete(ADA, work.key.name)
    await fails(sessions.end(work, Ending(State.COMPLETE, "λ!")), Code.NOT_FOUND)
    await fails(sessions.get(ADA, work.key.name), Code.NOT_FOUND)


async def test_what_is_deleted_between_reading_and_writing_stays_deleted(sessions: Sessions) -> None:
    kept = await turn(sessions, "r1")
    late = await opened(sessions, "r2", session_id=kept)
    await sessions.delete(ADA, kept)
    await fails(sessions.store(sessions.begin(late, "r2", "λ?", None), BUDGET), Code.NOT_FOUND)
    await fails(sessions.get(ADA, kept), Code.NOT_FOUND)
    await fails(sessions.delete(ADA, kept), Code.NOT_FOUND)


async def test_a_list_has_the_one_used_last_first_and_is_no_longer_than_its_limit(store: Store, clock: Clock) -> None:
    sessions = Sessions(store, SessionsConfig(list_limit=2), clock)
    ids = []
    for number in range(3):
        clock.now += 1
        ids.append(await turn(sessions, f"r{number}"))
    for limit, found in ((0, ids[:0:-1]), (1, ids[:1:-1]), (50, ids[:0:-1])):
        assert [listing.id for listing in await sessions.list(ADA, limit)] == found


async def test_a_session_that_has_grown_too_large_loses_its_oldest_turns(store: Store, clock: Clock) -> None:
    sessions = Sessions(store, SessionsConfig(max_bytes=1024), clock)
    kept = await turn(sessions, "r0", "0", "x" * 100)
    for number in (1, 2):
        await turn(sessions, f"r{number}", f"{number}", "x" * 100, session_id=kept)
    assert [prompt for prompt, _ in await texts(sessions, kept)] == ["1", "2"]


async def test_a_session_has_so_many_turns_at_most(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpc_proxy.conversation._MOST_TURNS", 2)
    kept = await turn(sessions, "r0", "0")
    for number in (1, 2):
        await turn(sessions, f"r{number}", f"{number}", session_id=kept)
    assert [prompt for prompt, _ in await texts(sessions, kept)] == ["1", "2"]


async def test_a_session_that_cannot_be_read_is_as_if_it_were_not_there(
    store: Store, sessions: Sessions, clock: Clock
) -> None:
    kept = await turn(sessions, "r1")
    key = Key(ADA.owner, kept)
    held = await store.get(key)
    assert held is not None
    assert await store.put(key, Record(b"\xc1", "damaged", b"\xc1", clock() + LATER), held.version)
    await fails(sessions.get(ADA, kept), Code.NOT_FOUND)
    assert await sessions.open(ADA, kept, "r2", "λ?") is None
    assert await sessions.list(ADA, 0) == []
    assert await turn(sessions, "r1", text="anew") == kept
    assert await texts(sessions, kept) == [("λ?", "anew")]


async def test_an_attempt_stays_in_its_session_however_large_that_grows(store: Store, clock: Clock) -> None:
    sessions = Sessions(store, SessionsConfig(max_bytes=1024), clock)
    first = await begun(sessions, "r0", "0")
    await turn(sessions, "r1", "1", "x" * 900, session_id=first.key.name)
    found = await opened(sessions, "r0", "0")
    again = await sessions.store(sessions.begin(found, "r0", "0", "a system prompt: " + "x" * 900), BUDGET)
    await sessions.end(again, Ending(State.COMPLETE, "λ!"))
    assert ("0", "λ!") in await texts(sessions, first.key.name)


class Strict(Memory):
    """The store `memory`, for keys as stores take them."""

    async def get(self, key: Key) -> Record | None:
        assert all(part.isascii() and part.isprintable() and len(part) <= 256 for part in key), key
        return await super().get(key)

    async def delete(self, key: Key) -> bool:
        assert await self.get(key) is None
        return await super().delete(key)


@pytest.mark.parametrize("name", ["λ", "a b", "a\n", "\x00", "a/b", "x" * 300])
async def test_no_store_is_asked_for_an_id_that_we_cannot_have_made(clock: Clock, name: str) -> None:
    sessions = Sessions(Strict(clock), SessionsConfig(), clock)
    assert await sessions.open(ADA, name, "r1", "λ?") is None
    await fails(sessions.get(ADA, name), Code.NOT_FOUND)
    await fails(sessions.delete(ADA, name), Code.NOT_FOUND)


class Small(Memory):
    """The store `memory`, with room for so many bytes in a record, as DynamoDB has."""

    max_value_bytes: int | None = 4000

    async def put(self, key: Key, record: Record, after: str | None) -> bool:
        if len(record.value) > 4000:
            raise LlmError(Code.FAILED_PRECONDITION, "too large", origin="store")
        return await super().put(key, record, after)


async def test_a_session_is_no_larger_than_what_its_store_takes(clock: Clock) -> None:
    sessions = Sessions(Small(clock), SessionsConfig(), clock)
    kept = await turn(sessions, "r0", "0", "x")
    for number in range(1, 60):
        await turn(sessions, f"r{number}", f"{number}", "x" * 100, session_id=kept)
    assert (await texts(sessions, kept))[-1] == ("59", "x" * 100)


@pytest.mark.parametrize(("when", "goes_on"), [("refuse", False), ("forget", True)])
async def test_a_store_that_is_gone_is_as_the_config_says(
    tmp_path: Path, clock: Clock, when: str, goes_on: bool
) -> None:
    with redis_server(tmp_path) as server:
        store = make_store(StoreConfig(kind="redis", redis=RedisConfig(url=server.url)), clock)
        await store.open()
        sessions = Sessions(store, msgspec.convert({"when_store_fails": when}, SessionsConfig), clock)
        work = await begun(sessions, "r1")
    for call in (
        sessions.open(ADA, work.key.name, "r2", "λ?"),
        sessions.end(work, Ending(State.COMPLETE, "λ!")),
        sessions.list(ADA, 0),
    ):
        error = await fails(call, Code.UNAVAILABLE)
        assert error.origin == "store"
        assert sessions.goes_on_without(error) is goes_on
    assert not sessions.goes_on_without(no_such_session())
    await store.close()
