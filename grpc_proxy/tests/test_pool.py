"""Which backend gets a request, when it waits, and when it moves on: in front of real HTTP servers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest

from grpc_proxy import routing
from grpc_proxy.clients import Clients
from grpc_proxy.config import Config
from grpc_proxy.detached import DetachedRuns
from grpc_proxy.dialects import Look
from grpc_proxy.pool import Ask, Pool
from grpc_proxy.routing import Target
from grpc_proxy.upstream import Upstream
from lambdalm import logs
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, ErrorBody, LlmError
from lambdalm.events import Finished, Started, StreamEvent, TextDelta, Usage
from lambdalm.models import ModelInfo
from lambdalm.stream import ErrorAnswer
from lambdalm.testing.raw_http import OK_SSE, Peer, Play, RawServer, answer

from .conftest import DELTAS, END, SOON, STARTED, TEXT, USAGE, WAIT, WHOLE, failure, new_call

BEGUN = STARTED + DELTAS[0]
DOWN = Look("it hangs")
UP = Look(None)


@pytest.fixture(autouse=True)
def _logging() -> None:
    """As a server's: other tests may or may not have set it up."""
    logs.configure("proxy", logs.LogConfig())


class Watcher:
    """Keeps what the pool tells."""

    def __init__(self) -> None:
        self.waits = 0
        self.retries: list[tuple[str, Code]] = []
        self.ejections: list[str] = []
        self.refusals: list[str] = []

    def waited(self, seconds: float) -> None:
        assert seconds >= 0
        self.waits += 1

    def retried(self, upstream: str, code: Code) -> None:
        self.retries.append((upstream, code))

    def ejected(self, upstream: str) -> None:
        self.ejections.append(upstream)

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)


class Backend(RawServer):
    """A server with the prompts that came to it; one that is `held` answers when it is let."""

    def __init__(self, play: Play | None = None) -> None:
        super().__init__(play or self.whole)
        self.arrived: asyncio.Queue[str] = asyncio.Queue()
        self.left: asyncio.Queue[str] = asyncio.Queue()
        self._go: asyncio.Queue[None] = asyncio.Queue()

    async def whole(self, peer: Peer) -> None:
        await peer.send(OK_SSE + WHOLE)

    async def held(self, peer: Peer) -> None:
        """Says nothing until it is let go on, or the caller leaves."""
        await self.held_after(b"")(peer)

    def held_after(self, first: bytes) -> Play:
        async def play(peer: Peer) -> None:
            prompt = json.loads(peer.request.body)["prompt"]
            self.arrived.put_nowait(prompt)
            await peer.send(first)
            left, go = asyncio.ensure_future(peer.gone()), asyncio.ensure_future(self._go.get())
            try:
                await asyncio.wait({left, go}, return_when=asyncio.FIRST_COMPLETED)
                if go.done():
                    await peer.send((first and b"") or OK_SSE, (WHOLE if not first else WHOLE.removeprefix(first)))
                else:
                    self.left.put_nowait(prompt)
            finally:
                left.cancel()
                go.cancel()

        return play

    def let(self, count: int = 1) -> None:
        """Answer so many that are held."""
        for _ in range(count):
            self._go.put_nowait(None)

    async def has(self) -> str:
        """The prompt of the next request that comes to be held."""
        return await asyncio.wait_for(self.arrived.get(), WAIT)

    @property
    def prompts(self) -> list[str]:
        return [json.loads(request.body)["prompt"] for request in self.requests]


@contextlib.asynccontextmanager
async def pooled(
    *backends: RawServer, routing: Any = None, upstreams: Sequence[Any] = (), **all_: Any
) -> AsyncIterator[Pool]:
    """A pool of them, named a, b, …; `upstreams` has what is each one's, `all_` what is all of them's."""
    parts = [*upstreams, *({} for _ in backends)]
    named = {
        name: {"url": backend.url, "check_timeout": 1, **all_, **part}
        for name, backend, part in zip("abcdefgh", backends, parts, strict=False)
    }
    config = msgspec.convert(
        {"listen": {"host": "127.0.0.1", "port": 0}, "upstreams": named, "routing": routing or {}}, Config
    )
    async with Clients() as http:
        configs = config.each_upstream()
        members = {name: Upstream(http, one) for name, one in configs.items()}
        yield Pool(members, configs, config.routing, Watcher(), DetachedRuns(4))


@contextlib.asynccontextmanager
async def up(*backends: Backend) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for backend in backends:
            await stack.enter_async_context(backend)
        yield


def asking(prompt: str = "Hello!", model: str | None = None, sticky: str | None = None, **parts: Any) -> Ask:
    def prepare(upstream: str, model: str | None, window: int | None) -> ChatRequest:
        return ChatRequest(prompt=prompt, model=model)

    may_use = parts.get("may_use", lambda model: True)
    return Ask(model, parts.get("prepare", prepare), may_use, parts.get("saw", lambda batch: None), sticky)


async def events(
    pool: Pool, ask: Ask, into: list[StreamEvent] | None = None, budget: float = WAIT
) -> list[StreamEvent]:
    found: list[StreamEvent] = [] if into is None else into
    running = await pool.stream(ask, new_call())
    try:
        while not (found and isinstance(found[-1], Finished)):
            found += await running.next()
    finally:
        running.close()
    return found


async def said(pool: Pool, ask: Ask) -> str:
    return "".join(event.text for event in await events(pool, ask) if isinstance(event, TextDelta))


async def fails(pool: Pool, ask: Ask) -> LlmError:
    with pytest.raises(LlmError) as raised:
        await events(pool, ask)
    return raised.value


def starts(pool: Pool, ask: Ask) -> asyncio.Task[str]:
    return asyncio.create_task(said(pool, ask))


async def until(holds: Callable[[], bool]) -> None:
    """Let the others run until it holds; they need no time of the clock for it."""
    async with asyncio.timeout(WAIT):
        while not holds():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0)


def idle(pool: Pool) -> bool:
    targets = [member.target for member in pool.members.values()]
    return not pool.line.waiters and all(target.in_flight == target.waiting == 0 for target in targets)


def watcher(pool: Pool) -> Watcher:
    assert isinstance(pool.watcher, Watcher)
    return pool.watcher


def refuses(code: Code, status: str = "503 Service Unavailable") -> Play:
    body = msgspec.json.encode(ErrorAnswer(ErrorBody(code, "no", "llamacpp"), {}))

    async def play(peer: Peer) -> None:
        await peer.send(answer(status, "application/json", body))

    return play


def sends(*pieces: bytes) -> Play:
    async def play(peer: Peer) -> None:
        await peer.send(*pieces)

    return play


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_requests_go_where_the_fewest_are_in_progress() -> None:
    a, b = Backend(), Backend()
    a.play, b.play = a.held, b.held
    async with up(a, b), pooled(a, b) as pool:
        tasks = [starts(pool, asking()) for _ in range(4)]
        for backend in (a, a, b, b):
            await backend.has()
        b.let(2)
        await until(lambda: pool.members["b"].target.in_flight == 0)
        tasks += [starts(pool, asking()) for _ in range(2)]
        for _ in range(2):
            await b.has()
        a.let(2)
        b.let(2)
        assert await asyncio.gather(*tasks) == [TEXT] * 6
        assert idle(pool)


async def test_a_backend_of_three_times_the_weight_gets_three_times_as_many() -> None:
    a, b = Backend(), Backend()
    a.play, b.play = a.held, b.held
    async with up(a, b), pooled(a, b, upstreams=[{"weight": 3}]) as pool:
        tasks = [starts(pool, asking()) for _ in range(8)]
        for backend in (a,) * 6 + (b,) * 2:
            await backend.has()
        a.let(6)
        b.let(2)
        await asyncio.gather(*tasks)


async def test_a_session_stays_with_its_backend_while_that_is_healthy_and_has_room() -> None:
    a, b = Backend(), Backend()
    async with up(a, b), pooled(a, b, max_in_flight=1) as pool:
        for _ in range(3):
            await said(pool, asking(sticky="b"))
        assert (len(a.requests), len(b.requests)) == (0, 3)
        b.play = b.held
        busy = starts(pool, asking(sticky="b"))
        await b.has()
        assert await said(pool, asking("full", sticky="b")) == TEXT
        b.let()
        await busy
        pool.looked("b", DOWN)
        assert await said(pool, asking("ill", sticky="b")) == TEXT
        assert a.prompts == ["full", "ill"]


async def test_what_waits_is_answered_in_the_order_it_came() -> None:
    a = Backend()
    a.play = a.held
    async with up(a), pooled(a, max_in_flight=1) as pool:
        first = starts(pool, asking("0"))
        await a.has()
        tasks = [asyncio.create_task(events(pool, asking(f"{number}"))) for number in (1, 2, 3)]
        await until(lambda: len(pool.line.waiters) == 3)
        assert len(a.requests) == 1
        for number in range(1, 4):
            a.let()
            assert await a.has() == f"{number}"
        a.let()
        await asyncio.gather(first, *tasks)
        assert idle(pool)


async def test_above_the_queue_a_request_is_refused_at_once_and_told_when_to_come_back() -> None:
    a = Backend()
    a.play = a.held
    async with up(a), pooled(a, max_in_flight=1, queue=2) as pool:
        tasks = [starts(pool, asking(f"{number}")) for number in range(3)]
        await a.has()
        error = await fails(pool, asking("one too many"))
        assert error.code is Code.RESOURCE_EXHAUSTED
        assert error.retry_after is not None
        assert 1 <= error.retry_after <= 2
        assert watcher(pool).refusals == ["queue"]
        await cancelled(tasks[1])
        tasks[1] = starts(pool, asking("now there is a place"))
        await until(lambda: len(pool.line.waiters) == 2)
        a.let(3)
        assert await asyncio.gather(*tasks) == [TEXT] * 3
        assert a.prompts == ["0", "2", "now there is a place"]
        assert idle(pool)


async def test_who_waits_for_a_full_backend_keeps_nobody_from_an_idle_one() -> None:
    a, b = Backend(), Backend()
    a.play = a.held
    parts = [{"models": ["big"], "max_in_flight": 1}, {"models": ["tiny"]}]
    async with up(a, b), pooled(a, b, upstreams=parts) as pool:
        tasks = [starts(pool, asking(model="big")) for _ in range(2)]
        await a.has()
        await until(lambda: len(pool.line.waiters) == 1)
        assert await said(pool, asking("either")) == TEXT
        assert b.prompts == ["either"]
        a.let(2)
        await asyncio.gather(*tasks)


async def test_a_place_that_comes_free_while_another_is_being_taken_is_not_lost() -> None:
    a = Backend()
    a.play = a.held
    async with up(a), pooled(a, max_in_flight=2) as pool:
        running = [starts(pool, asking()) for _ in range(2)]
        for _ in running:
            await a.has()
        waits = starts(pool, asking("waits"))
        await until(lambda: bool(pool.line.waiters))
        (waiter,) = pool.line.waiters

        async def comes() -> str:
            await until(lambda: waiter.given.done() and pool.members["a"].target.in_flight == 1)
            assert pool.line.waiters, "the place has been given, and is not taken yet"
            return await said(pool, asking("comes"))

        both = [waits, asyncio.create_task(comes())]
        for task in running:
            task.cancel()
        assert {await a.has(), await a.has()} == {"waits", "comes"}
        a.let(2)
        assert await asyncio.gather(*both) == [TEXT] * 2
        assert idle(pool)


BEFORE_THE_FIRST_DELTA: dict[str, Play] = {
    "says nothing": sends(),
    "503": refuses(Code.UNAVAILABLE),
    "no room": refuses(Code.RESOURCE_EXHAUSTED, "429 Too Many Requests"),
    "500": refuses(Code.INTERNAL, "500 Internal Server Error"),
    "its key is wrong": refuses(Code.UNAUTHENTICATED, "401 Unauthorized"),
    "headers only": sends(OK_SSE),
    "started only": sends(OK_SSE + STARTED),
    "an error after started": sends(OK_SSE + STARTED, failure(LlmError(Code.UNAVAILABLE, "died"))),
    "nonsense": sends(OK_SSE + b"event: text_delta\ndata: {\n\n"),
    "HTML": sends(answer("502 Bad Gateway", "text/html", b"<h1>Bad</h1>")),
}


@pytest.mark.parametrize("name", BEFORE_THE_FIRST_DELTA)
async def test_before_the_first_delta_a_failure_moves_the_request_to_another_backend(name: str) -> None:
    a, b = Backend(BEFORE_THE_FIRST_DELTA[name]), Backend()
    async with up(a, b), pooled(a, b) as pool:
        assert await said(pool, asking(sticky="a")) == TEXT
        assert (len(a.requests), len(b.requests)) == (1, 1)
        ((upstream, _),) = watcher(pool).retries
        assert upstream == "a"
        assert idle(pool)


async def test_a_backend_that_is_not_there_moves_the_request_on() -> None:
    a, b = Backend(), Backend()
    async with a:
        pass
    async with up(b), pooled(a, b) as pool:
        assert await said(pool, asking(sticky="a")) == TEXT


@pytest.mark.parametrize("rest", [b"", failure(LlmError(Code.UNAVAILABLE, "died")), b"data: {\n\n"])
async def test_after_the_first_delta_nothing_is_ever_repeated(rest: bytes) -> None:
    a, b = Backend(sends(OK_SSE + BEGUN, rest)), Backend()
    async with up(a, b), pooled(a, b) as pool:
        found: list[StreamEvent] = []
        with pytest.raises(LlmError):
            await events(pool, asking(sticky="a"), found)
        assert [event.text for event in found if isinstance(event, TextDelta)] == ["Par"]
        assert (len(a.requests), len(b.requests)) == (1, 0)
        assert idle(pool)


@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.DEADLINE_EXCEEDED, Code.PERMISSION_DENIED])
async def test_what_no_other_backend_could_mend_is_not_tried_there(code: Code) -> None:
    a, b = Backend(refuses(code, "400 Bad Request")), Backend()
    async with up(a, b), pooled(a, b) as pool:
        assert (await fails(pool, asking(sticky="a"))).code is code
        assert (len(a.requests), len(b.requests)) == (1, 0)


@pytest.mark.parametrize("attempts", [1, 2, 3])
async def test_a_request_is_tried_so_often_at_most_and_never_twice_at_one_backend(attempts: int) -> None:
    backends = [Backend(refuses(Code.UNAVAILABLE)) for _ in range(5)]
    async with up(*backends), pooled(*backends, routing={"retries": {"attempts": attempts}}) as pool:
        assert (await fails(pool, asking())).code is Code.UNAVAILABLE
        counts = [len(backend.requests) for backend in backends]
        assert (sum(counts), max(counts)) == (attempts, 1)
        assert len(watcher(pool).retries) == attempts - 1


async def test_a_backend_that_fails_always_is_hit_no_more_than_the_budget_allows() -> None:
    a, b = Backend(refuses(Code.UNAVAILABLE)), Backend(refuses(Code.UNAVAILABLE))
    never_out = {"breaker": {"failures": 1_000_000}}
    async with up(a, b), pooled(a, b, routing=never_out) as pool:
        for _ in range(100):
            await fails(pool, asking())
        assert 100 + 10 + 19 <= len(a.requests) + len(b.requests) <= 100 + 10 + 20


async def test_without_a_budget_nothing_is_tried_again() -> None:
    a, b = Backend(refuses(Code.UNAVAILABLE)), Backend()
    async with up(a, b), pooled(a, b, routing={"retries": {"budget": 0, "saved": 0}}) as pool:
        await fails(pool, asking(sticky="a"))
        assert b.requests == []


async def test_after_five_failures_a_backend_is_left_out_and_one_request_tries_it_when_it_may_be_back() -> None:
    a, b = Backend(refuses(Code.UNAVAILABLE)), Backend()
    async with up(a, b), pooled(a, b, routing={"breaker": {"seconds": SOON}}) as pool:
        breaker = pool.members["a"].target.breaker
        for _ in range(5):
            assert breaker.state(asyncio.get_running_loop().time()) == "closed"
            assert await said(pool, asking(sticky="a")) == TEXT
        assert watcher(pool).ejections == ["a"]
        assert await said(pool, asking(sticky="a")) == TEXT
        assert len(a.requests) == 5
        await asyncio.sleep(breaker.until - asyncio.get_running_loop().time())
        a.play = a.held
        tries = starts(pool, asking("tries", sticky="a"))
        assert await a.has() == "tries"
        assert await said(pool, asking("goes elsewhere", sticky="a")) == TEXT
        assert b.prompts[-1] == "goes elsewhere"
        a.let()
        assert await tries == TEXT
        a.play = a.whole
        assert await said(pool, asking("is back", sticky="a")) == TEXT
        assert a.prompts[-1] == "is back"


async def test_the_last_backend_stays_however_often_it_fails() -> None:
    a = Backend(refuses(Code.UNAVAILABLE))
    async with up(a), pooled(a) as pool:
        for _ in range(8):
            await fails(pool, asking())
        assert len(a.requests) == 8
        a.play = a.whole
        assert await said(pool, asking()) == TEXT
        assert watcher(pool).ejections == []


async def test_when_the_others_are_left_out_already_the_last_one_stays() -> None:
    a, b = Backend(refuses(Code.UNAVAILABLE)), Backend()
    async with up(a, b), pooled(a, b) as pool:
        for _ in range(5):
            await said(pool, asking(sticky="a"))
        b.play = refuses(Code.UNAVAILABLE)
        for _ in range(8):
            await fails(pool, asking())
        assert watcher(pool).ejections == ["a"]
        assert (len(a.requests), len(b.requests)) == (5, 5 + 8)


async def test_a_refusal_is_not_turned_into_a_try_at_a_backend_that_is_left_out() -> None:
    a, b = Backend(refuses(Code.UNAVAILABLE)), Backend()
    async with up(a, b), pooled(a, b) as pool:
        for _ in range(5):
            await said(pool, asking(sticky="a"))
        b.play = refuses(Code.RESOURCE_EXHAUSTED, "429 Too Many Requests")
        assert (await fails(pool, asking())).code is Code.RESOURCE_EXHAUSTED
        assert len(a.requests) == 5


async def test_a_backend_that_fails_only_second_tries_is_left_out_too() -> None:
    a, b = Backend(refuses(Code.RESOURCE_EXHAUSTED, "429 Too Many Requests")), Backend(refuses(Code.UNAVAILABLE))
    async with up(a, b), pooled(a, b) as pool:
        for _ in range(5):
            await fails(pool, asking(sticky="a"))
        assert watcher(pool).ejections == ["b"]


async def test_one_without_room_is_not_broken() -> None:
    a, b = Backend(refuses(Code.RESOURCE_EXHAUSTED, "429 Too Many Requests")), Backend()
    async with up(a, b), pooled(a, b) as pool:
        for _ in range(7):
            assert await said(pool, asking(sticky="a")) == TEXT
        assert watcher(pool).ejections == []
        assert len(a.requests) == 1, "for a moment others are asked before one that said that it is full"
        pool.looked("b", DOWN)
        assert (await fails(pool, asking())).code is Code.RESOURCE_EXHAUSTED


async def test_one_that_refuses_the_proxys_credential_is_left_out() -> None:
    a, b = Backend(refuses(Code.UNAUTHENTICATED, "401 Unauthorized")), Backend()
    async with up(a, b), pooled(a, b) as pool:
        for _ in range(9):
            assert await said(pool, asking(sticky="a")) == TEXT
        assert watcher(pool).ejections == ["a"]
        assert len(a.requests) == 5


async def test_fallback_models_answer_in_order_and_only_those_that_the_caller_may_use() -> None:
    a, b, c = Backend(refuses(Code.UNAVAILABLE)), Backend(), Backend()
    parts = [{"models": ["big"]}, {"models": ["small"]}, {"models": ["tiny"]}]
    async with up(a, b, c), pooled(a, b, c, upstreams=parts, routing={"fallbacks": {"big": ["small", "tiny"]}}) as pool:
        assert await said(pool, asking("1", "big")) == TEXT
        assert await said(pool, asking("2", "big", may_use=lambda model: model != "small")) == TEXT
        pool.looked("b", DOWN)
        assert await said(pool, asking("3", "big")) == TEXT
        assert (a.prompts, b.prompts, c.prompts) == (["1", "2", "3"], ["1"], ["2", "3"])
        assert [json.loads(backend.requests[0].body)["model"] for backend in (a, b, c)] == ["big", "small", "tiny"]
        assert (await fails(pool, asking("4", "big", may_use=lambda model: False))).code is Code.UNAVAILABLE


async def test_a_model_that_nobody_serves_is_not_found() -> None:
    a = Backend()
    async with up(a), pooled(a, models=["tiny"]) as pool:
        error = await fails(pool, asking(model="huge"))
        assert error.code is Code.NOT_FOUND
        assert "huge" in error.message
        assert a.requests == []


async def test_a_request_is_made_for_the_backend_that_it_goes_to() -> None:
    a, b = Backend(refuses(Code.UNAVAILABLE)), Backend()
    made: list[tuple[str, str | None, int | None]] = []

    def prepare(upstream: str, model: str | None, window: int | None) -> ChatRequest:
        made.append((upstream, model, window))
        return ChatRequest(prompt="Hello!", model=model)

    async with up(a, b), pooled(a, b) as pool:
        pool.members["a"].offers([ModelInfo("tiny", "p", 512)])
        pool.members["b"].offers([ModelInfo("small", "p", 2048), ModelInfo("tiny", "p", 1024)])
        assert await said(pool, asking(model="tiny", sticky="a", prepare=prepare)) == TEXT
        assert await said(pool, asking(sticky="b", prepare=prepare)) == TEXT
        assert made == [("a", "tiny", 512), ("b", "tiny", 1024), ("b", None, 2048)]


@pytest.mark.parametrize("first", [b"", OK_SSE, OK_SSE + STARTED], ids=["nothing", "headers", "started"])
async def test_a_request_without_its_first_word_leaves_a_backend_that_is_found_down(first: bytes) -> None:
    a, b = Backend(), Backend()
    a.play = a.held_after(first)
    async with up(a, b), pooled(a, b) as pool:
        waits = starts(pool, asking(sticky="a"))
        await a.has()
        pool.looked("a", DOWN)
        assert await waits == TEXT
        assert len(b.requests) == 1
        await asyncio.wait_for(a.left.get(), WAIT)
        assert idle(pool)


async def test_where_nobody_else_could_answer_it_goes_on_waiting() -> None:
    a, b = Backend(), Backend()
    a.play = a.held
    async with up(a, b), pooled(a, b) as pool:
        pool.looked("b", DOWN)
        waits = starts(pool, asking(sticky="a"))
        await a.has()
        pool.looked("a", DOWN)
        a.let()
        assert await waits == TEXT
        assert b.requests == []


async def test_a_stream_that_has_begun_is_not_cut_when_its_backend_is_found_down() -> None:
    a, b = Backend(), Backend()
    first, go = asyncio.Event(), asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.send(OK_SSE + BEGUN)
        first.set()
        await go.wait()
        await peer.send(WHOLE.removeprefix(BEGUN))

    a.play = play
    async with up(a, b), pooled(a, b) as pool:
        running = await pool.stream(asking(sticky="a"), new_call())
        found = await running.next()
        pool.looked("a", DOWN)
        go.set()
        while not isinstance(found[-1], Finished):
            found += await running.next()
        running.close()
        assert "".join(event.text for event in found if isinstance(event, TextDelta)) == TEXT


async def test_who_waits_in_line_is_told_when_all_are_found_down() -> None:
    a = Backend()
    a.play = a.held
    async with up(a), pooled(a, max_in_flight=1) as pool:
        running = starts(pool, asking())
        await a.has()
        waits = asyncio.create_task(fails(pool, asking()))
        await until(lambda: len(pool.line.waiters) == 1)
        pool.looked("a", DOWN)
        error = await waits
        assert (error.code, error.origin) == (Code.UNAVAILABLE, "backend")
        assert "hangs" in error.message
        assert (await fails(pool, asking())).retry_after is not None
        a.let()
        await running
        assert idle(pool)


async def test_a_backend_that_comes_back_is_given_to_those_who_wait() -> None:
    a, b = Backend(), Backend()
    a.play = a.held
    async with up(a, b), pooled(a, b, max_in_flight=1) as pool:
        pool.looked("b", DOWN)
        running = starts(pool, asking())
        await a.has()
        waits = starts(pool, asking("waits"))
        await until(lambda: bool(pool.line.waiters))
        pool.looked("b", UP)
        assert await waits == TEXT
        assert b.prompts == ["waits"]
        a.let()
        await running


async def test_of_those_who_wait_for_the_same_only_the_first_is_looked_at_while_there_is_no_room_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = Backend(), Backend()
    a.play = a.held
    looks: list[Sequence[Target]] = []
    choose = routing.choose

    def counted(targets: Sequence[Target], sticky: str | None) -> Target | None:
        looks.append(targets)
        return choose(targets, sticky)

    parts = [{"models": ["big", "tiny"]}, {"models": ["tiny"]}]
    async with up(a, b), pooled(a, b, upstreams=parts, max_in_flight=1, queue=50) as pool:
        pool.looked("b", DOWN)
        tasks = [starts(pool, asking(model=model)) for model in ("big", *("big", "tiny") * 25)]
        await a.has()
        await until(lambda: len(pool.line.waiters) == 50)
        monkeypatch.setattr(routing, "choose", counted)
        pool.line.move()
        assert len(looks) == 2, "one for each wish"
        a.let(51)
        assert await asyncio.gather(*tasks) == [TEXT] * 51
        assert idle(pool)


async def test_what_comes_before_the_first_delta_is_held_back_whole() -> None:
    a = Backend(sends(OK_SSE, STARTED, USAGE, END))
    async with up(a), pooled(a) as pool:
        running = await pool.stream(asking(), new_call())
        assert [type(event) for event in await running.next()] == [Started, Usage, Finished]
        running.close()


async def test_its_models_are_those_of_all_backends_that_answer() -> None:
    def lists(*names: str) -> Play:
        body = msgspec.json.encode({"models": [{"id": name, "provider": "p"} for name in names]})
        return sends(answer("200 OK", "application/json", body))

    a, b, c = Backend(lists("x", "y")), Backend(lists("y", "z")), Backend(refuses(Code.UNAVAILABLE))
    async with up(a, b, c), pooled(a, b, c) as pool:
        assert sorted(model.id for model in await pool.models()) == ["x", "y", "z"]
        c.play = Peer.gone
        pool.looked("c", DOWN)
        asked = len(c.requests)
        assert sorted(model.id for model in await pool.models()) == ["x", "y", "z"]
        assert len(c.requests) == asked


Stage = Callable[[Backend, Pool, Ask], Awaitable[asyncio.Task[Any]]]


async def _at(backend: Backend, pool: Pool, ask: Ask, first: bytes) -> asyncio.Task[Any]:
    backend.play = backend.held_after(first)
    task = starts(pool, ask)
    await backend.has()
    return task


async def in_line(backend: Backend, pool: Pool, ask: Ask) -> asyncio.Task[Any]:
    first = await before_headers(backend, pool, ask)
    task = starts(pool, ask)
    await until(lambda: bool(pool.line.waiters))
    await cancelled(first)  # in the same moment in which it gives its place to the one in line
    return task


async def before_headers(backend: Backend, pool: Pool, ask: Ask) -> asyncio.Task[Any]:
    return await _at(backend, pool, ask, b"")


async def after_started(backend: Backend, pool: Pool, ask: Ask) -> asyncio.Task[Any]:
    return await _at(backend, pool, ask, OK_SSE + STARTED)


async def mid_stream(backend: Backend, pool: Pool, ask: Ask) -> asyncio.Task[Any]:
    return await _at(backend, pool, ask, OK_SSE + BEGUN)


async def not_begun(backend: Backend, pool: Pool, ask: Ask) -> asyncio.Task[Any]:
    return starts(pool, ask)


async def one_step_in(backend: Backend, pool: Pool, ask: Ask) -> asyncio.Task[Any]:
    task = starts(pool, ask)
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("stage", [not_begun, one_step_in, in_line, before_headers, after_started, mid_stream])
async def test_a_caller_who_leaves_gives_the_place_back_at_every_stage(stage: Stage) -> None:
    a = Backend()
    async with up(a), pooled(a, max_in_flight=1, queue=2) as pool:
        await cancelled(await stage(a, pool, asking()))
        assert idle(pool)
        a.play = a.whole
        assert await said(pool, asking()) == TEXT
        assert watcher(pool).ejections == []


async def test_a_caller_who_leaves_while_its_request_moves_is_not_asked_elsewhere() -> None:
    a, b = Backend(), Backend()
    a.play = a.held
    async with up(a, b), pooled(a, b) as pool:
        call = starts(pool, asking(sticky="a"))
        await a.has()
        pool.looked("a", DOWN)
        await cancelled(call)
        assert b.requests == []
        assert idle(pool)


@pytest.mark.parametrize("seed", range(8))
async def test_when_all_calls_have_ended_none_is_in_flight_and_none_waits(seed: int) -> None:
    """Calls that end in any way, at any step, in front of backends that do anything."""
    chance = random.Random(seed)
    plays = list(BEFORE_THE_FIRST_DELTA.values())
    plays += [sends(OK_SSE + WHOLE), sends(OK_SSE + WHOLE), sends(OK_SSE + BEGUN), Peer.gone]

    async def anything(peer: Peer) -> None:
        await chance.choice(plays)(peer)

    async def leaves(task: asyncio.Task[Any], steps: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()

    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: complaints.append(about))
    a, b, c = (Backend(anything) for _ in range(3))
    routing = {"fallbacks": {"big": ["tiny"]}, "breaker": {"failures": 2, "seconds": SOON}}
    async with (
        up(a, b, c),
        pooled(a, b, c, max_in_flight=2, queue=3, routing=routing, upstreams=[{"models": ["big", "tiny"]}]) as pool,
    ):
        calls, leaving = [], []
        for number in range(60):
            model = chance.choice([None, "big", "tiny"])
            task = starts(pool, asking(f"{number}", model, chance.choice([None, "a", "b"])))
            calls.append(task)
            leaving.append(asyncio.create_task(leaves(task, chance.choice([0, 1, 2, 5, 20, 50, 300, 3000]))))
            if chance.random() < 0.2:
                pool.looked(chance.choice("abc"), chance.choice([UP, UP, DOWN]))
            await asyncio.sleep(0)
        found = await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.gather(*leaving)
        assert idle(pool)
        gc.collect()
        assert complaints == []
        assert all(isinstance(one, str | LlmError | asyncio.CancelledError) for one in found), found
        for backend, name in zip((a, b, c), "abc", strict=True):
            backend.play = backend.whole
            pool.looked(name, UP)
        assert await said(pool, asking()) == TEXT


PLAIN = answer("200 OK", "application/json", b'{"id":"r1","model":"tiny","text":"plain","finish_reason":"stop"}')


async def answered(pool: Pool, ask: Ask) -> str:
    return (await pool.answer(ask, new_call())).text


async def test_a_whole_answer_is_asked_for_plainly() -> None:
    a = Backend(sends(PLAIN))
    async with up(a), pooled(a) as pool:
        assert await answered(pool, asking()) == "plain"
        (request,) = a.requests
        assert "stream" not in json.loads(request.body)
        assert request.headers["accept"] == "application/json"
        assert idle(pool)


@pytest.mark.parametrize("name", BEFORE_THE_FIRST_DELTA)
async def test_a_plain_answer_that_has_not_begun_moves_to_another_backend(name: str) -> None:
    a, b = Backend(BEFORE_THE_FIRST_DELTA[name]), Backend(sends(PLAIN))
    async with up(a, b), pooled(a, b) as pool:
        assert await answered(pool, asking(sticky="a")) == "plain"
        assert (len(a.requests), len(b.requests)) == (1, 1)
        assert [upstream for upstream, _ in watcher(pool).retries] == ["a"]
        assert idle(pool)


@pytest.mark.parametrize(
    "sent", [PLAIN[:-1], PLAIN.replace(b'"text"', b'"what"'), OK_SSE + BEGUN], ids=["cut", "unreadable", "streamed"]
)
async def test_a_plain_answer_that_has_begun_is_never_repeated(sent: bytes) -> None:
    a, b = Backend(sends(sent)), Backend()
    async with up(a, b), pooled(a, b) as pool:
        with pytest.raises(LlmError) as raised:
            await answered(pool, asking(sticky="a"))
        assert raised.value.code in (Code.UNAVAILABLE, Code.INTERNAL)
        assert b.requests == []
        assert idle(pool)


async def test_a_plain_answer_leaves_a_backend_that_is_found_down() -> None:
    a, b = Backend(), Backend(sends(PLAIN))
    a.play = a.held
    async with up(a, b), pooled(a, b) as pool:
        waits = asyncio.create_task(answered(pool, asking(sticky="a")))
        await a.has()
        pool.looked("a", DOWN)
        assert await waits == "plain"
        await asyncio.wait_for(a.left.get(), WAIT)
        assert idle(pool)


async def test_a_caller_who_leaves_stops_the_plain_answer() -> None:
    a = Backend()
    a.play = a.held
    async with up(a), pooled(a) as pool:
        task = asyncio.create_task(answered(pool, asking()))
        await a.has()
        await cancelled(task)
        await asyncio.wait_for(a.left.get(), WAIT)
        assert idle(pool)


async def test_an_upstream_that_cannot_list_its_models_is_asked_once() -> None:
    a = Backend(refuses(Code.UNAVAILABLE))
    async with up(a), pooled(a) as pool:
        for _ in range(3):
            with pytest.raises(LlmError) as raised:
                await pool.models()
            assert raised.value.code is Code.UNAVAILABLE
        assert len(a.requests) == 1
        a.play = sends(answer("200 OK", "application/json", b'{"models":[{"id":"tiny","provider":"p"}]}'))
        await pool.members["a"].list_models()
        assert await pool.models() == [ModelInfo("tiny", "p")]


async def test_models_that_were_listed_count_while_the_upstream_cannot_say() -> None:
    a = Backend(refuses(Code.UNAVAILABLE))
    async with up(a), pooled(a) as pool:
        pool.members["a"].offers([ModelInfo("tiny", "p", 512)])
        with pytest.raises(LlmError):
            await pool.members["a"].list_models()
        assert await pool.models() == [ModelInfo("tiny", "p", 512)]


async def test_models_that_are_known_are_not_asked_for() -> None:
    a = Backend()
    async with up(a), pooled(a) as pool:
        pool.members["a"].offers([ModelInfo("tiny", "p", 512)])
        assert await pool.models() == [ModelInfo("tiny", "p", 512)]
        assert a.requests == []
