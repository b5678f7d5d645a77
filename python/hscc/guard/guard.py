"""The guard of a model: a score for each image, from the forward pass that answers it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.surgery import unwrapped
from .distance import Whitening, fitted, threshold
from .features import chosen, layers, levels, watched

_TYPE, _VERSION = "hscc.guard", 1


class Guard:
    """Knows the images that a model was calibrated on, and scores others by how far they are from those.

    Made by :meth:`fit`; ``guard(model, x)`` gives the model's outputs and a score an image. It looks at the image's
    grey levels and at mean activations ahead of two layers (``layers``); it holds no part of the model, and computes in
    float32 whatever the model does. Several threads may use it, with one model or several.
    """

    def __init__(self, names: tuple[str, ...], blocks: list[Whitening], held_out: Tensor, false_alarms: float):
        """``blocks``: of the grey levels, then of each layer; ``held_out``: scores of calibration images (n,)."""
        self.layers, self.false_alarms = names, false_alarms
        self.blocks = [Whitening(*(tensor.float().contiguous() for tensor in block)) for block in blocks]
        self.held_out = held_out.double()
        self.threshold = threshold(self.held_out, false_alarms)
        matrix = torch.block_diag(*(block.matrix for block in self.blocks))
        self._on = {torch.device("cpu"): (matrix, -torch.cat([block.offset for block in self.blocks]))}

    @classmethod
    def fit(
        cls, model: nn.Module, batches: Iterable, false_alarms: float = 0.05, *, show_progress: bool = False
    ) -> Guard:
        """A guard for ``model``, dense or compressed, from unlabelled images as it was calibrated on.

        Args:
            batches: tensors (N, C, H, W), or tuples or lists that begin with one; or one tensor. Read twice at most.
            false_alarms: share of new images of this kind that score above ``threshold``: at most, on average over
                draws of n images; a single draw is off by about sqrt(share (1 - share) / n).

        Raises:
            TypeError, ValueError: no batch, one that is no images, too few images (19 at 5 %), or activations that are
                NaN or infinite.
        """
        from ..observe.data import Calibration, evaluation

        model = unwrapped(model)
        data = Calibration.of(model, batches, show=show_progress)
        with evaluation(model):
            names = _names(model, data.first())
            rows = [_features(model, names, x)[1] for x in data.batches("fitting the guard")]
        blocks = [torch.cat(block).cpu().double() for block in zip(*rows, strict=True)]
        broken = int((~torch.cat(blocks, 1).isfinite()).any(1).sum())
        if broken:
            raise ValueError(f"guard: got {broken} images with NaN or infinite activations, expected finite ones")
        threshold(blocks[0][:, 0], false_alarms)  # says what is wrong before the work
        return cls(names, *fitted(blocks), false_alarms)

    def __call__(self, model: nn.Module, x: Tensor) -> tuple[Any, Tensor]:
        """One forward of ``model``, which is to be in evaluation mode: (its outputs, scores float32 (N,) where x is).

        Higher is more foreign; above ``threshold`` is an alarm. NaN in an image or in what is made of it gives inf. A
        compiled model runs eagerly.

        Raises:
            TypeError, ValueError: x is no floating-point tensor (N, C, H, W), or the model lacks a watched layer, or
                is in training mode.
        """
        model = unwrapped(model)
        if model.training:
            raise ValueError("model: got one in training mode, expected model.eval()")
        _check(x)
        outputs, features = _features(model, self.layers, x)
        matrix, offset = self._tensors(x.device)
        values = torch.cat(features, 1)
        if values.shape[1] != len(matrix):
            got, expected = (
                [part.shape[-1] for part in parts] for parts in (features, [b.offset for b in self.blocks])
            )
            raise ValueError(f"model: got features {got}, expected {expected} as in the fit")
        values = values if values.dtype == torch.float32 else values.float()
        scores = torch.linalg.vector_norm(torch.addmm(offset, values, matrix), dim=1)
        return outputs, scores.nan_to_num_(float("inf"), float("inf"))

    def threshold_at(self, false_alarms: float) -> float:
        """The threshold for another share of false alarms. Raises ValueError where it takes more images than it saw."""
        return threshold(self.held_out, false_alarms)

    def state_dict(self) -> tuple[dict[str, Tensor], dict]:
        """(tensors, a header of plain JSON), as :meth:`from_state` takes them."""
        tensors = {"held_out": self.held_out.float()}
        for i, block in enumerate(self.blocks):
            tensors |= {f"{i}.matrix": block.matrix, f"{i}.offset": block.offset}
        header = {"_type": _TYPE, "_version": _VERSION, "layers": [*self.layers], "false_alarms": self.false_alarms}
        return tensors, header

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], header: Mapping) -> Guard:
        """The guard that gave this. Raises ValueError for what is no state of one."""
        try:
            kind, version = header["_type"], header["_version"]
            if (kind, version) != (_TYPE, _VERSION):
                raise ValueError(f"guard: got {kind} version {version}, expected {_TYPE} version {_VERSION}")
            names = tuple(map(str, header["layers"]))
            blocks = [Whitening(tensors[f"{i}.matrix"], tensors[f"{i}.offset"]) for i in range(1 + len(names))]
            if any(block.matrix.shape != 2 * block.offset.shape or block.offset.ndim != 1 for block in blocks):
                raise ValueError("guard: got matrices and offsets of unlike sizes, expected (d, d) and (d,)")
            return cls(names, blocks, tensors["held_out"].flatten(), float(header["false_alarms"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"guard: got a damaged state ({error!r}), expected what state_dict gave") from error

    def __repr__(self) -> str:
        seen = ", ".join(self.layers) or "no layer"
        return f"Guard({len(self.held_out)} images, threshold {self.threshold:.4g} at {self.false_alarms:g}, {seen})"

    def _tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(matrix, offset) there; copied once."""
        found = self._on.get(device)
        if found is None:
            found = self._on[device] = tuple(tensor.to(device) for tensor in self._on[torch.device("cpu")])
        return found


def _names(model: nn.Module, x: Any) -> tuple[str, ...]:
    """The layers to watch, of those that see a row or a map of each image."""
    _check(x)
    seen: dict[str, Tensor] = {}
    with watched(model, layers(model), seen):
        model(x)
    return chosen(name for name, values in seen.items() if values.is_floating_point() and len(values) == len(x))


def _features(model: nn.Module, names: tuple[str, ...], x: Any) -> tuple[Any, list[Tensor]]:
    """(the model's outputs, (N, d) of the grey levels and of each layer)."""
    grey = levels(x)  # first, while the image is in the cache
    seen: dict[str, Tensor] = {}
    compiled = model._compiled_call_impl is not None and "torch._dynamo" in sys.modules
    with watched(model, names, seen), torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        outputs = model(x)
    if missing := [name for name in names if name not in seen]:
        raise ValueError(
            f"model: got one whose layer {missing[0]!r} is not called or is compiled by itself, expected a call of it"
        )
    return outputs, [grey, *(seen[name] for name in names)]


def _check(x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: got {type(x).__name__}, expected a tensor (N, C, H, W)")
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x: got {x.dtype} {tuple(x.shape)}, expected floating point (N, C, H, W)")
