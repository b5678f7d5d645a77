"""The bench of whole networks on a tiny one: its peers, its gates, its cache and its table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import hscc
import pytest
import torch
from torch import Tensor, nn

from bench import tables
from bench.networks import whole
from bench.networks.models import MODELS, conv, settled
from bench.networks.sources import pictures

RUNTIMES = {
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "onnxruntime_int8": ("onnx", "onnxscript", "onnxruntime"),
    "openvino_int8": ("onnx", "onnxscript", "openvino", "nncf"),
}


def tiny() -> nn.Sequential:
    body = [*conv(3, 16, 3, 2), nn.ReLU(), *conv(16, 32, 3), nn.ReLU(), *conv(32, 32, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """The command on the tiny network, by further arguments: its exit status and its JSON file."""
    folder, threads = tmp_path_factory.mktemp("whole"), torch.get_num_threads()

    def main(*arguments: str) -> tuple[int, Path]:
        options = ["--no-compile", "--calibration", "8", "--size", "32", "--effort", "quick", "--rounds", "1"]
        options += ["--model", "tiny", "--cache", str(folder / "cache"), "--json", str(folder / "whole.json")]
        return whole.main([*options, *arguments]), folder / "whole.json"

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", tiny)
        patch.setattr(whole, "keep_freed_memory", lambda: None)  # it would stay for all tests
        patch.setattr(
            whole, "interleaved", partial(lambda real, calls, rounds, **_: real(calls, rounds, 1.0), whole.interleaved)
        )
        yield main
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def result(run) -> tuple[int, Path]:
    return run("--reduction", "2", "3")


def rows(file: Path) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads(file.read_text())["cases"]}


def test_ours_beside_dense(result) -> None:
    status, file = result
    found = rows(file)
    assert status == 0
    assert {name for name, row in found.items() if row["kind"] == "ours"} == {"2x eager", "3x eager"}
    assert found["torch_channels_last"]["over_eager"] <= 1
    for reduction in (2, 3):
        row = found[f"{reduction}x eager"]
        assert row["flop_reduction"] >= reduction
        assert row["error_ratio"] <= 1
        assert 0 < row["error"] < 1
        assert row["error"] < row["error_images"]
        assert row["ms"] > 0
        assert row["eta"] == pytest.approx(row["over_fp32"] / row["flop_reduction"], rel=0.01)
        assert row["over_fp32"] <= row["over_eager"]


@pytest.mark.parametrize("name", RUNTIMES)
def test_runtimes_are_right_and_timed(result, name: str) -> None:
    for package in RUNTIMES[name]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    row = rows(result[1])[name]
    assert row["ms"] > 0
    if row["kind"] == "fp32":
        assert row["error"] <= whole.TOLERANCE
    else:
        assert 1e-3 < row["error"] < 0.5, "8 bits are neither exact nor useless"


def test_table(result, capsys) -> None:
    assert tables.main([str(result[1]), str(result[1])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:4] for line in lines if line.startswith("| tiny")] == [
        ["| tiny", "1", "1", f"{rows(result[1])[f'{reduction}x eager']['flop_reduction']:.2f}x fewer"]
        for reduction in (2, 3)
    ]
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


@pytest.mark.parametrize("off", [1.0, 1.02])
def test_int8_beside_float(run, result, monkeypatch, off: float) -> None:
    """From the cache; what is off by more than 8 bits may be is not timed."""
    monkeypatch.setattr(whole, "own_calls", lambda model, x, compiled: {"eager": lambda: model(x) * off})
    monkeypatch.setattr(whole, "HAS_EXPORT", False)
    file = result[1].with_name("int8.json")
    run("--reduction", "2", "--int8", "--json", str(file))
    floats, whole_row = (rows(file)[f"2x{name} eager"] for name in ("", " int8"))
    assert ("ms" in whole_row) == (off == 1)
    assert (whole_row["error_ratio"] <= 1) == (off == 1)
    assert whole_row["flop_reduction"] == floats["flop_reduction"]
    assert whole_row["error"] != floats["error"]


def test_a_wrong_network_is_not_timed(run, result, monkeypatch, capsys) -> None:
    """From the cache, and off by what float32 would never be."""
    monkeypatch.setattr(whole, "own_calls", lambda model, x, compiled: {"eager": lambda: model(x) * 1.0001})
    monkeypatch.setattr(whole, "HAS_EXPORT", False)
    monkeypatch.setattr(hscc, "compress_", None)
    file = result[1].with_name("wrong.json")
    assert run("--reduction", "2", "--json", str(file))[0] == 1
    row = rows(file)["2x eager"]
    assert row["error_ratio"] > 1
    assert "ms" not in row
    assert "WRONG, error ratio" in capsys.readouterr().out
    assert tables.main([str(file)]) == 0
    assert "| tiny" not in capsys.readouterr().out


def test_a_wrong_dense_runtime_is_an_error() -> None:
    wanted = torch.randn(1, 5)
    with pytest.raises(ValueError, match="openvino: got a dense output that is off by"):
        whole.measure({"openvino": whole.Call("fp32", lambda: None, wanted + 0.01, {})}, wanted, 1.0, 1)


def test_another_config_is_compressed_anew(tmp_path: Path, monkeypatch) -> None:
    images, made = pictures(8, 32), []
    dense, real = settled(tiny(), [images]), hscc.compress_
    monkeypatch.setattr(hscc, "compress_", lambda *args, **rest: made.append(1) or real(*args))
    outputs: list[Tensor] = []
    for reduction in (2, 2, 3):
        config = hscc.Config(hscc.flops(reduction), effort="quick")
        model, facts = whole.compressed(dense, images, config, tmp_path / "folder" / "one.safetensors")
        assert facts["flop_reduction"] >= reduction
        with torch.no_grad():
            outputs.append(model(images))
    assert len(made) == 2
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


def test_what_moves_outputs_is_an_error(tmp_path: Path, monkeypatch) -> None:
    """As a batch norm that was folded wrongly would, which the model's own reference cannot know."""
    images = pictures(8, 32)
    monkeypatch.setattr(whole, "ready", lambda model: model[1].weight.data.mul_(1.01) is None or model)
    config = hscc.Config(hscc.flops(2), effort="quick")
    with pytest.raises(ValueError, match="ready: got outputs that it moved by"):
        whole.compressed(settled(tiny(), [images]), images, config, tmp_path / "one.safetensors")


def test_networks_settle() -> None:
    """However deep: outputs neither vanish nor explode, and tell images apart."""
    images = pictures(8, 64)
    assert images.std().item() == pytest.approx(1, rel=1e-3)
    for name in ("resnet18", "unet", "vgg16"):
        with torch.no_grad():
            outputs = settled(MODELS[name](), [images])(images[:2])
        assert 0.05 < outputs.std() < 20, name
        assert 0.02 < (outputs[0] - outputs[1]).std() < 20, name


def test_unet_is_one_that_people_use() -> None:
    """segmentation_models_pytorch's Unet("resnet18") has 14,328,209 parameters."""
    with torch.device("meta"):
        model = MODELS["unet"]().eval()
        assert sum(parameter.numel() for parameter in model.parameters()) == 14_328_209
        assert model(torch.empty(2, 3, 64, 96)).shape == (2, 1, 64, 96)


@pytest.fixture
def quick(monkeypatch):
    """Exports without packages, timed for a moment."""
    from bench.networks import exported, front

    threads = torch.get_num_threads()
    for module in (exported, front):
        real = module.interleaved
        monkeypatch.setattr(module, "keep_freed_memory", lambda: None)
        monkeypatch.setattr(module, "interleaved", lambda calls, rounds, real=real, **_: real(calls, rounds, 1.0))
    monkeypatch.setattr(exported, "aot", lambda model, x, frozen: lambda: model(x))
    monkeypatch.setitem(MODELS, "tiny", tiny)
    yield exported, front
    torch.set_num_threads(threads)


@torch.no_grad()
def test_exports_beside_dense(quick, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs hscc[onnx]")
    exported, _ = quick
    options = [
        "--model",
        "tiny",
        "--reduction",
        "2",
        "--kind",
        "portable",
        "--int8",
        "--effort",
        "quick",
        "--size",
        "32",
    ]
    options += ["--rounds", "1", "--calibration", "8", "--cache", str(tmp_path), "--json", str(tmp_path / "e.json")]
    assert exported.main(options) == 0
    found = {(row["kind"], row["runtime"]): row for row in json.loads((tmp_path / "e.json").read_text())["cases"]}
    assert found.keys() >= {
        (kind, way) for kind in ("dense", "2x portable") for way in ("onnxruntime", "onnxruntime_int8")
    }
    for (kind, way), row in found.items():
        assert row["error"] < (0.3 if "int8" in way else exported.TOLERANCE)
        assert (row["flop_reduction"] >= 2) == (kind != "dense")
        assert row["over_int8"] <= row["over_fp32"] * 100
        assert row["eta"] == pytest.approx(row["over_dense"] / row["flop_reduction"], abs=1e-3)
    best = min(row["ms"] for (kind, way), row in found.items() if kind == "dense" and "int8" not in way)
    row = found["2x portable", "onnxruntime_int8"]
    assert row["over_fp32"] == pytest.approx(best / row["ms"], rel=0.05)
    assert row["bytes"] < 0.6 * found["2x portable", "onnxruntime"]["bytes"]


@pytest.mark.photographs
def test_front_has_a_point_a_kind(quick, tmp_path: Path, monkeypatch) -> None:
    """On few images of the ResNet-20, compressed beforehand by a quick search."""
    pytest.importorskip("onnxscript", reason="needs hscc[onnx]")
    _, front = quick
    options = ["--model", "resnet20", "--reduction", "2", "--effort", "quick", "--rounds", "1", "--calibration", "32"]
    options += ["--test", "64", "--cache", str(tmp_path), "--json", str(tmp_path / "f.json")]
    assert front.main([*options, "--picture", str(tmp_path / "f.png")]) == 0
    rows = json.loads((tmp_path / "f.json").read_text())["cases"]
    kinds = [("dense", 32), ("dense", 8), ("2x regions", 32), ("2x portable", 32), ("2x portable", 8)]
    assert sorted((row["kind"], row["bits"]) for row in rows) == sorted(kinds)
    assert (tmp_path / "f.png").stat().st_size > 10_000
    dense = next(row for row in rows if (row["kind"], row["bits"]) == ("dense", 32))
    for row in rows:
        assert row["lost"] == pytest.approx(dense["score"] - row["score"], abs=2e-3)
        assert 0 <= row["score"] <= 100
