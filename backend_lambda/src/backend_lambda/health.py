"""What a backend says of itself: whether its engine can answer, and with which models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from backend_lambda.providers.base import Provider, ProviderHealth
from lambdalm import logs
from lambdalm.models import ModelInfo

_log = logs.get(__name__)


class Probe(NamedTuple):
    """What a provider said when it was asked; the default model is the first."""

    health: ProviderHealth
    models: Sequence[ModelInfo]


def probe(provider: Provider, before: Sequence[ModelInfo] = ()) -> Probe:
    """Ask the provider; blocks for as long as it does. `before` are the models that count while it cannot answer."""
    try:
        health = provider.health()
        return Probe(health, provider.models() if health.ok or not before else before)
    except Exception as error:  # noqa: BLE001  # a health check must answer
        _log.error("a bug: the provider's health check raised", provider=provider.name, exc_info=error)
        return Probe(ProviderHealth(False, "an internal error of its health check: the backend's log has it"), before)


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


def health_of(
    provider: Provider, found: Probe, slots: int, *, in_flight: int = 0, waiting: int = 0, draining: bool = False
) -> Health:
    """What this probe means; `draining` says that the server is stopping."""
    return Health(
        status="draining" if draining else "ok" if found.health.ok else "unavailable",
        provider=provider.name,
        model=found.models[0].id if found.models else "",
        in_flight=in_flight,
        waiting=waiting,
        slots=slots,
        detail=found.health.detail,
    )
