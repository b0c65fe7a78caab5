"""One request at one upstream: what its course says of that upstream, and whether it could still be tried elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from grpc_proxy import routing
from grpc_proxy.line import Slot, now
from grpc_proxy.member import Member
from grpc_proxy.routing import Target
from grpc_proxy.upstream import Incoming, Saw
from lambdalm import logs
from lambdalm.errors import Code, LlmError
from lambdalm.events import Finished, StreamEvent

_log = logs.get(__name__)


class Watcher(Protocol):
    """Who wants to know what the pool does; for metrics."""

    def waited(self, seconds: float) -> None: ...
    def retried(self, upstream: str, code: Code) -> None: ...
    def ejected(self, upstream: str) -> None: ...
    def refused(self, reason: str) -> None: ...


class Choice(NamedTuple):
    """A model, those who serve it, and which of them are left to be tried."""

    model: str | None
    serving: Sequence[Target]
    left: Sequence[Target]

    def ready(self, now: float) -> list[Target]:
        """Those left that may be asked now. What is left out stays so while another serves the model, tried or not."""
        return [target for target in routing.available(self.serving, now) if target in self.left]


class Attempt:
    """One request at one upstream. `choice` is what there was; `end` gives its place there back."""

    def __init__(self, member: Member, slot: Slot, choice: Choice, watcher: Watcher) -> None:
        self.member = member
        self.model = choice.model
        self.committed = False
        self._slot = slot
        self._choice = choice
        self._watcher = watcher

    @property
    def name(self) -> str:
        return self.member.target.name

    def can_move(self) -> bool:
        """Whether somebody else could answer now."""
        own = self.member.target
        return any(target is not own for target in self._choice.ready(now()))

    def commits(self) -> None:
        """Its answer has begun: it is not asked elsewhere any more."""
        if not self.committed:
            self.committed = True
            self.member.target.breaker.answered(now(), self._slot.on_trial)

    def succeeded(self) -> None:
        """It has given a whole answer."""
        self.member.target.breaker.succeeded()

    def failed(self, error: LlmError) -> None:
        if error.code is Code.RESOURCE_EXHAUSTED and not self.committed:
            self.member.target.said_full(error.retry_after, now())
        if not routing.is_fault(error):
            return
        moment, target = now(), self.member.target
        may_open = routing.another_stays(self._choice.serving, target, moment)
        if target.breaker.failed(moment, may_open, self._slot.on_trial):
            self._watcher.ejected(self.name)
            _log.warning("ejected", upstream=self.name, why=error.message)

    def end(self) -> None:
        self.member.when_down.pop(self, None)
        self._slot.give_back()


class Running:
    """An answer that has begun: its batches, the first with the first delta, the last with `Finished`; `saw` takes each
    of them, too. Close it."""

    def __init__(self, attempt: Attempt, incoming: Incoming, first: list[StreamEvent], saw: Saw) -> None:
        self._attempt = attempt
        self._incoming = incoming
        self._first = first
        self._saw = saw

    async def next(self) -> list[StreamEvent]:
        """The next batch; raises LlmError."""
        batch, self._first = self._first, []
        if not batch:
            try:
                batch = await self._incoming.next()
            except LlmError as error:
                self._attempt.failed(error)
                raise
        self._saw(batch)
        if isinstance(batch[-1], Finished):
            self._attempt.succeeded()
        return batch

    def close(self) -> None:
        """Stop what generates it, if it has not ended."""
        self._incoming.close()
        self._attempt.end()
