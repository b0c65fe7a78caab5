"""Which names a hop answers to: a page that reaches a loopback server by DNS rebinding still sends its own host name.

Always allowed are IP addresses, which no rebinding can use, and `localhost`. A server that listens on all addresses
has been opened on purpose and takes every name, unless `allowed_hosts` names the ones it has.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable

_WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104  # compared with, not bound
_LONGEST = 260  # characters of a name and a port
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\s]*)(?::[0-9]{1,5})?", re.IGNORECASE)


def names(allowed_hosts: str | None) -> set[str]:
    """The names in this setting, without ports and the root's dot; raises ValueError that quotes one that is none."""
    found = set()
    for given in filter(None, map(str.strip, (allowed_hosts or "").split(","))):
        name = _name(given)
        if not name:
            raise ValueError(f"allowed_hosts: {given!r} is no host name; give names separated by commas")
        found.add(name)
    return found


def allow_list(listen_host: str, allowed_hosts: str | None) -> Callable[[str], bool]:
    """Whether a request's `Host` (a name or address, with or without a port) is one of this server's.

    `allowed_hosts` are names separated by commas; `.example.com` stands for all names below it, `*` for every name.
    Raises ValueError where one is no name.
    """
    allowed = names(allowed_hosts)
    everything = "*" in allowed or (not allowed and listen_host in _WILDCARDS)
    exact = {"localhost", _name(listen_host), *(name for name in allowed if not name.startswith("."))}
    endings = (".localhost", *(name for name in allowed if name.startswith(".")))

    @functools.lru_cache(256)
    def allows(host: str) -> bool:
        name = _name(host)
        if name is None:
            return False
        return everything or name in exact or name.endswith(endings) or _is_address(name)

    return lambda host: len(host) <= _LONGEST and allows(host)


def _name(authority: str) -> str | None:
    """The name or address in it, without its port and the root's dot; None where it is no authority."""
    found = _AUTHORITY.fullmatch(authority)
    return None if found is None else found[1].lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
