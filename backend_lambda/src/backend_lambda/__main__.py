"""The command `backend-lambda`: wires config, provider and server together."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from pathlib import Path

import click
import flask

from backend_lambda import model_commands
from backend_lambda.app import add_routes
from backend_lambda.config import Config
from backend_lambda.providers.table import PROVIDERS
from backend_lambda.service import make_backend
from lambdalm import logs, tracing
from lambdalm.commands import LOG_LEVEL, PORT, Command, Flag, Service, service_cli
from lambdalm.web import bearer
from lambdalm.web.app import HttpHop
from lambdalm.web.server import serve as serve_web
from lambdalm.web.worker import Lifecycle

HOP = "backend"


def make_app(config: Config, lifecycle: Lifecycle) -> flask.Flask:
    """The app, in the process that serves: engines do not survive a fork."""
    tracing.start(HOP)
    token = config.listen.secret()
    backend = make_backend(config)
    atexit.register(backend.close)
    hop = HttpHop(HOP, config.limits, lifecycle)
    if token is not None:
        bearer.require(hop.app, token)
    add_routes(hop, backend, config)
    logs.get(__name__).info("ready", provider=backend.provider.name, model=backend.provider.models()[0].id)
    return hop.app


def serve(config: Config) -> None:
    logs.configure(HOP, config.log)
    serve_web(lambda lifecycle: make_app(config, lifecycle), config.listen, config.limits)


def logged(run: Callable[..., str]) -> Callable[..., str]:
    """A command whose log is written as the server's is: to load or download a model may take a while."""

    def command(config: Config, **values: str) -> str:
        logs.configure(HOP, config.log)
        return run(config, **values)

    return command


main = service_cli(
    Service(
        "backend-lambda",
        "The LLM backend of λλM: an HTTP service in front of a model.",
        Config,
        Path(__file__).with_name("config.yaml"),
        serve,
        logged(model_commands.test),
        [
            PORT,
            Flag("provider", "provider.kind", f"what answers: {', '.join(PROVIDERS)}"),
            Flag("model", model_commands.model_key, "the provider's model; for llamacpp: builtin, a file, hf://…"),
            LOG_LEVEL,
        ],
        [
            Command("models", "List the models that the provider can be asked for.", logged(model_commands.models)),
            Command(
                "pull",
                "Let Ollama get MODEL (--provider ollama).",
                logged(model_commands.pull),
                [click.Argument(["model"])],
            ),
            Command(
                "download",
                "Get a GGUF file of the Hugging Face hub, hf://owner/repo/file.gguf, and say where it is.",
                logged(model_commands.download),
                [click.Argument(["url"])],
            ),
        ],
    )
)

if __name__ == "__main__":
    main()
