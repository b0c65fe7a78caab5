"""The seam between the backend and an engine: a provider.

A provider always asks its engine for a stream, also when the caller wants one answer: only a stream can be stopped in
the middle. Whatever it blocks on, it registers with the Call how to be woken (`call.on_cancel`), and when its
generator is closed or raises, the engine has stopped working for that request. It translates its engine's errors into
`LlmError` at once. It does not retry and remembers nothing. A parameter that its engine does not have is an
INVALID_ARGUMENT that names it, unless its value is neutral.

A provider blocks, and so the server runs it in a thread. One that never does may be a `LoopProvider` as well: then the
server plays `stream_on_loop` on its loop, without a thread.

A provider is asked for its next event when the last one has gone out, which may take a while. What the engine has said
meanwhile comes as one delta (`lambdalm.events.join`): a slow reader, or one among very many, gets fewer frames, not
an older answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.events import StreamEvent
from lambdalm.models import ModelInfo


class ProviderHealth(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether the engine can answer now, and if not, why and what to do."""

    ok: bool
    detail: str = ""


class Provider(Protocol):
    """One engine. `stream` is called from many threads at a time, at most `slots` of them."""

    name: str

    def stream(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
        """The events of one answer, as the contract in `lambdalm.events` says; raises LlmError."""
        ...

    def health(self) -> ProviderHealth:
        """Cheap; never spends model time."""
        ...

    def models(self) -> Sequence[ModelInfo]:
        """The models it can be asked for, the default first."""
        ...

    def close(self) -> None:
        """Stop the engine; no stream is running any more."""
        ...


@runtime_checkable
class LoopProvider(Provider, Protocol):
    """A provider that never blocks and so needs no thread."""

    def stream_on_loop(self, request: ChatRequest, call: Call) -> AsyncGenerator[list[StreamEvent], None]:
        """The events that `stream` gives, in batches. It is stopped by the cancellation of its task, and gives the loop
        to others regularly (`await asyncio.sleep(0)`), also where its reader never waits."""
        ...
