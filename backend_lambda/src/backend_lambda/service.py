"""What the backend does with a request: take a slot, let the provider answer, hold the answer to its contract."""

from __future__ import annotations

from collections.abc import Generator

from backend_lambda.providers.base import Provider
from backend_lambda.slots import Slots
from lambdalm.call import Call
from lambdalm.chat import ChatRequest, invalid
from lambdalm.events import StreamEvent


class Backend:
    """One provider and its slots."""

    def __init__(self, provider: Provider, slots: Slots) -> None:
        self.provider = provider
        self.slots = slots

    def stream(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
        """The provider's events; while they last, a slot is held. Raises LlmError."""
        if request.session_id is not None:
            raise invalid("session_id", "the backend keeps no sessions; ask the gRPC proxy, or send messages")
        with self.slots.take(call):
            events = self.provider.stream(request, call)
            try:
                yield from events
            finally:
                events.close()
