"""The config of the backend, as `config.yaml` explains it key by key."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from lambdalm.listen import Listen
from lambdalm.logs import LogConfig
from lambdalm.web.limits import Limits


class LlamaCppConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The engine inside this process."""

    model_path: str = "builtin"
    context_tokens: Annotated[int, Meta(ge=64)] = 4096
    threads: Annotated[int, Meta(ge=0)] = 0
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    max_tokens: Annotated[int, Meta(ge=1)] = 2048


class ProviderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which engine answers, and how many answers it makes at a time."""

    kind: Literal["llamacpp", "scripted"] = "llamacpp"
    slots: Annotated[int, Meta(ge=1, le=4096)] = 4
    queue: Annotated[int, Meta(ge=0)] = 64
    llamacpp: LlamaCppConfig = LlamaCppConfig()


class StreamConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How answers are streamed."""

    frames_per_second: Annotated[float, Meta(gt=0)] = 2500


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of `config.yaml`."""

    listen: Listen
    limits: Limits = Limits()
    stream: StreamConfig = StreamConfig()
    provider: ProviderConfig = ProviderConfig()
    log: LogConfig = LogConfig()
