"""The config of the backend, as `config.yaml` explains it key by key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from backend_lambda.interactions import InteractionsConfig
from backend_lambda.providers.base import Provider
from backend_lambda.providers.table import PROVIDERS
from lambdalm.http.limits import Limits
from lambdalm.listen import GuardedListen, Workers, check_port
from lambdalm.logs import LogConfig


class _Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which engine answers, and how many answers it makes at a time; the engines' own sections come after."""

    kind: str = "llamacpp"
    slots: Annotated[int, Meta(ge=1, le=4096)] = 4
    queue: Annotated[int, Meta(ge=0)] = 64

    def make(self) -> Provider:
        """The provider that was chosen; raises LlmError where it cannot start."""
        return PROVIDERS[self.kind].make(getattr(self, self.kind), self.slots)


if TYPE_CHECKING:
    ProviderConfig = _Choice
else:
    # A section for each row of the table, so that a new provider is named there and nowhere else.
    ProviderConfig = msgspec.defstruct(
        "ProviderConfig",
        [
            ("kind", Literal[tuple(PROVIDERS)], "llamacpp"),
            *((name, module.Config, module.Config()) for name, module in PROVIDERS.items()),
        ],
        bases=(_Choice,),
        frozen=True,
        forbid_unknown_fields=True,
    )


class StreamConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How answers are streamed."""

    frames_per_second: Annotated[float, Meta(gt=0)] = 8000


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of `config.yaml`."""

    listen: GuardedListen
    workers: Workers = 1
    limits: Limits = Limits()
    stream: StreamConfig = StreamConfig()
    provider: ProviderConfig = ProviderConfig()
    interactions: InteractionsConfig = InteractionsConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        check_port(self.workers, self.listen)
