"""Which convolutions a ReLU alone reads: outputs that are both negative there do not differ."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import distributed
from .data import Calibration, evaluation, watch
from .values import tensors

_BATCH_NORM = inspect.signature(F.batch_norm)
_RELU = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}


class Rectifier(NamedTuple):
    """relu(scale y + shift) of outputs y, scale and shift (O, 1, 1): of a batch norm in between, else 1 and 0."""

    scale: Tensor
    shift: Tensor

    def wanted(self, y: Tensor, now: Tensor) -> Tensor:
        """The outputs nearest to ``now`` that are as good as y behind the ReLU; all (N, O, Ho, Wo)."""
        edge = torch.where(self.scale == 0, torch.inf, -self.shift / self.scale)
        limited = torch.where(self.scale < 0, torch.maximum(now, edge), torch.minimum(now, edge))
        return torch.where(self.scale * y + self.shift > 0, y, limited)


@dataclass
class _Output:
    """One output of a convolution on its way, ``now`` behind a batch norm or not: has a ReLU read it, has any other?"""

    now: Tensor
    rectifier: Rectifier
    relu: bool = False
    others: bool = False


class _Readers(TorchFunctionMode):
    """Sees every function of PyTorch that reads one of some tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[Tensor, _Output]] = {}  # by id; the tensor is held so that its id stays its own

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        read = [self.seen[id(t)] for t in tensors((args, kwargs)) if id(t) in self.seen]
        for tensor, output in read:
            if function in _RELU and tensor is output.now:
                output.relu = True
                if result is tensor:  # in place: from now on it is the rectified one
                    del self.seen[id(tensor)]
            elif tensor is output.now and not output.relu and (affine := _affine(function, *args, **(kwargs or {}))):
                scale, shift = output.rectifier
                output.rectifier = Rectifier(scale * affine.scale, shift * affine.scale + affine.shift)
                output.now = result
                self.seen[id(result)] = result, output
            elif any(True for _ in tensors(result)):  # sizes and the like do no harm
                output.others = True
        return result


def find(model: nn.Module, calibration: Calibration, names: Iterable[str]) -> dict[str, Rectifier]:
    """Of each convolution whose outputs go to a ReLU and nowhere else, by a forward pass of the first batch."""
    layers = {name: model.get_submodule(name) for name in names}
    readers, outputs = _Readers(), {name: [] for name in layers}

    def keep(name: str, x: Tensor, y: Tensor) -> None:
        one = torch.ones(layers[name].out_channels, 1, 1).to(y)
        outputs[name].append(_Output(y, Rectifier(one, torch.zeros_like(one))))
        readers.seen[id(y)] = y, outputs[name][-1]

    with evaluation(model), watch(layers, keep), readers:
        given = calibration.forward(model, calibration.first())
    for tensor in tensors(given):
        if id(tensor) in readers.seen:
            readers.seen[id(tensor)][1].others = True
    found = {name: several for name, several in outputs.items() if several and all(map(_alone, several))}
    same = {
        name: several[0].rectifier
        for name, several in found.items()
        if all(torch.equal(a, b) for o in several for a, b in zip(o.rectifier, several[0].rectifier, strict=True))
    }
    everywhere = set.intersection(*map(set, distributed.gather(sorted(same))))
    return {name: rectifier for name, rectifier in same.items() if name in everywhere}


def _alone(output: _Output) -> bool:
    return output.relu and not output.others


def _affine(function, *args, **kwargs) -> Rectifier | None:
    """What ``F.batch_norm`` does to channels; None for another function and where it looks at the batch."""
    if function is not F.batch_norm:
        return None
    call = _BATCH_NORM.bind(*args, **kwargs)
    call.apply_defaults()
    _, mean, variance, weight, bias, training, _, eps = call.arguments.values()
    if training or mean is None:
        return None
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    return Rectifier(scale[:, None, None], shift[:, None, None])
