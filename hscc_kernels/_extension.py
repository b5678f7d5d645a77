"""Loads the compiled kernels (``hscc_kernels/_C``) once and remembers why when that fails."""

from __future__ import annotations

import importlib


def _load() -> str | None:
    try:
        importlib.import_module("hscc_kernels._C")
    except ImportError as error:
        return f"the C++ extension is not built ({error}); build it with: pip install --no-build-isolation -e ."
    return None


WHY_NOT: str | None = _load()
