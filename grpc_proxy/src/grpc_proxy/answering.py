"""One request's way to its answer: what is remembered of it, what it may cost, who answers it.

1. The session is opened (`_open`). A request that was answered before has its answer again.
2. The quota is reserved (`_reserve`).
3. The user's words are stored (`_begin`); the first turn of a plain answer waits for 5.
4. An upstream is asked, with what the session remembers (`_ask`).
5. The answer is stored before its end is sent (`_commit`).
6. A turn that ended in another way is kept as failed or cancelled, and the quota is settled (`_over`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from functools import partial
from typing import Any

import msgspec

from grpc_proxy import conversation
from grpc_proxy.background import Background
from grpc_proxy.callers import Callers
from grpc_proxy.conversation import State, Turn
from grpc_proxy.exchange import Exchange
from grpc_proxy.http_client import Gate
from grpc_proxy.metrics import Metrics
from grpc_proxy.pool import Ask, Pool
from grpc_proxy.quotas import Quotas, Reservation
from grpc_proxy.sessions import Begun, Opened, Sessions, no_such_session
from lambdalm import logs
from lambdalm.chat import ChatRequest, invalid
from lambdalm.errors import STORE, Code, LlmError
from lambdalm.events import Answer, Delta, Finished, FinishReason, Started, StreamEvent, replayed
from lambdalm.rpc import messages

_ANSWER_TOKENS = 1024  # what an answer is thought to take where the request does not say
_LATE = 0.05  # seconds: gRPC may end a call at its caller's deadline a little before our clock does
_SETTLE_SECONDS = 30  # after its deadline, for a call to be settled with what it took rather than with its estimate
_AROUND = 4096  # bytes of a plain answer's message, at most, that its session and its timings take

_log = logs.get(__name__)

Batches = AsyncGenerator[list[StreamEvent], None]


class Prepared:
    """A request that may be answered: its turn, if one is kept, and what it may use. `answered` is the turn of a
    request that was answered before. `state` is how the turn is to be kept at the end; None: it is kept already."""

    def __init__(self, answered: Turn | None = None, reservation: Reservation | None = None) -> None:
        self.answered = answered
        self.reservation = reservation
        self.opened: Opened | None = None
        self.begun: Begun | None = None
        self.state: State | None = State.CANCELLED

    def ended(self, error: BaseException) -> None:
        """It ends with an error."""
        if self.state is State.CANCELLED and isinstance(error, LlmError) and error.code is not Code.CANCELLED:
            self.state = State.FAILED


class Answering:
    """What all requests share. Use it in one event loop. A plain answer's message has at most `max_bytes`."""

    def __init__(
        self, pool: Pool, callers: Callers, sessions: Sessions, quotas: Quotas, metrics: Metrics, max_bytes: int
    ) -> None:
        self._pool = pool
        self._callers = callers
        self._sessions = sessions
        self._quotas = quotas
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._afterwards = Background()

    async def answer(self, exchange: Exchange) -> Answer:
        """The whole answer, when it is stored. Raises LlmError."""
        prepared = await self._prepare(exchange, whole=True)
        if prepared.answered is not None:
            answer = _once_more(exchange, prepared.answered)
            self._check_size(answer)
            return msgspec.structs.replace(answer, timings=exchange.call.clock.timings())
        try:
            answer = await self._pool.answer(self._ask(exchange, prepared.begun), exchange.call)
            exchange.answered(answer)
            self._check_size(answer)
            await self._commit(exchange, prepared)
        except BaseException as error:
            self._failed(exchange, prepared, error)
            raise
        finally:
            self._over(exchange, prepared)
        self._metrics.used(self._pool.known(exchange.model), exchange.usage)
        timings = exchange.call.clock.timings()
        return msgspec.structs.replace(answer, timings=timings, session_id=exchange.session_id)

    async def stream(self, exchange: Exchange, gate: Gate | None = None) -> Batches:
        """The answer's batches, `Started` first; `Finished` when it is stored. Raises LlmError."""
        prepared = await self._prepare(exchange, whole=False)
        if prepared.answered is not None:
            yield self._finished(exchange, list(replayed(_once_more(exchange, prepared.answered))))
            return
        running = None
        try:
            running = await self._pool.stream(self._ask(exchange, prepared.begun), exchange.call, gate)
            batch = _with_session(await running.next(), exchange)
            while not isinstance(batch[-1], Finished):
                yield batch
                batch = await running.next()
            try:
                await self._commit(exchange, prepared)
            except LlmError:
                if batch[:-1]:
                    yield batch[:-1]
                raise
            self._metrics.used(self._pool.known(exchange.model), exchange.usage)
            yield self._finished(exchange, batch)
        except BaseException as error:
            self._failed(exchange, prepared, error)
            raise
        finally:
            if running is not None:
                running.close()
            self._over(exchange, prepared)

    async def finish(self) -> None:
        """Wait for work that outlives its call: settling quotas, storing turns."""
        await self._afterwards.finish()

    async def _prepare(self, exchange: Exchange, whole: bool) -> Prepared:
        """Steps 1 to 3; raises LlmError."""
        _check_model(exchange)
        opened = await self._open(exchange)
        if opened is not None and opened.answered is not None:
            self._names(exchange, opened)
            return Prepared(opened.answered)
        prepared = Prepared(reservation=await self._reserve(exchange, opened))
        try:
            if opened is not None:
                prepared.begun = await self._begin(exchange, opened, whole)
                prepared.opened = opened
        except BaseException as error:
            self._failed(exchange, prepared, error)
            self._over(exchange, prepared)
            raise
        exchange.keeps_text = prepared.begun is not None or prepared.reservation is not None
        exchange.when_ready()
        return prepared

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

    async def _begin(self, exchange: Exchange, opened: Opened, whole: bool) -> Begun | None:
        """Store the user's words: to the end, also when the caller leaves meanwhile."""
        call = exchange.call
        begun = self._sessions.begin(opened, call.id, exchange.prompt, exchange.request.system)
        if whole and self._sessions.may_store_once(opened):
            return begun
        try:
            begun = await self._sessions.store(begun, call.remaining())
        except asyncio.CancelledError:
            self._later(self._keep(begun, exchange, State.CANCELLED))
            raise
        except LlmError as error:
            if not self._sessions.goes_on_without(error):
                raise
            return None
        self._stored(exchange, opened)
        return begun

    def _stored(self, exchange: Exchange, opened: Opened) -> None:
        """Its turn is in the store."""
        self._names(exchange, opened)
        self._metrics.session_used(opened.key.name, is_new=opened.record is None)

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
        may_use = _any_model if key is None else key.allows
        return Ask(request.model, prepare, may_use, partial(self._saw, exchange), sticky)

    async def _commit(self, exchange: Exchange, prepared: Prepared) -> None:
        """Store the whole answer, also when the caller leaves meanwhile; raises LlmError where that fails."""
        begun = prepared.begun
        prepared.state = None
        if begun is None:
            return
        if exchange.overlong:
            prepared.state = State.FAILED
            raise _not_kept(LlmError(Code.FAILED_PRECONDITION, "it is longer than a session can hold"))
        ending = exchange.ending(State.COMPLETE)
        try:
            await self._sessions.end(begun, ending)
        except asyncio.CancelledError:
            self._later(self._sessions.end(begun, ending))
            raise
        except LlmError as error:
            if not begun.stored and self._sessions.goes_on_without(error):
                return
            prepared.state = State.FAILED
            raise _not_kept(error) from None
        if not begun.stored and prepared.opened is not None:
            self._stored(exchange, prepared.opened)
        self._metrics.turn_ended(State.COMPLETE)

    def _failed(self, exchange: Exchange, prepared: Prepared, error: BaseException) -> None:
        prepared.ended(error)
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            exchange.was_left = True

    def _over(self, exchange: Exchange, prepared: Prepared) -> None:
        """Step 6: runs in the background, after the call has ended."""
        if prepared.begun is not None and prepared.state is not None:
            late = exchange.call.cancelled or exchange.call.remaining() <= _LATE  # it was not the caller who left
            self._later(self._keep(prepared.begun, exchange, State.FAILED if late else prepared.state))
        if prepared.reservation is not None:
            self._later(self._quotas.settle(prepared.reservation, exchange.spent()))

    def _saw(self, exchange: Exchange, batch: list[StreamEvent]) -> None:
        """More of the answer has come."""
        exchange.saw(batch)
        if not any(isinstance(event, Delta) for event in batch):
            return
        now = time.monotonic()
        if exchange.last_delta is None:
            exchange.call.clock.first_delta()
            self._metrics.first_delta(exchange.call.clock.total_ms() / 1000)
        else:
            self._metrics.gap(now - exchange.last_delta)
        exchange.last_delta = now

    def _finished(self, exchange: Exchange, batch: list[StreamEvent]) -> list[StreamEvent]:
        """The last batch, with this hop's time in it."""
        end = batch[-1]
        assert isinstance(end, Finished)
        if end.timings:
            exchange.call.clock.behind = end.timings
        return [*batch[:-1], msgspec.structs.replace(end, timings=exchange.call.clock.timings())]

    def _check_size(self, answer: Answer) -> None:
        """Raises `LlmError(OUT_OF_RANGE)` for an answer that no message can hold."""
        said = len(answer.text) + len(answer.reasoning or "") + len(answer.id) + len(answer.model)
        if 4 * said + _AROUND <= self._max_bytes and not answer.tool_calls:  # no character has more bytes
            return
        size = messages.answer_to_proto(answer).ByteSize() + _AROUND
        if size > self._max_bytes:
            raise LlmError(
                Code.OUT_OF_RANGE,
                f"the answer has {size} bytes, more than one message may have ({self._max_bytes}, "
                "limits.max_message_bytes): ask for a stream, or for fewer max_tokens",
            )

    async def _keep(self, begun: Begun, exchange: Exchange, state: State) -> None:
        """Store what there is of an answer that is not whole."""
        self._metrics.turn_ended(state)
        await self._sessions.end(begun, exchange.ending(state))
        if not begun.stored:
            self._metrics.session_used(begun.key.name, is_new=begun.version is None)

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


def _with_session(batch: list[StreamEvent], exchange: Exchange) -> list[StreamEvent]:
    """The first batch, with the session's id in its start."""
    if exchange.session_id is None:
        return batch
    name = exchange.session_id
    return [msgspec.structs.replace(event, session_id=name) if isinstance(event, Started) else event for event in batch]


def _once_more(exchange: Exchange, turn: Turn) -> Answer:
    """The answer of a request that was repeated after it had been answered."""
    return Answer(
        exchange.call.id,
        turn.model,
        turn.text,
        turn.reason or FinishReason.STOP,
        usage=turn.usage,
        session_id=exchange.session_id,
    )


def _not_kept(error: LlmError) -> LlmError:
    why = f"the answer was made and could not be kept in its session: {error.message}"
    return LlmError(error.code, why, retry_after=error.retry_after, origin=error.origin)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    """What is done when nobody waits for it any more; it can fail only into the log."""
    try:
        await work
    except LlmError as error:
        _log.warning("a turn's end could not be kept", **error.for_log())
    except Exception as error:  # noqa: BLE001  # a task's edge
        _log.error("a bug: what a call left behind raised", exc_info=error)
