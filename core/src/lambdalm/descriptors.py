"""File descriptors: a server that holds a thousand streams needs more than the 1,024 that a login shell is given."""

from __future__ import annotations

import contextlib
import resource

_ENOUGH = 65536


def raise_limit() -> int:
    """Raise this process's limit on open files as far as it may, at most to 65,536; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
