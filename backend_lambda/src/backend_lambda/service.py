"""What the backend does with a request: take a slot, let the provider answer, hold the answer to its contract.

And what it says of itself: health and models. Nothing here knows by which server it is asked.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Generator

import msgspec

from backend_lambda.chat_span import chat_span, described
from backend_lambda.config import Config
from backend_lambda.interactions import InteractionLog, open_log
from backend_lambda.providers.base import Provider, ProviderHealth
from backend_lambda.slots import Slots
from lambdalm.call import Call
from lambdalm.chat import ChatRequest, invalid
from lambdalm.events import StreamEvent, checked
from lambdalm.models import Models

_LOOK_SECONDS = 1.0  # that what the engine said of itself counts, for all that ask


class Health(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of `/health`; `in_flight` counts the generations that run in the engine now."""

    status: str
    provider: str
    model: str
    in_flight: int
    waiting: int
    slots: int
    detail: str = ""

    @property
    def http_status(self) -> int:
        """200 when the engine can answer, 503 when it cannot or the server is stopping."""
        return 200 if self.status == "ok" else 503


class Backend:
    """One provider, its slots (`queue` requests may wait for one), and the log of what was asked and answered."""

    def __init__(self, provider: Provider, slots: int, queue: int, interactions: InteractionLog | None = None) -> None:
        self.provider = provider
        self._count = slots
        self._slots = Slots(slots, queue)
        self._interactions = interactions
        self._looking = threading.Lock()
        self._found = ProviderHealth(ok=True)
        self._model = ""
        self._looked = -math.inf

    def stream(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
        """The provider's events; while they last, a slot is held. Raises LlmError."""
        events = self._answer(request, call)
        return events if self._interactions is None else self._interactions.recorded(events, request, call)

    def health(self, draining: bool = False) -> Health:
        """Whether it can answer now; `draining` says that its server is stopping."""
        found = self._look()
        return Health(
            status="draining" if draining else "ok" if found.ok else "unavailable",
            provider=self.provider.name,
            model=self._model,
            in_flight=self._slots.held,
            waiting=self._slots.waiting,
            slots=self._count,
            detail=found.detail,
        )

    def _look(self) -> ProviderHealth:
        """What the provider says now, or said a moment ago: whoever asks often does not burden an engine."""
        with self._looking:
            if time.monotonic() - self._looked >= _LOOK_SECONDS:
                self._found = self.provider.health()
                if self._found.ok or not self._model:
                    self._model = self.provider.models()[0].id
                self._looked = time.monotonic()
            return self._found

    def models(self) -> Models:
        return Models(list(self.provider.models()))

    def flush(self, seconds: float) -> None:
        """Wait until what was logged so far is written, but not longer than this."""
        if self._interactions is not None:
            self._interactions.flush(seconds)

    def close(self) -> None:
        """Stop the engine, write what is left to log; no stream is running any more."""
        self.provider.close()
        if self._interactions is not None:
            self._interactions.close()

    def _answer(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
        if request.session_id is not None:
            raise invalid("session_id", "the backend keeps no sessions; ask the gRPC proxy, or send messages")
        with (
            call.span.blamed(),
            self._slots.take(call),
            chat_span(self.provider.name, request, call) as span,
            contextlib.closing(self.provider.stream(request, call)) as events,
        ):
            yield from described(checked(events), span)


def make_backend(config: Config) -> Backend:
    """The backend that the config asks for; raises LlmError where its engine cannot start."""
    choice = config.provider
    return Backend(choice.make(), choice.slots, choice.queue, open_log(config.interactions))
