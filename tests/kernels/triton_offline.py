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
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, product
from pathlib import Path
from struct import unpack_from
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
    """What a compiled kernel takes; ``spills`` counts instructions on local memory (NVIDIA) or spilled registers.

    serialized: the assembler has every warpgroup product wait for the one before, as it does where it cannot prove that
    nothing else touches their sums.
    """

    registers: int
    spills: int
    shared: int
    tensor_core: str | None
    serialized: bool


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


def resources(kernels: Sequence, chip: Chip) -> list[Resources]:
    """What each compiled kernel takes."""
    found = []
    for kernel, code in zip(kernels, machine_code(kernels, chip), strict=True):
        if chip.target.backend == "hip":
            # On this family .vgpr_count holds the accumulation registers too.
            counts = (re.search(rf"\.{n}:\s+(\d+)", code)[1] for n in ("vgpr_count", "vgpr_spill_count"))
            registers, spills = map(int, counts)
        else:
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                file.write(kernel.asm["cubin"])
                file.flush()
                usage = _run("cuobjdump", "--dump-resource-usage", file.name)
            registers = int(re.search(r"REG:(\d+)", usage)[1])
            spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
        cores = re.findall(chip.tensor_core, code)
        most = max(cores, key=cores.count) if cores else None
        products = re.findall(r"\bHGMMA.*", code)
        serialized = bool(products) and all("gsb0" in product for product in products)
        found.append(Resources(registers, spills, kernel.metadata.shared, most, serialized))
    return found


def machine_code(kernels: Sequence, chip: Chip) -> list[str]:
    """Assembly of each kernel; NVIDIA's in one piece, as its disassembler takes half a second to start."""
    if chip.target.backend == "hip":
        return [kernel.asm["amdgcn"] for kernel in kernels]
    pieces = [instructions(kernel.asm["cubin"]) for kernel in kernels]
    ends = list(accumulate(map(len, pieces)))
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(pieces))
        file.flush()
        listing = _run("nvdisasm", "--binary", f"SM{chip.target.arch}", file.name)
    lines: list[list[str]] = [[] for _ in pieces]
    for address, line in re.findall(r"/\*([0-9a-f]{4,})\*/(.*;)", listing):
        lines[bisect_right(ends, int(address, 16))].append(line)
    return ["\n".join(each) for each in lines]


def instructions(cubin: bytes) -> bytes:
    """The kernel's section of a cubin, which is an ELF file of 64 bits."""
    (table,), (size, count, names) = unpack_from("<Q", cubin, 0x28), unpack_from("<3H", cubin, 0x3A)
    sections = [unpack_from("<2I4Q", cubin, table + i * size) for i in range(count)]  # name, type, -, -, start, length
    text = cubin.index(b".text.", sections[names][4]) - sections[names][4]
    return next(cubin[start : start + length] for name, *_, start, length in sections if name == text)


class Variant(NamedTuple):
    """A configuration with the kind of layer that runs it."""

    config: Config
    problem: Problem
    precision: str = "ieee"

    @property
    def name(self) -> str:
        p = self.problem
        words = ["in order" if p.one_cluster else "scattered"] + ["wide"] * p.wide
        size = "x".join(map(str, p.geometry.kernel))
        precision = "tf32" if self.precision == "tf32" else str(p.dtype)[6:]
        return f"{self.config.name} {precision} C={p.in_channels} {size} {' '.join(words)}"


def chooser(name: str) -> configs.Chip:
    """The chip as the choice of a tile knows it."""
    return configs.Chip(name, 132, hip=name == "gfx942", hopper=name == "sm_90")


def layers() -> Iterator[Problem]:
    """A layer of every kind that the choice of a tile and the kernel's constants tell apart; fp32 has no short way."""
    same = Geometry((3, 3), padding=(1, 1))
    base = Problem(torch.bfloat16, 64, same, 32 * 56 * 56, 4, 4, 64, 64, 256, slice_rows=16)
    few = base._replace(in_channels=3, geometry=Geometry((7, 7), (2, 2), (3, 3)))
    ways = {"one_cluster": True}, {}, {"wide": True}
    for dtype, layer, way in product((torch.bfloat16, torch.float32), (base, few), ways):
        if dtype == torch.bfloat16 or "one_cluster" not in way:
            yield layer._replace(dtype=dtype, **way)


def variants(name: str) -> Iterator[Variant]:
    """Every tile that ``configs.table`` has for a layer on the chip; one tile a table where the code hardly differs."""
    chip = chooser(name)
    for layer in layers():
        tiles = configs.table(layer, chip)
        yield from (Variant(tile, layer) for tile in tiles)
        if layer.wide or layer.whole_row:
            continue
        if layer.dtype == torch.float32 and not chip.hip:
            yield from (Variant(tile, layer, "tf32") for tile in tiles)
        if layer.dtype == torch.bfloat16 and layer.one_cluster:
            yield Variant(tiles[0], layer._replace(dtype=torch.float16))
            yield Variant(tiles[0], layer._replace(geometry=Geometry((1, 1))))


def compile_variants(name: str) -> dict[str, dict]:
    """The resources of every variant on a chip."""
    chip = CHIPS[name]
    kernels = {variant.name: compile_variant(variant, chip) for variant in variants(name)}
    return {v: r._asdict() for v, r in zip(kernels, resources(list(kernels.values()), chip), strict=True)}


def compile_variant(variant: Variant, chip: Chip):
    problem = variant.problem
    factors, index = MockTensor(problem.dtype), MockTensor(torch.int32)
    side = problem.geometry.out_size(56, 56)[0]
    images = problem.pairs // (56 * 56)
    arguments = (
        *(factors,) * 4, *(index,) * 5, factors,
        images, 56, 56, problem.in_channels, side, side**2, problem.out_channels, problem.pool,
        problem.rows, problem.rows * problem.out_channels, problem.regions, problem.clusters, problem.out_channels,
    )  # fmt: skip
    constants = specialization(problem, variant.config, True, "relu") | {"PRECISION": variant.precision}
    meta = variant.config.meta(chip.target.backend == "hip")
    return compile_kernel(lowrank_conv2d_kernel, chip, *arguments, **constants, **meta)


def _run(tool: str, *args: str) -> str:
    return subprocess.run([_NVIDIA_TOOLS / tool, *args], capture_output=True, text=True, check=True).stdout


def main(argument: str) -> None:
    if argument != "--record":
        print(json.dumps(compile_variants(argument)))
        return
    table = {name: compile_variants(name) for name in CHIPS}
    RECORD.write_text(json.dumps({"triton": triton.__version__, "chips": table}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
