"""The upstreams together: a request waits for one that has room, is tried there, and moves on while it still may.

 1. A request gets a place in the line for the first of its models that some upstream serves (`_enter`).
 2. It waits until one of them has room for it (`_wait`).
 3. That upstream is asked, for a stream or for a whole answer (`stream`, `answer`).
 4. Until the commit point, a failure that another upstream could make good moves the request there, to 1: at most so
    many attempts, from one budget of retries for all requests, within the request's own time (`_moves`). So does an
    upstream that is found dead while the request waits for its first word (`_leave`).
 5. After it, a failure is the answer's end.

The commit point is the first delta, until which `Started` is held back; of a whole answer it is the status 200. Which
upstream it is to be, `routing.py` decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from grpc_proxy import routing
from grpc_proxy.attempt import Attempt, Choice, Running, Watcher
from grpc_proxy.config import UpstreamConfig
from grpc_proxy.detached import DetachedRuns
from grpc_proxy.dialects import Look
from grpc_proxy.http_client import Gate
from grpc_proxy.interrupt import Interrupt
from grpc_proxy.line import Line, Slot, Waiter, jittered, now
from grpc_proxy.member import Member, make_target
from grpc_proxy.routing import RetryBudget, RoutingConfig, Target
from grpc_proxy.upstream import Incoming, Saw, Upstream
from lambdalm import logs
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import Answer, Delta, Finished, StreamEvent
from lambdalm.models import ModelInfo

_T = TypeVar("_T")

_log = logs.get(__name__)


class Ask(NamedTuple):
    """What is to be answered. `prepare` makes the request for an upstream's name, a model, and that model's window in
    tokens (None: unknown); it is called for each attempt."""

    model: str | None
    prepare: Callable[[str, str | None, int | None], ChatRequest]
    may_use: Callable[[str], bool]
    """Whether the caller may be answered by this model; for fallbacks."""
    saw: Saw
    """Takes all that comes of the answer, but for one that comes in one piece."""
    sticky: str | None = None
    """The upstream that should answer, if it can."""

    def models(self, config: RoutingConfig) -> tuple[str | None, ...]:
        """Those that may answer, in order."""
        asked, *others = config.models(self.model)
        return (asked, *(model for model in others if model is not None and self.may_use(model)))


class Pool:
    """All upstreams by name, in the order of the config."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        configs: Mapping[str, UpstreamConfig],
        routing_config: RoutingConfig,
        watcher: Watcher,
        detached: DetachedRuns,
    ) -> None:
        self.members = {
            name: Member(upstream, make_target(name, configs[name], routing_config))
            for name, upstream in upstreams.items()
        }
        self.watcher = watcher
        self._detached = detached
        self._config = routing_config
        self._budget = RetryBudget(routing_config.retries)
        self.line = Line([member.target for member in self.members.values()], self._nobody)

    async def stream(self, ask: Ask, call: Call, gate: Gate | None = None) -> Running:
        """One answer, from its first delta on; raises LlmError."""

        async def begun(attempt: Attempt) -> Running:
            incoming = attempt.member.upstream.stream(self._prepared(attempt, ask), call, gate)
            try:
                return Running(attempt, incoming, await _first(incoming, attempt), ask.saw)
            except BaseException:
                incoming.close()
                raise

        return await self._tried(ask, call, begun)

    async def answer(self, ask: Ask, call: Call) -> Answer:
        """One whole answer; raises LlmError."""

        async def answered(attempt: Attempt) -> Answer:
            held: list[StreamEvent] = []

            def saw(batch: list[StreamEvent]) -> None:
                held.extend(batch)
                if attempt.committed or not batch or _commits(batch):
                    attempt.commits()
                    ask.saw(held)
                    held.clear()

            found = await attempt.member.upstream.answer(self._prepared(attempt, ask), call, saw)
            attempt.succeeded()
            attempt.end()
            return found

        return await self._tried(ask, call, answered)

    async def _tried(self, ask: Ask, call: Call, work: Callable[[Attempt], Awaitable[_T]]) -> _T:
        """What the first upstream gives with which `work` does not fail, or fails after the commit point.

        The attempt of one that fails is ended here, any other by who has what came of it.
        """
        self._budget.request()
        tried: set[tuple[str | None, str]] = set()
        while True:
            choice, waiter = self._enter(ask, tried)
            slot = await self._wait(waiter, call)
            attempt = Attempt(self.members[slot.target.name], slot, choice, self.watcher)
            tried.add((choice.model, attempt.name))
            call.clock.behind = {}
            try:
                with Interrupt() as interrupt:
                    attempt.member.when_down[attempt] = partial(self._leave, attempt, interrupt)
                    return await work(attempt)
            except LlmError as error:
                attempt.failed(error)
                moves = self._moves(attempt, error, ask, tried, call)
                attempt.end()
                if not moves:
                    raise
                self.watcher.retried(attempt.name, error.code)
                _log.info("moving on", request_id=call.id, upstream=attempt.name, **error.for_log())
            except BaseException:
                attempt.end()
                raise

    def known(self, model: str) -> str:
        """The model's name if some upstream lists it, else `other`: callers must not make labels up."""
        return model if any(model in member.windows for member in self.members.values()) else "other"

    def window(self, model: str | None) -> int | None:
        """The largest context that the model has anywhere, in tokens; None where that is not known."""
        windows = [member.window(model) for member in self.members.values()]
        return max((window for window in windows if window is not None), default=None)

    def why_not(self, seen: Collection[str]) -> str | None:
        """None while some upstream of those `seen` can answer; else why the first cannot."""
        whys = [member.target.down for name, member in self.members.items() if name in seen]
        return None if None in whys else whys[0]

    async def models(self) -> list[ModelInfo]:
        """The models of all upstreams that answer now, each once: as they were last listed. Raises LlmError where there
        are none and an upstream could not say."""
        up = [member for member in self.members.values() if member.target.down is None]
        asked = up or list(self.members.values())
        answers = await asyncio.gather(*(member.models() for member in asked), return_exceptions=True)
        found: dict[str, ModelInfo] = {}
        for member, answer in zip(asked, answers, strict=True):
            if not isinstance(answer, BaseException):
                found = {model.id: model for model in member.serves(answer)} | found
        for answer in answers:
            if isinstance(answer, BaseException) and (not found or not isinstance(answer, LlmError)):
                raise answer
        return list(found.values())

    def looked(self, name: str, look: Look) -> None:
        """What a look at this upstream has found."""
        self.members[name].looked(look)
        self.line.looked()

    def _enter(self, ask: Ask, tried: set[tuple[str | None, str]]) -> tuple[Choice, Waiter]:
        """A place in the line for the next model whose line is not full; raises LlmError where there is none."""
        passed = set(tried)
        full: LlmError | None = None
        while True:
            try:
                choice = self._choice(ask, passed)
            except LlmError as error:
                raise full or error from None
            try:
                return choice, self.line.up(choice.left, ask.sticky)
            except LlmError as error:
                full = full or error
                self.watcher.refused("queue")
                passed |= {(choice.model, target.name) for target in choice.left}

    def _choice(self, ask: Ask, tried: set[tuple[str | None, str]]) -> Choice:
        """The next model with upstreams that have not been tried; raises LlmError where nobody can be asked."""
        everyone = [member.target for member in self.members.values()]
        first: list[Target] = []
        for model in ask.models(self._config):
            serving = routing.serving(everyone, model)
            first = first or serving
            choice = Choice(model, serving, [target for target in serving if (model, target.name) not in tried])
            if choice.ready(now()):
                return choice
        raise self._nobody(first, ask.model)

    def _moves(
        self, attempt: Attempt, error: LlmError, ask: Ask, tried: set[tuple[str | None, str]], call: Call
    ) -> bool:
        if attempt.committed or not routing.is_mendable(error):
            return False
        if len(tried) >= self._config.retries.attempts or call.cancelled or call.remaining() <= 0:
            return False
        try:
            self._choice(ask, tried)
        except LlmError:
            return False
        return self._budget.take()

    async def _wait(self, waiter: Waiter, call: Call) -> Slot:
        """The waiter's turn; its deadline is its caller's to keep. Raises LlmError."""
        call.clock.queue_starts()
        started, taken = now(), False
        if not waiter.given.done() and not self._detached.is_detached(call):
            self._detached.make_room({target.name for target in waiter.targets})
        try:
            slot = await waiter.given
            taken = True
        finally:
            self.line.leave(waiter, taken)
        call.clock.slot_taken()
        self.watcher.waited(now() - started)
        return slot

    def _prepared(self, attempt: Attempt, ask: Ask) -> ChatRequest:
        return ask.prepare(attempt.name, attempt.model, attempt.member.window(attempt.model))

    def _leave(self, attempt: Attempt, interrupt: Interrupt) -> None:
        """Its upstream was found dead: before the first word the attempt ends, if another upstream may be asked."""
        if not attempt.committed and attempt.can_move() and self._budget.has_one:
            member = attempt.member
            interrupt.fire(LlmError(Code.UNAVAILABLE, member.target.down or "", origin=member.upstream.origin))

    def _nobody(self, targets: Sequence[Target], asked: str | None = None) -> LlmError:
        if not targets:
            return LlmError(Code.NOT_FOUND, f"model: there is no {asked!r} here; ListModels names those there are")
        target = targets[0]
        why = target.down or "it is left out, since it failed"
        if len(targets) > 1:
            why = f"none of {len(targets)} backends can answer; of the first, {target.name}: {why}"
        origin = self.members[target.name].upstream.origin
        return LlmError(Code.UNAVAILABLE, why, retry_after=jittered(), origin=origin)


async def _first(incoming: Incoming, attempt: Attempt) -> list[StreamEvent]:
    """All up to the first delta, which is the commit point; raises LlmError."""
    held: list[StreamEvent] = []
    while not attempt.committed:
        batch = await incoming.next()
        held += batch
        if _commits(batch):
            attempt.commits()
    return held


def _commits(batch: Sequence[StreamEvent]) -> bool:
    return any(isinstance(event, Delta | Finished) for event in batch)
