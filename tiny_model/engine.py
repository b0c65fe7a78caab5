"""The real engine for measuring and for the tests: llama.cpp by way of xllamacpp, greedy, one slot.

This is not how the pipeline runs it (that is `backend_lambda`); it only asks a GGUF file and reads what it says.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xllamacpp

from .dialogues.turn import Dialogue

CONTEXT = 4096


class EngineError(Exception):
    """The engine refused a request."""


@dataclass(frozen=True)
class Answer:
    """What the engine said; speeds are in tokens per second, None where the engine did not tell."""

    text: str
    prompt_tokens: int
    tokens: int
    tokens_per_second: float | None


class Engine:
    """One loaded model. Generations run in a thread of its own; close it before the interpreter ends."""

    def __init__(self, gguf: Path, threads: int = 1) -> None:
        if not gguf.is_file():
            raise FileNotFoundError(gguf)
        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = CONTEXT, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.verbosity, params.warmup, params.cache_ram_mib = -1, False, 0
        params.fit_params = params.ui = False
        params.api_keys = [secrets.token_hex(16)]
        self._server = xllamacpp.Server(params)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def chat(self, messages: Sequence[dict[str, str]], max_tokens: int = 128) -> Answer:
        """The greedy answer to a chat; raises EngineError when the engine gives an error instead."""
        request = {
            "messages": list(messages), "temperature": 0.0, "max_tokens": max_tokens, "cache_prompt": False,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        return self._pool.submit(self._run, request).result()

    def answer(self, dialogue: Dialogue) -> str:
        """What the engine says at the last turn of a dialogue, given the right answers before it."""
        return self.chat(messages_of(dialogue)).text

    def _run(self, request: dict[str, Any]) -> Answer:
        chunks: list[dict[str, Any]] = []
        try:
            last = self._server.handle_chat_completions(request, lambda chunk: chunks.extend(_parsed(chunk)))
        except ValueError as error:
            raise EngineError(str(error)) from error
        chunks.extend(_parsed(last))
        for chunk in chunks:
            if "error" in chunk:
                raise EngineError(str(chunk["error"]))
        return _joined(chunks)


def messages_of(dialogue: Dialogue) -> list[dict[str, str]]:
    """The chat messages of a dialogue, up to the last question."""
    messages = []
    for turn in dialogue:
        messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.assistant}]
    return messages[:-1]


def _parsed(chunk: Any) -> list[dict[str, Any]]:
    if chunk is None or isinstance(chunk, bool):
        return []
    found = json.loads(chunk) if isinstance(chunk, str | bytes) else chunk
    return list(found) if isinstance(found, list) else [found]


def _joined(chunks: list[dict[str, Any]]) -> Answer:
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c.get("choices"))
    timings: dict[str, Any] = next((c["timings"] for c in reversed(chunks) if c.get("timings")), {})
    speed = timings.get("predicted_per_second")
    return Answer(text, int(timings.get("prompt_n", 0)), int(timings.get("predicted_n", 0)), speed)
