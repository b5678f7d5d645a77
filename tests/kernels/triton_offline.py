"""Compiles the Triton kernel for chips that are not here, and reads registers, spills and instructions off the code.

python -m tests.kernels.triton_offline sm_90      # {variant: resources} as JSON
python -m tests.kernels.triton_offline --record   # all chips, into triton_registers.json
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver
from triton.runtime.jit import MockTensor

from hscc_kernels import Geometry
from hscc_kernels.triton_kernels import configs
from hscc_kernels.triton_kernels.configs import Config, Problem
from hscc_kernels.triton_kernels.kernel import lowrank_conv2d_kernel
from hscc_kernels.triton_kernels.lowrank_conv2d import specialization

RECORD = Path(__file__).with_name("triton_registers.json")
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
        # On this family .vgpr_count holds the accumulation registers too.
        registers, spills = (int(re.search(rf"\.{n}:\s+(\d+)", code)[1]) for n in ("vgpr_count", "vgpr_spill_count"))
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


class Variant(NamedTuple):
    """A configuration with the kind of layer that runs it."""

    config: Config
    problem: Problem
    precision: str = "ieee"

    @property
    def name(self) -> str:
        kind = "scattered" if self.problem.clusters != self.problem.regions else "in order"
        size = "x".join(map(str, self.problem.geometry.kernel))
        precision = "tf32" if self.precision == "tf32" else str(self.problem.dtype)[6:]
        tile = " ".join(f"{field}={value}" for field, value in self.config._asdict().items())
        return f"{tile} {precision} C={self.problem.in_channels} {size} {kind}{' wide' * self.problem.wide}"


def variants(name: str) -> Iterator[Variant]:
    """Every configuration of the chip with the layers it is for."""
    same = Geometry((3, 3), padding=(1, 1))
    base = Problem(torch.bfloat16, 64, 256, same, pairs=32 * 56 * 56, regions=4, clusters=4, rows=256, pool=256)
    for config in configs.HALF + configs.HOPPER if name == "sm_90" else configs.HALF:
        yield Variant(config, base)
    for config in configs.SCATTERED:
        yield Variant(config, base._replace(clusters=8))
    for config in configs.UNPIPELINED:
        yield Variant(config, base._replace(clusters=8, dtype=torch.float32))
    few = base._replace(in_channels=3, geometry=Geometry((7, 7), (2, 2), (3, 3)))
    for config in configs.WHOLE_ROW:
        yield Variant(config, few)
    yield Variant(configs.UNPIPELINED[0], few._replace(dtype=torch.float32))
    for config in configs.SINGLE:
        yield Variant(config, base._replace(dtype=torch.float32))
        if name != "gfx942":
            yield Variant(config, base._replace(dtype=torch.float32), precision="tf32")
    yield Variant(configs.SCATTERED[1], base._replace(wide=True))
    if name == "sm_90":
        yield Variant(configs.HALF[3], base._replace(dtype=torch.float16))
        yield Variant(configs.HALF[3], base._replace(geometry=Geometry((1, 1))))


def compile_variant(variant: Variant, chip: Chip) -> Resources:
    problem = variant.problem
    factors, index = MockTensor(problem.dtype), MockTensor(torch.int32)
    side = problem.geometry.out_size(56, 56)[0]
    u_size = problem.rows * problem.out_channels
    arguments = (
        *(factors,) * 4, *(index,) * 5, factors,
        32, 56, 56, problem.in_channels, side, side**2, problem.out_channels, problem.pool,
        problem.rows, u_size, problem.regions, problem.clusters, problem.out_channels,
    )  # fmt: skip
    constants = specialization(problem, True, "relu", u_size) | {"PRECISION": variant.precision}
    meta = variant.config.meta(chip.target.backend == "hip")
    return resources(compile_kernel(lowrank_conv2d_kernel, chip, *arguments, **constants, **meta), chip)


def _run(tool: str, *args: str) -> str:
    return subprocess.run([_NVIDIA_TOOLS / tool, *args], capture_output=True, text=True, check=True).stdout


def main(argument: str) -> None:
    if argument != "--record":
        found = {v.name: compile_variant(v, CHIPS[argument]) for v in variants(argument)}
        print(json.dumps({name: r._asdict() for name, r in found.items()}))
        return
    table = {name: {v.name: compile_variant(v, chip)._asdict() for v in variants(name)} for name, chip in CHIPS.items()}
    RECORD.write_text(json.dumps({"triton": triton.__version__, "chips": table}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
