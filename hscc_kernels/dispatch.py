"""The table of backends: each says in a sentence why it cannot run a call; the first without objection runs it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import _extension
from .errors import BackendUnavailable

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Backend(NamedTuple):
    name: str
    why_not: Callable[[Tensor], str | None]

    def op(self, kind: str = "lowrank_conv2d") -> Callable[..., Tensor]:
        return getattr(torch.ops.hscc, f"{kind}_{self.name}").default  # the overload: one look-up less a call


def _triton_why_not(x: Tensor) -> str | None:
    if not _HAS_TRITON:
        return "triton is not installed"
    if x.device.type != "cuda" and not _INTERPRETED:
        return f"triton needs a tensor on a GPU, got one on {x.device} (TRITON_INTERPRET=1 runs it on the CPU)"
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"triton takes float32, float16 and bfloat16, got {x.dtype}"
    return None


def _cpu_why_not(x: Tensor) -> str | None:
    if _extension.WHY_NOT is not None:
        return _extension.WHY_NOT
    if x.device.type != "cpu":
        return f"cpu needs a tensor on the CPU, got one on {x.device}"
    if x.dtype not in (torch.float32, torch.bfloat16):
        return f"cpu takes float32 and bfloat16, got {x.dtype}"
    return None


BACKENDS = (
    Backend("triton", _triton_why_not),
    Backend("cpu", _cpu_why_not),
    Backend("reference", lambda x: None),
)
INT8 = "lowrank_conv2d_int8"
_BY_NAME = {backend.name: backend for backend in BACKENDS}
_PREFERRED = os.environ.get("HSCC_BACKEND")
_RESOLVED: dict[tuple, Callable[..., Tensor]] = {}  # by all that an objection is about


def explain(x: Tensor) -> dict[str, str | None]:
    """For each backend, in order of preference, why it cannot take ``x``; None means that it can."""
    return {backend.name: backend.why_not(x) for backend in BACKENDS}


def resolve(x: Tensor, name: str | None = None, kind: str = "lowrank_conv2d") -> Callable[..., Tensor]:
    """The op of a kind that runs ``x``: the named backend (or ``HSCC_BACKEND``), else the first one that can.

    Raises BackendUnavailable when a named backend cannot run and ValueError when there is none of that name.
    """
    call = name, kind, x.dtype, x.is_cpu, x.is_cuda
    op = _RESOLVED.get(call)
    if op is None:
        op = _RESOLVED[call] = _resolve(x, name or _PREFERRED, kind)
    return op


def _resolve(x: Tensor, name: str | None, kind: str) -> Callable[..., Tensor]:
    if name is not None:
        if name not in _BY_NAME:
            raise ValueError(f"backend: got {name!r}, expected one of {list(_BY_NAME)}")
        backend = _BY_NAME[name]
        reason = _why_not(backend, x, kind)
        if reason is not None:
            raise BackendUnavailable(f"backend {name!r} cannot run: {reason}")
        return backend.op(kind)
    return next(backend.op(kind) for backend in BACKENDS if _why_not(backend, x, kind) is None)


def _why_not(backend: Backend, x: Tensor, kind: str) -> str | None:
    if kind != INT8:
        return backend.why_not(x)
    return "triton has no int8" if backend.name == "triton" else backend.why_not(x.new_empty(0, dtype=torch.float32))
