"""What a model does with its convolutions besides calling them, found by running it with others in their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.surgery import Student
from . import distributed
from .data import Calibration, evaluation, watch
from .values import floating

ATTRIBUTES = {
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed", "output_padding"),
    *("groups", "padding_mode", "in_features", "out_features"),
}
NO_MAP = "a linear layer whose inputs are no maps (N, H, W, C)"
LAST = "the last linear layer, which is fitted anew as it is"


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
    model: nn.Module,
    calibration: Calibration,
    layers: Mapping[str, nn.Module],
    names: Mapping[str, tuple[str, ...]],
    linear: bool = False,
) -> dict[str, str]:
    """Why some layers cannot be replaced, by a pass of the first batch; ``names`` are all names of each.

    Linear layers can where they run on maps, and where ``linear`` on single positions, too; not the last one then.

    Raises ValueError where the model does not run with others in their place.
    """
    student, calls = Student(model, names), Counter()
    sizes: dict[str, set[tuple[int, ...]]] = {name: set() for name in layers}
    lines: list[str] = []  # linear layers as they run

    def see(name: str, x: Tensor, y: Tensor) -> None:
        calls[name] += 1
        if isinstance(layers[name], nn.Linear):
            lines.append(name)
            sizes[name].add(tuple(y.shape[1:-1]))
        else:
            sizes[name].add(tuple(y.shape[-2:]))

    found: dict[str, str] = {}
    with evaluation(model):
        for name, layer in layers.items():
            student.modules[name] = StandIn(layer)
        if _runs(student, calibration, watch(layers, see)):
            taken = {name for name in lines if all(len(size) == 2 or (linear and not size) for size in sizes[name])}
            found = {
                name: why for name in layers if (why := _objection(student.modules[name], calls[name], sizes[name]))
            }
            lone = (name for name, layer in layers.items() if isinstance(layer, nn.Linear) and name not in taken)
            found |= dict.fromkeys(lines[-1:] if linear else (), LAST) | dict.fromkeys(lone, NO_MAP)
    for others in distributed.gather(found):
        found = {**others, **found}
    return {name: found[name] for name in layers if name in found}


def _runs(student: Student, calibration: Calibration, watched: AbstractContextManager) -> bool:
    """Whether the first batch passes with stand-ins; where it does not without them either, the data are at fault."""
    batch = calibration.first()
    try:
        with watched, student.swapped():
            calibration.forward(student.model, batch)
        return True
    except Exception as error:
        failed = error
    try:
        calibration.forward(student.model, batch)
    except Exception:
        return False  # the profile, which comes next, finds the words
    asked = {name: sorted(layer.asked) for name, layer in student.modules.items() if layer.asked}
    told = " ".join(str(failed).split())
    raise ValueError(
        f"model: got {type(failed).__name__} ({told}) with its convolutions replaced, expected a forward that only "
        f"calls them; it reads {asked or 'what they are'}: leave those layers by skip="
    ) from failed


def _objection(layer: StandIn, calls: int, sizes: Set[tuple[int, ...]]) -> str | None:
    """Why a convolution that was called so often, with outputs of these sizes, cannot be replaced."""
    if layer.asked:
        return f"the model reads its {', '.join(sorted(layer.asked))} besides calling it"
    if layer.calls != calls:
        return "the model calls it otherwise than by its name, so that nothing can take its place"
    if len({len(size) for size in sizes}) > 1:
        return "it runs on maps and on single positions in one pass"
    return None


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


def _varies(t: Tensor) -> bool:
    """Between samples."""
    return t.ndim > 0 and len(t) > 1 and bool((t - t[:1]).abs().max() > 1e-6 * t.abs().max())
