"""llama.cpp inside this process (PyPI `xllamacpp`: its wheel brings the engine, nothing is compiled).

Theory of operation. The engine calls back for each chunk, in the thread that asked it, and a callback that returns True
stops it. So each generation runs in a thread of its own and hands its chunks over by a bounded queue: a reader who
is slow slows the engine down, and a call that is stopped wakes the reader, whose end stops the engine at its next
callback. `return_progress` makes it call back during the prompt, too. Not asked for a stream, it could not be stopped
at all; that is why it always is. An exception in a callback would be lost, so there are none.

The engine opens a listener of its own on a random port of 127.0.0.1, which nobody here uses; a random key shuts it.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from backend_lambda.providers.base import ModelInfo, ProviderHealth
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import Finished, FinishReason, ReasoningDelta, Started, StreamEvent, TextDelta, Usage, join

NAME = "llamacpp"
BUILTIN = "lambdalm-demo"

_BUILTIN_FILE = Path(__file__).parent.parent / "models" / f"{BUILTIN}.gguf"
_READ_AHEAD = 256  # chunks that the engine may be ahead of a slow reader
_LOOK_UP = 0.05  # seconds between looks at the stop flag, while that reader takes nothing
_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The engine inside this process."""

    model_path: str = "builtin"
    context_tokens: Annotated[int, Meta(ge=64)] = 4096
    threads: Annotated[int, Meta(ge=0)] = 0
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    max_tokens: Annotated[int, Meta(ge=1)] = 2048


def make(config: Config, slots: int) -> LlamaCppProvider:
    return LlamaCppProvider(config, slots)


class LlamaCppProvider:
    """One model, `slots` generations at a time."""

    name = NAME

    def __init__(self, config: Config, slots: int) -> None:
        path = _BUILTIN_FILE if config.model_path == "builtin" else Path(config.model_path)
        _check_file(path)
        self._config = config
        self._model = path.stem
        self._server = _load(_parameters(config, path, slots), path)
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="llamacpp")

    def stream(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
        if request.model not in (None, self._model):
            raise LlmError(Code.NOT_FOUND, f"model: there is no {request.model!r}; there is {self._model}", origin=NAME)
        generation = _Generation(self._server, self._body(request))
        self._threads.submit(generation.run)
        try:
            translation = _Translation(call.id, self._model)
            for batch in generation.batches(call):
                yield from join(translation.events(batch))
            yield from translation.end()
        finally:
            generation.stop()

    def health(self) -> ProviderHealth:
        return ProviderHealth(ok=True)

    def models(self) -> Sequence[ModelInfo]:
        return [ModelInfo(self._model, NAME, self._config.context_tokens)]

    def close(self) -> None:
        self._threads.shutdown()

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        """The request as the engine takes it: OpenAI's fields, and llama.cpp's own."""
        config = self._config
        body: dict[str, Any] = {
            "messages": [{"role": turn.role, "content": turn.content} for turn in request.conversation()],
            "max_tokens": request.max_tokens or config.max_tokens,
            "temperature": config.temperature if request.temperature is None else request.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,
        }
        for name in ("top_p", "presence_penalty", "frequency_penalty", "seed"):
            value = getattr(request, name)
            if value is not None:
                body[name] = value
        if request.stop:
            body["stop"] = list(request.stop)
        return body


class _Generation:
    """One generation: `run` in a thread of the engine's, `batches` and `stop` in the reader's."""

    def __init__(self, server: Any, body: dict[str, Any]) -> None:
        self._server = server
        self._body = body
        self._queue: queue.Queue[dict[str, Any] | LlmError | None] = queue.Queue(_READ_AHEAD)
        self._stopped = threading.Event()
        self._done = threading.Event()

    def run(self) -> None:
        end: LlmError | None = None
        try:
            if not self._stopped.is_set():
                answer = self._server.handle_chat_completions(self._body, self._take)
                end = _error_in(answer)
        except ValueError as error:  # how the engine refuses a request
            end = LlmError(Code.INVALID_ARGUMENT, f"llama.cpp refused the request: {error}", origin=NAME)
        except Exception as error:  # noqa: BLE001  # a thread's edge: what is not handed over is lost
            end = LlmError(Code.INTERNAL, f"llama.cpp failed: {error}", origin=NAME)
        finally:
            self._done.set()
            self._put(end)

    def batches(self, call: Call) -> Iterator[list[dict[str, Any]]]:
        """The chunks of the answer, all that are there at a time; raises LlmError, as `call.check` does, too."""
        with call.on_cancel(self._wake):
            while True:
                found = self._found(call.remaining())
                call.check()
                chunks = [piece for piece in found if isinstance(piece, dict)]
                if chunks:
                    yield chunks
                for piece in found:
                    if isinstance(piece, LlmError):
                        raise piece
                if None in found:
                    call.check()
                    return

    def stop(self) -> None:
        """Returns when the engine works for this no more."""
        self._stopped.set()
        self._done.wait()

    def _found(self, timeout: float) -> list[dict[str, Any] | LlmError | None]:
        """All that is in the queue, at least one; a None is the end, or the time is up."""
        try:
            found = [self._queue.get(timeout=timeout)]
            while not self._queue.empty():
                found.append(self._queue.get_nowait())
        except queue.Empty:
            return [None]
        return found

    def _wake(self) -> None:
        self._stopped.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)

    def _take(self, chunk: Any) -> bool:
        """The engine's callback; True stops it."""
        return not all(self._put(piece) for piece in (chunk if isinstance(chunk, list) else [chunk]))

    def _put(self, piece: dict[str, Any] | LlmError | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(piece, timeout=_LOOK_UP)
                return True
            except queue.Full:
                continue
        return False


class _Translation:
    """llama.cpp's chat completion chunks as our events; one for each answer."""

    def __init__(self, id: str, model: str) -> None:
        self._started = Started(id, model)
        self._begun = False
        self._reason: FinishReason | None = None

    def events(self, chunks: Iterable[dict[str, Any]]) -> Iterator[StreamEvent]:
        """What these chunks say; raises the LlmError that one of them may be."""
        for chunk in chunks:
            error = _error_in(chunk)
            if error is not None:
                raise error
            for choice in chunk.get("choices", ()):
                yield from self._choice(choice)
            if chunk.get("usage"):
                usage = chunk["usage"]
                yield Usage(usage.get("prompt_tokens"), usage.get("completion_tokens"))

    def _choice(self, choice: dict[str, Any]) -> Iterator[StreamEvent]:
        delta = choice.get("delta", {})
        reasoning, text, reason = delta.get("reasoning_content"), delta.get("content"), choice.get("finish_reason")
        if reason:
            self._reason = _REASONS.get(reason, FinishReason.STOP)
        if not self._begun and (reasoning or text or reason):
            self._begun = True
            yield self._started
        if reasoning:
            yield ReasoningDelta(reasoning)
        if text:
            yield TextDelta(text)

    def end(self) -> Iterator[StreamEvent]:
        """The end, if the engine has said that it is one."""
        if self._reason is not None:
            yield Finished(self._reason)


def _error_in(answer: Any) -> LlmError | None:
    error = answer.get("error") if isinstance(answer, dict) else None
    if error is None:
        return None
    status = error.get("code", 500)
    code = Code.INVALID_ARGUMENT if status == 400 else Code.UNAVAILABLE if status == 503 else Code.INTERNAL
    return LlmError(code, f"llama.cpp: {error.get('message', 'an error without a message')}", origin=NAME)


def _parameters(config: Config, path: Path, slots: int) -> Any:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_parallel = slots
    parameters.n_ctx = config.context_tokens * slots
    parameters.n_gpu_layers = 0
    # The tiny model is done before a second thread has woken up.
    threads = config.threads or (1 if path == _BUILTIN_FILE else 0)
    if threads:
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.verbosity = -1
    parameters.warmup = False
    parameters.cache_ram_mib = 0
    parameters.fit_params = False
    parameters.ui = False
    parameters.api_keys = [secrets.token_hex(32)]
    return parameters


def _load(parameters: Any, path: Path) -> Any:
    import xllamacpp

    try:
        return xllamacpp.Server(parameters)
    except RuntimeError as error:
        why = f"llama.cpp cannot load the model {path}: is the file whole, and of a kind that it knows? ({error})"
        raise LlmError(Code.FAILED_PRECONDITION, why, origin=NAME) from None


def _check_file(path: Path) -> None:
    """The engine says the same of a bad path, a bad file and a taken port, so look before it does."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise LlmError(
            Code.FAILED_PRECONDITION,
            f"the model {path} cannot be read ({error.strerror}); provider.llamacpp.model_path (MODEL_PATH) names it",
            origin=NAME,
        ) from None
    if magic != b"GGUF":
        raise LlmError(Code.FAILED_PRECONDITION, f"the model {path} is not a GGUF file", origin=NAME)
