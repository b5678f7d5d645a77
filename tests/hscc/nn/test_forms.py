"""Layers that are plain convolutions in another form: what takes their place computes the same."""

from __future__ import annotations

import copy

import hscc
import pytest
import torch
import torch.nn.functional as F
from hscc import HSCConv2d
from hscc.nn.forms import Grouped, LinearMap, Spread, form_of
from hscc.nn.padding import SameConv2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tests.hscc.users.networks import config


class Standardised(nn.Conv2d):
    """Its effective weight is nowhere but in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


class PadsItself(nn.Conv2d):
    """As timm's Conv2dSame."""

    def forward(self, x: Tensor) -> Tensor:
        (h, w), k, s, d = x.shape[-2:], self.kernel_size, self.stride, self.dilation
        rows, columns = (max((-(-n // s[i]) - 1) * s[i] + d[i] * (k[i] - 1) + 1 - n, 0) for i, n in enumerate((h, w)))
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class OnlyConstructs(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)


class Activates(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Twice(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(x)


def pruned(conv: nn.Conv2d) -> nn.Conv2d:
    prune.random_unstructured(conv, "weight", 0.3)
    return conv


FORMS = {
    "subclass": lambda: OnlyConstructs(4, 6),
    "standardised": lambda: Standardised(4, 6, 3, padding=1, padding_mode="reflect"),
    "pads itself": lambda: PadsItself(4, 6, 3, stride=2),
    "pads itself, dilated": lambda: PadsItself(4, 6, (3, 2), stride=(1, 3), dilation=2),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3, padding=1)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(4, 6, 3, padding="same")),
    "groups": lambda: nn.Conv2d(32, 48, 3, groups=2, padding=1, stride=2),
    "groups, no bias": lambda: nn.Conv2d(64, 64, 1, groups=4, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=(2, 3)),
    "transposed, no bias": lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_a_form_computes_what_the_layer_does(name: str, dtype: torch.dtype) -> None:
    layer = FORMS[name]().to(dtype).eval()
    form = form_of(layer)
    for size in ((11, 12), (12, 15), (8, 7)):
        x = torch.randn(2, layer.in_channels, *size, dtype=dtype)
        torch.testing.assert_close(form(x), layer(x))
    torch.testing.assert_close(form(x[0]), layer(x[0]))  # without a batch


@torch.no_grad()
def test_a_linear_layer_takes_maps_and_single_positions() -> None:
    layer = nn.Linear(5, 7)
    form = form_of(layer)
    for shape in ((2, 4, 3, 5), (2, 5), (2, 9, 5), (5,)):
        x = torch.randn(shape)
        torch.testing.assert_close(form(x), layer(x))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Activates(4, 6, 3), "Activates has a forward of its own, which is not one convolution"),
        (Twice(4, 6, 3), "Twice has a forward of its own, which is not one convolution"),
        (nn.Conv2d(32, 32, 3, groups=32), "depthwise convolution: an output reads a single channel"),
        (nn.Conv2d(64, 64, 3, groups=8), "grouped convolution: groups of 8 to 8 channels, expected at least 16"),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), r"kernel \(3, 3\), stride \(2, 2\) and padding \(0, 0\): only those"),
        (nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2), "transposed convolution of 2 groups is not supported"),
        (nn.Conv3d(4, 6, 3), "Conv3d is not supported, only two-dimensional convolutions"),
        (nn.Conv2d(4, 6, 3, dtype=torch.complex64), "weight of torch.complex64 is not supported"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_form_says_why(layer: nn.Module, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        form_of(layer)


class Net(nn.Module):
    """One layer of each kind that has a form."""

    def __init__(self) -> None:
        super().__init__()
        self.standardised = Standardised(3, 32, 3, padding=1)
        self.pads = PadsItself(32, 32, 3, stride=2)
        self.normed = parametrizations.weight_norm(nn.Conv2d(32, 32, 3, padding=1))
        self.groups_ = nn.Conv2d(32, 64, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.up = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.mixes = nn.Linear(32, 48)
        self.hidden, self.head = nn.Linear(48, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normed(self.pads(self.standardised(x).relu()).relu()).relu()
        x = self.up(self.depthwise(self.groups_(x).relu())).relu()
        return self.head(self.hidden(self.mixes(x.permute(0, 2, 3, 1)).relu().mean((1, 2))).relu())


INNER = ("standardised", "pads", "normed", "groups_", "up.conv", "mixes.conv")


@pytest.fixture
def x() -> list[Tensor]:
    return [F.interpolate(torch.randn(16, 3, 8, 8), size=(14, 15)) for _ in range(4)]


@pytest.mark.parametrize("method", ["hscc", "tucker2"])
def test_a_network_of_forms(method: str, x, tmp_path) -> None:
    dense, calls = Net().eval(), []
    model = copy.deepcopy(dense)
    model.up.register_forward_hook(lambda module, args, y: calls.append(tuple(y.shape)))
    before = dict(model.named_modules())
    plan = hscc.plan(model, x, config(4, method=method))
    assert dict(model.named_modules()) == before  # a plan changes nothing
    report = hscc.apply_(model, plan, x)
    chains = {"groups_.parts.0", "groups_.parts.1"} if method == "tucker2" else {"groups_"}
    assert {layer.name for layer in report.layers} == {*INNER, "depthwise"} - {"groups_"} | chains
    assert report.skipped.keys() == {"depthwise"}
    assert report.flop_reduction >= 4
    groups = Grouped if method == "tucker2" else HSCConv2d
    assert [type(m) for m in (model.groups_, model.up, model.mixes)] == [groups, Spread, LinearMap]
    assert model.up.kernel_size == (2, 2)  # plain attributes are there
    calls.clear()
    with torch.no_grad():
        for size in ((14, 15), (13, 18)):
            images = F.interpolate(torch.randn(4, 3, 8, 8), size=size)
            assert (model(images) - dense(images)).norm() < 0.1 * dense(images).norm()
        assert calls == [(4, 32, 14, 16), (4, 32, 14, 18)]  # the hook is on the form
        hscc.save(model, tmp_path / "small.safetensors")
        fresh = Net().eval()
        hscc.load_(fresh, tmp_path / "small.safetensors")
        assert torch.equal(fresh(images), model(images))


@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (2, 3), (1, 2)])
def test_transposed_layers_in_a_graph_of_any_size(kernel: tuple[int, int]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), form_of(nn.ConvTranspose2d(8, 4, kernel, kernel)), nn.ReLU())
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=8), 3: torch.export.Dim("w", min=8)}
    program = torch.export.export(model.eval(), (torch.randn(2, 3, 12, 14),), dynamic_shapes=(sizes,)).module()
    other = torch.randn(3, 3, 17, 9)
    torch.testing.assert_close(program(other), model(other))


def test_what_stays_dense_stays_what_it_was(x) -> None:
    model = Net().eval()
    before = dict(model.named_children())
    report = hscc.compress_(model, x, config(1.05))
    dense = {layer.name for layer in report.layers if layer.reason}
    for name, layer in before.items():
        inner = {one for one in (*INNER, "depthwise") if one == name or one.startswith(f"{name}.")}
        assert (getattr(model, name) is layer) == (inner <= dense), name


def test_linear_layers_on_single_positions_only_when_asked(x) -> None:
    report = hscc.compress_(Net().eval(), x, config(1.5, linear=True))
    assert "hidden.conv" in {layer.name for layer in report.layers}
    assert report.skipped["head"] == "the last linear layer, which is fitted anew as it is"
    with pytest.raises(TypeError, match="linear: got 1, expected True or False"):
        config(linear=1)


def test_linear_layers_that_are_no_maps_are_no_business_of_a_report(x) -> None:
    """Nor where their weight is read, as attention reads that of its last one."""

    class Attends(Net):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(48, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.mixes(self.up(self.groups_(self.normed(self.standardised(x)))).permute(0, 2, 3, 1)).flatten(
                1, 2
            )
            return self.head(self.hidden(self.attention(tokens, tokens, tokens)[0].mean(1)))

    report = hscc.compress_(Attends().eval(), x, config(1.5))
    assert "mixes.conv" in {layer.name for layer in report.layers}
    assert not [layer.name for layer in report.layers if "attention" in layer.name]


def test_a_transposed_layer_that_the_model_reads_stays(x) -> None:
    class Reads(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.up.weight.sum()

    model = Reads().eval()
    report = hscc.compress_(model, x, config(1.1))
    assert report.skipped["up"] == "the model reads its weight besides calling it"
    assert type(model.up) is nn.ConvTranspose2d


def test_an_interrupted_calibration_leaves_the_model_as_it_was(x, monkeypatch) -> None:
    model = Net().eval()
    before = dict(model.named_modules())

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hscc.calibrated.stats.look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hscc.compress_(model, x, config(1.5))
    assert dict(model.named_modules()) == before


def test_a_file_of_forms_is_refused_by_another_architecture(x, tmp_path) -> None:
    model = Net().eval()
    hscc.compress_(model, x, config(2))
    hscc.save(model, tmp_path / "small.safetensors")
    other = Net()
    other.up = nn.Upsample(scale_factor=2)
    with pytest.raises(ValueError, match="layer 'up': got Upsample in the model, expected the dense layer"):
        hscc.load_(other, tmp_path / "small.safetensors")


def test_same_padding_of_both_strides() -> None:
    """TensorFlow's: ceil(input / stride) outputs, the odd zero last."""
    conv = SameConv2d(1, 1, 3, stride=2, bias=False)
    nn.init.ones_(conv.weight)
    y = conv(torch.ones(1, 1, 4, 5))
    assert y.squeeze().tolist() == [[6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
