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
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from backend_lambda import devices, gguf_files
from backend_lambda.providers.base import ProviderHealth
from lambdalm import logs, openai
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import StreamEvent, join
from lambdalm.models import ModelInfo

NAME = "llamacpp"

_BUILTIN_FILE = gguf_files.BUILTIN_FILE
_ALL_LAYERS = 9999  # more than any model has; -1 would let the engine decide
_READ_AHEAD = 256  # chunks that the engine may be ahead of a slow reader
_LOOK_UP = 0.05  # seconds between looks at the stop flag, while that reader takes nothing


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The engine inside this process; `model_path` is what `gguf_files.locate` takes."""

    model_path: Annotated[str, Meta(min_length=1)] = "builtin"
    context_tokens: Annotated[int, Meta(ge=64)] = 4096
    compute_device: devices.Asked = "auto"
    gpu_device_id: Annotated[int, Meta(ge=0)] = 0
    gpu_layers: Annotated[int, Meta(ge=-1)] = -1
    threads: Annotated[int, Meta(ge=0)] = 0
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    max_tokens: Annotated[int, Meta(ge=1)] = 2048


def make(config: Config, slots: int) -> LlamaCppProvider:
    return LlamaCppProvider(config, slots)


class LlamaCppProvider:
    """One model, `slots` generations at a time."""

    name = NAME

    def __init__(self, config: Config, slots: int) -> None:
        choice = _choose_device(config)
        path = gguf_files.locate(config.model_path)
        _check_file(path)
        self._config = config
        self._model = path.stem
        if path != _BUILTIN_FILE:  # which is there at once
            logs.get(__name__).info("loading", model=self._model, device=str(choice.device))
        self._server = _load(_parameters(config, path, slots, choice.gpu), path)
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="llamacpp")

    def stream(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
        if request.model not in (None, self._model):
            raise LlmError(Code.NOT_FOUND, f"model: there is no {request.model!r}; there is {self._model}", origin=NAME)
        generation = _Generation(self._server, self._body(request))
        self._threads.submit(generation.run)
        try:
            translation = openai.Translation(call.id, self._model, "llama.cpp")
            for batch in generation.batches(call):
                yield from join(event for chunk in batch for event in translation.chunk(_checked(chunk)))
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
        defaults = {"max_tokens": self._config.max_tokens, "temperature": self._config.temperature}
        return {**defaults, **openai.request_fields(request, None), "return_progress": True}


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


def _checked(chunk: dict[str, Any]) -> openai.Chunk:
    error = _error_in(chunk)
    if error is not None:
        raise error
    return msgspec.convert(chunk, openai.Chunk)


def _error_in(answer: Any) -> LlmError | None:
    error = answer.get("error") if isinstance(answer, dict) else None
    if error is None:
        return None
    status = error.get("code", 500)
    code = Code.INVALID_ARGUMENT if status == 400 else Code.UNAVAILABLE if status == 503 else Code.INTERNAL
    return LlmError(code, f"llama.cpp: {error.get('message', 'an error without a message')}", origin=NAME)


def _choose_device(config: Config) -> devices.Choice:
    """Where the model is to run. `auto` leaves the tiny model on the CPU: there it is done before a GPU has begun."""
    import xllamacpp

    asked = "cpu" if (config.model_path, config.compute_device) == ("builtin", "auto") else config.compute_device
    return devices.choose(asked, config.gpu_device_id, devices.found(xllamacpp.get_device_info()))


def _parameters(config: Config, path: Path, slots: int, gpu: int | None = None) -> Any:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.model_alias = {path.stem}
    parameters.n_parallel = slots
    parameters.n_ctx = config.context_tokens * slots
    if gpu is None:
        parameters.n_gpu_layers = 0
        parameters.no_kv_offload = parameters.no_op_offload = True
    else:
        parameters.n_gpu_layers = _ALL_LAYERS if config.gpu_layers < 0 else config.gpu_layers
        parameters.main_gpu = gpu
        parameters.split_mode = xllamacpp.llama_split_mode.LLAMA_SPLIT_MODE_NONE
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
        server = xllamacpp.Server(parameters)
        # One token: an engine that is dropped before its loop runs never ends, and one that says "ready" has spoken.
        server.handle_chat_completions({"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1})
        return server
    except (RuntimeError, ValueError) as error:
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
