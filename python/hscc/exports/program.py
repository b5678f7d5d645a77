"""``torch.export``: the program of a model, and its file; runs where torch and ``hscc_kernels`` are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from .sample import Sample


def traced(model: nn.Module, sample: Sample) -> ExportedProgram:
    """The model as one graph with the sample's open sizes; ValueError with PyTorch's first reason where it has none."""
    try:
        with torch.no_grad():
            return torch.export.export(model, (sample.traced,), dynamic_shapes=(sample.open,))
    except Exception as error:
        lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        told = next((line for line in lines if line.startswith("You marked")), lines[0])
        expected = f"one graph for any {', '.join(sample.dynamic)}" if sample.dynamic else "a model with one graph"
        raise ValueError(f"model: got one that torch.export refuses ({told}), expected {expected}") from error


def write(model: nn.Module, sample: Sample, path: Path, metadata: Mapping[str, str]) -> None:
    """Metadata are the file's ``extra_files``, which ``torch.export.load`` gives."""
    program = traced(model, sample)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor")  # what is channels last is complete all the same
        torch.export.save(program, path, extra_files=dict(metadata))


def run(path: Path, inputs: list[Tensor]) -> list[list[Tensor]]:
    """Outputs of the file on each input."""
    module = torch.export.load(path).module()
    with torch.no_grad():
        return [tree_leaves(module(x)) for x in inputs]
