"""On which of the engine's devices a model runs: a decision about what the engine says that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lambdalm.errors import Code, LlmError

Asked = Literal["auto", "cpu", "cuda", "mps"]

# How llama.cpp's devices are called begins with their kind; Metal has had two names.
_KINDS = {"CUDA": "cuda", "MTL": "mps", "Metal": "mps", "ROCm": "rocm", "Vulkan": "vulkan"}

_WHAT_HAS = {
    "cuda": "its CUDA wheel has (docs/gpu.md), so have Ollama (PROVIDER=ollama) and vLLM (PROVIDER=openai)",
    "mps": "on a Mac with Apple's chip its usual wheel has (docs/gpu.md), so has Ollama (PROVIDER=ollama)",
}


class Device(NamedTuple):
    """One of the engine's devices: `kind` is cpu, cuda, mps, rocm, vulkan or gpu, `integrated` shares the memory."""

    name: str
    kind: str
    description: str = ""
    integrated: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.description})" if self.description else self.name


class Choice(NamedTuple):
    """`gpu` is the number by which the engine is asked for the device; None is the CPU."""

    device: Device
    gpu: int | None


def found(rows: Sequence[Mapping[str, Any]]) -> list[Device]:
    """The devices in `xllamacpp.get_device_info()`; accelerators such as BLAS are part of the CPU."""
    return [_device(row) for row in rows if row["type"].name.rpartition("_")[2] in ("CPU", "GPU", "IGPU")]


def choose(asked: Asked, number: int, devices: Sequence[Device]) -> Choice:
    """The device for `asked`: of several GPUs of that kind the one with this `number`; auto is a GPU if there is one.

    Raises `LlmError(FAILED_PRECONDITION)` for one that the engine does not have.
    """
    gpus = _usable(devices)
    fitting = [gpu for gpu in gpus if asked in ("auto", gpu.kind)]
    if asked == "cpu" or (asked == "auto" and not fitting):
        return Choice(next((device for device in devices if device.kind == "cpu"), Device("CPU", "cpu")), None)
    if not fitting:
        had = ", ".join(map(str, devices))
        why = f"provider.llamacpp.compute_device: the installed engine (xllamacpp) has no {asked}, only {had}"
        raise _failure(f"{why}; {_WHAT_HAS[asked]}. COMPUTE_DEVICE=auto takes what there is")
    if number >= len(fitting):
        had = ", ".join(f"{index}: {gpu}" for index, gpu in enumerate(fitting))
        raise _failure(f"provider.llamacpp.gpu_device_id: the engine has no GPU {number}; it has {had}")
    return Choice(fitting[number], gpus.index(fitting[number]))


def _device(row: Mapping[str, Any]) -> Device:
    name, kind = row["name"], row["type"].name.rpartition("_")[2]
    known = next((known for prefix, known in _KINDS.items() if name.startswith(prefix)), "gpu")
    return Device(name, "cpu" if kind == "CPU" else known, row["description"], integrated=kind == "IGPU")


def _usable(devices: Sequence[Device]) -> list[Device]:
    """The GPUs as llama.cpp counts them: one that shares the CPU's memory only where there is no other."""
    gpus = [device for device in devices if device.kind != "cpu"]
    return [gpu for gpu in gpus if not gpu.integrated] or gpus[:1]


def _failure(why: str) -> LlmError:
    return LlmError(Code.FAILED_PRECONDITION, why, origin="llamacpp")
