"""Which device a model runs on. There is no GPU where the tests run: the engine's lists of them are made up."""

from __future__ import annotations

from typing import Any

import pytest
import xllamacpp

from backend_lambda.devices import Asked, Device, choose, found
from backend_lambda.gguf_files import BUILTIN_FILE
from backend_lambda.providers import llamacpp
from backend_lambda.providers.llamacpp import LlamaCppProvider
from lambdalm.errors import Code, LlmError

TYPE = xllamacpp.ggml_backend_dev_type
CPU = Device("CPU", "cpu", "AMD EPYC")


def row(name: str, type: Any, description: str = "") -> dict[str, Any]:
    return {"name": name, "description": description, "type": type}


def gpu(name: str, kind: str, integrated: bool = False) -> Device:
    return Device(name, kind, integrated=integrated)


CUDA = [gpu("CUDA0", "cuda"), gpu("CUDA1", "cuda"), CPU]
MAC = [gpu("MTL0", "mps"), CPU]
MIXED = [gpu("Vulkan0", "vulkan"), gpu("CUDA0", "cuda"), gpu("CUDA1", "cuda"), CPU]


def test_the_installed_engine_says_what_it_has() -> None:
    devices = found(xllamacpp.get_device_info())
    assert "cpu" in [device.kind for device in devices]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("CUDA1", "cuda"), ("MTL0", "mps"), ("Metal", "mps"), ("ROCm0", "rocm"), ("Vulkan0", "vulkan"), ("SYCL0", "gpu")],
)
def test_a_gpu_is_known_by_its_name(name: str, kind: str) -> None:
    assert [device.kind for device in found([row(name, TYPE.GGML_BACKEND_DEVICE_TYPE_GPU)])] == [kind]


def test_an_accelerator_is_part_of_the_cpu() -> None:
    rows = [row("BLAS", TYPE.GGML_BACKEND_DEVICE_TYPE_ACCEL), row("CPU", TYPE.GGML_BACKEND_DEVICE_TYPE_CPU, "M2")]
    assert found(rows) == [Device("CPU", "cpu", "M2")]


@pytest.mark.parametrize(
    ("asked", "number", "devices", "name", "main_gpu"),
    [
        ("auto", 0, [CPU], "CPU", None),
        ("auto", 3, [CPU], "CPU", None),
        ("cpu", 0, CUDA, "CPU", None),
        ("auto", 0, CUDA, "CUDA0", 0),
        ("cuda", 1, CUDA, "CUDA1", 1),
        ("auto", 0, MAC, "MTL0", 0),
        ("mps", 0, MAC, "MTL0", 0),
        ("cuda", 1, MIXED, "CUDA1", 2),
        ("auto", 0, [gpu("Vulkan0", "vulkan", integrated=True), CPU], "Vulkan0", 0),
        ("auto", 0, [gpu("Vulkan0", "vulkan", integrated=True), gpu("Vulkan1", "vulkan"), CPU], "Vulkan1", 0),
    ],
)
def test_the_device_is_the_one_that_was_asked_for(
    asked: Asked, number: int, devices: list[Device], name: str, main_gpu: int | None
) -> None:
    choice = choose(asked, number, devices)
    assert (choice.device.name, choice.gpu) == (name, main_gpu)


@pytest.mark.parametrize(
    ("asked", "number", "devices", "said"),
    [
        ("cuda", 0, [CPU], r"compute_device: .* has no cuda, only CPU \(AMD EPYC\); its CUDA wheel .*PROVIDER=openai"),
        ("mps", 0, CUDA, r"compute_device: .* has no mps, only CUDA0, CUDA1, CPU.*PROVIDER=ollama"),
        ("cuda", 0, MAC, r"has no cuda, only MTL0, CPU"),
        ("cuda", 2, CUDA, r"gpu_device_id: the engine has no GPU 2; it has 0: CUDA0, 1: CUDA1"),
        ("auto", 1, MAC, r"gpu_device_id: the engine has no GPU 1; it has 0: MTL0"),
    ],
)
def test_a_device_that_there_is_not_is_a_failed_precondition_that_says_what_there_is(
    asked: Asked, number: int, devices: list[Device], said: str
) -> None:
    with pytest.raises(LlmError, match=said) as raised:
        choose(asked, number, devices)
    assert (raised.value.code, raised.value.origin) == (Code.FAILED_PRECONDITION, "llamacpp")
    assert not raised.value.message.endswith("…"), "it was cut"


@pytest.mark.parametrize("asked", ["cuda", "mps"])
def test_the_provider_does_not_start_on_a_device_that_the_engine_lacks(asked: Asked) -> None:
    if asked in [device.kind for device in found(xllamacpp.get_device_info())]:
        pytest.skip(f"this engine has {asked}")
    with pytest.raises(LlmError, match=f"has no {asked}") as raised:
        LlamaCppProvider(llamacpp.Config(compute_device=asked), 1)
    assert raised.value.code is Code.FAILED_PRECONDITION


@pytest.mark.parametrize(("asked", "used"), [(-1, 9999), (0, 0), (12, 12)])
def test_a_gpu_gets_the_layers_that_the_config_says_and_is_the_only_one(asked: int, used: int) -> None:
    parameters = llamacpp._parameters(llamacpp.Config(gpu_layers=asked), BUILTIN_FILE, 1, gpu=2)
    assert (parameters.n_gpu_layers, parameters.main_gpu) == (used, 2)
    assert parameters.split_mode == xllamacpp.llama_split_mode.LLAMA_SPLIT_MODE_NONE
    assert not parameters.no_kv_offload


def test_the_cpu_keeps_everything_to_itself() -> None:
    parameters = llamacpp._parameters(llamacpp.Config(gpu_layers=12), BUILTIN_FILE, 1)
    assert (parameters.n_gpu_layers, parameters.no_kv_offload, parameters.no_op_offload) == (0, True, True)


@pytest.mark.parametrize(("asked", "used"), [(0, 1), (3, 3)])
def test_the_engine_gets_the_threads_that_the_config_says_and_the_tiny_model_needs_one(asked: int, used: int) -> None:
    parameters = llamacpp._parameters(llamacpp.Config(threads=asked), BUILTIN_FILE, 1)
    assert (parameters.cpuparams.n_threads, parameters.cpuparams_batch.n_threads) == (used, used)
