"""What batches and outputs are made of: tensors in nested tuples, lists, dicts and dataclasses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def floating(value: Any) -> list[Tensor]:
    """Those of them with real floating-point numbers."""
    return [t for t in tensors(value) if t.is_floating_point()]


def here(value: Any, device: torch.device) -> Any:
    """The same with all tensors on the device, and such as gradients can be taken through."""
    if isinstance(value, Tensor):
        if value.is_inference():
            with torch.inference_mode(False):
                value = value.clone()
        return value.to(device)
    if isinstance(value, Mapping) and not hasattr(value, "to"):
        return {key: here(part, device) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(here(part, device) for part in value))
    if type(value) in (tuple, list):
        return type(value)(here(part, device) for part in value)
    return value.to(device) if hasattr(value, "to") else value


def kind(value: Any) -> str:
    """What came, for messages."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of {', '.join(f'{key}: {kind(part)}' for key, part in value.items())}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of ({', '.join(map(kind, value[:4]))}{', ...' if len(value) > 4 else ''})"
    return type(value).__name__
