"""The upstreams together: a request waits for one that has room, is tried there, and moves on while it still may.

The commit point is the first delta. Until then `Started` is held back and a failure that another upstream could mend
moves the request there: at most so many attempts, from one budget of retries for all requests, within the request's own
time. So does an upstream that is found dead while the request waits for its first word. After it, a failure is the
answer's end. Which upstream it is to be, `routing.py` decides.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from grpc_proxy import routing
from grpc_proxy.attempt import Attempt, Choice, Watcher
from grpc_proxy.config import UpstreamConfig
from grpc_proxy.detached import DetachedRuns
from grpc_proxy.dialects import Look
from grpc_proxy.line import Line, Waiter, jittered, now
from grpc_proxy.member import Member, make_target
from grpc_proxy.routing import RetryBudget, RoutingConfig, Target
from grpc_proxy.upstream import Upstream
from lambdalm import logs
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import Delta, Finished, Heartbeat, StreamEvent
from lambdalm.models import ModelInfo

_log = logs.get(__name__)

Batches = AsyncGenerator[list[StreamEvent], None]


class Ask(NamedTuple):
    """What is to be answered. `prepare` makes the request for an upstream's name, a model, and that model's window in
    tokens (None: unknown); it is called for each attempt."""

    model: str | None
    prepare: Callable[[str, str | None, int | None], ChatRequest]
    may_use: Callable[[str], bool]
    """Whether the caller may be answered by this model; for fallbacks."""
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
        heartbeat_seconds: float,
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
        self._heartbeat = heartbeat_seconds
        self._budget = RetryBudget(routing_config.retries)
        self.line = Line([member.target for member in self.members.values()], self._nobody)

    async def stream(self, ask: Ask, call: Call) -> Batches:
        """The batches of one answer, `Started` first, but for heartbeats; raises LlmError."""
        self._budget.request()
        tried: set[tuple[str | None, str]] = set()
        while True:
            choice, waiter = self._enter(ask, tried)
            async with contextlib.aclosing(self._wait(waiter, call)) as beats:
                async for beat in beats:
                    yield beat
            slot = waiter.given.result()
            attempt = Attempt(self.members[slot.target.name], slot, choice, self.watcher)
            tried.add((choice.model, attempt.name))
            call.clock.behind = {}
            try:
                async with contextlib.aclosing(self._batches(attempt, ask, call)) as batches:
                    async for batch in batches:
                        yield batch
                return
            except LlmError as error:
                attempt.failed(error)
                if not self._moves(attempt, error, ask, tried, call):
                    raise
                self.watcher.retried(attempt.name, error.code)
                _log.info("moving on", request_id=call.id, upstream=attempt.name, **error.for_log())
            finally:
                slot.give_back()

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
        """The models of all upstreams that answer now, each once; raises LlmError where none does."""
        up = [member for member in self.members.values() if member.target.down is None]
        asked = up or list(self.members.values())
        answers = await asyncio.gather(*(member.upstream.models() for member in asked), return_exceptions=True)
        found: dict[str, ModelInfo] = {}
        for member, answer in zip(asked, answers, strict=True):
            if isinstance(answer, list):
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

    async def _wait(self, waiter: Waiter, call: Call) -> Batches:
        """Heartbeats until the waiter has its turn; its deadline is its caller's to keep. Raises LlmError."""
        call.clock.queue_starts()
        started, taken = now(), False
        if not waiter.given.done() and not self._detached.is_detached(call):
            self._detached.make_room({target.name for target in waiter.targets})
        try:
            while not (await asyncio.wait({waiter.given}, timeout=self._heartbeat))[0]:
                yield [Heartbeat()]
            waiter.given.result()
            taken = True
        finally:
            self.line.leave(waiter, taken)
        call.clock.slot_taken()
        self.watcher.waited(now() - started)

    async def _batches(self, attempt: Attempt, ask: Ask, call: Call) -> Batches:
        member = attempt.member
        request = ask.prepare(attempt.name, attempt.model, member.window(attempt.model))
        held: list[StreamEvent] = []
        async with contextlib.aclosing(member.upstream.stream(request, call)) as batches:
            while not attempt.committed:
                batch = await self._before_commit(batches, attempt)
                if any(isinstance(event, Delta | Finished) for event in batch):
                    batch = held + batch
                    attempt.saw(batch)
                    yield batch
                else:
                    held += [event for event in batch if not isinstance(event, Heartbeat)]
                    if isinstance(batch[-1], Heartbeat):
                        yield [Heartbeat()]
            async for batch in batches:
                attempt.saw(batch)
                yield batch

    async def _before_commit(self, batches: Batches, attempt: Attempt) -> list[StreamEvent]:
        """The next batch; raises `LlmError(UNAVAILABLE)` when the upstream is found dead and another may be asked."""
        step = asyncio.ensure_future(anext(batches))
        member = attempt.member
        either: set[asyncio.Future[Any]] = {step, member.gone}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not step.done() and attempt.can_move() and self._budget.has_one:
                raise LlmError(Code.UNAVAILABLE, member.target.down or "", origin=member.upstream.origin)
            return await step
        finally:
            if not step.done():
                step.cancel()
                with contextlib.suppress(asyncio.CancelledError, LlmError, StopAsyncIteration):
                    await step
            elif not step.cancelled():
                step.exception()  # looked at, also where the caller has left at the same moment

    def _nobody(self, targets: Sequence[Target], asked: str | None = None) -> LlmError:
        if not targets:
            return LlmError(Code.NOT_FOUND, f"model: there is no {asked!r} here; ListModels names those there are")
        target = targets[0]
        why = target.down or "it is left out, since it failed"
        if len(targets) > 1:
            why = f"none of {len(targets)} backends can answer; of the first, {target.name}: {why}"
        origin = self.members[target.name].upstream.origin
        return LlmError(Code.UNAVAILABLE, why, retry_after=jittered(), origin=origin)
