"""The commands for API keys: make one, list them, revoke one. Each returns what is to be printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import click
import msgspec
from msgspec.structs import replace

from grpc_proxy.keys import Entries, KeyEntry, KeysConfig, change_keys, key_file, new_key, now, read_keys
from grpc_proxy.ledger import Limits
from lambdalm.columns import columns
from lambdalm.commands import Command
from lambdalm.errors import Code, LlmError


class _Configured(Protocol):
    """A config with the section `keys`."""

    @property
    def keys(self) -> KeysConfig: ...


def create(config: _Configured, name: str, models: Sequence[str], **limits: int | None) -> str:
    """Make a key and print it: the only time that it is shown."""
    file = _file(config)
    key, entry = new_key(name, models, Limits(**limits))

    def add(entries: Entries) -> Entries:
        if any(other.name == name and other.revoked is None for other in entries.values()):
            why = f"there is a key named {name} already: take another name, or revoke it first"
            raise LlmError(Code.ALREADY_EXISTS, why)
        return {**entries, entry.id: entry}

    change_keys(file, add)
    click.echo(
        f"the key {entry.id} of {name} is in {file}; here it is, for the only time. Send it as Authorization: Bearer …",
        err=True,
    )
    return key


def list_all(config: _Configured) -> str:
    """The keys, a line each."""
    rows = [("id", "name", "created", "revoked", "limits")]
    rows += [_row(entry) for entry in read_keys(_file(config)).values()]
    return columns(rows)


def revoke(config: _Configured, id: str) -> str:
    """End a key; running servers see it within `keys.reload_seconds`."""
    file = _file(config)

    def end(entries: Entries) -> Entries:
        if id not in entries:
            raise LlmError(Code.NOT_FOUND, f"there is no key with the id {id} in {file}: `grpc-proxy keys` lists them")
        entry = entries[id]
        return {**entries, id: replace(entry, revoked=entry.revoked or now())}

    change_keys(file, end)
    return f"the key {id} is revoked; running servers refuse it within {config.keys.reload_seconds:g} s"


def _file(config: _Configured) -> Path:
    if config.keys.file is None:
        why = "there is no file for keys: set keys.file in the config, or API_KEYS_FILE"
        raise LlmError(Code.FAILED_PRECONDITION, why)
    return key_file(config.keys.file)


def _row(entry: KeyEntry) -> tuple[str, str, str, str, str]:
    revoked = "" if entry.revoked is None else f"{entry.revoked:%Y-%m-%d %H:%M}"
    limits = [f"{name} {value}" for name, value in msgspec.to_builtins(entry.limits).items()]
    models = [] if entry.models is None else [f"models {' '.join(entry.models)}"]
    return entry.id, entry.name, f"{entry.created:%Y-%m-%d %H:%M}", revoked, ", ".join(limits + models) or "none"


def _limit(name: str, help: str) -> click.Option:
    return click.Option([f"--{name}"], type=click.IntRange(min=1), help=help)


COMMANDS: list[Command[Any]] = [
    Command(
        "key-create",
        "Make an API key and print it, once.",
        create,
        [
            click.Argument(["name"]),
            _limit("requests-per-minute", "requests it may make a minute"),
            _limit("tokens-per-minute", "tokens it may use a minute, of prompts and answers"),
            _limit("tokens-per-day", "tokens it may use a day, in UTC"),
            _limit("max-in-flight", "requests it may have in progress"),
            click.Option(["--model", "models"], multiple=True, help="a model it may ask for; may be repeated"),
        ],
    ),
    Command("keys", "List the API keys, without their secrets.", list_all),
    Command("key-revoke", "End an API key, also for running servers.", revoke, [click.Argument(["id"])]),
]
