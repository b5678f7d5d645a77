"""The guard's study: pictures are what they are called, baselines what their papers say, tables are replaced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bench.guard import kinds, study, table


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(20, 200, (6, 28, 28), dtype=np.uint8)


@pytest.mark.parametrize("kind", [*kinds.FOREIGN, *kinds.UNSEEN, *kinds.NEAR])
def test_pictures_change_and_can_be_made_again(pixels, kind) -> None:
    make = (kinds.FOREIGN | kinds.UNSEEN | kinds.NEAR)[kind]
    before, found = pixels.copy(), kinds.made(make, pixels, 3)
    assert (found.dtype, found.shape) == (np.uint8, pixels.shape)
    assert (found != pixels).any((1, 2)).all()
    assert (pixels == before).all()
    assert (found == kinds.made(make, pixels, 3)).all()


def test_tiles_keep_their_pixels(pixels) -> None:
    found = kinds.made(kinds.UNSEEN["tiles in another order"], pixels, 0)
    assert (np.sort(found.reshape(6, -1)) == np.sort(pixels.reshape(6, -1))).all()


def test_baselines() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.inference_mode():
        baselines = study.Baselines(model, [torch.rand(40, 4), torch.rand(40, 4)])
        inputs = torch.cat([torch.full((1, 5), float(baselines.cut) / 2), torch.full((1, 5), 9.0)])
        logits = model[-1](inputs)
        found = baselines.scores(inputs, logits)
    assert not model[-1]._forward_pre_hooks
    torch.testing.assert_close(found["maximum softmax"], -logits.softmax(1).max(1).values)
    torch.testing.assert_close(found["energy"], -logits.double().exp().sum(1).log().float())
    assert found["ReAct energy"][0] == found["energy"][0]
    assert found["ReAct energy"][1] != found["energy"][1]


def test_auroc_counts_ties_half_and_takes_infinity() -> None:
    assert study.auroc(np.array([0.0, 1.0]), np.array([1.0, np.inf])) == pytest.approx(0.875)


def test_a_page_keeps_its_text() -> None:
    kind = {"auroc": dict.fromkeys(("guard", *table.METHODS), 0.5), "flagged": 0.1, "accuracy": None}
    case = {
        **{"network": "net", "reduction": 3.0, "new": 1000, "false_alarms": 0.04, "accuracy": 0.9},
        "kinds": {"blank": {"group": "foreign", **kind}, "gamma 2": {"group": "foreign", **kind}},
        "draws": {"512": [0.04, 0.06], "128": [0.05]},
        "latency": {count: {"model": 1.0, "guarded": 1.05, "share": 0.05} for count in ("1", "32")},
    }
    text = "before\n<!-- summary -->\nold\n<!-- end -->\nbetween\n<!-- kinds -->\n<!-- end -->\nafter\n"
    once = table.page(text, [case])
    assert table.page(once, [case]) == once
    assert [word in once for word in ("before", "old", "between", "after")] == [True, False, True, True]
    assert "| net, 3x | 0.500 (blank) | 0.500 | 4.0 % of 1,000 | 4.0 to 6.0 %, mean 5.0 % |" in once
    with pytest.raises(ValueError, match="got 0 places for 'kinds', expected one"):
        table.page("<!-- summary -->\n<!-- end -->", [case])
