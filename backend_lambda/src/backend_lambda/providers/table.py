"""The table of providers. To add one, write its module and name it here: docs/add-a-provider.md shows it.

A provider's module has

    NAME                  its name: the value of `provider.kind`, and the section `provider.<NAME>` of config.yaml
    Config                that section, a frozen msgspec Struct that has a default for every key
    make(config, slots)   the provider; raises LlmError(FAILED_PRECONDITION) where it cannot start

    pull(config, model, call)   only where the engine can be told to get a model: its progress, step by step

and imports its engine's library in `make` or later, never at its top: all of these modules are imported always.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from backend_lambda.providers import bedrock, llamacpp, ollama, openai, scripted
from backend_lambda.providers.base import Provider


class ProviderModule(Protocol):
    """What a provider's module has."""

    NAME: str

    @property
    def Config(self) -> type[msgspec.Struct]: ...  # noqa: N802  # a class

    def make(self, config: Any, slots: int) -> Provider: ...


_MODULES: tuple[ProviderModule, ...] = (llamacpp, ollama, openai, bedrock, scripted)

PROVIDERS: dict[str, ProviderModule] = {module.NAME: module for module in _MODULES}
