"""Compiles a Triton kernel for any chip without having one, and reads registers, spills and instructions off it."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

_NVIDIA_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


class Chip(NamedTuple):
    """A target, the instruction that says "tensor core" in its machine code, and a program's shared memory."""

    target: GPUTarget
    tensor_core: str
    shared_bytes: int


CHIPS = {
    "sm_80": Chip(GPUTarget("cuda", 80, 32), r"\bHMMA\b", 163 * 1024),
    "sm_90": Chip(GPUTarget("cuda", 90, 32), r"\b(HGMMA|HMMA)\b", 227 * 1024),
    "sm_100": Chip(GPUTarget("cuda", 100, 32), r"\b(UTCHMMA|HMMA)\b", 227 * 1024),
    "gfx942": Chip(GPUTarget("hip", "gfx942", 64), r"\bv_mfma", 64 * 1024),
}


class Resources(NamedTuple):
    """What a compiled kernel takes; ``spills`` counts instructions on local memory (NVIDIA) or spilled registers."""

    registers: int
    spills: int
    shared: int
    tensor_core: str | None


class _Driver(DriverBase):
    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    @classmethod
    def is_active(cls) -> bool:
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        return "void*" if ty.startswith("*") else "int"

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self):
        raise NotImplementedError("no chip to time")


@contextlib.contextmanager
def compiling_for(target: GPUTarget) -> Iterator[None]:
    """Makes ``kernel.warmup`` compile for the target."""
    saved = driver._active
    driver.set_active(_Driver(target))
    try:
        yield
    finally:
        driver._active = saved


def compile_kernel(kernel, chip: Chip, *args, **constants):
    """The compiled kernel for the chip; arguments as of a launch, ``MockTensor`` for tensors."""
    kernel.device_caches.clear()  # the binder of the last target would be used again
    with compiling_for(chip.target):
        compiled = kernel.warmup(*args, grid=(1,), **constants)
    assert compiled.metadata.target.arch == chip.target.arch
    return compiled


def resources(compiled, chip: Chip) -> Resources:
    if chip.target.backend == "hip":
        code = compiled.asm["amdgcn"]
        count = {name: int(re.search(rf"\.{name}:\s+(\d+)", code).group(1)) for name in ("vgpr_count", "agpr_count")}
        spills = int(re.search(r"\.vgpr_spill_count:\s+(\d+)", code).group(1))
        registers = sum(count.values())
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage = _run("cuobjdump", "--dump-resource-usage", file.name)
            code = _run("nvdisasm", "-c", file.name)
        registers = int(re.search(r"REG:(\d+)", usage).group(1))
        spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    found = re.findall(chip.tensor_core, code)
    return Resources(registers, spills, compiled.metadata.shared, max(found, key=found.count) if found else None)


def _run(tool: str, *args: str) -> str:
    return subprocess.run([_NVIDIA_TOOLS / tool, *args], capture_output=True, text=True, check=True).stdout
