"""What travels in a weights file's header, and windows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hscc.data.slices import Slices
from hscc.data.spec import METADATA_KEY, ImageSpec

HOUNSFIELD = ImageSpec((2, 2), 1, (0.5,), (0.25,), ("a", "b"), window=(-160, 240))


def test_headers_of_before_load() -> None:
    old = '{"size": [2, 3], "channels": 1, "mean": [0.5], "std": [0.25], "classes": ["a", "b"]}'
    spec = ImageSpec.from_json(old)
    assert spec == ImageSpec((2, 3), 1, (0.5,), (0.25,), ("a", "b"))
    assert spec.window is None
    assert json.loads(spec.to_json()) == json.loads(old)  # and versions before read what this one writes
    assert METADATA_KEY == "hscc.images"


def test_a_window_travels() -> None:
    assert ImageSpec.from_json(HOUNSFIELD.to_json()) == HOUNSFIELD
    assert json.loads(HOUNSFIELD.to_json())["window"] == [-160, 240]
    assert hash(ImageSpec.from_json(HOUNSFIELD.to_json())) == hash(HOUNSFIELD)


@pytest.mark.parametrize("window", [(1, 1), (2, 1), (0,), (0, 1, 2), (0, float("inf")), (float("nan"), 1)])
def test_windows_that_are_none(window: tuple) -> None:
    with pytest.raises(ValueError, match=r"window: got \(.*\), expected two finite numbers \(low, high\), low < high"):
        ImageSpec((2, 2), 1, (0,), (1,), ("a",), window=window)


def test_scale() -> None:
    values = np.array([[-1000, -160], [40, 3000]], np.int16)
    assert HOUNSFIELD.scale(values, "x").tolist() == [[0, 0], [0.5, 1]]
    assert HOUNSFIELD.scale(values, "x", stated=(0, 1)).tolist() == [[0, 0], [0.5, 1]]  # the spec's own counts
    assert HOUNSFIELD.scale(np.array([np.nan, np.inf, -np.inf, 140.0]), "x").tolist() == [0, 1, 0, 0.75]
    bare = ImageSpec((2, 2), 1, (0,), (1,), ("a",))
    assert bare.scale(values, "x", stated=(-1000, 3000)).tolist() == [[0, np.float32(0.21)], [np.float32(0.26), 1]]
    with pytest.raises(ValueError, match=r"x: got int16 values from -1000 to 3000 and no window, expected ImageSpec"):
        bare.scale(values, "x")
    with pytest.raises(ValueError, match=r"x: got floats from 0\.5 to 0\.5 and no window"):
        bare.scale(np.array([0.5, np.nan]), "x")


def test_preprocess() -> None:
    scaled = np.array([[[0, 1], [0.5, 0.25]]], np.float32)
    assert HOUNSFIELD.preprocess(scaled).tolist() == [[[[-2, 2], [0, -1]]]]
    colour = ImageSpec((2, 2), 3, (0,) * 3, (1,) * 3, ("a",))
    assert torch.equal(colour.preprocess(scaled), torch.tensor(scaled)[:, None].expand(-1, 3, -1, -1))
    grey = ImageSpec((2, 2), 1, (0,), (1,), ("a",))
    torch.testing.assert_close(
        grey.preprocess(np.broadcast_to(np.float32([1, 0, 0.5]), (1, 2, 2, 3))), torch.full((1, 1, 2, 2), 0.356)
    )
    for values in (scaled * 255, scaled - 0.5, scaled * np.float32("nan")):
        with pytest.raises(ValueError, match=r"pixels: got floats from .*, expected 0\.\.1, by ImageSpec\.scale"):
            HOUNSFIELD.preprocess(values)
    with pytest.raises(ValueError, match=r"pixels: got torch.float64 \(1, 2, 2\), expected uint8 or float32"):
        HOUNSFIELD.preprocess(scaled.astype(float))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("2:0-1", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("2:0.25-0.75", [2, 3, 4, 5, 6, 7]),
        ("0:0.5-0.5", [5]),
        ("1:1-1", [9]),
        ("0:7,3", [7, 3]),
        ("1:", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_slices(text: str | None, want: list[int]) -> None:
    slices = Slices.parse(text)
    assert slices.of(10, "x") == want
    assert slices.axis == int(text[0] if text else 2)


def test_a_slice_at_least() -> None:
    assert Slices(share=(0.9, 1)).of(1, "x") == [0]
    assert Slices(share=(0.4, 0.6)).of(2, "x") == [1]
    with pytest.raises(ValueError, match="x: got 5 slices, expected one with index 5"):
        Slices(indices=(1, 5)).of(5, "x")


@pytest.mark.parametrize("text", ["", "3:1", "a:1", "2:0.7-0.3", "2:0-2", "2:0.1-0.2-0.3", "2:-1", "2:x", "0.3-0.7"])
def test_slices_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"slices: got '.*', expected axis:low-high or axis:index,\.\.\. \("):
        Slices.parse(text)
