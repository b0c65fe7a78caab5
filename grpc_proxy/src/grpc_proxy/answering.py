"""One request's way to its answer: what is remembered of it, what it may cost, who answers it.

In this order: the session is read, the quota reserved, the user's words stored, an upstream asked; the answer is stored
before its end is told, and the quota settled. A turn that ends in another way is kept as failed or cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any

import msgspec

from grpc_proxy import conversation
from grpc_proxy.background import Background
from grpc_proxy.callers import Callers
from grpc_proxy.conversation import State, Turn
from grpc_proxy.exchange import Exchange
from grpc_proxy.metrics import Metrics
from grpc_proxy.pool import Ask, Pool
from grpc_proxy.quotas import Quotas, Reservation
from grpc_proxy.sessions import Begun, Opened, Sessions, no_such_session
from lambdalm import logs
from lambdalm.chat import ChatRequest, invalid
from lambdalm.errors import STORE, Code, LlmError
from lambdalm.events import Finished, FinishReason, Started, StreamEvent, TextDelta, Usage

_ANSWER_TOKENS = 1024  # what an answer is thought to take where the request does not say
_LATE = 0.05  # seconds: gRPC may end a call at its caller's deadline a little before our clock does
_SETTLE_SECONDS = 30  # after its deadline, for a call to be settled with what it took rather than with its estimate

_log = logs.get(__name__)

Batches = AsyncGenerator[list[StreamEvent], None]


class Answering:
    """What all requests share. Use it in one event loop."""

    def __init__(self, pool: Pool, callers: Callers, sessions: Sessions, quotas: Quotas, metrics: Metrics) -> None:
        self._pool = pool
        self._callers = callers
        self._sessions = sessions
        self._quotas = quotas
        self._metrics = metrics
        self._afterwards = Background()

    async def stream(self, exchange: Exchange) -> Batches:
        """The answer's batches: `Started` first, but for heartbeats; `Finished` when it is stored. Raises LlmError."""
        _check_model(exchange)
        opened = await self._open(exchange)
        if opened is not None and opened.answered is not None:
            self._names(exchange, opened)
            yield list(_once_more(exchange, opened.answered))
            return
        reservation = await self._reserve(exchange, opened)
        try:
            begun = None if opened is None else await self._begin(exchange, opened)
            exchange.keeps_text = begun is not None or reservation is not None
            async with contextlib.aclosing(self._remembered(exchange, begun)) as batches:
                async for batch in batches:
                    yield batch
        except (asyncio.CancelledError, GeneratorExit):
            exchange.was_left = True
            raise
        finally:
            if reservation is not None:
                self._later(self._quotas.settle(reservation, exchange.spent()))

    async def finish(self) -> None:
        """Returns when all that ended calls have left to do is done."""
        await self._afterwards.finish()

    async def _open(self, exchange: Exchange) -> Opened | None:
        """The session that remembers this, None where none does; raises LlmError where the one named is not there."""
        named = _named_session(exchange)
        if not _remembers(exchange.request, named):
            return None
        if not self._callers.remembers(exchange.caller):
            if named is not None:
                raise no_such_session()
            return None
        try:
            return await self._find(exchange, named)
        except LlmError as error:
            if not self._sessions.goes_on_without(error):
                raise
            return None

    def _names(self, exchange: Exchange, opened: Opened) -> None:
        """Its session is in the store: from now on the caller is told of it."""
        exchange.session_id = opened.key.name
        exchange.cookies = self._callers.set_cookies(exchange.caller, opened.key.name)

    async def _find(self, exchange: Exchange, named: str | None) -> Opened | None:
        if named is not None:
            opened = await self._sessions.open(exchange.caller, named, exchange.call.id, exchange.prompt)
            if opened is not None:
                return opened
            if exchange.request.session_id is not None:
                raise no_such_session()
        if not exchange.makes_session:
            return None
        return await self._sessions.open(exchange.caller, None, exchange.call.id, exchange.prompt)

    async def _reserve(self, exchange: Exchange, opened: Opened | None) -> Reservation | None:
        if exchange.caller.key is None:
            return None
        request = exchange.request
        tokens = _estimate(request)
        if opened is not None:
            tokens += conversation.remembered_tokens(opened.session)
        tokens += request.max_tokens or _ANSWER_TOKENS
        window = self._pool.window(request.model)
        if window is not None:
            tokens = min(tokens, window)  # of a longer conversation the model is told the newest part
        try:
            until = time.time() + exchange.call.remaining() + _SETTLE_SECONDS
            return await self._quotas.reserve(exchange.caller.key, tokens, until)
        except LlmError as error:
            self._metrics.refused("store" if error.origin == STORE else "quota")
            raise

    async def _begin(self, exchange: Exchange, opened: Opened) -> Begun | None:
        """Store the user's words: to the end, also when the caller leaves meanwhile."""
        call, system = exchange.call, exchange.request.system
        work = self._sessions.begin(opened, call.id, exchange.prompt, system, call.remaining())
        beginning = asyncio.create_task(work)
        try:
            begun = await asyncio.shield(beginning)
        except asyncio.CancelledError:
            self._later(self._never_asked(beginning, exchange))
            raise
        except LlmError as error:
            if not self._sessions.goes_on_without(error):
                raise
            return None
        self._names(exchange, opened)
        self._metrics.session_used(opened.key.name)
        if opened.record is None:
            self._metrics.session_made()
        return begun

    async def _remembered(self, exchange: Exchange, begun: Begun | None) -> Batches:
        """The pool's batches; with a turn to remember, the answer is stored before `Finished` is passed on."""
        state: State | None = State.CANCELLED
        try:
            async with contextlib.aclosing(self._pool.stream(self._ask(exchange, begun), exchange.call)) as batches:
                async for batch in batches:
                    exchange.saw(batch)
                    if isinstance(batch[-1], Finished):
                        state = None  # also if the caller leaves while the answer is being stored
                        if begun is not None and (failure := await self._commit(begun, exchange)) is not None:
                            state = State.FAILED
                            if rest := [_with_session(event, exchange) for event in batch[:-1]]:
                                yield rest
                            raise failure
                    yield [_with_session(event, exchange) for event in batch]
        except LlmError as error:
            if state is State.CANCELLED and error.code is not Code.CANCELLED:
                state = State.FAILED
            raise
        finally:
            if begun is not None and state is not None:
                late = exchange.call.cancelled or exchange.call.remaining() <= _LATE  # it was not the caller who left
                self._later(self._keep(begun, exchange, State.FAILED if late else state))

    def _ask(self, exchange: Exchange, begun: Begun | None) -> Ask:
        """What the pool is to ask: the request itself, with what the session remembers of what went before."""
        request = msgspec.structs.replace(exchange.request, session_id=None, memory=None, on_disconnect=None)

        def prepare(upstream: str, model: str | None, window: int | None) -> ChatRequest:
            exchange.upstream = upstream
            if begun is None:
                exchange.asked = _estimate(request)
                return msgspec.structs.replace(request, model=model)
            told = conversation.told(begun.session, begun.attempt, window, request.max_tokens)
            exchange.told = told.before
            exchange.asked = told.before + conversation.estimate(exchange.prompt)
            if len(told.messages) == 1:
                return msgspec.structs.replace(request, model=model)
            return msgspec.structs.replace(request, model=model, prompt=None, system=None, messages=told.messages)

        sticky = None if begun is None else begun.session.upstream
        key = exchange.caller.key
        return Ask(request.model, prepare, _any_model if key is None else key.allows, sticky)

    async def _commit(self, begun: Begun, exchange: Exchange) -> LlmError | None:
        """Store the whole answer; gives the error with which the stream ends where that fails."""
        if exchange.overlong:
            return _not_kept(LlmError(Code.FAILED_PRECONDITION, "it is longer than a session can hold"))
        storing = asyncio.create_task(self._sessions.end(begun, exchange.ending(State.COMPLETE)))
        try:
            await asyncio.shield(storing)
        except asyncio.CancelledError:
            self._later(_seen(storing))
            raise
        except LlmError as error:
            return _not_kept(error)
        self._metrics.turn_ended(State.COMPLETE)
        return None

    async def _keep(self, begun: Begun, exchange: Exchange, state: State) -> None:
        """Store what there is of an answer that is not whole."""
        self._metrics.turn_ended(state)
        await self._sessions.end(begun, exchange.ending(state))

    async def _never_asked(self, beginning: asyncio.Task[Begun], exchange: Exchange) -> None:
        await self._keep(await beginning, exchange, State.CANCELLED)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        self._afterwards.start(_logged(work))


def _estimate(request: ChatRequest) -> int:
    return sum(conversation.estimate(message.content) for message in request.conversation())


def _any_model(model: str) -> bool:
    return True


def _check_model(exchange: Exchange) -> None:
    """Raises `LlmError(PERMISSION_DENIED)` for a model that is not this key's; who names none gets its first."""
    key, request = exchange.caller.key, exchange.request
    if key is None or key.models is None:
        return
    if request.model is None:
        exchange.request = msgspec.structs.replace(request, model=key.models[0])
    elif not key.allows(request.model):
        raise LlmError(Code.PERMISSION_DENIED, f"model: this key may ask for {', '.join(key.models)} only")


def _named_session(exchange: Exchange) -> str | None:
    return exchange.request.session_id or exchange.caller.session


def _remembers(request: ChatRequest, named: str | None) -> bool:
    if request.memory == "off":
        return False
    if request.messages is None:
        return True
    if named is None:
        return False
    why = "is a whole conversation and does not go with a session: send a prompt, or memory off"
    raise invalid("messages", why)


def _with_session(event: StreamEvent, exchange: Exchange) -> StreamEvent:
    if not isinstance(event, Started) or exchange.session_id is None:
        return event
    return msgspec.structs.replace(event, session_id=exchange.session_id)


def _once_more(exchange: Exchange, turn: Turn) -> Iterator[StreamEvent]:
    """The answer of a request that was repeated after it had been answered."""
    yield Started(exchange.call.id, turn.model, exchange.session_id)
    if turn.text:
        yield TextDelta(turn.text)
    if turn.usage is not None:
        yield Usage(turn.usage.prompt_tokens, turn.usage.completion_tokens)
    yield Finished(turn.reason or FinishReason.STOP, turn.usage)


def _not_kept(error: LlmError) -> LlmError:
    why = f"the answer was made and could not be kept in its session: {error.message}"
    return LlmError(error.code, why, retry_after=error.retry_after, origin=error.origin)


async def _seen(task: asyncio.Task[None]) -> None:
    await task


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    """What is done when nobody waits for it any more; it can fail only into the log."""
    try:
        await work
    except LlmError as error:
        _log.warning("a turn's end could not be kept", **error.for_log())
    except Exception as error:  # noqa: BLE001  # a task's edge
        _log.error("a bug: what a call left behind raised", exc_info=error)
