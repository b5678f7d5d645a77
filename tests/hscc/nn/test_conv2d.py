"""HSCConv2d as a drop-in: equal to ``nn.Conv2d`` at full rank, and at home in PyTorch."""

from __future__ import annotations

import copy
import io

import hscc
import pytest
import torch
from hscc import HSCConv2d
from torch import nn

CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(4, 6, 3),
    "padding": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "stride": lambda: nn.Conv2d(4, 6, (3, 5), stride=(2, 3), padding=(0, 2)),
    "dilation": lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, bias=False),
    "same": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "same, even kernel": lambda: nn.Conv2d(4, 6, (4, 2), padding="same"),
    "valid": lambda: nn.Conv2d(4, 6, 3, padding="valid"),
    "reflect": lambda: nn.Conv2d(4, 6, 5, padding=(2, 1), padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "replicate": lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2, padding_mode="replicate"),
    "pointwise": lambda: nn.Conv2d(4, 6, 1),
    "first": lambda: nn.Conv2d(4, 6, 11, 4, 2),
}


def calibrated(conv: nn.Conv2d, reduction: float = 1.5) -> tuple[nn.Sequential, torch.Tensor]:
    """A one-layer model that was really compressed, and an input of the calibrated size."""
    x = torch.randn(4, conv.in_channels, 16, 16)
    x[..., :5] *= 0.1
    model = nn.Sequential(conv).eval()
    hscc.compress_(model, [x], hscc.Config(hscc.flops(reduction), regions=3))
    assert isinstance(model[0], HSCConv2d)
    return model, x


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_full_rank_equals_conv2d(name: str, dtype: torch.dtype) -> None:
    conv = CONVOLUTIONS[name]().to(dtype)
    x = torch.randn(2, 4, 15, 17, dtype=dtype)
    layer = HSCConv2d.dense(conv, tuple(conv(x).shape[2:]))
    tolerance = {} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(layer(x), conv(x), **tolerance)
    torch.testing.assert_close(layer(x[0]), conv(x[0]), **tolerance)
    other = torch.randn(3, 4, 23, 19, dtype=dtype)
    torch.testing.assert_close(layer(other), conv(other), **tolerance)
    assert layer(x[:0]).shape == conv(x[:0]).shape


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradients_at_full_rank(name: str) -> None:
    conv = CONVOLUTIONS[name]().double()
    x = torch.randn(2, 4, 12, 13, dtype=torch.float64, requires_grad=True)
    y = conv(x)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, conv.weight), grad)
    layer = HSCConv2d.dense(conv, tuple(y.shape[2:]))
    got = torch.autograd.grad(layer(x), (x, layer.v), grad)
    torch.testing.assert_close(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1].permute(0, 2, 3, 1).flatten(1))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Conv2d(4, 6, 3, groups=2), "grouped convolution"),
        (nn.ConvTranspose2d(4, 6, 3), "ConvTranspose2d is not supported"),
        (nn.Conv3d(4, 6, 3), "Conv3d is not supported"),
        (type("MyConv", (nn.Conv2d,), {})(4, 6, 3), "MyConv is not supported"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), "ParametrizedConv2d is not supported"),
    ],
)
def test_what_cannot_be_copied_is_refused(module: nn.Module, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        HSCConv2d.dense(module, (4, 4))


def test_attributes_and_repr() -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1).requires_grad_(False).train()
    layer = HSCConv2d.dense(conv, (9, 9))
    assert (layer.in_channels, layer.out_channels) == (4, 6)
    assert layer.training
    assert not any(p.requires_grad for p in layer.parameters())
    assert "4, 6, kernel_size=(3, 3)" in repr(layer)
    assert "regions=1, rows=6" in repr(layer)


def test_unseen_size_keeps_regions_in_place() -> None:
    model, _ = calibrated(nn.Conv2d(4, 12, 3, padding=1))
    layer = model[0]
    model(torch.randn(1, 4, 32, 32))
    resized = layer._plan_for(32, 32).labels()
    assert torch.equal(resized[::2, ::2], layer.plan.labels())
    with pytest.raises(ValueError, match="expected at least the kernel's size"):
        HSCConv2d.dense(nn.Conv2d(4, 6, 3), (4, 4))(torch.randn(1, 4, 2, 2))


def test_copies_pickles_and_state_dicts() -> None:
    model, x = calibrated(nn.Conv2d(4, 12, 3, padding=1))
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), expected)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert not torch.equal(other(x), expected)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtype_moves(dtype: torch.dtype) -> None:
    model, x = calibrated(nn.Conv2d(4, 12, 3, padding=1))
    expected = model(x)
    got = model.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05)


def test_a_move_forgets_resized_maps() -> None:
    model, _ = calibrated(nn.Conv2d(4, 12, 3, padding=1))
    model[0].prepare(20, 20)
    assert model[0]._resized
    model.to(torch.float64)
    assert not model[0]._resized


@torch.no_grad()
def test_strict_layers_refuse_other_sizes(tmp_path) -> None:
    def dense() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(4, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1)).eval()

    images = torch.randn(16, 4, 12, 12) * torch.linspace(0.1, 3, 12)[:, None]  # rows of unlike strength
    model = dense()
    hscc.compress_(model, images, hscc.Config(hscc.flops(3), search=False, regions=3, strict=True))
    hscc.save(model, tmp_path / "m.safetensors")
    loaded = dense()
    hscc.load_(loaded, tmp_path / "m.safetensors")
    for own in (model, copy.deepcopy(model), loaded):
        torch.testing.assert_close(own(images[:2]), model(images[:2]))
        with pytest.raises(ValueError, match=r"x: got 12 x 20, of 12 x 20 outputs, expected one of 12 x 12"):
            own(torch.randn(1, 4, 12, 20))
    model[0].strict = model[2].strict = False
    assert model(torch.randn(1, 4, 12, 20)).isfinite().all()
    one = dense()
    hscc.compress_(one, images, hscc.Config(hscc.flops(2), portable=True, strict=True))
    assert one(torch.randn(1, 4, 12, 20)).isfinite().all()  # one region is the same in any size


def test_hooks_and_autocast() -> None:
    model, x = calibrated(nn.Conv2d(4, 12, 3, padding=1))
    seen = []
    model[0].register_forward_hook(lambda module, args, y: seen.append(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
    model(x)
    assert seen == [torch.bfloat16, torch.float32]


def test_training_changes_every_factor() -> None:
    model, x = calibrated(nn.Conv2d(4, 12, 3, padding=1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    assert model(x).square().mean() < loss
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_compile_and_export() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, stride=2))
    x = torch.randn(2, 3, 16, 16)
    model = conv.eval()
    hscc.compress_(model, [x], hscc.Config(hscc.flops(1.5), regions=2))
    expected = model(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), expected)
        batch = torch.export.Dim("batch", min=2, max=64)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
        torch.testing.assert_close(program.module()(x), expected)
        more = torch.randn(5, 3, 16, 16)
        torch.testing.assert_close(program.module()(more), model(more))


@pytest.mark.slow
def test_aot_inductor_package(tmp_path) -> None:
    model, x = calibrated(nn.Conv2d(4, 12, 3, padding=1))
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), model(x))


def test_vmap() -> None:
    model, x = calibrated(nn.Conv2d(4, 12, 3, padding=1))
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(model)(x[:, None])[:, 0], model(x))
