"""Models of other kinds: compiled, scripted, with made weights, that cannot be copied."""

from __future__ import annotations

import copy
import threading

import hscc
import pytest
import torch
from torch import nn

from tests.hscc.users.networks import Net, config, conv, network, refuses


def test_a_compiled_model_is_unwrapped(x) -> None:
    for compiled in (lambda m: torch.compile(m, backend="eager"), lambda m: (m.compile(backend="eager"), m)[1]):
        plain, model = network(), network()
        model.load_state_dict(plain.state_dict())
        whole = compiled(model)
        whole(x[0])  # compiled before
        report = hscc.compress_(whole, x, config())
        assert [layer.name for layer in report.layers] == ["0", "2"]
        hscc.compress_(plain, x, config())
        torch.testing.assert_close(whole(x[0]), plain(x[0]))


def test_a_compiled_part_is_seen(x) -> None:
    model = nn.Sequential(torch.compile(network()[:4], backend="eager"), *network()[4:])
    model(x[0])
    assert hscc.compress_(model, x, config()).flop_reduction >= 3


def test_scripted_and_quantized_models_are_refused(x) -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        scripted, traced = torch.jit.script(network()), torch.jit.trace(network(), x[0])
    for model in (scripted, traced):
        with pytest.raises(TypeError, match=r"model: got a TorchScript module \(the model itself: \w+\), expected the"):
            hscc.compress_(model, x, config())
    quantized = network()
    quantized[0] = torch.ao.nn.quantized.Conv2d(3, 16, 3, padding=1)
    refuses(quantized, x, r"model: got a quantized module \(0: Conv2d\), expected the float", TypeError)
    with pytest.raises(TypeError, match=r"model: got function, expected a torch\.nn\.Module"):
        hscc.compress_(lambda x: x, x, config())


@pytest.mark.parametrize("method", ["hscc", "svd", "tucker2"])
def test_nothing_to_compress_is_an_error(method: str) -> None:
    volume = nn.Sequential(nn.Conv3d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 8, 2))
    refuses(volume, [torch.randn(4, 3, 4, 4, 4)], "nothing to compress.*0: Conv3d is not supported", method=method)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    refuses(flat, [torch.randn(4, 3, 2, 2)], r"nothing to compress.*\(it has no convolution\)", method=method)


def test_a_budget_out_of_reach_is_refused_before_the_work(x, monkeypatch) -> None:
    model = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16, groups=4), nn.ReLU(), conv(16, 16), nn.Flatten())
    monkeypatch.setattr("hscc.calibrated.stats.look", lambda *args: pytest.fail("work was done"))
    refuses(model, x, "got flops=30, expected at most 5.75: .* need the rest .2: grouped convolution", reduction=30)


WEIGHTS = {
    "weight norm": nn.utils.weight_norm,
    "spectral norm": nn.utils.spectral_norm,
    "pruned": lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.3),
    "pruned bias": lambda layer: nn.utils.prune.random_unstructured(layer, "bias", 0.3),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("made", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("squeeze", [True, False])
def test_made_weights_count_by_their_effect(x, made, squeeze: bool) -> None:
    model = network()
    for layer in (model[0], model[2], model[6]):
        made(layer)
    model(x[0])
    plain = network()
    for a, b in zip(plain, model, strict=True):
        if isinstance(a, (nn.Conv2d, nn.Linear)):
            a.weight.data.copy_(b.weight)
            a.bias.data.copy_(b.bias)
    report, wanted = (hscc.compress_(m, x, config(squeeze=squeeze)) for m in (model, plain))
    assert report.layers == wanted.layers
    assert all(p.requires_grad for p in model[0].parameters())
    model[0](x[0])


@pytest.mark.parametrize("squeeze", [True, False])
def test_models_that_cannot_be_copied(x, tmp_path, squeeze: bool) -> None:
    def body(net, x):
        net.features = net.a(x).relu()  # no leaf of a graph
        return net.head(net.b(net.features).relu().mean((2, 3)))

    with (tmp_path / "log").open("w") as file:
        model = Net(body, lock=threading.Lock(), log=file)
        model(x[0])
        with pytest.raises((TypeError, RuntimeError)):
            copy.deepcopy(model)
        assert hscc.compress_(model, x, config(squeeze=squeeze)).flop_reduction >= 3


def test_a_layer_that_holds_more_stays(x) -> None:
    model = network()
    model[2].register_buffer("mask", torch.ones(3))
    report = hscc.compress_(model, x, config(1.05))
    assert report.skipped == {"2": "it holds more than weight and bias (mask), which factors could not"}
