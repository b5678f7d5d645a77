"""``Config(portable=True)``: one region and one cluster a layer, all else as without; baselines beside it."""

from __future__ import annotations

from collections import Counter

import hscc
import pytest
from hscc.exports.model import export
from hscc.exports.portable import own_layers, regions


@pytest.mark.parametrize("options", [{}, {"effort": "quick"}, {"search": False}, {"factorization": "weight"}])
def test_layers_are_plain(net, data, options: dict) -> None:
    config = hscc.Config(hscc.flops(3), portable=True, **options)
    assert hscc.Config.from_json(config.to_json()) == config
    report = hscc.compress_(net, data, config)
    layers = own_layers(net)
    assert layers
    assert {regions(layer) for layer in layers.values()} == {1}
    assert all(len(layer.ranks) <= 1 and all(len(own) == 1 for own in layer.ranks) for layer in report.layers)
    assert report.flop_reduction >= 3


def test_squeezes_are_searched_all_the_same() -> None:
    config = hscc.Config(hscc.flops(3), portable=True).resolved
    assert (config.regions, config.clusters, config.region_method, config.squeeze) == (1, 1, "none", True)
    assert config.searches
    with pytest.raises(TypeError, match="portable: got 'yes', expected True or False"):
        hscc.Config(hscc.flops(3), portable="yes")


@pytest.mark.parametrize("method", ["svd", "tucker2", "spatial_svd", "balf"])
def test_baselines_are_plain_in_any_case(net, data, tmp_path, method: str) -> None:
    onnx = pytest.importorskip("onnx", reason="needs hscc[onnx]")
    hscc.compress_(net, data, hscc.Config(hscc.flops(3), method=method))
    layers = export(net, tmp_path / "m.onnx", example=data[0]).layers
    assert set(layers.values()) == {"convolutions"}
    counted = Counter(node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node)
    assert counted["Conv"] > 3
    assert not {"Gather", "MatMul"} & set(counted)
