"""Models that can be asked for, as every hop names them, and as `/models` lists them."""

from __future__ import annotations

import msgspec


class ModelInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model that can be asked for; `context_window` is in tokens, prompt and answer together, where it is known."""

    id: str
    provider: str
    context_window: int | None = None


class Models(msgspec.Struct, frozen=True):
    """The body of `/models`; the default model is first."""

    models: list[ModelInfo]
