"""The datatypes of the protocol: bytes on the wire and values in JSON become tensors, and back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import prod

import numpy as np
import torch
from torch import Tensor

from ..errors import BadRequest
from ..signature import DTYPES

MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**31 - 1


def check_shape(shape: object, name: str) -> tuple[int, ...]:
    """A shape, which may be anything that a client sent, as a tuple.

    Raises BadRequest unless it is one to eight integers above 0 whose product is below 2 ** 31.
    """
    wanted = f"expected 1 to {MAX_DIMENSIONS} integers above 0 with a product below 2 ** 31"
    if not isinstance(shape, list | tuple) or not 0 < len(shape) <= MAX_DIMENSIONS:
        raise BadRequest(f"{name}: got no shape or one of too many dimensions, {wanted}")
    if any(type(size) is not int or not 0 < size <= MAX_ELEMENTS for size in shape) or prod(shape) > MAX_ELEMENTS:
        raise BadRequest(f"{name}: got sizes out of range in the shape, {wanted}")
    return tuple(shape)


def from_bytes(data: bytes | memoryview, datatype: str, shape: Sequence[int], name: str) -> Tensor:
    """Little-endian bytes, row by row -> a tensor with memory of its own.

    Raises BadRequest for another number of bytes, and for BOOL that is neither 0 nor 1.
    """
    dtype = DTYPES[datatype]
    expected = prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise BadRequest(f"{name}: got {len(data)} bytes, expected {expected} for {datatype} {list(shape)}")
    raw = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    if dtype == torch.bool and raw.max() > 1:
        raise BadRequest(f"{name}: got bytes above 1, expected BOOL as 0 and 1")
    return raw.view(dtype).view(shape)


def from_json(data: object, datatype: str, shape: Sequence[int], name: str) -> Tensor:
    """Numbers in JSON, flat or nested as the shape is -> a tensor; too large ones become inf where it has one.

    Raises BadRequest for another number of them or nesting, values of another kind, and integers out of range.
    """
    dtype, values = DTYPES[datatype], _flat(data, shape, name)
    kinds = {bool} if dtype == torch.bool else {int, float} if dtype.is_floating_point else {int}
    if not set(map(type, values)) <= kinds:
        raise BadRequest(f"{name}: got values of another kind, expected {datatype}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, np.float64 if dtype.is_floating_point else str(dtype).removeprefix("torch."))
    except OverflowError as error:
        raise BadRequest(f"{name}: got a number out of range, expected {datatype}") from error
    return torch.from_numpy(array).to(dtype).view(shape)


def to_bytes(tensor: Tensor) -> bytes:
    """A tensor's elements, row by row, little-endian."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _flat(data: object, shape: Sequence[int], name: str) -> list:
    if not isinstance(data, list):
        raise BadRequest(f"{name}: got no list as data, expected {prod(shape)} values")
    if not data or not isinstance(data[0], list):
        if len(data) != prod(shape):
            raise BadRequest(f"{name}: got {len(data)} values, expected {prod(shape)} for the shape {list(shape)}")
        return data
    rows: list = [data]
    for length in shape:
        if any(type(row) is not list or len(row) != length for row in rows):
            raise BadRequest(f"{name}: got data nested otherwise than the shape {list(shape)}, expected it so or flat")
        rows = [*chain.from_iterable(rows)]
    return rows
