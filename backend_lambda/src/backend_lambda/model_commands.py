"""The backend's own commands: try the provider, list its models, get one. Each returns what is to be printed."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO

import click

from backend_lambda import gguf_files
from backend_lambda.config import Config
from backend_lambda.providers.base import Provider
from backend_lambda.providers.ollama import PullProgress
from backend_lambda.providers.table import PROVIDERS
from backend_lambda.tryout import check, try_out
from lambdalm.call import Call, request_id
from lambdalm.chat import invalid
from lambdalm.columns import columns
from lambdalm.config import ConfigError
from lambdalm.errors import Code, LlmError
from lambdalm.timings import HopClock

_PULL_SECONDS = 24 * 3600.0
_MODEL_KEYS = ("model", "model_path")  # what a provider's section calls its model
_ADDRESS_KEYS = ("base_url", "endpoint_url")


def model_key(config: Config) -> str:
    """The key that names the model of the chosen provider; raises ConfigError where it has none."""
    kind = config.provider.kind
    section = getattr(config.provider, kind)
    for key in _MODEL_KEYS:
        if hasattr(section, key):
            return f"provider.{kind}.{key}"
    raise ConfigError(f"--model: the provider {kind} has no model to set")


def test(config: Config) -> str:
    """Ask the provider one short question."""
    section = getattr(config.provider, config.provider.kind)
    address = next((found for key in _ADDRESS_KEYS if (found := getattr(section, key, None))), None)
    with _provider(config) as provider:
        return try_out(provider, address)


def models(config: Config) -> str:
    """The provider's models."""
    with _provider(config) as provider:
        check(provider)
        found = provider.models()
    rows = [(model.id, str(model.context_window or "-"), "") for model in found]
    rows[0] = (*rows[0][:2], "default")
    return columns([("model", "context", ""), *rows])


def pull(config: Config, model: str) -> str:
    """Let Ollama get a model, with a bar for each of its layers."""
    kind = config.provider.kind
    steps_of = getattr(PROVIDERS[kind], "pull", None)  # of the table, so that no engine is loaded only to refuse
    if steps_of is None:
        raise LlmError(
            Code.FAILED_PRECONDITION,
            f"pull is Ollama's, and the provider is {kind}: use --provider ollama, or `backend-lambda "
            "download hf://owner/repo/file.gguf` for llamacpp; other engines get their models themselves",
        )
    call = Call(request_id(None), _PULL_SECONDS, HopClock("backend"))
    with contextlib.closing(steps_of(getattr(config.provider, kind), model, call)) as steps:
        show_progress(steps, sys.stderr)
    return model


def download(config: Config, url: str) -> str:
    """Get a file of the Hugging Face hub; says where it is."""
    wanted = gguf_files.hub_file(url)
    if wanted is None:
        raise invalid("URL", f"{url!r} is not of the form hf://owner/repo/file.gguf")
    return str(gguf_files.download(wanted, bar=sys.stderr.isatty()))


def show_progress(steps: Iterable[PullProgress], out: TextIO) -> None:
    """A line for each step; one that downloads a layer is a bar, on a terminal."""
    for (digest, status), same in itertools.groupby(steps, key=lambda step: (step.digest, step.status)):
        if digest is None:
            click.echo(status, file=out)
            continue
        first = next(same)
        total = first.total or 0
        with click.progressbar(length=total, label=f"{status} ({total / 2**20:.1f} MiB)", file=out) as bar:
            for step in itertools.chain([first], same):
                bar.update((step.completed or 0) - bar.pos)


@contextlib.contextmanager
def _provider(config: Config) -> Iterator[Provider]:
    provider = config.provider.make()
    try:
        yield provider
    finally:
        provider.close()
