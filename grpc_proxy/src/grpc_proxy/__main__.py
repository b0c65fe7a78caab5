"""The command `grpc-proxy`: wires config and server together."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click
import uvloop

from grpc_proxy import key_commands, server, tls
from grpc_proxy.clients import Clients
from grpc_proxy.config import Config
from grpc_proxy.door import HOP
from grpc_proxy.keys import make_ring
from grpc_proxy.store.base import Key
from grpc_proxy.upstream import Upstream
from grpc_proxy.wiring import make_proxy
from lambdalm import logs, prometheus, tracing, workers
from lambdalm.commands import LOG_LEVEL, PORT, Command, Flag, Service, service_cli
from lambdalm.errors import Code, LlmError
from lambdalm.runtime import settle

_KEYS = "API_KEYS_FILE"


def serve(config: Config) -> None:
    logs.configure(HOP, config.log)
    settle()
    if config.keys.file is None and os.environ.get(_KEYS):
        logs.get(HOP).warning(f"{_KEYS} is set, but this config does not name it: nobody is asked for a key")
    if config.workers > 1:
        _check_files(config)
    shared = [config.listen, *([config.bridge.http, config.bridge.https] if config.bridge.enabled else [])]
    with prometheus.shared(config.workers) as ended:
        workers.run(config.workers, shared, lambda worker: _serve(config, worker), ended)


def _serve(config: Config, worker: workers.Worker) -> None:
    tracing.start(HOP)
    uvloop.run(server.serve(config, worker.beat))


def _check_files(config: Config) -> None:
    """Once, in the parent: what cannot be read would end every worker, again and again."""
    make_ring(config.keys)
    if config.tls.cert_path is not None:
        tls.Certificate(config.tls)


def test(config: Config) -> str:
    """Look at the store, and at the backends' health and models; every one is told of, and the first failure raised."""
    found = asyncio.run(_look(config))
    lines = "\n".join(line for line, _ in found)
    for _, error in found:
        if error is not None:
            click.echo(lines)
            raise error
    return lines


async def _look(config: Config) -> list[tuple[str, LlmError | None]]:
    async with Clients() as http:
        proxy = await make_proxy(config, http)
        try:
            await proxy.store.get(Key("test", "test"))
            store = (f"the store {proxy.store.name} answers", None)
            urls = {name: upstream.url for name, upstream in config.each_upstream().items()}
            return [store, *[await _tried(urls[name], member.upstream) for name, member in proxy.pool.members.items()]]
        finally:
            await proxy.close()


async def _tried(url: str, upstream: Upstream) -> tuple[str, LlmError | None]:
    try:
        look = await upstream.look()
        if look.why is not None:
            raise LlmError(Code.UNAVAILABLE, look.why, origin=upstream.origin)
        models = ", ".join(model.id for model in await upstream.models())
        return f"the backend at {url} is healthy; its models: {models}", None
    except LlmError as error:
        return f"the backend at {url} cannot answer: {error.message}", error


def make_store(config: Config) -> str:
    """Make what the store needs and does not make by itself."""
    if config.store.kind != "dynamodb":
        return f"the store {config.store.kind} needs nothing made"
    from grpc_proxy.store.dynamodb import create_table

    create_table(config.store.dynamodb)
    return f"the table {config.store.dynamodb.table} is there"


main = service_cli(
    Service(
        "grpc-proxy",
        "The gRPC proxy of λλM: LlmService in front of the LLM backends.",
        Config,
        Path(__file__).with_name("config.yaml"),
        serve,
        test,
        [PORT, Flag("upstream", "upstreams.main.url", "the upstream's URL, as its dialect wants it"), LOG_LEVEL],
        [
            *key_commands.COMMANDS,
            Command("store-create", "Make the table that store.kind dynamodb needs.", make_store),
        ],
    )
)

if __name__ == "__main__":
    main()
