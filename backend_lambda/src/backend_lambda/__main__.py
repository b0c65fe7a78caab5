"""The command `backend-lambda`: wires config, provider and server together."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from pathlib import Path

import flask

from backend_lambda.app import add_routes
from backend_lambda.config import Config, ProviderConfig
from backend_lambda.providers.base import Provider
from backend_lambda.service import Backend
from backend_lambda.slots import Slots
from backend_lambda.tryout import try_out
from lambdalm import logs
from lambdalm.commands import LOG_LEVEL, PORT, Flag, Service, service_cli
from lambdalm.web.app import HttpHop
from lambdalm.web.server import serve as serve_web
from lambdalm.web.worker import Lifecycle

HOP = "backend"


def _llamacpp(config: ProviderConfig) -> Provider:
    from backend_lambda.providers.llamacpp import LlamaCppProvider

    return LlamaCppProvider(config.llamacpp, config.slots)


def _scripted(config: ProviderConfig) -> Provider:
    from backend_lambda.providers.scripted import ScriptedProvider

    return ScriptedProvider()


# Each engine is imported only where it is used: nobody needs llama.cpp to play a script.
PROVIDERS: dict[str, Callable[[ProviderConfig], Provider]] = {"llamacpp": _llamacpp, "scripted": _scripted}


def make_app(config: Config, lifecycle: Lifecycle) -> flask.Flask:
    """The app, in the process that serves: engines do not survive a fork."""
    provider = PROVIDERS[config.provider.kind](config.provider)
    atexit.register(provider.close)
    backend = Backend(provider, Slots(config.provider.slots, config.provider.queue))
    hop = HttpHop(HOP, config.limits, lifecycle)
    add_routes(hop, backend, config)
    logs.get(__name__).info("ready", provider=provider.name, model=provider.models()[0].id)
    return hop.app


def serve(config: Config) -> None:
    logs.configure(HOP, config.log)
    serve_web(lambda lifecycle: make_app(config, lifecycle), config.listen, config.limits)


def test(config: Config) -> str:
    """Ask the provider one short question."""
    provider = PROVIDERS[config.provider.kind](config.provider)
    try:
        return try_out(provider)
    finally:
        provider.close()


main = service_cli(
    Service(
        "backend-lambda",
        "The LLM backend of λλM: an HTTP service in front of a model.",
        Config,
        Path(__file__).with_name("config.yaml"),
        serve,
        test,
        [PORT, Flag("provider", "provider.kind", "what answers: llamacpp or scripted"), LOG_LEVEL],
    )
)

if __name__ == "__main__":
    main()
