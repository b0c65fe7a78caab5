"""The provider whose model names are behaviours and faults: for trying clients, and for this project's own tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence

import msgspec

from backend_lambda.providers.base import ProviderHealth
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.events import StreamEvent
from lambdalm.models import ModelInfo
from lambdalm.testing import scripted

NAME = "scripted"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """It needs none."""


def make(config: Config, slots: int) -> ScriptedProvider:
    return ScriptedProvider()


class ScriptedProvider:
    """Plays `lambdalm.testing.scripted`."""

    name = NAME

    def stream(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
        return scripted.play(request, call)

    def stream_on_loop(self, request: ChatRequest, call: Call) -> AsyncGenerator[list[StreamEvent], None]:
        return scripted.play_on_loop(request, call)

    def health(self) -> ProviderHealth:
        return ProviderHealth(ok=True)

    def models(self) -> Sequence[ModelInfo]:
        return [ModelInfo(name, self.name) for name in scripted.BEHAVIOURS]

    def close(self) -> None:
        pass
