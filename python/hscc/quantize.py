"""A compressed model in 8 bits: its layers become :class:`Int8Conv2d`, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from .fit import int8
from .nn.conv2d import HSCConv2d
from .nn.int8 import Int8Conv2d
from .nn.surgery import Student, below, unwrapped
from .observe import memory, probe
from .observe.data import Calibration, evaluation, watch
from .observe.pairs import Pairs

MOST = 0.01  # of a layer's output energy: what misses more stays in float


@dataclass(frozen=True)
class QuantizeReport:
    """Of each layer, in the order of their calls, the share of its output energy that 8 bits miss; why some stay."""

    errors: Mapping[str, float]
    stays: Mapping[str, str]

    def to_dict(self) -> dict:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        from .tables import quantised

        return quantised(self)


def quantize_(
    model: nn.Module,
    calibration: Iterable,
    *,
    bits: int = 8,
    skip: Iterable[str] = (),
    forward: Callable[[nn.Module, Any], Any] | None = None,
    show_progress: bool = False,
) -> QuantizeReport:
    """Gives the layers of a compressed model a first stage in int8, in place; for inference, as all of it is frozen.

    Layer by layer in the order of their calls, each on the inputs that it has behind the quantised ones: the scale of
    its inputs is that of least squared error, rows of V are rounded, and the second stage and the biases are fitted
    anew to what the float layer gives. A layer that loses more than 1 % of its output energy by it stays as it is. Of
    each layer 512 MiB of maps are looked at, at most.

    Args:
        model: compressed, float32; before :func:`fuse_`, which may come after.
        calibration: unlabelled inputs, as for :func:`compress_`.
        bits: of the rows, 8 or 7; processors without VNNI are quicker with 7.
        skip: names of layers, or of what holds some, to leave in float.
        forward: as for :func:`compress_`.

    Raises:
        TypeError, ValueError: for what cannot be used, with got and expected; then nothing has changed.
    """
    student, report = fit(model, calibration, bits, skip, forward, show_progress)
    swap_(student)
    return report


@torch.inference_mode(False)
@torch.no_grad()
def fit(
    model: nn.Module,
    calibration: Iterable,
    bits: int,
    skip: Iterable[str],
    forward: Callable[[nn.Module, Any], Any] | None,
    show_progress: bool,
) -> tuple[Student, QuantizeReport]:
    """The layers that :func:`quantize_` puts in place, while the model is as it was."""
    model = unwrapped(model)
    names, stays = _names(model, tuple(skip))
    data = Calibration.of(model, calibration, 0, show_progress, forward)
    order: list[str] = []
    layers = {name: model.get_submodule(name) for name in names}
    with evaluation(model), watch(layers, lambda name, x, y: order.append(name)):
        data.forward(model, data.first())
    calls = Counter(order)
    stays |= dict.fromkeys(layers.keys() - calls.keys(), "did not run on the calibration data")
    student, errors = Student(model, names), {}
    once = {name: layers[name] for name in calls if calls[name] == 1}
    with Pairs(student, data, once, memory.room(None, 0, data.device)) as pairs:
        for name in data.track(calls, "int8"):
            samples = int8.Samples()
            pairs.visit(name, calls[name], lambda x, y, _, samples=samples: samples.add(x, y))
            made, errors[name], before = int8.fit(layers[name], samples, bits)
            if (own := errors[name] - before) > MOST:
                stays[name] = f"8 bits cost {own:.1%} of its output energy, expected at most {MOST:.0%}"
            pairs.put(name, layers[name] if name in stays else made)
    if _any(student):
        probe.confirm(student, data)
    return student, QuantizeReport(errors, stays)


def swap_(student: Student) -> None:
    """For good. No gradient is asked for from then on, also outside of ``no_grad``, as there is none."""
    if _any(student):
        student.swap_()
        student.model.requires_grad_(False)


def _any(student: Student) -> bool:
    return any(isinstance(module, Int8Conv2d) for module in student.modules.values())


def _names(model: nn.Module, skip: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """(all names of each layer to take, by the first; those left out, with the reason)."""
    names: dict[str, tuple[str, ...]] = {}
    first: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, HSCConv2d):
            one = first.setdefault(module, name)
            names[one] = (*names.get(one, ()), name)
    if not names:
        raise ValueError("model: got one without HSCConv2d, expected a compressed model: hscc.compress_ comes first")
    modules = {name: model.get_submodule(name) for name in names}
    if done := [name for name, module in modules.items() if isinstance(module, Int8Conv2d)]:
        raise ValueError(f"model: got layer {done[0]!r} in int8 already, expected a model in float")
    if fused := [name for name, module in modules.items() if module.activation != "none"]:
        raise ValueError(f"model: got layer {fused[0]!r} with its ReLU, expected hscc.fuse_ after hscc.quantize_")
    if other := [name for name, module in modules.items() if module.v.dtype != torch.float32]:
        raise ValueError(f"model: got layer {other[0]!r} of {modules[other[0]].v.dtype}, expected torch.float32")
    if unknown := sorted(set(skip) - dict(model.named_modules(remove_duplicate=False)).keys()):
        raise ValueError(f"skip: got unknown layers {unknown}, expected names of modules of the model")
    left = {name: "named in skip" for name, several in names.items() if any(below(n, skip) for n in several)}
    return {name: several for name, several in names.items() if name not in left}, left
