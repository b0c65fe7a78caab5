"""Which names a hop answers to: a page that reaches a loopback server by DNS rebinding still sends its own host name.

Always allowed are IP addresses, which no rebinding can use, and `localhost`. A server that listens on all addresses
has been opened on purpose and takes every name, unless `allowed_hosts` names the ones it has.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

_WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104  # compared with, not bound
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\s]*)(?::[0-9]{1,5})?", re.IGNORECASE)


def allow_list(listen_host: str, allowed_hosts: str | None) -> Callable[[str], bool]:
    """Whether a request's `Host` (a name or address, with or without a port) is one of this server's.

    `allowed_hosts` are names separated by commas; `.example.com` stands for all names below it, `*` for every name.
    """
    names = {name.strip().lower() for name in (allowed_hosts or "").split(",") if name.strip()}
    everything = "*" in names or (not names and listen_host in _WILDCARDS)
    exact = {"localhost", listen_host.lower(), *(name for name in names if not name.startswith("."))}
    endings = (".localhost", *(name for name in names if name.startswith(".")))

    def allows(host: str) -> bool:
        found = _AUTHORITY.fullmatch(host)
        if found is None:
            return False
        name = found[1].lower().removesuffix(".")
        return everything or name in exact or name.endswith(endings) or _is_address(name)

    return allows


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
