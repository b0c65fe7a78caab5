"""The command `backend-lambda`: wires config, provider and server together."""

from __future__ import annotations

import atexit
from pathlib import Path

import flask

from backend_lambda.app import add_routes
from backend_lambda.config import Config
from backend_lambda.providers.table import PROVIDERS
from backend_lambda.service import Backend
from backend_lambda.slots import Slots
from backend_lambda.tryout import try_out
from lambdalm import logs
from lambdalm.commands import LOG_LEVEL, PORT, Flag, Service, service_cli
from lambdalm.web.app import HttpHop
from lambdalm.web.server import serve as serve_web
from lambdalm.web.worker import Lifecycle

HOP = "backend"


def make_app(config: Config, lifecycle: Lifecycle) -> flask.Flask:
    """The app, in the process that serves: engines do not survive a fork."""
    provider = config.provider.make()
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
    provider = config.provider.make()
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
        [PORT, Flag("provider", "provider.kind", f"what answers: {', '.join(PROVIDERS)}"), LOG_LEVEL],
    )
)

if __name__ == "__main__":
    main()
