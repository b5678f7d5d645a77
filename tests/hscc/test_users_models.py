"""What new users' models do to it: each fault once seen is a kind, and right or refused in one sentence."""

from __future__ import annotations

import copy
import threading
from contextlib import nullcontext
from dataclasses import dataclass

import hscc
import pytest
import torch
import torch.nn.functional as F
from hscc.nn.conv2d import SIZES
from torch import Tensor, fx, nn


def conv(inputs: int, outputs: int, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def network(outputs: int = 3) -> nn.Sequential:
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, outputs)
    return nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16), nn.ReLU(), *head).eval()


class Net(nn.Module):
    """Two convolutions and whatever ``body`` makes of them."""

    def __init__(self, body=None, **parts) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), nn.Linear(16, 3)
        for name, part in parts.items():
            setattr(self, name, part)
        self.body = [body]  # no module of its own

    def forward(self, x: Tensor):
        if self.body[0]:
            return self.body[0](self, x)
        return self.head(self.b(self.a(x).relu()).relu().mean((2, 3)))


@pytest.fixture
def x() -> list[Tensor]:
    return [F.interpolate(torch.randn(16, 3, 4, 4), size=16) for _ in range(4)]


def config(reduction: float = 3, **options) -> hscc.Config:
    return hscc.Config(hscc.flops(reduction), regions=2, **options)


def unchanged(model: nn.Module, call) -> None:
    """``call`` raises, and leaves every module and every number of the model as they were."""
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    call()
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


def refuses(model: nn.Module, data, match: str, error: type[Exception] = ValueError, **options) -> None:
    def call() -> None:
        with pytest.raises(error, match=match) as caught:
            hscc.compress_(model, data, config(**options))
        assert "\n" not in str(caught.value)

    unchanged(model, call)


# outputs


def trained(outputs: int, seed: int) -> tuple[nn.Module, list[Tensor], Tensor, Tensor]:
    """A network that tells two kinds of pictures apart by one logit, calibration, test images and their classes."""
    torch.manual_seed(seed)

    def pictures(count: int) -> tuple[Tensor, Tensor]:
        kinds = torch.randint(2, (count,))
        coarse = F.interpolate(torch.randn(count, 3, 4, 4), size=16)
        fine = torch.randn(count, 3, 16, 16)
        return torch.where(kinds[:, None, None, None] == 1, coarse + 0.5 * fine, 0.75 * coarse + fine), kinds

    model, (images, kinds) = network(1).train(), pictures(512)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        for part, wanted in zip(images.split(64), kinds.split(64), strict=True):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(model(part)[:, 0], wanted.float()).backward()
            optimizer.step()
    return model.eval(), list(pictures(128)[0].split(32)), *pictures(1000)


class Twin(nn.Module):
    """The same function as two logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return torch.cat([-z / 2, z / 2], 1)


class Flat(Twin):
    """The same function with outputs (N,)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, 0]


def test_one_logit_is_as_good_as_two() -> None:
    errors = {Twin: [], Flat: [], nn.Sequential: []}
    for seed in (0, 1):
        dense, data, test, kinds = trained(1, seed)
        with torch.no_grad():
            z = dense(test)[:, 0]
        assert ((z > 0) == kinds).float().mean() > 0.9
        for kind, found in errors.items():
            model = copy.deepcopy(dense)
            hscc.compress_(kind(model), data, hscc.Config(hscc.flops(6), seed=seed))
            with torch.no_grad():
                found.append(((model(test)[:, 0] - z).square().mean() / z.var()).item())
    mean = {kind: sum(found) / len(found) for kind, found in errors.items()}
    assert mean[nn.Sequential] == pytest.approx(mean[Twin], rel=0.2)
    assert mean[Flat] == pytest.approx(mean[nn.Sequential], rel=1e-3)


@dataclass
class Answer:
    logits: Tensor
    aside: list


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: Answer(y, []),
        lambda y: {"out": [y, (y * 2, None)]},
        lambda y: [y.sum(), (y, "text")],
        lambda y: torch.complex(y, y),
    ],
    ids=["dataclass", "nested", "with a loss", "complex"],
)
def test_outputs_of_every_kind_count(x, wrap) -> None:
    plain, wrapped = Net(), Net(lambda net, x: wrap(Net.forward(plain, x)))
    wrapped.load_state_dict(plain.state_dict())
    wrapped.body = [lambda net, x: wrap(net.head(net.b(net.a(x).relu()).relu().mean((2, 3))))]
    report = hscc.compress_(wrapped, x, config())
    assert report.warnings == ()
    assert isinstance(wrapped.b, (hscc.HSCConv2d, hscc.SqueezedConv2d))


def test_outputs_without_gradient_are_told_and_errors_count_the_same(x) -> None:
    model = Net(lambda net, x: net.head(net.b(net.a(x).relu()).relu().mean((2, 3))).argmax(1))
    report = hscc.compress_(model, x, config())
    assert "sensitivity: got outputs without gradient (tensor (16,)), so that all errors count the same" in str(report)


# how the model calls its layers


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
    monkeypatch.setattr(hscc.compress.probe, "objections", lambda *args: {})
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


def test_a_layer_at_several_sizes_stays_dense(x) -> None:
    model = Net(lambda net, x: net.head(net.b(net.a(x)).mean((2, 3)) + net.b(F.avg_pool2d(net.a(x), 2)).mean((2, 3))))
    report = hscc.compress_(model, x, config(1.1))
    assert report.skipped == {"b": "it runs at several sizes in one pass (8 x 8, 16 x 16)"}
    assert type(model.b) is nn.Conv2d
    row = next(layer for layer in report.layers if layer.name == "b")
    assert row.flops == row.dense_flops == 2 * 16 * 16 * 9 * (256 + 64)


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


# models of other kinds


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
    monkeypatch.setattr(hscc.compress.stats, "look", lambda *args: pytest.fail("work was done"))
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


# data


class Table(nn.Module):
    """Takes a picture and a row of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.table = network(), nn.Linear(5, 3)

    def forward(self, image: Tensor, table: Tensor, flag: bool = False) -> Tensor:
        return self.net(image) + self.table(table)


def test_dicts_give_the_keywords_that_forward_takes(x) -> None:
    batches = [{"image": b, "table": torch.randn(16, 5), "path": ["p"] * 16, "flag": True, "label": 3} for b in x]
    assert hscc.compress_(Table(), batches, config()).flop_reduction >= 3


def test_batches_of_other_kinds_by_an_adapter(x) -> None:
    batches = [(b, torch.randn(16, 5), torch.zeros(16)) for b in x]
    refuses(
        Table(),
        batches,
        "calibration: got a batch of tensor .16, 3, 16, 16., but the model's forward has missing a "
        "required argument: 'table'; forward=lambda model, batch",
        TypeError,
    )
    adapter = lambda model, batch: model(*batch[:2])  # noqa: E731
    model, other = Table(), Table()
    other.load_state_dict(model.state_dict())
    report = hscc.compress_(model, batches, config(), forward=adapter)
    plan = hscc.plan(other, batches, config(), forward=adapter)
    assert hscc.apply_(other, plan, batches) == report
    dense = Table()
    losses = hscc.finetune(model, dense, batches, epochs=1, forward=adapter)
    assert len(losses.validation) == 2
    lists = [([*b], ["text"]) for b in x]
    hscc.compress_(network(), lists, config(), forward=lambda model, batch: model(torch.stack(batch[0])))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (
            [("path", torch.zeros(2, 3, 8, 8))],
            r"got a batch of tuple of \(str, tensor \(2, 3, 8, 8\)\), expected a tensor",
        ),
        ([[["path"]]], r"got a batch of list of \(list of \(str\)\), expected a tensor"),
        ([[]], r"got a batch of list of \(\), expected a tensor"),
        ([[torch.zeros(3, 8, 8)] * 2], r"got a batch of list of \(tensor \(3, 8, 8\), tensor \(3, 8, 8\)\), expected"),
        ([3], "got a batch of int, expected a tensor"),
        ((x for x in ()), "got the one-shot iterator generator, expected data that can be read several times"),
        (torch.utils.data.TensorDataset(torch.zeros(4, 3, 8, 8)), "got the dataset TensorDataset, expected batches"),
        ("images/", "got str, expected data that can be read several times"),
        (3, "got int, expected data that can be read several times"),
        ({"a": 1}, "got dict, expected data that can be read several times"),
    ],
)
def test_data_that_cannot_be_read(data, match: str) -> None:
    refuses(network(), data, match, TypeError)


def test_a_tensor_is_batches(x) -> None:
    models = [network() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    whole = torch.cat(x)
    first, second = hscc.compress_(models[0], whole, config()), hscc.compress_(models[1], [*whole.split(32)], config())
    assert first == second
    refuses(network(), x[0][0], r"calibration: got a tensor of shape \(3, 16, 16\), expected \(N, C, H, W\)")


def test_inference_tensors_and_inference_mode(x) -> None:
    model = network()
    with torch.inference_mode():
        made, other = [b + 0 for b in x], network()
        report = hscc.compress_(model, made, config())
    assert report.warnings == ()
    refuses(other, x, "got '0.weight' made under torch.inference_mode, expected")
    assert hscc.compress_(network(), made, config()).flop_reduction >= 3


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_images(value: float) -> None:
    model, image = network(), torch.full((16, 3, 16, 16), value)
    wanted = model(image)
    report = hscc.compress_(model, [image] * 4, config())
    assert any("was not refitted: its inputs are the same" in warning for warning in report.warnings)
    torch.testing.assert_close(model(image), wanted, rtol=1e-3, atol=1e-3)


def test_rows_of_the_head_that_depend_on_the_data(x) -> None:
    def body(net, x):
        features = net.b(net.a(x).relu()).relu().flatten(2).transpose(1, 2)
        return net.head(features[features.sum(2) > 1.0])

    model = Net(body)
    head = copy.deepcopy(model.head.state_dict())
    report = hscc.compress_(model, x, config())
    assert report.refitted == ()
    assert any("head was not refitted: the number of its inputs depends" in warning for warning in report.warnings)
    assert all(torch.equal(value, model.head.state_dict()[key]) for key, value in head.items())


def test_a_budget_that_cuts_the_network_is_told(x) -> None:
    model = network()
    report = hscc.compress_(model, x, config(300))
    assert any("rank 0 in all regions, so that nothing passes it" in warning for warning in report.warnings)
    assert any("the outputs no longer depend on the images" in warning for warning in report.warnings)
    assert model[6].weight.abs().max() < 10


def test_a_budget_of_flops_that_makes_the_file_grow_is_told() -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 2)).eval()
    data = [F.interpolate(torch.randn(8, 3, 8, 8), size=64) for _ in range(8)]
    report = hscc.compress_(model, data, hscc.Config(hscc.flops(1.5), sharing=False))
    assert report.bytes > report.dense_bytes
    assert any("index tensors count, and no budget limits bytes" in warning for warning in report.warnings)


# what is left behind


def test_other_sizes_seen_in_inference_mode_can_be_trained_on(x) -> None:
    model = network()
    hscc.compress_(model, x, config())
    with torch.inference_mode():
        model(torch.randn(2, 3, 20, 20))
    model(torch.randn(2, 3, 20, 20)).sum().backward()
    assert model[0].v.grad is not None
    for size in range(17, 60):
        model(torch.randn(1, 3, size, size))
    assert len(model[0]._resized) == SIZES


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", ["hscc", "tucker2"])
def test_a_file_takes_the_fresh_models_dtype_and_device(x, tmp_path, dtype, method: str) -> None:
    model, path = network(), tmp_path / "small.safetensors"
    hscc.compress_(model, x, config(method=method))
    hscc.save(model.to(dtype), path)
    for fresh in (network(), network().to(dtype), network().to("meta")):
        kind = next(fresh.parameters())
        with pytest.warns(UserWarning, match="no-op") if kind.is_meta else nullcontext():
            hscc.load_(fresh, path)
        assert {(p.dtype, p.device) for p in fresh.parameters()} == {(kind.dtype, kind.device)}
        if not kind.is_meta:
            torch.testing.assert_close(
                fresh(x[0].to(kind)).double(), model(x[0].to(dtype)).double(), rtol=0.1, atol=0.05
            )


@pytest.mark.parametrize("dynamic", [None, True, False])
@pytest.mark.parametrize("gradients", [False, True])
def test_other_sizes_under_compile(x, dynamic: bool | None, gradients: bool) -> None:
    model = network()
    hscc.compress_(model, x, config())
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with torch.set_grad_enabled(gradients):
        for size in (16, 20, 23, 16, 7):
            image = torch.randn(2, 3, size, size)
            torch.testing.assert_close(compiled(image), copy.deepcopy(model)(image))
    torch._dynamo.reset()


@pytest.mark.parametrize("size", [16, 20])
def test_the_flop_counter_agrees_with_the_report(x, size: int) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = network()
    report = hscc.compress_(model, x, config())
    assert isinstance(model[2], hscc.SqueezedConv2d)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(4, 3, size, size))
    found = counter.get_total_flops() - 4 * 2 * 16 * 3  # of the last linear layer
    assert found == 4 * report.flops if size == 16 else found > 4 * report.flops


def test_torch_fx_traces_the_result(x) -> None:
    model = network()
    hscc.compress_(model, x, config())
    traced = fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x[0]), model(x[0]))
    assert [node.op for node in traced.graph.nodes].count("call_module") >= 7


class Branching(nn.Module):
    """What ``torch.fx`` cannot trace, around what it can."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last, self.relu = network()[:4], conv(16, 16), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.relu(self.last(y)) if y.sum() > 0 else y


def test_fuse_relu_says_what_it_could_not_reach(x) -> None:
    model = Branching()
    hscc.compress_(model, x, config())
    wanted = model(x[0])
    with pytest.warns(UserWarning, match=r"could not look into what torch.fx cannot trace: the model itself \("):
        assert set(hscc.fuse_relu_(model)) <= {"body.0", "body.2", "body.2.conv"}
    assert isinstance(model.body[1], nn.Identity)
    torch.testing.assert_close(model(x[0]), wanted)


def test_finetuning_never_ends_worse_than_it_began(x) -> None:
    student, teacher = network(), network()
    student.load_state_dict(teacher.state_dict())
    hscc.compress_(student, x, config(1.2))
    before = copy.deepcopy(student.state_dict())
    report = hscc.finetune(student, teacher, x, epochs=2, rate=1.0)
    assert report.validation[0] == min(report.validation)
    assert report.best_epoch == 0
    assert all(torch.equal(value, student.state_dict()[key]) for key, value in before.items())
