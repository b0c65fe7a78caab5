"""API keys: who may ask, from a file of their hashes that people can read and edit while the proxy runs.

A key as its owner has it is `lm-<id>-<secret>`. The file has the id and the SHA-256 of the whole key. A secret is 200
random bits, which nobody tries through, so that a fast hash is right; a slow one is for passwords, which people choose.

The file is a list of entries in YAML, mode 0600. Commands change it under a lock, and replace it as a whole; whoever
reads it has it as it was before or after. So to ask who calls depends on no network, and a key that is revoked in the
file is refused by every proxy that reads it, within `reload_seconds`.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import yaml
from msgspec import Meta

from grpc_proxy.following import followed
from grpc_proxy.ledger import Limits
from lambdalm import logs
from lambdalm.errors import Code, LlmError

_log = logs.get(__name__)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # without i, l, o and u: it can be read out
_ID_SIZE = 8
_SECRET_SIZE = 40
_HEADER = """\
# API keys of grpc-proxy: `grpc-proxy key-create NAME` adds one, `grpc-proxy key-revoke ID` ends one. Names, limits and
# models may be edited here, also while the proxy runs; comments are not kept.
"""

Text = Annotated[str, Meta(min_length=1, max_length=256)]


class KeysConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `keys`. Without `file`, nobody is asked for a key."""

    file: Annotated[str, Meta(min_length=1)] | None = None
    reload_seconds: Annotated[float, Meta(ge=0.1, le=3600)] = 1


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What is known of a key. `name` is for people; `models` are those it may ask for, None: all."""

    id: Annotated[str, Meta(pattern=f"^[{_ALPHABET}]{{{_ID_SIZE}}}$")]
    name: Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]{1,64}$")]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    created: Annotated[datetime.datetime, Meta(tz=True)]
    revoked: Annotated[datetime.datetime, Meta(tz=True)] | None = None
    models: Annotated[tuple[Text, ...], Meta(min_length=1)] | None = None
    limits: Limits = Limits()

    def allows(self, model: str) -> bool:
        """Whether the key may ask for this model."""
        return self.models is None or model in self.models


Entries = dict[str, KeyEntry]

# What an unknown id is compared with, so that it takes as long as a known one. No key is known to have this hash.
_NOBODY = KeyEntry(id="", name="", sha256="0" * 64, created=datetime.datetime.min, revoked=datetime.datetime.min)


def make_ring(config: KeysConfig) -> KeyRing | None:
    """The keys that callers are asked for, None where they are not."""
    return None if config.file is None else KeyRing(key_file(config.file), config.reload_seconds)


class KeyRing:
    """The keys of the file, as they were when `look` was last called; `followed` does that every `reload_seconds`.

    Raises `LlmError(FAILED_PRECONDITION)` for a file that cannot be read or understood. One that becomes so later is
    complained of in the log, and the keys stay as they were.
    """

    def __init__(self, file: Path, reload_seconds: float = 1) -> None:
        self._file = file
        self._seconds = reload_seconds
        self._stamp = self._stamped()  # before it is read: a change in between is seen next time
        self._entries = read_keys(file)

    def find(self, presented: str) -> KeyEntry | None:
        """The entry of this key, unless it is revoked; found in a time that does not tell how much of it is right."""
        _, _, rest = presented.partition("-")
        entry = self._entries.get(rest.partition("-")[0], _NOBODY)
        right = hmac.compare_digest(_digest(presented), entry.sha256)
        return entry if right and entry.revoked is None else None

    def followed(self) -> contextlib.AbstractAsyncContextManager[None]:
        """As long as this lasts, edits of the file count."""
        return followed(self.look, self._seconds)

    def look(self) -> None:
        """Read the file again if it has changed. A thread may do it: 1,000 keys take a third of a second."""
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._entries = read_keys(self._file)
        except LlmError as error:
            _log.warning("the keys stay as they were", why=error.message)

    def _stamped(self) -> object:
        """What changes when the file does."""
        try:
            stat = self._file.stat()
        except OSError as error:
            return error.errno
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


def presented(metadata: Mapping[str, str]) -> str | None:
    """The key that a caller sends, as `authorization: Bearer …` or `x-api-key: …`; names are in lower case."""
    scheme, _, token = metadata.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return metadata.get("x-api-key", "").strip() or None


def new_key(name: str, models: Sequence[str], limits: Limits) -> tuple[str, KeyEntry]:
    """A key, which is to be shown once, and its entry."""
    key_id = _random(_ID_SIZE)
    key = f"lm-{key_id}-{_random(_SECRET_SIZE)}"
    return key, KeyEntry(
        id=key_id, name=name, sha256=_digest(key), created=now(), models=tuple(models) or None, limits=limits
    )


def now() -> datetime.datetime:
    """As entries have it: in UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def key_file(path: str) -> Path:
    """Where the file is, which may be a link: what is replaced is the file itself. `~` is the home directory."""
    return Path(path).expanduser().resolve()


def read_keys(file: Path) -> Entries:
    """The file's entries by id, in its order; raises `LlmError(FAILED_PRECONDITION)` that names the line."""
    try:
        return _decode(file.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "; `grpc-proxy key-create NAME` makes it" if isinstance(error, FileNotFoundError) else ""
        raise _unusable(f"{file}: cannot be read: {error.strerror}{hint}") from None
    except ValueError as error:
        raise _unusable(f"{file}: {error}") from None


def change_keys(file: Path, change: Callable[[Entries], Entries]) -> None:
    """Replace the file's entries, while no other command does; a file that is not there yet has none.

    Raises what `change` does, LlmError for a file or entries that would not be understood, OSError where it cannot be
    written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file):
        text = _encode(change(read_keys(file) if file.exists() else {}))
        try:
            _decode(text)
        except ValueError as error:
            raise LlmError(Code.INVALID_ARGUMENT, f"an entry that could not be read again: {error}") from None
        _replace(file, text)


def _decode(text: str) -> Entries:
    """Raises ValueError that names the line."""
    entries: Entries = {}
    for line, found in _items(text):
        try:
            entry = msgspec.convert(found, KeyEntry)
        except msgspec.ValidationError as error:
            name = found.get("name") if isinstance(found, dict) else None
            raise ValueError(f"line {line}, the key {name!r}: {error}") from None
        if entry.id in entries:
            raise ValueError(f"line {line}: the id {entry.id} is there twice")
        entries[entry.id] = entry
    return entries


def _items(text: str) -> Iterator[tuple[int, object]]:
    """The items of a list in YAML, each with its line."""
    loader = yaml.CSafeLoader(text)
    line = 1
    try:
        node = loader.get_single_node()
        if node is not None and not isinstance(node, yaml.SequenceNode):
            raise ValueError("must be a list of keys, each with `- id: …`")
        for item in [] if node is None else node.value:
            line = item.start_mark.line + 1
            yield line, loader.construct_document(item)
    except yaml.MarkedYAMLError as error:
        line = line if error.problem_mark is None else error.problem_mark.line + 1
        raise ValueError(f"line {line}: is not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from None
    except (ValueError, RecursionError) as error:  # for example a date that does not exist
        raise ValueError(f"line {line}: {error}") from None
    finally:
        loader.dispose()


def _encode(entries: Entries) -> str:
    found = [msgspec.to_builtins(entry, builtin_types=(datetime.datetime,)) for entry in entries.values()]
    return _HEADER + yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=120)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """While inside, no other command changes the file. The lock is a file of its own, which nothing replaces."""
    with file.with_name(f"{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(file: Path, text: str) -> None:
    """By one that is on the disk already; it stays its owner's, whoever runs the command."""
    made, path = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # mode 0600
    try:
        with os.fdopen(made, "w", encoding="utf-8") as new:
            with contextlib.suppress(FileNotFoundError, PermissionError):
                os.fchown(made, (old := file.stat()).st_uid, old.st_gid)
            new.write(text)
            new.flush()
            os.fsync(made)
        Path(path).replace(file)
    except BaseException:
        Path(path).unlink()
        raise
    _sync_folder(file.parent)


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _random(size: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(size))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _unusable(why: str) -> LlmError:
    return LlmError(Code.FAILED_PRECONDITION, f"keys.file: {why}", origin="proxy")
