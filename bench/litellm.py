"""LiteLLM's proxy as a process: from PyPI, in an environment of its own, one worker, without database and telemetry."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import environments
from lambdalm.testing.chain import free_ports

_READY_SECONDS = 120.0
_LOOK_SECONDS = 0.1


class Running(NamedTuple):
    """A proxy that runs."""

    pid: int
    port: int


def _config(upstream: str, models: Sequence[str]) -> dict[str, Any]:
    def params(model: str) -> dict[str, str]:
        return {"model": f"openai/{model}", "api_base": upstream, "api_key": "none"}

    return {
        "model_list": [{"model_name": model, "litellm_params": params(model)} for model in models],
        "litellm_settings": {"telemetry": False, "callbacks": [], "success_callback": [], "failure_callback": []},
        # As in the chain beside it, requests need no key.
        "general_settings": {"disable_spend_logs": True, "dangerously_permit_weak_or_unset_master_key": True},
    }


def _environ(home: str) -> dict[str, str]:
    """Nothing of this process's own, and nothing that asks other machines."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": home,
        "NO_PROXY": "*",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DONT_SHOW_FEEDBACK_BOX": "True",
    }


@contextlib.contextmanager
def running(upstream: str, models: Sequence[str]) -> Iterator[Running]:
    """LiteLLM's proxy before the OpenAI-style server at `upstream`; raises RuntimeError when it does not start."""
    programs, port = environments.of_requirements("litellm"), free_ports().edge
    with tempfile.TemporaryDirectory(prefix="bench-litellm-") as folder:
        config, log = Path(folder, "config.yaml"), Path(folder, "log")
        config.write_text(json.dumps(_config(upstream, models)), encoding="utf-8")
        command = [str(programs / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        with log.open("wb") as lines:
            process = subprocess.Popen(
                [*command, "--num_workers", "1"], cwd=folder, env=_environ(folder), stdout=lines, stderr=lines
            )
        try:
            _wait_ready(process, port, log)
            yield Running(process.pid, port)
        finally:
            process.terminate()
            process.wait()


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not _answers(f"http://127.0.0.1:{port}/health/liveliness"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"LiteLLM does not start; the last it said: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(_LOOK_SECONDS)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False
