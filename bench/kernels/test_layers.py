"""The default cases under pytest-benchmark: ``python -m pytest bench/kernels/test_layers.py -k resnet18_2``.

Quick looks and histories (``--benchmark-autosave``, ``--benchmark-compare``); ratios against all peers in turns are
``python -m bench.kernels``.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hscc_kernels import explain, lowrank_conv2d

from .cases import Case, make_input, make_plan, select
from .layers import gate

CASES = pytest.mark.parametrize("case", select(), ids=lambda case: case.name)


@CASES
@torch.inference_mode()
def test_hscc(benchmark, case: Case) -> None:
    plan, x = make_plan(case), make_input(case.layer, 1)
    if reason := explain(x)["cpu"]:
        pytest.skip(reason)
    assert gate(case, 1, torch.float32, "cpu") <= 1
    benchmark.group = case.name
    benchmark(lowrank_conv2d, x, plan, torch.zeros(case.layer.out_channels), activation="relu", backend="cpu")


@CASES
@torch.inference_mode()
def test_dense_channels_last(benchmark, case: Case) -> None:
    layer = case.layer
    x, bias = make_input(layer, 1), torch.zeros(layer.out_channels)
    weight = torch.randn(layer.out_channels, layer.in_channels, layer.kernel, layer.kernel) / layer.patch**0.5
    weight = weight.contiguous(memory_format=torch.channels_last)
    geometry = layer.geometry
    benchmark.group = case.name
    benchmark(lambda: F.conv2d(x, weight, bias, geometry.stride, geometry.padding).relu_())
