"""Config: one YAML file per package, complete and commented, decoded strictly into typed values.

Values may be `${NAME}` or `${NAME:-default}`, nested as one likes; they are expanded after the YAML is parsed, so that
no value can change the file's structure, and then converted to the key's type. `load` says for each key whether its
value came from the file, from an environment variable or from a flag; unknown keys, wrong types and values out of
range are a `ConfigError` with one clear line: file, key, why.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from copy import deepcopy
from functools import reduce
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import yaml

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(key|token|secret|password)$")


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not the last one's victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                problem=f"{sorted(twice)[0]} stands twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


class ConfigError(Exception):
    """The config cannot be used; the message is one line that says which file, which key and why."""


class Loaded(NamedTuple, Generic[T]):
    """A config and where its values came from: key path → "file", "environment NAME" or "flag --name"."""

    value: T
    sources: dict[str, str]


def load(
    kind: type[T],
    file: Path,
    flags: Mapping[str, Any],
    environ: Mapping[str, str] = os.environ,
    names: Mapping[str, str] = {},
) -> Loaded[T]:
    """Read `file` as a `kind`.

    `flags` maps key paths ("provider.kind") to values that beat the file; `names` says what a key's flag is called,
    where that is not the key's last part.
    """
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), _Loader) or {}  # noqa: S506  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: must hold keys and values")
    sources: dict[str, str] = {}
    tree = _expand_tree(tree, "", environ, sources, file)
    for path, value in flags.items():
        _put(tree, path, value, file)
        sources[path] = f"flag --{names.get(path, path.rpartition('.')[2].replace('_', '-'))}"
    try:
        return Loaded(msgspec.convert(tree, kind, strict=False), sources)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {_where(_named(str(error), tree, kind), sources)}") from None


def show(loaded: Loaded[Any]) -> str:
    """The effective config, a line a key, secrets masked, each with where it came from."""
    rows = [
        (path, "********" if _SECRET.search(path) and value else msgspec.json.encode(value).decode())
        for path, value in _leaves(msgspec.to_builtins(loaded.value), "")
    ]
    width = max((len(path) + len(value) for path, value in rows), default=0) + 2
    return "\n".join(f"{path}: {value}".ljust(width + 2) + f"# {_source(path, loaded.sources)}" for path, value in rows)


def expand(text: str, environ: Mapping[str, str], used: list[str]) -> str:
    """Replace each `${NAME}` and `${NAME:-default}` in `text`; the names found set are added to `used`.

    As in a shell, the default counts where the variable is unset or empty. Raises ValueError where a name without
    a default is unset, or a brace is not closed.
    """
    out: list[str] = []
    at = 0
    while (start := text.find("${", at)) >= 0:
        out.append(text[at:start])
        end = _closing(text, start + 2)
        name, has_default, default = text[start + 2 : end].partition(":-")
        if not _NAME.fullmatch(name):
            raise ValueError(f"`{text[start : end + 1]}` does not name an environment variable")
        if environ.get(name):
            used.append(name)
            out.append(environ[name])
        elif has_default:
            out.append(expand(default, environ, used))
        else:
            raise ValueError(f"the environment variable {name} is not set")
        at = end + 1
    out.append(text[at:])
    return "".join(out)


def _closing(text: str, start: int) -> int:
    depth = 1
    for index in range(start, len(text)):
        if text.startswith("${", index):
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return index
    raise ValueError(f"`{text[start - 2 :]}` lacks its closing brace")


def _expand_tree(node: Any, path: str, environ: Mapping[str, str], sources: dict[str, str], file: Path) -> Any:
    if isinstance(node, dict):
        return {
            key: _expand_tree(value, f"{path}.{key}" if path else str(key), environ, sources, file)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_expand_tree(value, f"{path}[{index}]", environ, sources, file) for index, value in enumerate(node)]
    if not isinstance(node, str) or "${" not in node:
        return node
    used: list[str] = []
    try:
        expanded = expand(node, environ, used)
    except ValueError as error:
        raise ConfigError(f"{file}: {path}: {error}") from None
    if used:
        sources[path] = "environment " + ", ".join(used)
    # An optional value: `${NAME:-}` without NAME is null, as an empty value in the YAML itself would be.
    return expanded if expanded or not node.startswith("${") else None


def _put(tree: dict[str, Any], path: str, value: Any, file: Path) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        tree[parent] = {} if tree.get(parent) is None else tree[parent]
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigError(f"{file}: {parent}: must hold keys and values")
    tree[last] = value


def _named(why: str, tree: dict[str, Any], kind: type[Any]) -> str:
    """The same with the key of a mapping in the place of msgspec's `[...]`: the first that fails alone, too."""
    before, found, after = why.rpartition("[...]")
    path = before.rpartition("`$")[2].removeprefix(".")
    if not found or "[" in path:
        return why
    mapping = reduce(lambda node, key: node[key], path.split("."), tree)
    for key, value in mapping.items():
        alone = deepcopy(tree)
        _put(alone, path, {key: value}, Path())
        try:
            msgspec.convert(alone, kind, strict=False)
        except msgspec.ValidationError:
            return f"{before}.{key}{after}"
    return why


def _where(why: str, sources: dict[str, str]) -> str:
    what, found, where = why.rpartition(" - at `$")
    if not found:
        return why
    path = where.rstrip("`").removeprefix(".")
    source = sources.get(path)
    return f"{path}: {what}" + (f" (from {source})" if source else "")


def _leaves(node: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        return [leaf for key, value in node.items() for leaf in _leaves(value, f"{path}.{key}" if path else str(key))]
    if isinstance(node, list | tuple) and node:
        return [leaf for index, value in enumerate(node) for leaf in _leaves(value, f"{path}[{index}]")]
    return [(path, node)]


def _source(path: str, sources: dict[str, str]) -> str:
    for known, source in sources.items():
        if known == path or known.startswith(f"{path}[") or path.startswith((f"{known}.", f"{known}[")):
            return source
    return "file"
