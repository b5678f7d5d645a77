"""Saving and loading: the same outputs, and no half-read or half-written thing whatever the file holds."""

from __future__ import annotations

import copy
import json

import hscc
import pytest
import torch
from hscc.io.checkpoint import read_metadata
from safetensors.torch import load_file, save_file
from torch import nn


@pytest.fixture
def saved(net, data, tmp_path):
    """A compressed model, its report and its file."""
    path = tmp_path / "m.safetensors"
    model = copy.deepcopy(net)
    report = hscc.compress_(model, data, hscc.Config(hscc.flops(4), clusters=2))
    hscc.save(model, path, report=report, metadata={"note": "kept"})
    return model, report, path


def untouched(model: nn.Module, before: nn.Module) -> bool:
    same = zip(model.state_dict().items(), before.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in same)


def test_round_trip_needs_no_dense_weights(saved, net, data) -> None:
    model, report, path = saved
    fresh = copy.deepcopy(net)
    for parameter in fresh.parameters():
        nn.init.constant_(parameter, float("nan"))
    assert hscc.load_(fresh, path) == report
    assert torch.equal(fresh(data[0]), model(data[0]))
    assert read_metadata(path)["note"] == "kept"


def test_shared_modules_stay_shared(data, tmp_path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3)
            self.b = nn.Conv2d(8, 8, 3, padding=1)
            self.c = self.b

        def forward(self, x):
            return self.c(self.b(self.a(x)).relu())

    model = Twice().eval()
    hscc.compress_(model, data, hscc.Config(hscc.flops(3)))
    hscc.save(model, tmp_path / "m.safetensors")
    fresh = Twice().eval()
    assert hscc.load_(fresh, tmp_path / "m.safetensors") is None
    assert fresh.b is fresh.c
    assert torch.equal(fresh(data[0]), model(data[0]))


class Chained(nn.Module):
    """Convolutions of several kinds, one under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, (3, 5), stride=2, padding="valid", bias=False)
        self.b = nn.Conv2d(8, 8, 3, padding=(1, 1), padding_mode="reflect")
        self.c = self.b

    def forward(self, x):
        return self.c(self.b(self.a(x)).relu())


@pytest.fixture
def chained(data, tmp_path):
    """A model of plain chains, its report and its file."""
    model = Chained().eval()
    report = hscc.compress_(model, data, hscc.Config(hscc.flops(3), method="tucker2"))
    hscc.save(model, tmp_path / "m.safetensors", report=report)
    return model, report, tmp_path / "m.safetensors"


def test_chains_of_the_baselines(chained, data) -> None:
    model, report, path = chained
    fresh = Chained().train()
    assert hscc.load_(fresh, path) == report
    assert fresh.b is fresh.c
    assert {type(stage) for stage in (*fresh.a, *fresh.b)} == {nn.Conv2d}
    assert all(module.training for module in fresh.modules())
    assert all(p.requires_grad and p.device.type == "cpu" for p in fresh.parameters())
    assert torch.equal(fresh.eval()(data[0]), model(data[0]))


@pytest.mark.parametrize(
    "stages", [[], [{}], [{"in_channels": 10**9, "out_channels": 10**9, "kernel_size": 3}], [{"speed": 11}], 3, None]
)
def test_damaged_chains_change_nothing(chained, stages) -> None:
    _, _, path = chained
    layers = json.loads(read_metadata(path)["hscc"])["layers"]
    rewrite(path, header={"layers": layers | {"a": {"stages": stages}}})
    model = Chained().eval()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"layer 'a': got damaged hscc metadata .* expected a chain of convolutions"):
        hscc.load_(model, path)
    assert untouched(model, before)


def test_a_dense_model_is_not_a_checkpoint(net, tmp_path) -> None:
    with pytest.raises(ValueError, match="got one without HSCConv2d or ConvChain, expected a compressed model"):
        hscc.save(net, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch) -> None:
    model, _, path = saved
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        hscc.save(model, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def rewrite(path, *, tensors=None, header=None, metadata=None) -> None:
    """The file with some tensors, header fields or metadata replaced."""
    old = read_metadata(path)
    new_header = json.loads(old["hscc"]) | (header or {})
    kept = load_file(path) | (tensors or {})
    save_file(kept, path, metadata if metadata is not None else {"hscc": json.dumps(new_header)})


DAMAGE = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "unreadable or truncated"),
    "half a header": (lambda path: path.write_bytes(path.read_bytes()[:50]), "unreadable or truncated"),
    "empty": (lambda path: path.write_bytes(b""), "unreadable or truncated"),
    "noise": (lambda path: path.write_bytes(b"\x80" * 999), "unreadable or truncated"),
    "foreign": (lambda path: rewrite(path, metadata={"a": "b"}), "without hscc metadata"),
    "no JSON": (lambda path: rewrite(path, metadata={"hscc": "{"}), "damaged hscc metadata"),
    "version": (lambda path: rewrite(path, header={"_version": 7}), "got hscc.checkpoint version 7, expected"),
    "index": (lambda path: rewrite(path, tensors={"2.conv.rows": torch.full((99,), 10**6).int()}), "plan"),
    "dtype": (lambda path: rewrite(path, tensors={"2.conv.positions": torch.zeros(3)}), "plan.positions"),
    "bias": (lambda path: rewrite(path, tensors={"2.conv.bias": torch.zeros(3)}), "bias"),
    "stray": (lambda path: rewrite(path, tensors={"2.positions": torch.zeros(3)}), "'2'.*got tensors"),
    "more": (lambda path: rewrite(path, tensors={"zzz": torch.zeros(3)}), "got other tensors than the model's"),
    "shape": (lambda path: rewrite(path, tensors={"9.bias": torch.zeros(3)}), "got other tensors than the model's"),
    "geometry": (
        lambda path: rewrite(path, header={"layers": {"2": {"geometry": [3]}}}),
        "damaged hscc metadata|other tensors",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_change_nothing(saved, net, kind: str) -> None:
    _, _, path = saved
    damage, match = DAMAGE[kind]
    damage(path)
    before = copy.deepcopy(net)
    with pytest.raises(ValueError, match=match):
        hscc.load_(net, path)
    assert untouched(net, before)


def test_other_architectures_are_refused(saved, net) -> None:
    _, _, path = saved
    other = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"expected the dense nn\.Conv2d"):
        hscc.load_(other, path)
    with pytest.raises(FileNotFoundError, match="expected a file"):
        hscc.load_(net, path.with_name("missing"))
