"""The command `backend-lambda`: wires config, provider and server together."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import click

from backend_lambda import model_commands
from backend_lambda.app import add_routes
from backend_lambda.config import Config
from backend_lambda.inference import make_inference
from backend_lambda.providers.table import PROVIDERS
from backend_lambda.service import Backend
from lambdalm import logs, tracing
from lambdalm.commands import LOG_LEVEL, PORT, Command, Flag, Service, service_cli
from lambdalm.http import bearer
from lambdalm.http.admission import Lifecycle
from lambdalm.http.app import HttpHop
from lambdalm.http.server import serve as serve_http

HOP = "backend"

T = TypeVar("T")


@contextlib.asynccontextmanager
async def opened(config: Config, lifecycle: Lifecycle) -> AsyncIterator[HttpHop]:
    """The hop, with the engine started; raises LlmError where that cannot be."""
    tracing.start(HOP)
    token = config.listen.secret()
    inference = await _in_daemon_thread(lambda: make_inference(config, lifecycle.worker))
    backend = Backend(inference, config.provider.slots, config.provider.queue)
    try:
        hop = HttpHop(HOP, config.limits, lifecycle)
        if token is not None:
            bearer.require(hop.app, token)
        add_routes(hop, backend, config)
        model = (await backend.models()).models[0].id
        logs.get(__name__).info("ready", provider=inference.provider.name, model=model)
        yield hop
    finally:
        await backend.close()


async def _in_daemon_thread(make: Callable[[], T]) -> T:
    """What `make` gives. A server that is stopped while it loads its model does not wait for that thread."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[T] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        if not made.done():
            outcome()

    def run() -> None:
        try:
            result = make()
        except BaseException as error:  # noqa: BLE001  # it is raised again on the loop
            outcome = functools.partial(made.set_exception, error)
        else:
            outcome = functools.partial(made.set_result, result)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await made


def serve(config: Config) -> None:
    logs.configure(HOP, config.log)
    serve_http(lambda lifecycle: opened(config, lifecycle), config.listen, config.limits, config.workers)


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
