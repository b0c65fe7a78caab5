"""The prompts of earlier sessions, in a file of the user's own: `$XDG_STATE_HOME/bedrest/history`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory


class _PromptHistory(FileHistory):
    def store_string(self, string: str) -> None:
        # A full disk is no reason to refuse a prompt.
        with contextlib.suppress(OSError):
            super().store_string(string)


def open_history(environ: Mapping[str, str]) -> History:
    """The history file, made if there is none; one in memory where no file can be had."""
    try:
        path = _state_dir(environ) / "bedrest" / "history"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Prompts are private.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return InMemoryHistory()
    return _PromptHistory(path)


def _state_dir(environ: Mapping[str, str]) -> Path:
    # The XDG specification: a relative path counts as unset.
    given = Path(environ.get("XDG_STATE_HOME", ""))
    return given if given.is_absolute() else Path.home() / ".local" / "state"
