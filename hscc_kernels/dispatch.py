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

    def op(self) -> Callable[..., Tensor]:
        return getattr(torch.ops.hscc, f"lowrank_conv2d_{self.name}").default  # the overload: one look-up less a call


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
_BY_NAME = {backend.name: backend for backend in BACKENDS}
_PREFERRED = os.environ.get("HSCC_BACKEND")
_RESOLVED: dict[tuple, Callable[..., Tensor]] = {}  # by all that an objection is about


def explain(x: Tensor) -> dict[str, str | None]:
    """For each backend, in order of preference, why it cannot take ``x``; None means that it can."""
    return {backend.name: backend.why_not(x) for backend in BACKENDS}


def resolve(x: Tensor, name: str | None = None) -> Callable[..., Tensor]:
    """The op that runs ``x``: the named backend (or ``HSCC_BACKEND``), else the first one that can.

    Raises BackendUnavailable when a named backend cannot run and ValueError when there is none of that name.
    """
    kind = name, x.dtype, x.is_cpu, x.is_cuda
    op = _RESOLVED.get(kind)
    if op is None:
        op = _RESOLVED[kind] = _resolve(x, name or _PREFERRED)
    return op


def _resolve(x: Tensor, name: str | None) -> Callable[..., Tensor]:
    if name is not None:
        if name not in _BY_NAME:
            raise ValueError(f"backend: got {name!r}, expected one of {list(_BY_NAME)}")
        backend = _BY_NAME[name]
        reason = backend.why_not(x)
        if reason is not None:
            raise BackendUnavailable(f"backend {name!r} cannot run: {reason}")
        return backend.op()
    return next(backend.op() for backend in BACKENDS if backend.why_not(x) is None)
