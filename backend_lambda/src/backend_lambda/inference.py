"""Generations, whatever drives them: the server's loop or the one thread of a Lambda function.

The driver shows each of the provider's events to the `Generation`, which holds them to the contract and passes them on
to its observers: the request's clock, its trace and the interaction log.

    with inference.generation(request, call) as generation:
        generation.begin()                       # the engine is about to be asked
        for event in provider.stream(…):
            pass_on(generation.accept(event))
        generation.complete()                    # raises for a stream that just stops
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Protocol, Self

from backend_lambda.chat_span import ChatSpan
from backend_lambda.config import Config
from backend_lambda.interactions import InteractionLog, open_log
from backend_lambda.providers.base import Provider
from lambdalm.call import Call
from lambdalm.chat import ChatRequest, invalid
from lambdalm.errors import Code, LlmError
from lambdalm.events import Delta, StreamContract, StreamEvent


class Observer(Protocol):
    """What learns of a generation."""

    def accept(self, event: StreamEvent) -> None:
        """An event, in its turn; the stream has kept the contract so far."""
        ...

    def end(self, failure: Exception | None) -> None:
        """The generation is over, and has failed with this; where its reader left, with an `LlmError` that says why."""
        ...


class Generation:
    """One generation, a context manager around all that happens with it."""

    def __init__(self, provider: str, request: ChatRequest, call: Call) -> None:
        self._provider = provider
        self._request = request
        self._call = call
        self._contract = StreamContract()
        self._silent = True
        self._observers: list[Observer] = []

    def observed_by(self, observer: Observer) -> None:
        """Tell `observer` of all that comes from here on."""
        self._observers.append(observer)

    def begin(self) -> None:
        """The engine is asked from here on; before, the request may have waited for a slot."""
        span = ChatSpan(self._provider, self._request, self._call)
        if span.recording:
            self.observed_by(span)

    def accept(self, event: StreamEvent) -> StreamEvent:
        """The event as the contract gives it; raises `LlmError(INTERNAL)` where it breaks the contract."""
        event = self._contract.accept(event)
        if self._silent and isinstance(event, Delta):
            self._silent = False
            self._call.clock.first_delta()
        for observer in self._observers:
            observer.accept(event)
        return event

    def complete(self) -> None:
        """The stream has ended: raises `LlmError(UNAVAILABLE)` unless `Finished` came before."""
        self._contract.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        failure = error if error is None or isinstance(error, Exception) else self._why_left()
        if failure is not None:
            self._call.span.failed(failure)
        for observer in self._observers:
            observer.end(failure)

    def _why_left(self) -> LlmError | None:
        """Why the reader left before the end: its task was cancelled, or it closed the stream."""
        if self._contract.finished:
            return None
        try:
            self._call.check()
        except LlmError as why:
            return why
        return LlmError(Code.CANCELLED, "the reader closed the stream before its end")


class Inference:
    """A provider, and the log of what it was asked and answered."""

    def __init__(self, provider: Provider, interactions: InteractionLog | None = None) -> None:
        self.provider = provider
        self._interactions = interactions

    def generation(self, request: ChatRequest, call: Call) -> Generation:
        """The answer to this request, which starts now."""
        generation = Generation(self.provider.name, request, call)
        if self._interactions is not None:
            generation.observed_by(self._interactions.recording(request, call))
        return generation

    def stream(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
        """The provider's events in this thread, for one request at a time, without slots. Raises LlmError."""
        with self.generation(request, call) as generation:
            refuse_session(request)
            call.check()
            call.clock.slot_taken()
            generation.begin()
            try:
                with contextlib.closing(self.provider.stream(request, call)) as events:
                    for event in events:
                        yield generation.accept(event)
            finally:
                call.clock.engine_done()
            generation.complete()

    def flush(self, seconds: float) -> None:
        """Wait until what was logged so far is written, but not longer than this."""
        if self._interactions is not None:
            self._interactions.flush(seconds)

    def close(self) -> None:
        """Stop the engine, write what is left to log; no stream is running any more."""
        self.provider.close()
        if self._interactions is not None:
            self._interactions.close()


def refuse_session(request: ChatRequest) -> None:
    """Raises `LlmError(INVALID_ARGUMENT)` for a request that is a turn of a session."""
    if request.session_id is not None:
        raise invalid("session_id", "the backend keeps no sessions; ask the gRPC proxy, or send messages")


def make_inference(config: Config, worker: int = 0) -> Inference:
    """What the config asks for; raises LlmError where its engine cannot start. To load a model may take a while."""
    return Inference(config.provider.make(), open_log(config.interactions, worker))
