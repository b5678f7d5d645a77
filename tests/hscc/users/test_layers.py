"""How a model calls its layers: what cannot be replaced stays, with the reason."""

from __future__ import annotations

import copy

import hscc
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.hscc.users.networks import Net, config, conv, network, refuses


def test_layers_in_a_plain_list_stay_with_the_reason(x) -> None:
    model = Net(lambda net, x: net.head(net.order[1](net.order[0](x).relu()).relu().mean((2, 3))))
    model.order = [model.a, model.b]
    refuses(model, x, "got nothing to compress.*a: the model calls it otherwise than by its name")
    model.c, model.d, one = conv(3, 16), conv(16, 16), model.order
    model.body = [lambda net, x: net.head(net.d(one[1](net.c(x).relu()).relu()).relu().mean((2, 3)))]
    report = hscc.compress_(model, x, config(1.5))
    assert "otherwise than by its name" in report.skipped["b"]
    assert report.skipped["a"] == "did not run on the calibration data"
    assert isinstance(model.d, (hscc.HSCConv2d, hscc.SqueezedConv2d))
    assert model.b is one[1]
    assert report.flop_reduction >= 1.5


def test_a_layer_that_the_result_does_not_call_is_refused(x, monkeypatch) -> None:
    """What the stand-ins did not show, the pass of the result does."""
    monkeypatch.setattr("hscc.calibrated.probe.objections", lambda *args: {})
    model = Net(lambda net, x: net.head(net.order[0](net.a(x).relu()).relu().mean((2, 3))))
    model.order = [model.b]
    refuses(model, x, "got 0 calls of the compressed layer 'b' in a pass, expected 1")


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (lambda net, x: net.head(net.b(net.a(x.to(net.a.weight.dtype)).relu()).mean((2, 3))), "weight"),
        (lambda net, x: net.head(net.b(F.conv2d(x, net.a.weight, net.a.bias)).mean((2, 3))), "bias, weight"),
        (lambda net, x: F.conv_transpose2d(net.b(net.a(x)), net.a.weight, padding=1), "weight"),
        (
            lambda net, x: net.head(net.b(net.a._conv_forward(x, net.a.weight, None)).mean((2, 3))),
            "_conv_forward, weight",
        ),
    ],
    ids=["dtype", "functional", "tied", "private"],
)
def test_layers_whose_weight_is_read_stay_with_the_reason(x, body, asked: str) -> None:
    model = Net(body)
    report = hscc.compress_(model, x, config(1.15))
    assert report.skipped["a"] == f"the model reads its {asked} besides calling it"
    assert type(model.a) is nn.Conv2d
    model(x[0])


def test_a_forward_that_asks_what_its_layers_are_is_refused(x) -> None:
    def body(net, x):
        for layer in (net.a, net.b):
            x = layer(x).relu() if isinstance(layer, nn.Conv2d) else x
        return net.head(x.mean((2, 3)))

    refuses(Net(body), x, r"got RuntimeError \(mat1 and mat2 .* expected a forward that only calls them; it reads what")


def test_a_fault_of_the_data_is_told_by_the_layer(x) -> None:
    refuses(network(), [b[:, :2] for b in x], r"layer '0': got an input of shape \(16, 2, 16, 16\), expected \(N, 3, H")
    refuses(network(), [b.double() for b in x], "layer '0': got an input of torch.float64, expected", TypeError)


def test_attributes_of_the_convolution_are_there(x) -> None:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    for method in ("hscc", "tucker2", "spatial_svd"):
        model = Net(lambda net, x: net.head(F.pad(net.b(net.a(x)), net.b.padding).mean((2, 3))) * net.a.stride[0])
        model.a.tag = "first"
        before = {name: [getattr(layer, name) for name in names] for name, layer in (("a", model.a), ("b", model.b))}
        hscc.compress_(model, x, config(6, method=method))
        assert nn.Conv2d not in (type(model.a), type(model.b))
        for name, values in before.items():
            layer = model.get_submodule(name)
            assert [getattr(layer, attribute) for attribute in names] == values
        assert model.a.tag == "first"
        assert not model.a.transposed


@pytest.mark.parametrize(
    "options", [{"padding": "same"}, {"padding": (0, 2), "padding_mode": "reflect"}, {"stride": 2}]
)
def test_attributes_of_every_padding(options: dict) -> None:
    dense = nn.Conv2d(3, 4, (3, 2) if options.get("padding") == "same" else 3, **options)
    made = hscc.HSCConv2d.dense(dense, (9, 9))
    assert (made.padding, made.stride, made.kernel_size) == (dense.padding, dense.stride, dense.kernel_size)


def at_two_sizes() -> Net:
    """``b`` runs on the map of ``a`` and on one of half its size."""
    model = Net(lambda net, x: net.head(net.b(net.a(x)).mean((2, 3)) + net.b(F.avg_pool2d(net.a(x), 2)).mean((2, 3))))
    return model.eval()


@pytest.mark.parametrize("options", [{}, {"search": False, "regions": 4}, {"method": "svd"}, {"dtype": "int8"}])
def test_a_layer_at_several_sizes_has_one_region(x, options: dict) -> None:
    model = at_two_sizes()
    dense = model(x[0])
    report = hscc.compress_(model, x, config(1.5, **options))
    row = next(layer for layer in report.layers if layer.name == "b")
    assert row.region_sizes == (1,)
    assert row.dense_flops == 2 * 16 * 16 * 9 * (256 + 64)
    assert hscc.summary(model, x[0][:1]).flops == report.flops
    told = "layers that run at several sizes have one region: b"
    assert (told in report.warnings) == (options.get("method") != "svd")
    assert (model(x[0]) - dense).norm() < 0.3 * dense.norm()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x[0]), model(x[0]))


def test_other_methods_leave_a_layer_at_several_sizes(x) -> None:
    model = at_two_sizes()
    report = hscc.compress_(model, x, config(1.1, method="tucker2"))
    assert report.skipped == {"b": "it runs at several sizes, which 'tucker2' does not know"}
    assert type(model.b) is nn.Conv2d


def test_hooks_stay_and_their_handles_work(x) -> None:
    model, seen = network(), []
    model[2].register_forward_pre_hook(lambda module, args: seen.append("before"))
    handle = model[2].register_forward_hook(lambda module, args, y: seen.append(tuple(y.shape)))
    model[0].register_forward_hook(lambda module, args, kwargs, y: 2 * y, with_kwargs=True)
    wanted = model(x[0])
    hscc.compress_(model, x, config(1.5))
    seen.clear()
    assert (model(x[0]) - wanted).norm() < 0.3 * wanted.norm()  # a hook that changes outputs is applied once
    assert seen == ["before", (16, 16, 16, 16)]
    gradients = []
    model[2].register_full_backward_hook(lambda module, given, taken: gradients.append(taken[0].shape))
    model(x[0]).sum().backward()
    handle.remove()
    model(x[0])
    assert seen == ["before", (16, 16, 16, 16), "before", (16, 16, 16, 16), "before"]
    assert gradients == [(16, 16, 16, 16)]


def test_hooks_stay_where_a_file_is_loaded(x, tmp_path) -> None:
    model, fresh, seen = network(), network(), []
    hscc.compress_(model, x, config())
    hscc.save(model, tmp_path / "small.safetensors")
    fresh[0].register_forward_hook(lambda module, args, y: seen.append(y.shape))
    hscc.load_(fresh, tmp_path / "small.safetensors")
    torch.testing.assert_close(fresh(x[0]), model(x[0]))
    assert len(seen) == 1


def test_skip_means_all_below_a_name(x) -> None:
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16), nn.ReLU()))
    model.add_module("head", nn.Sequential(conv(16, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)))
    head = copy.deepcopy(model.head.state_dict())
    report = hscc.compress_(model, x, config(1.3, skip=["head"]))
    assert report.skipped["head.0"] == "named in skip"
    assert report.refitted == ()
    assert all(torch.equal(value, model.head.state_dict()[key]) for key, value in head.items())
    with pytest.raises(TypeError, match=r"skip: got the text 'head', expected a list of names: skip=\['head'\]"):
        config(skip="head")
