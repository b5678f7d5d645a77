"""What a model does with its convolutions besides calling them, found by running it with others in their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.surgery import Student
from . import distributed
from .data import Calibration, evaluation, watch
from .values import floating

ATTRIBUTES = {
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed", "output_padding"),
    *("groups", "padding_mode"),
}


class StandIn(nn.Module):
    """Calls a convolution in its name, and notes what it is asked for that factors could not give."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(conv=conv, asked=set(), calls=0, _parameters=conv._parameters, _buffers=conv._buffers)

    def forward(self, *args, **kwargs) -> Tensor:
        self.__dict__["calls"] += 1
        return self.conv(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        kept = name in ATTRIBUTES or (name in vars(self.conv) and not name.startswith("_"))
        if not kept or name in ("weight", "bias"):
            self.asked.add(name)
        return getattr(self.conv, name)


def objections(
    model: nn.Module, calibration: Calibration, layers: Mapping[str, nn.Module], names: Mapping[str, tuple[str, ...]]
) -> dict[str, str]:
    """Why some layers cannot be replaced, by a pass of the first batch; ``names`` are all names of each.

    Raises ValueError where the model does not run with others in their place.
    """
    student, calls = Student(model, names), Counter()
    sizes: dict[str, set[tuple[int, ...]]] = {name: set() for name in layers}

    def see(name: str, x: Tensor, y: Tensor) -> None:
        calls[name] += 1
        sizes[name].add(tuple(y.shape[-2:]))

    found: dict[str, str] = {}
    with evaluation(model):
        for name, layer in layers.items():
            student.modules[name] = StandIn(layer)
        batch = calibration.first()
        with watch(layers, see), student.swapped():
            try:
                calibration.forward(model, batch)
            except Exception as error:
                if not _asked(student):  # then it is the data
                    raise
                raise ValueError(
                    f"model: got {type(error).__name__} ({error}) with its convolutions replaced, expected a forward "
                    f"that only calls them; it asks for {_asked(student)}: leave those layers by skip="
                ) from error
        for name, layer in student.modules.items():
            if layer.asked:
                found[name] = f"the model reads its {', '.join(sorted(layer.asked))} besides calling it"
            elif layer.calls != calls[name]:
                found[name] = "the model calls it otherwise than by its name, so that nothing can take its place"
            elif len(sizes[name]) > 1:
                several = ", ".join(f"{h} x {w}" for h, w in sorted(sizes[name]))
                found[name] = f"it runs at several sizes in one pass ({several})"
    for others in distributed.gather(found):
        found = {**others, **found}
    return {name: found[name] for name in layers if name in found}


def confirm(student: Student, calibration: Calibration) -> bool:
    """Whether the outputs of the first batch still tell its images apart (true where the dense model's do not).

    Raises ValueError where a replaced layer is not called as the dense one was, or the outputs are not finite.
    """
    model, dense, calls = student.model, Counter(), Counter()
    layers = {name: model.get_submodule(name) for name in student.modules}
    batch = calibration.first()
    with evaluation(model):
        with watch(layers, lambda name, x, y: dense.update([name])):
            before = floating(calibration.forward(model, batch))
        with student.swapped(), watch(student.modules, lambda name, x, y: calls.update([name])):
            after = floating(calibration.forward(model, batch))
    if wrong := [name for name in layers if calls[name] != dense[name]]:
        raise ValueError(
            f"model: got {calls[wrong[0]]} calls of the compressed layer {wrong[0]!r} in a pass, expected "
            f"{dense[wrong[0]]} as of the dense one; leave it by skip=[{wrong[0]!r}]"
        )
    if not all(torch.isfinite(b).all() for a, b in zip(before, after, strict=False) if torch.isfinite(a).all()):
        raise ValueError("model: got outputs that are not finite from the compressed one, expected finite ones")
    return any(distributed.gather(any(map(_varies, after)) or not any(map(_varies, before))))


def _asked(student: Student) -> str:
    return "; ".join(f"{name}: {', '.join(sorted(m.asked))}" for name, m in student.modules.items() if m.asked)


def _varies(t: Tensor) -> bool:
    """Between samples."""
    return t.ndim > 0 and len(t) > 1 and bool((t - t[:1]).abs().max() > 1e-6 * t.abs().max())
