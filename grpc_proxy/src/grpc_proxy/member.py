"""One upstream of the pool: what it is asked through, its place in the routing, and what was last seen of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from grpc_proxy.breaker import Breaker
from grpc_proxy.config import UpstreamConfig
from grpc_proxy.dialects import Look
from grpc_proxy.routing import RoutingConfig, Target
from grpc_proxy.upstream import Upstream
from lambdalm.errors import LlmError
from lambdalm.models import ModelInfo


class Member:
    """One upstream with its place in the routing. `listed` are the models that it listed last, or why it did not."""

    def __init__(self, upstream: Upstream, target: Target) -> None:
        self.upstream = upstream
        self.target = target
        self.look = Look(None, "not looked at yet")
        self.windows: dict[str, int | None] = {}
        self.listed: Sequence[ModelInfo] | LlmError | None = None
        self.when_down: dict[object, Callable[[], None]] = {}
        """What is called when it is found down, by who wants that."""

    def window(self, model: str | None) -> int | None:
        """Tokens that the model takes, None where that is not known; an upstream's own choice is the first it lists."""
        return self.windows.get(model or next(iter(self.windows), ""))

    def serves(self, listed: Sequence[ModelInfo]) -> list[ModelInfo]:
        """Of what it lists, what it serves; where the config names its models, these and no others."""
        if not self.target.fixed:
            return list(listed)
        known = {model.id: model for model in listed}
        return [known.get(name, ModelInfo(name, "")) for name in sorted(self.target.models or ())]

    def looked(self, look: Look) -> None:
        self.look = look
        self.target.down = look.why
        if look.why is not None:
            for leave in list(self.when_down.values()):
                leave()

    async def models(self) -> Sequence[ModelInfo]:
        """What it listed last; it is asked only if it has not been yet. Raises LlmError where it did not list any."""
        if self.listed is None:
            await self.list_models()
        if isinstance(self.listed, LlmError):
            raise self.listed.with_traceback(None)  # which would grow with every raise
        return self.listed or ()

    async def list_models(self) -> None:
        """Ask what it offers; what it said before counts while it cannot say."""
        try:
            self.offers(await self.upstream.models())
        except LlmError as error:
            if self.listed is None or isinstance(self.listed, LlmError):
                self.listed = error
            raise

    def offers(self, models: Sequence[ModelInfo]) -> None:
        self.listed = models
        self.windows = {model.id: model.context_window for model in models}
        if not self.target.fixed:
            self.target.models = frozenset(self.windows)


def make_target(name: str, config: UpstreamConfig, routing_config: RoutingConfig) -> Target:
    """A new one, as the config wants it."""
    target = Target(name, config.weight, config.max_in_flight, config.queue, Breaker(routing_config.breaker))
    if config.models:
        target.models, target.fixed = frozenset(config.models), True
    return target
