"""FLOPs of the ops for ``torch.utils.flop_counter``: two a multiply-add; bias and activation are not counted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import torch
from torch import Tensor
from torch._guards import TracingContext
from torch._subclasses.fake_tensor import is_fake

from .layout import WorkItem
from .plan import PackedPlan

_COUNTER = "torch.utils.flop_counter"
_FORMULAS: dict[str, Callable[..., int]] = {}  # by the op's name


def lowrank_conv2d(x: Tensor, bias: Tensor | None, *rest, **unused) -> int:
    """``PackedPlan.flops()`` an image."""
    plan = PackedPlan(*rest[:-1])
    return 2 * len(x) * sum(item.position_count * item.macs for item in _work_items(plan))


def lowrank_conv2d_int8(x: Tensor, bias: Tensor | None, v: Tensor, v_scale: Tensor, *rest, **unused) -> int:
    """The same number, of which those of the first stage are of integers."""
    return lowrank_conv2d(x, bias, v, *rest[:-2])


def lowrank_conv2d_backward(grad: Tensor, y: Tensor, x: Tensor, *rest, **unused) -> int:
    """The matrix products of ``backward.py``, which makes the first stage's outputs again for the gradient of u."""
    *fields, _, (need_x, _, need_v, need_u) = rest
    plan, macs = PackedPlan(*fields), 0
    for item in _work_items(plan):
        first = item.row_count * plan.v.shape[1]
        second = item.macs - first
        macs += item.position_count * (first * (need_x + need_v + need_u) + second * (1 + need_u))
    return 2 * len(x) * macs


def project(x: Tensor, matrix: Tensor, **unused) -> int:
    return 2 * x.numel() * matrix.shape[1]


def _work_items(plan: PackedPlan) -> list[WorkItem]:
    """The work list; an empty one where a compiler asks for an estimate, with fake tensors, as if without formula."""
    if not plan.work.is_meta and not is_fake(plan.work):
        return plan.work_items()
    if TracingContext.try_get() is not None:
        return []
    raise ValueError("work: got a meta or fake tensor, expected one with values: the FLOPs depend on them")


def register(op: str, formula: Callable[..., int]) -> None:
    """Gives the counter the formula of ``hscc::<op>``: now if it is loaded, else when it is."""
    _FORMULAS[op] = formula
    if _COUNTER in sys.modules:
        _add(sys.modules[_COUNTER], op)


def _add(counter: ModuleType, op: str) -> None:
    counter.register_flop_formula(getattr(torch.ops.hscc, op), get_raw=True)(_FORMULAS[op])


class _Finder:
    """On ``sys.meta_path``, adds the formulas to the counter as it is loaded: to load it here would load Triton."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == _COUNTER else None
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(counter: ModuleType) -> None:
                execute(counter)
                for op in _FORMULAS:
                    _add(counter, op)

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder)
