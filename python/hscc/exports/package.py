"""AOTInductor packages: compiled ahead of time; loaded by Python with ``hscc_kernels``, or by C++ with libtorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .program import traced
from .sample import Sample


def write(model: nn.Module, sample: Sample, path: Path, metadata: Mapping[str, str]) -> None:
    """For this machine's processor; metadata are the package's, which its loader's ``get_metadata()`` gives.

    Raises ValueError with the first reason where PyTorch cannot compile the program.
    """
    from torch._inductor import aoti_compile_and_package

    program = traced(model, sample)
    configs = {"aot_inductor.metadata": dict(metadata)}
    try:
        with torch.no_grad():
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
    except Exception as error:
        told = str(error).strip().partition("\n")[0] or type(error).__name__
        expected = "a program that AOTInductor compiles (it needs a C++ compiler)"
        raise ValueError(f"model: got one that cannot be compiled ({told}), expected {expected}") from error


def run(path: Path, inputs: list[Tensor]) -> list[list[Tensor]]:
    """Outputs of the package on each input."""
    from torch._inductor import aoti_load_package

    model = aoti_load_package(str(path))
    with torch.no_grad():
        return [tree_leaves(model(x)) for x in inputs]
