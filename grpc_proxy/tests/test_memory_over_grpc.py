"""Conversations over real gRPC: what a client is given, what the backend is told, and whose it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from grpc_proxy.keys import change_keys, new_key
from grpc_proxy.ledger import Limits
from grpc_proxy.wiring import Proxy
from lambdalm.errors import Code, LlmError
from lambdalm.events import Delta, Finished, FinishReason, ReasoningDelta, Started, StreamEvent, TextDelta, Usage
from lambdalm.models import ModelInfo
from lambdalm.stream import encode_event
from lambdalm.testing.raw_http import OK_SSE, Peer, Play, RawServer, answer
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc

from .conftest import DELTAS, END, SOON, STARTED, TEXT, WAIT, WHOLE, Jar, failure, new_config, whole_proxy_here
from .stores import RedisServer, redis_server, relay_to
from .test_service import details, fails, held, kinds, refused, said, soon

BEGUN = STARTED + DELTAS[0]
COOKIES = ("LlmServiceStickiness", "LlmServiceOwner")
ME, STRANGER = "me", "stranger"


class Chat:
    """A proxy, with a raw backend behind it, and clients with their jars or keys."""

    def __init__(self, backend: RawServer, channel: grpc.aio.Channel, proxy: Proxy, keys: dict[str, str]) -> None:
        self.backend = backend
        self.proxy = proxy
        self.stub: Any = llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]
        self.jars = {ME: Jar(), STRANGER: Jar()}
        self.keys = keys

    def call(self, name: str, request: Any, who: str = ME, request_id: str | None = None, **parts: Any) -> Any:
        """The call of this client, with all that identifies it."""
        more = [("x-request-id", request_id)] if request_id else []
        if who in self.keys:
            more.append(("authorization", f"Bearer {self.keys[who]}"))
        return getattr(self.stub, name)(request, metadata=self.jars[who].metadata(*more), **parts)

    async def ask(
        self, prompt: str, who: str = ME, request_id: str | None = None, timeout: float | None = None, **parts: Any
    ) -> pb.LLMResponse:
        """One question and its answer; the client keeps its cookies."""
        call = self.call("Generate", pb.LLMRequest(prompt=prompt, **parts), who, request_id, timeout=timeout)
        found: pb.LLMResponse = await call
        self.jars[who].keep(await call.trailing_metadata())
        return found

    async def stream(
        self, prompt: str, who: str = ME, request_id: str | None = None, **parts: Any
    ) -> list[pb.LLMStreamEvent]:
        call = self.call("GenerateStream", pb.LLMRequest(prompt=prompt, **parts), who, request_id)
        found = [event async for event in call]
        self.jars[who].keep(await call.initial_metadata())
        return found

    def told(self) -> list[list[tuple[str, str]]]:
        """What the backend was told in each request: roles and texts."""
        return [told(json.loads(request.body)) for request in self.backend.requests]

    async def turns(self, session_id: str, who: str = ME) -> list[pb.Turn]:
        """As they are once all that ended calls have left to do is done."""
        await self.settled()
        session: pb.Session = await self.call("GetSession", pb.GetSessionRequest(session_id=session_id), who)
        return list(session.turns)

    async def sessions(self, who: str = ME) -> list[pb.SessionSummary]:
        found: pb.ListSessionsResponse = await self.call("ListSessions", pb.ListSessionsRequest(), who)
        return list(found.sessions)

    async def settled(self) -> None:
        async with asyncio.timeout(WAIT):
            while self.proxy.door._running:  # noqa: ASYNC110  # the call has ended for its caller, not yet for itself
                await asyncio.sleep(0)
            await self.proxy.service._answering.finish()


def told(body: dict[str, Any]) -> list[tuple[str, str]]:
    if "messages" in body:
        return [(message["role"], message["content"]) for message in body["messages"]]
    return [(role, body[name]) for role, name in (("system", "system"), ("user", "prompt")) if name in body]


def plays(*pieces: bytes) -> Play:
    async def play(peer: Peer) -> None:
        await peer.send(*pieces)

    return play


async def whole(peer: Peer) -> None:
    await peer.send(OK_SSE + WHOLE)


def talk(**parts: Any) -> pytest.MarkDecorator:
    """Marks a test whose proxy has this config."""
    return pytest.mark.parametrize("parts", [parts], ids=[""])


@pytest.fixture
def parts() -> dict[str, Any]:
    return {}


@contextlib.asynccontextmanager
async def chatting(keys: dict[str, str], /, **parts: Any) -> AsyncIterator[Chat]:
    async with RawServer(whole) as backend, whole_proxy_here(new_config(backend.url, **parts)) as here:
        yield Chat(backend, here.channel, here.proxy, keys)


@pytest.fixture
async def chat(parts: dict[str, Any]) -> AsyncIterator[Chat]:
    async with chatting({}, **parts) as chat:
        yield chat


@pytest.fixture(params=["cookies", "keys"])
async def two(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Chat]:
    """With two clients, who are known by their cookies or by their keys."""
    if request.param == "cookies":
        async with chatting({}) as chat:
            yield chat
        return
    keys, file = made_keys(tmp_path, {ME: {}, STRANGER: {}})
    async with chatting(keys, keys={"file": str(file)}) as chat:
        yield chat


def made_keys(folder: Path, wanted: dict[str, dict[str, Any]]) -> tuple[dict[str, str], Path]:
    """A key for each, with its models and limits; and their file."""
    file = folder / "keys.yaml"
    keys = {}
    for who, has in wanted.items():
        key, entry = new_key(who, has.pop("models", []), Limits(**has))
        change_keys(file, lambda entries, entry=entry: {**entries, entry.id: entry})  # type: ignore[misc]
        keys[who] = key
    return keys, file


async def test_the_second_request_knows_the_first(chat: Chat) -> None:
    first = await chat.ask("Who?")
    second = await chat.ask("When?")
    assert first.session_id == second.session_id != ""
    assert chat.told() == [[("user", "Who?")], [("user", "Who?"), ("assistant", TEXT), ("user", "When?")]]


async def test_the_cookies_of_a_stream_come_in_its_initial_and_trailing_metadata(chat: Chat) -> None:
    call = chat.call("GenerateStream", pb.LLMRequest(prompt="Who?"))
    events = [event async for event in call]
    session_id = events[0].started.session_id
    for metadata in (await call.initial_metadata(), await call.trailing_metadata()):
        sets_cookies(chat, metadata, session_id)


async def test_the_cookies_of_a_plain_answer_come_in_its_trailing_metadata(chat: Chat) -> None:
    call = chat.call("Generate", pb.LLMRequest(prompt="Who?"))
    session_id = (await call).session_id
    sets_cookies(chat, await call.trailing_metadata(), session_id)
    chat.jars[ME].keep(await call.initial_metadata())
    assert chat.jars[ME].set == []


def sets_cookies(chat: Chat, metadata: Any, session_id: str) -> None:
    jar = chat.jars[ME]
    jar.keep(metadata)
    assert [cookie.partition("=")[0] for cookie in jar.set] == list(COOKIES)
    assert jar.set[0] == f"{COOKIES[0]}={session_id}; Path=/; Max-Age=900; HttpOnly"


async def test_a_session_can_be_named_by_its_field_too(two: Chat) -> None:
    first = await two.ask("Who?")
    other = await two.ask("New one?", request_id="another") if two.keys else None
    again = await two.ask("When?", session_id=first.session_id)
    assert again.session_id == first.session_id
    assert not [request for request in two.backend.requests if b"session_id" in request.body]
    assert two.told()[-1][0] == ("user", "Who?")
    if other is not None:
        assert other.session_id == first.session_id  # the cookie named it


async def test_with_memory_off_nothing_is_read_kept_or_set(chat: Chat) -> None:
    await chat.ask("Who?")
    cookies = dict(chat.jars[ME].cookies)
    found = await chat.ask("When?", memory=pb.MEMORY_OFF)
    assert found.session_id == ""
    assert chat.jars[ME].set == []
    assert chat.jars[ME].cookies == cookies
    assert chat.told()[-1] == [("user", "When?")]
    (session,) = await chat.sessions()
    assert session.turns == 1


async def test_messages_are_a_whole_conversation_and_make_no_session(chat: Chat) -> None:
    messages = [pb.ChatMessage(role="user", content="hi")]
    found = await chat.call("Generate", pb.LLMRequest(messages=messages))
    assert found.session_id == ""
    await chat.ask("Who?")
    error = await refused(chat.call("Generate", pb.LLMRequest(messages=messages)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.details() or "").startswith("messages:")
    off = await chat.call("Generate", pb.LLMRequest(messages=messages, memory=pb.MEMORY_OFF))
    assert off.text == TEXT


async def test_an_unknown_session_is_not_found_by_its_field_and_replaced_by_the_cookie(chat: Chat) -> None:
    error = await refused(chat.call("Generate", pb.LLMRequest(prompt="Who?", session_id="unknown")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert (error.details() or "").startswith("session_id:")
    assert chat.backend.requests == []
    for unknown in ("unknown", "../../etc", "x" * 300):
        chat.jars[ME].cookies = {COOKIES[0]: unknown}
        found = await chat.ask("Who?")
        assert found.session_id not in ("", unknown)
        assert chat.jars[ME].cookies[COOKIES[0]] == found.session_id


async def test_a_stranger_sees_nothing_of_a_session_and_is_told_what_is_told_of_one_that_never_was(two: Chat) -> None:
    mine = (await two.ask("my secret", system="my system prompt")).session_id
    await two.ask("mine", STRANGER)
    for name_of in (mine, "never"):
        answers = []
        for name, request in (
            ("GetSession", pb.GetSessionRequest(session_id=name_of)),
            ("DeleteSession", pb.DeleteSessionRequest(session_id=name_of)),
            ("Generate", pb.LLMRequest(prompt="What did they say?", session_id=name_of)),
        ):
            error = await refused(two.call(name, request, STRANGER))
            answers.append((error.code(), error.details()))
        assert set(answers) == {(grpc.StatusCode.NOT_FOUND, answers[0][1])}
    assert mine not in [session.id for session in await two.sessions(STRANGER)]
    two.jars[STRANGER].cookies[COOKIES[0]] = mine
    assert (await two.ask("By cookie?", STRANGER)).session_id != mine
    assert two.told()[-1] == [("user", "By cookie?")]
    assert [turn.prompt for turn in await two.turns(mine)] == ["my secret"]


async def test_who_has_neither_key_nor_cookie_has_no_sessions(chat: Chat) -> None:
    await chat.ask("Who?")
    assert await chat.sessions(STRANGER) == []


async def test_sessions_are_listed_read_and_deleted(chat: Chat) -> None:
    session_id = (await chat.ask("Who?", request_id="r-1", system="Be brief.")).session_id
    (listed,) = await chat.sessions()
    assert (listed.id, listed.turns, listed.title) == (session_id, 1, "Who?")
    session = await chat.call("GetSession", pb.GetSessionRequest(session_id=session_id))
    (turn,) = session.turns
    assert (session.system, turn.request_id, turn.prompt, turn.text) == ("Be brief.", "r-1", "Who?", TEXT)
    assert (turn.model, turn.state, turn.finish_reason) == ("tiny", pb.TURN_STATE_COMPLETE, pb.FINISH_REASON_STOP)
    assert (turn.usage.prompt_tokens, turn.usage.completion_tokens) == (3, 4)
    assert session.created.seconds > 1_700_000_000
    await chat.call("DeleteSession", pb.DeleteSessionRequest(session_id=session_id))
    assert await chat.sessions() == []
    assert (await chat.ask("Who?")).session_id != session_id


@pytest.mark.parametrize(("limit", "found"), [(0, 3), (2, 2), (50, 3), (-1, 3)])
async def test_a_list_is_as_long_as_it_is_asked_for(chat: Chat, limit: int, found: int) -> None:
    for number in range(3):
        chat.jars[ME].cookies.pop(COOKIES[0], None)
        await chat.ask(f"{number}?")
    listed = await chat.call("ListSessions", pb.ListSessionsRequest(limit=limit))
    assert [session.title for session in listed.sessions] == ["2?", "1?", "0?"][:found]


async def test_the_system_prompt_is_kept(chat: Chat) -> None:
    await chat.ask("Who?", system="Be brief.")
    await chat.ask("When?")
    assert chat.told()[0] == [("system", "Be brief."), ("user", "Who?")]
    assert chat.told()[1] == [("system", "Be brief."), ("user", "Who?"), ("assistant", TEXT), ("user", "When?")]


async def test_a_repeated_request_has_the_same_answer_and_does_not_cost_another(chat: Chat) -> None:
    first = await chat.ask("Who?", request_id="r-1")
    again = await chat.ask("Who?", request_id="r-1")
    assert (again.text, again.session_id, again.model) == (first.text, first.session_id, first.model)
    assert (again.usage.completion_tokens, again.finish_reason) == (4, pb.FINISH_REASON_STOP)
    events = await chat.stream("Who?")
    assert kinds(events)[0] == "started"
    del chat.jars[ME].cookies[COOKIES[0]]  # the answer that set it was lost
    assert (await chat.ask("Who?", request_id="r-1")).session_id == first.session_id
    assert len(chat.backend.requests) == 2
    error = await refused(chat.call("Generate", pb.LLMRequest(prompt="Other?"), request_id="r-1"))
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_a_turn_that_failed_is_kept_and_its_repetition_takes_its_place(chat: Chat) -> None:
    session_id = (await chat.ask("Who?")).session_id
    chat.backend.play = plays(OK_SSE + BEGUN, failure(LlmError(Code.UNAVAILABLE, "died")))
    await refused(chat.call("Generate", pb.LLMRequest(prompt="Poison?"), request_id="r-2"))
    assert [(turn.state, turn.text) for turn in await chat.turns(session_id)][1] == (pb.TURN_STATE_FAILED, "Par")
    chat.backend.play = whole
    await chat.ask("When?")
    assert chat.told()[-1] == [("user", "Who?"), ("assistant", TEXT), ("user", "When?")]
    await chat.ask("Poison?", request_id="r-2")
    assert chat.told()[-1] == [("user", "Who?"), ("assistant", TEXT), ("user", "Poison?")]
    assert [turn.prompt for turn in await chat.turns(session_id)] == ["Who?", "Poison?", "When?"]


@pytest.mark.parametrize("sent", [b"", OK_SSE, OK_SSE + BEGUN], ids=["before the headers", "after them", "mid-stream"])
@talk(stream={"heartbeat_seconds": SOON})
async def test_a_turn_whose_caller_left_is_kept_as_cancelled_and_not_told(chat: Chat, sent: bytes) -> None:
    session_id = (await chat.ask("Who?")).session_id
    chat.backend.play, left = held(sent)
    call = chat.call("GenerateStream", pb.LLMRequest(prompt="Long?"))
    waited_for = "started" if BEGUN in sent else "heartbeat"
    while kinds([await call.read()]) != [waited_for] or len(chat.backend.requests) < 2:
        pass
    call.cancel()
    await soon(left)
    text = "Par" if BEGUN in sent else ""
    assert [(turn.state, turn.text) for turn in await chat.turns(session_id)][1] == (pb.TURN_STATE_CANCELLED, text)
    chat.backend.play = whole
    await chat.ask("When?")
    assert chat.told()[-1] == [("user", "Who?"), ("assistant", TEXT), ("user", "When?")]


@talk(limits={"default_timeout": 0.5})
@pytest.mark.parametrize("timeout", [None, 0.4], ids=["the server's", "the caller's"])
async def test_a_turn_that_ran_out_of_time_is_kept_as_failed(chat: Chat, timeout: float | None) -> None:
    session_id = (await chat.ask("Who?")).session_id
    chat.backend.play, left = held(OK_SSE + BEGUN)
    _, error = await fails(chat.call("GenerateStream", pb.LLMRequest(prompt="Long?"), timeout=timeout))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await soon(left)
    turn = (await chat.turns(session_id))[1]
    assert (turn.state, turn.text) == (pb.TURN_STATE_FAILED, "Par")


async def test_a_turn_whose_caller_leaves_while_it_is_being_stored_is_kept_as_cancelled(redis: RedisServer) -> None:
    async with (
        relay_to(redis.port) as relay,
        chatting({}, store={"kind": "redis", "redis": {"url": relay.url}}) as chat,
    ):
        session_id = (await chat.ask("Who?")).session_id
        while not relay.asked.empty():
            relay.asked.get_nowait()
        call = chat.call("Generate", pb.LLMRequest(prompt="When?"))
        await asyncio.wait_for(relay.asked.get(), WAIT)  # the session is read,
        await asyncio.wait_for(relay.asked.get(), WAIT)  # and now written
        relay.answering.clear()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while chat.proxy.door._running:  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0)
        relay.answering.set()
        assert [turn.state for turn in await chat.turns(session_id)][1] == pb.TURN_STATE_CANCELLED
        assert len(chat.backend.requests) == 1


async def test_a_turn_that_is_cut_while_being_stored_leaves_its_repetition_alone(redis: RedisServer) -> None:
    async with (
        relay_to(redis.port) as relay,
        chatting({}, store={"kind": "redis", "redis": {"url": relay.url}}) as chat,
    ):
        session_id = (await chat.ask("Who?")).session_id
        while not relay.asked.empty():
            relay.asked.get_nowait()
        call = chat.call("GenerateStream", pb.LLMRequest(prompt="When?"), request_id="r-1")
        await asyncio.wait_for(relay.asked.get(), WAIT)  # the session is read,
        await asyncio.wait_for(relay.asked.get(), WAIT)  # and now written
        relay.answering.clear()
        call.cancel()
        while chat.proxy.door._running:  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0)
        go = asyncio.Event()
        chat.backend.play, asked = waits_for(go)
        again = asyncio.create_task(chat.stream("When?", request_id="r-1"))
        relay.answering.set()
        await asyncio.wait_for(asked.get(), WAIT)
        await chat.proxy.service._answering.finish()
        go.set()
        assert said(await again) == TEXT
        assert [turn.text for turn in await chat.turns(session_id)] == [TEXT, TEXT]


@contextlib.asynccontextmanager
async def keyed(tmp_path: Path, **parts: Any) -> AsyncIterator[Chat]:
    """With a client that is known by its key, before it has a session."""
    keys, file = made_keys(tmp_path, {ME: {}})
    async with chatting(keys, keys={"file": str(file)}, **parts) as chat:
        yield chat


def waits_for(go: asyncio.Event) -> tuple[Play, asyncio.Queue[None]]:
    """A backend that answers when it is let, and what it has been asked."""
    asked: asyncio.Queue[None] = asyncio.Queue()

    async def play(peer: Peer) -> None:
        asked.put_nowait(None)
        await go.wait()
        await whole(peer)

    return play, asked


async def test_the_first_turn_of_a_plain_answer_is_stored_with_its_answer(tmp_path: Path) -> None:
    go = asyncio.Event()
    async with keyed(tmp_path) as chat:
        chat.backend.play, asked = waits_for(go)
        call = asyncio.create_task(chat.ask("Who?"))
        await asyncio.wait_for(asked.get(), WAIT)
        assert await chat.sessions() == []
        go.set()
        session_id = (await call).session_id
        (turn,) = await chat.turns(session_id)
        assert (turn.state, turn.prompt, turn.text) == (pb.TURN_STATE_COMPLETE, "Who?", TEXT)


async def test_of_a_first_request_and_its_repetition_one_is_kept(tmp_path: Path) -> None:
    go = asyncio.Event()
    async with keyed(tmp_path) as chat:
        chat.backend.play, asked = waits_for(go)
        calls = [asyncio.create_task(chat.ask("Who?", request_id="r-1")) for _ in range(2)]
        for _ in calls:
            await asyncio.wait_for(asked.get(), WAIT)
        go.set()
        found = await asyncio.gather(*calls, return_exceptions=True)
        (error,) = [one for one in found if isinstance(one, grpc.aio.AioRpcError)]
        (kept,) = [one for one in found if isinstance(one, pb.LLMResponse)]
        assert error.code() is grpc.StatusCode.ABORTED
        assert [turn.state for turn in await chat.turns(kept.session_id)] == [pb.TURN_STATE_COMPLETE]
        assert (await chat.ask("Who?", request_id="r-1")).session_id == kept.session_id
        assert len(chat.backend.requests) == 2


async def test_a_first_turn_that_failed_is_kept_and_its_repetition_takes_its_place(tmp_path: Path) -> None:
    async with keyed(tmp_path) as chat:
        chat.backend.play = plays(OK_SSE + BEGUN, failure(LlmError(Code.UNAVAILABLE, "died")))
        await refused(chat.call("Generate", pb.LLMRequest(prompt="Who?"), request_id="r-1"))
        await chat.settled()
        (session,) = await chat.sessions()
        assert [(turn.state, turn.text) for turn in await chat.turns(session.id)] == [(pb.TURN_STATE_FAILED, "Par")]
        chat.backend.play = whole
        assert (await chat.ask("Who?", request_id="r-1")).session_id == session.id
        assert [turn.text for turn in await chat.turns(session.id)] == [TEXT]


async def test_a_first_turn_whose_caller_left_is_kept_as_cancelled(tmp_path: Path) -> None:
    async with keyed(tmp_path) as chat:
        chat.backend.play, asked = waits_for(asyncio.Event())
        call = asyncio.create_task(chat.ask("Who?"))
        await asyncio.wait_for(asked.get(), WAIT)
        call.cancel()
        while not await chat.sessions():
            await chat.settled()
        (session,) = await chat.sessions()
        assert [turn.state for turn in await chat.turns(session.id)] == [pb.TURN_STATE_CANCELLED]


@pytest.mark.parametrize("way", ["leaves", "runs out of time"])
async def test_a_first_turn_is_stored_whole_though_its_caller_goes_meanwhile(
    tmp_path: Path, redis: RedisServer, way: str
) -> None:
    async with relay_to(redis.port) as relay, keyed(tmp_path, store=redis_at(relay.url)) as chat:
        await chat.sessions()  # connects
        go = asyncio.Event()
        chat.backend.play, asked = waits_for(go)
        call = asyncio.create_task(chat.ask("Who?", timeout=1.5 if way == "runs out of time" else None))
        await asyncio.wait_for(asked.get(), WAIT)
        while not relay.asked.empty():
            relay.asked.get_nowait()
        relay.answering.clear()
        go.set()
        await asyncio.wait_for(relay.asked.get(), WAIT)  # its turn is being written
        if way == "leaves":
            call.cancel()
        await asyncio.wait({call}, timeout=WAIT)
        assert call.cancelled() or isinstance(call.exception(), grpc.aio.AioRpcError)
        relay.answering.set()
        await chat.settled()
        (session,) = await chat.sessions()
        assert [turn.state for turn in await chat.turns(session.id)] == [pb.TURN_STATE_COMPLETE]


def redis_at(url: str) -> dict[str, Any]:
    return {"kind": "redis", "redis": {"url": url}}


@talk(stream={"heartbeat_seconds": SOON})
async def test_a_call_that_the_server_cannot_wait_for_is_told_so_and_its_turn_kept(chat: Chat) -> None:
    session_id = (await chat.ask("Who?")).session_id
    chat.backend.play, left = held(OK_SSE + BEGUN)
    call = chat.call("GenerateStream", pb.LLMRequest(prompt="Long?"))
    await call.read()
    chat.proxy.door.stop_all()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await _until_it_ends(call)
    error = raised.value
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in (error.details() or "")
    assert details(error)[1] is not None
    await soon(left)
    assert (await chat.turns(session_id))[1].text == "Par"


async def _until_it_ends(call: Any) -> None:
    while await call.read():
        pass


async def test_what_is_left_when_its_caller_goes_may_be_finished_and_kept(chat: Chat) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.send(OK_SSE + BEGUN)
        begun.set()
        await go.wait()
        await peer.send(WHOLE.removeprefix(BEGUN))

    chat.backend.play = play
    call = chat.call("GenerateStream", pb.LLMRequest(prompt="Long?", on_disconnect=pb.ON_DISCONNECT_DRAIN))
    session_id = (await call.read()).started.session_id
    chat.jars[ME].keep(await call.initial_metadata())
    call.cancel()
    while chat.proxy.door._running:  # noqa: ASYNC110  # it has no event
        await asyncio.sleep(0)
    assert [turn.state for turn in await chat.turns(session_id)] == [pb.TURN_STATE_PENDING]
    go.set()
    await chat.proxy.service.finish(WAIT)
    (turn,) = await chat.turns(session_id)
    assert (turn.state, turn.text) == (pb.TURN_STATE_COMPLETE, TEXT)


async def _left(chat: Chat, who: str) -> str:
    """The id of a session in which an answer goes on, as its caller had wished before they left."""
    call = chat.call("GenerateStream", pb.LLMRequest(prompt="Long?", on_disconnect=pb.ON_DISCONNECT_DRAIN), who)
    session_id: str = (await call.read()).started.session_id
    chat.jars[who].keep(await call.initial_metadata())
    call.cancel()
    while chat.proxy.door._running:  # noqa: ASYNC110  # it has no event
        await asyncio.sleep(0)
    return session_id


@talk(limits={"max_in_flight": 1})
async def test_caller_who_is_there_takes_a_detached_runs_place(chat: Chat) -> None:
    chat.backend.play, stopped = held(OK_SSE + BEGUN)
    session_id = await _left(chat, ME)
    assert not stopped.is_set()
    chat.backend.play = whole
    assert (await chat.ask("Who?", STRANGER)).text == TEXT
    await soon(stopped)
    await chat.proxy.service.finish(WAIT)
    (turn,) = await chat.turns(session_id)
    assert (turn.state, turn.text) == (pb.TURN_STATE_FAILED, "Par")


@talk(upstream={"max_in_flight": 1})
async def test_caller_who_would_wait_takes_a_detached_runs_place(chat: Chat) -> None:
    chat.backend.play, stopped = held(OK_SSE + BEGUN)
    session_id = await _left(chat, ME)
    chat.backend.play = whole
    assert (await chat.ask("Who?", STRANGER)).text == TEXT
    assert stopped.is_set()
    await chat.proxy.service.finish(WAIT)
    assert [turn.state for turn in await chat.turns(session_id)] == [pb.TURN_STATE_FAILED]


@talk(limits={"max_detached_per_owner": 0})
async def test_answer_above_an_owners_limit_stops_with_its_caller(chat: Chat) -> None:
    chat.backend.play, stopped = held(OK_SSE + BEGUN)
    session_id = await _left(chat, ME)
    await soon(stopped)
    await chat.proxy.service.finish(WAIT)
    (turn,) = await chat.turns(session_id)
    assert (turn.state, turn.text) == (pb.TURN_STATE_CANCELLED, "Par")


async def test_a_plain_answer_may_be_finished_and_kept_though_its_caller_left(tmp_path: Path) -> None:
    go = asyncio.Event()
    async with keyed(tmp_path) as chat:
        assert (await chat.ask("Who?", on_disconnect=pb.ON_DISCONNECT_DRAIN)).text == TEXT
        chat.backend.play, asked = waits_for(go)
        request = pb.LLMRequest(prompt="Long?", on_disconnect=pb.ON_DISCONNECT_DRAIN)
        call = chat.call("Generate", request, request_id="r-1")
        waiting = asyncio.ensure_future(call)
        await asyncio.wait_for(asked.get(), WAIT)
        waiting.cancel()
        while chat.proxy.door._running:  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0)
        go.set()
        await chat.proxy.service.finish(WAIT)
        assert (await chat.ask("Long?", request_id="r-1")).text == TEXT
        assert len(chat.backend.requests) == 2


async def test_what_is_not_to_be_drained_stops(chat: Chat) -> None:
    chat.backend.play, left = held(OK_SSE + BEGUN)
    call = chat.call("GenerateStream", pb.LLMRequest(prompt="Long?", on_disconnect=pb.ON_DISCONNECT_CANCEL))
    await call.read()
    call.cancel()
    await soon(left)


@pytest.mark.parametrize("pieces", [(WHOLE,), (WHOLE.removesuffix(END), END)], ids=["at once", "its end alone"])
async def test_an_answer_that_cannot_be_kept_ends_with_an_error_that_says_so_after_its_text(
    chat: Chat, pieces: tuple[bytes, ...]
) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def play(peer: Peer) -> None:
        asked.set()
        await peer.send(OK_SSE, *pieces[:-1])
        await gone.wait()
        await peer.send(pieces[-1])

    chat.backend.play = play
    session_id = (await _begun(chat)).session_id
    stream = chat.call("GenerateStream", pb.LLMRequest(prompt="Who?", session_id=session_id))
    await soon(asked)
    await chat.call("DeleteSession", pb.DeleteSessionRequest(session_id=session_id))
    gone.set()
    events, error = await fails(stream)
    assert said(events) == TEXT
    assert "finished" not in kinds(events)
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "could not be kept" in (error.details() or "")


async def test_an_answer_too_long_to_be_kept_ends_with_an_error_and_its_turn_has_failed_without_a_text(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = (await chat.ask("Who?")).session_id
    monkeypatch.setattr("grpc_proxy.exchange._MOST_TEXT", len(TEXT) - 1)
    events, error = await fails(chat.call("GenerateStream", pb.LLMRequest(prompt="Long?")))
    assert said(events) == TEXT
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "could not be kept" in (error.details() or "")
    turn = (await chat.turns(session_id))[1]
    assert (turn.state, turn.text) == (pb.TURN_STATE_FAILED, "")


async def _begun(chat: Chat) -> pb.LLMResponse:
    """A session, made before the backend began to play its part."""
    play, chat.backend.play = chat.backend.play, whole
    found = await chat.ask("Begin?")
    chat.backend.play = play
    return found


@pytest.fixture
def redis(tmp_path: Path) -> Any:
    with redis_server(tmp_path) as server:
        yield server


async def test_without_its_store_the_proxy_refuses_what_it_is_to_remember_before_it_asks(redis: RedisServer) -> None:
    async with chatting({}, store={"kind": "redis", "redis": {"url": redis.url}}) as chat:
        await chat.ask("Who?")
        redis.pause()
        error = await refused(chat.call("Generate", pb.LLMRequest(prompt="When?")))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert details(error)[0] == "store"
        assert len(chat.backend.requests) == 1
        assert (await chat.ask("Now?", memory=pb.MEMORY_OFF)).text == TEXT
        redis.resume()


async def test_without_its_store_the_proxy_may_answer_without_memory(redis: RedisServer) -> None:
    parts = {"store": {"kind": "redis", "redis": {"url": redis.url}}, "sessions": {"when_store_fails": "forget"}}
    async with chatting({}, **parts) as chat:
        await chat.ask("Who?")
        redis.pause()
        found = await chat.ask("When?")
        assert (found.text, found.session_id) == (TEXT, "")
        assert chat.told()[-1] == [("user", "When?")]
        redis.resume()


@pytest.mark.parametrize("when", ["refuse", "forget"])
async def test_a_store_without_room_is_as_the_config_says_and_no_cookie_names_what_was_not_kept(
    tmp_path: Path, when: str
) -> None:
    with redis_server(tmp_path, "--maxmemory", "1") as redis:  # which reads, and refuses to write
        store = {"kind": "redis", "redis": {"url": redis.url}}
        async with chatting({}, store=store, sessions={"when_store_fails": when}) as chat:
            if when == "forget":
                for _ in range(2):
                    found = await chat.ask("Who?")
                    assert (found.text, found.session_id, chat.jars[ME].set) == (TEXT, "", [])
                assert kinds(await chat.stream("Who?"))[-1] == "finished"
                return
            error = await refused(chat.call("GenerateStream", pb.LLMRequest(prompt="Who?")).read())
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert details(error)[0] == "store"
            assert chat.backend.requests == []


async def test_a_first_answer_that_cannot_be_stored_says_so_and_the_next_is_not_asked_for(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory", "1") as redis:  # which reads, and refuses to write
        async with chatting({}, store={"kind": "redis", "redis": {"url": redis.url}}) as chat:
            for words in ("could not be kept", "is full"):
                error = await refused(chat.call("Generate", pb.LLMRequest(prompt="Who?")))
                assert (error.code(), details(error)[0]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "store")
                assert words in (error.details() or "")
                chat.jars[ME].keep(error.trailing_metadata())
                assert chat.jars[ME].set == []
                assert len(chat.backend.requests) == 1


@talk(sticky={"enabled": False})
async def test_without_stickiness_nobody_can_come_back_so_nothing_is_kept(chat: Chat) -> None:
    call = chat.call("Generate", pb.LLMRequest(prompt="Who?"))
    assert (await call).session_id == ""
    chat.jars[ME].keep(await call.trailing_metadata())
    assert chat.jars[ME].cookies == {}
    error = await refused(chat.call("Generate", pb.LLMRequest(prompt="Who?", session_id="s1")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_without_stickiness_a_keys_sessions_are_named_by_their_field(tmp_path: Path) -> None:
    keys, file = made_keys(tmp_path, {ME: {}})
    async with chatting(keys, sticky={"enabled": False}, keys={"file": str(file)}) as chat:
        first = await chat.ask("Who?")
        assert chat.jars[ME].set == []
        await chat.ask("When?", session_id=first.session_id)
        assert chat.told()[-1][0] == ("user", "Who?")


async def test_the_oldest_turns_that_no_longer_fit_the_window_are_not_told(chat: Chat) -> None:
    def play(number: int) -> Play:
        usage = Usage(40 * number, 10)
        end = Finished(FinishReason.STOP)
        return plays(OK_SSE + STARTED, *(encode_event(event) for event in (TextDelta(f"{number}!"), usage, end)))

    chat.proxy.pool.members["main"].offers([ModelInfo("tiny", "p", 180)])
    for number in range(1, 5):
        chat.backend.play = play(number)
        await chat.ask(f"{number}?", parameters=pb.LLMRequest.Parameters(max_tokens=50), system="Be brief.")
    found = chat.told()
    assert [len(messages) for messages in found[:3]] == [2, 4, 6]
    assert all(messages[0] == ("system", "Be brief.") for messages in found)
    assert found[3][1:] == [("user", "2?"), ("assistant", "2!"), ("user", "3?"), ("assistant", "3!"), ("user", "4?")]


async def test_a_session_goes_to_the_backend_that_answered_it_last() -> None:
    async with RawServer(whole) as a, RawServer(whole) as b:
        upstreams = {name: {"url": server.url} for name, server in (("a", a), ("b", b))}
        async with whole_proxy_here(new_config(a.url, upstreams=upstreams)) as here:
            chat = Chat(a, here.channel, here.proxy, {})
            for number in range(6):
                await chat.ask(f"{number}?")
            assert {len(a.requests), len(b.requests)} == {0, 6}


async def test_generate_text_takes_part_in_the_session_of_its_cookie_and_makes_none(chat: Chat) -> None:
    call = chat.call("generateText", pb.LlmQueryRequest(prompt="Alone?"))
    await call
    chat.jars[ME].keep(await call.trailing_metadata())
    assert chat.jars[ME].set == []
    await chat.ask("Who?")
    assert (await chat.call("generateText", pb.LlmQueryRequest(prompt="When?"))).text == TEXT
    assert chat.told()[-1] == [("user", "Who?"), ("assistant", TEXT), ("user", "When?")]


async def test_reasoning_is_not_part_of_what_is_remembered(chat: Chat) -> None:
    events: list[StreamEvent] = [Started("r1", "tiny"), ReasoningDelta("Hm."), TextDelta("So.")]
    events.append(Finished(FinishReason.STOP))
    chat.backend.play = plays(OK_SSE, *map(encode_event, events))
    found = await chat.ask("Why?")
    assert found.reasoning == "Hm."
    (turn,) = await chat.turns(found.session_id)
    assert turn.text == "So."


async def test_a_key_is_answered_by_its_models_only(tmp_path: Path) -> None:
    keys, file = made_keys(tmp_path, {ME: {"models": ["tiny", "small"]}, STRANGER: {}})
    async with chatting(keys, keys={"file": str(file)}) as chat:
        error = await refused(chat.call("Generate", pb.LLMRequest(prompt="Who?", model="big")))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "tiny" in (error.details() or "")
        assert chat.backend.requests == []
        await chat.ask("Who?")
        assert json.loads(chat.backend.requests[0].body)["model"] == "tiny"
        await chat.ask("Who?", model="small")
        await chat.ask("Who?", STRANGER, model="big")
        listed = b'{"models":[{"id":"big","provider":"p"},{"id":"small","provider":"p"}]}'
        chat.backend.play = plays(answer("200 OK", "application/json", listed))
        for who, names in ((ME, ["small"]), (STRANGER, ["big", "small"])):
            found = await chat.call("ListModels", pb.ListModelsRequest(), who)
            assert [model.id for model in found.models] == names


CALLS = {
    "generateText": pb.LlmQueryRequest(prompt="Who?"),
    "Generate": pb.LLMRequest(prompt="Who?"),
    "GenerateStream": pb.LLMRequest(prompt="Who?"),
    "ListModels": pb.ListModelsRequest(),
    "ListSessions": pb.ListSessionsRequest(),
    "GetSession": pb.GetSessionRequest(session_id="s1"),
    "DeleteSession": pb.DeleteSessionRequest(session_id="s1"),
    "GetChain": pb.GetChainRequest(),
    "GetStats": pb.GetStatsRequest(),
}


async def test_without_a_key_every_call_is_refused(tmp_path: Path) -> None:
    keys, file = made_keys(tmp_path, {STRANGER: {}})
    async with chatting(keys, keys={"file": str(file)}) as chat:
        assert sorted(CALLS) == sorted(method.name for method in pb.DESCRIPTOR.services_by_name["LlmService"].methods)
        for name, request in CALLS.items():
            call = chat.call(name, request)
            error = await refused(call.read() if name == "GenerateStream" else call)
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED, name
        assert chat.backend.requests == []


async def test_a_limit_that_is_reached_says_which_and_when_to_come_back(tmp_path: Path) -> None:
    keys, file = made_keys(tmp_path, {ME: {"requests_per_minute": 1}, STRANGER: {}})
    async with chatting(keys, keys={"file": str(file)}) as chat:
        await chat.ask("Who?", request_id="r-1")
        error = await refused(chat.call("Generate", pb.LLMRequest(prompt="When?")))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "minute" in (error.details() or "")
        origin, seconds = details(error)
        assert origin == "proxy"
        assert seconds is not None
        assert 0 < seconds <= 66
        assert len(chat.backend.requests) == 1
        await chat.ask("Who?", request_id="r-1")  # what has been answered costs nothing
        await chat.ask("When?", STRANGER)


async def test_no_cookie_names_a_session_that_a_limit_kept_from_being_made(tmp_path: Path) -> None:
    keys, file = made_keys(tmp_path, {ME: {"requests_per_minute": 1}})
    async with chatting(keys, keys={"file": str(file)}) as chat:
        await chat.ask("Who?", memory=pb.MEMORY_OFF)
        error = await refused(chat.call("Generate", pb.LLMRequest(prompt="When?")))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for metadata in (error.initial_metadata(), error.trailing_metadata()):
            chat.jars[ME].keep(metadata)
            assert chat.jars[ME].set == []
        assert await chat.sessions() == []


async def test_what_an_answer_has_cost_is_settled_as_counted(tmp_path: Path) -> None:
    keys, file = made_keys(tmp_path, {ME: {"tokens_per_day": 3000}})
    async with chatting(keys, keys={"file": str(file)}) as chat:
        for _ in range(4):  # each reserves more than 1024
            await chat.ask("Who?", memory=pb.MEMORY_OFF)
            await chat.settled()


async def test_what_a_session_remembers_counts_to_what_its_next_answer_may_cost(tmp_path: Path) -> None:
    keys, file = made_keys(tmp_path, {ME: {"tokens_per_day": 3000}})
    events: list[StreamEvent] = [Started("r1", "tiny"), TextDelta("!"), Usage(1300, 100), Finished(FinishReason.STOP)]
    async with chatting(keys, keys={"file": str(file)}) as chat:
        chat.backend.play = plays(OK_SSE, *map(encode_event, events))
        await chat.ask("Who?")
        await chat.settled()
        error = await refused(chat.call("Generate", pb.LLMRequest(prompt="When?")))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await chat.ask("When?", memory=pb.MEMORY_OFF)


async def test_a_session_longer_than_the_models_window_costs_a_window_at_most(tmp_path: Path) -> None:
    window = 1500
    keys, file = made_keys(tmp_path, {ME: {}})
    parts = {"keys": {"file": str(file)}, "store": {"kind": "sqlite", "sqlite": {"path": str(tmp_path / "store")}}}
    events: list[StreamEvent] = [Started("r1", "tiny"), TextDelta("!"), Usage(3000, 100), Finished(FinishReason.STOP)]
    async with chatting(keys, **parts) as chat:
        chat.backend.play = plays(OK_SSE, *map(encode_event, events))
        session_id = (await chat.ask("Who?")).session_id
        await chat.settled()
    limits = Limits(tokens_per_minute=window)
    change_keys(file, lambda all_: {name: msgspec.structs.replace(key, limits=limits) for name, key in all_.items()})
    async with chatting(keys, **parts) as chat:
        chat.proxy.pool.members["main"].offers([ModelInfo("tiny", "p", window)])
        assert (await chat.ask("When?", session_id=session_id)).text == TEXT
        assert chat.told() == [[("user", "When?")]]


@pytest.mark.parametrize("memory", [pb.MEMORY_ON, pb.MEMORY_OFF])
@pytest.mark.parametrize("what", ["asked", "told", "said", "thought"])
async def test_an_answer_that_is_left_costs_what_was_told_and_said(tmp_path: Path, memory: Any, what: str) -> None:
    keys, file = made_keys(tmp_path, {ME: {"tokens_per_day": 5100}})
    long = "x" * 3 * 4000  # 4000 tokens, as estimated
    prompt = long if what in ("asked", "told") else "Why?"
    said: Delta = ReasoningDelta(long) if what == "thought" else TextDelta(long if what == "said" else "!")
    waited_for, first = ("heartbeat", b"") if what == "asked" else ("started", encode_event(said))
    async with chatting(keys, keys={"file": str(file)}, stream={"heartbeat_seconds": SOON}) as chat:
        chat.backend.play, left = held(OK_SSE + STARTED + first)
        call = chat.call("GenerateStream", pb.LLMRequest(prompt=prompt, memory=memory))
        while kinds([await call.read()]) != [waited_for] or not chat.backend.requests:
            pass
        call.cancel()
        await soon(left)
        await chat.settled()
        chat.backend.play = whole
        error = await refused(chat.call("Generate", pb.LLMRequest(prompt="More?" * 100, memory=memory)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "nobody",
    [plays(OK_SSE + STARTED), plays(answer("503 Service Unavailable", "text/plain", b"no"))],
    ids=["it broke off", "it refused"],
)
async def test_a_request_that_nobody_answered_costs_nothing(tmp_path: Path, nobody: Play) -> None:
    keys, file = made_keys(tmp_path, {ME: {"tokens_per_day": 2000}})
    async with chatting(keys, keys={"file": str(file)}) as chat:
        chat.backend.play = nobody
        for _ in range(3):
            error = await refused(chat.call("Generate", pb.LLMRequest(prompt="x" * 1200, memory=pb.MEMORY_OFF)))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            await chat.settled()
