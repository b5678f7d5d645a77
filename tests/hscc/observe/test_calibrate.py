"""Calibration: hooks always come off, modes come back, and data that cannot be used is refused in words."""

from __future__ import annotations

import pytest
import torch
from hscc.observe import calibrate
from hscc.observe.data import Calibration
from torch import nn


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def convolutions(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def test_profile_matches_the_outputs(net, data) -> None:
    net.train()
    profiles = calibrate.profile(net, Calibration.of(net, data), convolutions(net))
    assert list(profiles) == ["0", "2", "5"]
    outputs = net[0](torch.cat(data)).detach().flatten(2).transpose(1, 2)
    torch.testing.assert_close(profiles["0"].mean(), outputs.double().mean(0), rtol=1e-5, atol=1e-6)
    assert hooks(net) == 0
    assert net.training
    assert net[1].training


@pytest.mark.parametrize(
    "wrap", [lambda x: (x, 1), lambda x: [x], lambda x: {"input": x}], ids=["tuple", "list", "dict"]
)
def test_batches_of_every_kind(net, data, wrap) -> None:
    plain = calibrate.profile(net, Calibration.of(net, data), convolutions(net))
    wrapped = calibrate.profile(net, Calibration.of(net, [wrap(x) for x in data]), convolutions(net))
    assert torch.equal(plain["5"].total, wrapped["5"].total)


def test_constant_memory_in_the_number_of_images(net, data) -> None:
    few = calibrate.profile(net, Calibration.of(net, data[:1]), convolutions(net))
    many = calibrate.profile(net, Calibration.of(net, data * 3), convolutions(net))
    assert few["2"].total.shape == many["2"].total.shape
    assert many["2"].images == 3 * 48


@pytest.mark.parametrize(
    ("calibration", "error", "match"),
    [
        ([], ValueError, "calibration: got no batch, expected at least one"),
        (
            iter([torch.zeros(1, 3, 32, 32)]),
            TypeError,
            "one-shot iterator list_iterator, expected data that can be read",
        ),
        (
            [torch.zeros(1, 5, 32, 32)],
            ValueError,
            r"layer '0': got an input of shape \(1, 5, 32, 32\), expected \(N, 3, H",
        ),
        ([torch.zeros(1, 3, 32, 32).double()], TypeError, "got an input of torch.float64, expected torch.float32"),
        (["a picture"], TypeError, "calibration: got a batch of str, expected a tensor"),
        ([torch.full((1, 3, 32, 32), float("nan"))], ValueError, "layer '0': got NaN or infinite activations"),
    ],
)
def test_bad_data(net, calibration, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        calibrate.profile(net, Calibration.of(net, calibration), convolutions(net))
    assert hooks(net) == 0


def test_a_failing_model_keeps_no_hooks(net, data) -> None:
    broken = nn.Sequential(net[0], nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        calibrate.profile(broken, Calibration.of(broken, data), convolutions(broken))
    assert hooks(broken) == 0
    assert hooks(net) == 0


def test_flops_of_every_kind_of_convolution() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ConvTranspose2d(8, 6, 2, 2), nn.Flatten(2), nn.Conv1d(6, 5, 3)
    )
    layers = {str(i): model[i] for i in (0, 1, 3)}
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(2, 4, 6, 6)
    with FlopCounterMode(display=False) as counter:
        model(x)
    calls = calibrate.calls(model, Calibration.of(model, [x]), layers)
    flops = [2 * conv.weight.numel() * call.positions(conv) for n, conv in layers.items() for call in calls[n]]
    assert sum(flops) == counter.get_total_flops() // 2
