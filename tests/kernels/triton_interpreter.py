"""Corrections of four faults of Triton's interpreter, each shown by ``triton_interpreted.py``.

bfloat16 is kept there as uint16: products multiply the bit patterns, rounding truncates, and there are no constants.
On triton 3.6 a run-time loop bound is an array of one element, of which numpy >= 2.4 makes no index.
"""

from __future__ import annotations

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def install() -> None:
    """Patches the interpreter; harmless where a fault is mended."""
    _patch_rounding()
    _patch_dot()
    _patch_constant()
    _patch_index()


def widen(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
    """A bfloat16 handle as float32, any other as it is."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of float32 values rounded to nearest even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _patch_rounding() -> None:
    builder = interpreter.InterpreterBuilder
    convert = builder.create_fp_trunc

    def create_fp_trunc(self, source, target):
        if target.scalar == tl.bfloat16 and source.dtype.scalar == tl.float32:
            return interpreter.TensorHandle(round_to_bfloat16(source.data), tl.bfloat16)
        return convert(self, source, target)

    builder.create_fp_trunc = create_fp_trunc


def _patch_dot() -> None:
    builder = interpreter.InterpreterBuilder
    dot = builder.create_dot
    builder.create_dot = lambda self, a, b, *rest: dot(self, widen(a), widen(b), *rest)


def _patch_constant() -> None:
    def get_bf16(self, value):
        return interpreter.TensorHandle(round_to_bfloat16(np.array([value], np.float32)), tl.bfloat16)

    interpreter.InterpreterBuilder.get_bf16 = get_bf16


def _patch_index() -> None:
    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor, *scope):
        patch(tensor, *scope)
        index = lambda self: int(self.handle.data.reshape(-1)[0])  # noqa: E731
        if scope:
            scope[0].set_attr(tensor, "__index__", index)
        else:
            tensor.__index__ = index

    interpreter._patch_lang_tensor = patch_lang_tensor
