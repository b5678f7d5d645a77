"""Medical files through the command line: what is read, and one line for what is not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from hscc.app import cli
from hscc.data.spec import METADATA_KEY, ImageSpec
from PIL import Image
from safetensors.torch import save_file
from torch import nn

MODEL = """
from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
"""
SPEC = ImageSpec((16, 16), 1, (0.5,), (0.25,), ("dark", "bright"))


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A network, weights for 8 bits and for units, and the same 12 slices as pictures and as a volume."""
    root = tmp_path_factory.mktemp("data")
    (root / "model.py").write_text(MODEL)
    namespace: dict = {"nn": nn}
    exec(MODEL, namespace)
    torch.manual_seed(0)
    units = ImageSpec((16, 16), 1, (0.5,), (0.25,), SPEC.classes, window=(-1000, 1000))
    for name, spec in (("w", SPEC), ("units", units)):
        save_file(namespace["build"]().state_dict(), root / f"{name}.safetensors", {METADATA_KEY: spec.to_json()})
    levels = np.where(np.arange(12) % 2, 600, -600)[:, None, None]
    volume = np.random.default_rng(0).normal(levels, 100, (12, 16, 16)).astype(np.float32)
    rows = ["file,label,site"]
    for i, values in enumerate(volume):
        name = root / "images" / f"{i:02}.png"
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(((values + 1000) / 2000 * 255).clip(0, 255).astype(np.uint8)).save(name)
        rows.append(f"{name.name},{SPEC.classes[i % 2]},{'Oslo' if i < 4 else 'Bonn'}")
    (root / "labels.csv").write_text("\n".join(rows))
    nibabel.save(nibabel.Nifti1Image(volume.T, np.diag([-1, -1, -1, 1.0])), root / "head.nii.gz")
    np.savez(root / "all.npz", images=volume, labels=np.arange(12) % 2)
    return root


@pytest.fixture
def hscc(work: Path, monkeypatch, capsys):
    """Runs the command line in this process; returns (exit code, standard output, standard error)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(work)
        monkeypatch.setattr(sys, "argv", ["hscc", *arguments])
        monkeypatch.setattr("hscc.evaluation.speed.latency", lambda models, example: dict.fromkeys(models, 1.0))
        threads = torch.get_num_threads()
        with pytest.raises(SystemExit) as exit:
            cli.main()
        torch.set_num_threads(threads)
        return (exit.value.code or 0, *capsys.readouterr())

    return run


def network(weights: str = "w.safetensors") -> tuple[str, ...]:
    return ("--model", "model.py:build", "--weights", weights, "--threads", "1")


def refusal(code: int, errors: str) -> str:
    """What stands after ``error:``, when it is all there is."""
    assert code == 2
    assert "Traceback" not in errors
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, errors
    return lines[0].removeprefix("error: ")


def test_evaluate_with_a_csv(work: Path, hscc) -> None:
    for i in range(7):
        (work / "images" / f"broken {i}.png").write_bytes(b"no picture")
    (work / "more.csv").write_text(
        (work / "labels.csv").read_text() + "".join(f"\nbroken {i}.png,dark,Bonn" for i in range(6))
    )
    arguments = ("evaluate", *network(), "--data", "images", "--json", "e.json")
    code, out, errors = hscc(*arguments, "--labels", "labels.csv")
    assert code == 0, errors
    assert json.loads((work / "e.json").read_text())["images"] == 12
    assert "left out 7 that have no row in labels.csv: images/broken 0.png, " in out
    assert "unreadable image 'images/broken 0.png'" in refusal(*hscc(*arguments, "--labels", "more.csv")[::2])
    code, out, errors = hscc(*arguments, "--labels", "more.csv", "--skip-broken")
    assert code == 0, errors
    named = ", ".join(f"images/broken {i}.png" for i in range(5))
    assert f"left out 6 that cannot be read: {named}, ...\n" in out
    assert json.loads((work / "e.json").read_text())["images"] == 12
    assert "labels: got 'none.csv', expected a CSV file" in refusal(*hscc(*arguments, "--labels", "none.csv")[::2])


def test_compress_a_volume_then_evaluate_units(work: Path, hscc) -> None:
    """The window goes along with the compressed model."""
    small, weights = "small.safetensors", network("units.safetensors")
    code, out, errors = hscc(
        "compress", *weights, "--data", "head.nii.gz", "--flops", "2", "--out", small, "--slices", "2:0.1-0.9"
    )
    assert code == 0, errors
    for name in (small, "units.safetensors"):
        code, out, errors = hscc("evaluate", *network(name), "--data", "all.npz")
        assert code == 0, errors
        assert "12 images" in out
    images = ("--data", "head.nii.gz", "--validation", "all.npz")
    code, out, errors = hscc(
        "finetune", *weights, *images, "--student", small, "--epochs", "1", "--out", "tuned.safetensors"
    )
    assert code == 0, errors
    assert "Wrote tuned.safetensors" in out


def test_compress_takes_what_the_csv_lists(work: Path, hscc) -> None:
    """The folder has broken files, too, once the test before has run; the CSV does not list them."""
    (work / "images" / "broken 0.png").write_bytes(b"no picture")
    arguments = ("compress", *network(), "--data", "images", "--flops", "2", "--out", "x.safetensors")
    assert "unreadable image" in refusal(*hscc(*arguments)[::2])
    code, _, errors = hscc(*arguments, "--labels", "labels.csv")
    assert code == 0, errors


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("head.nii.gz", "image 'head.nii.gz': got floats from -"),
        ("all.npz", "array 'images' of 'all.npz': got floats from -"),
        ("half.nii", "unreadable image 'half.nii'"),
        ("half.mat", "unreadable image 'half.mat': got no cjdata/image"),
        ("half.dcm", "unreadable image 'half.dcm'"),
        ("half.npz", "unreadable image 'half.npz'"),
        (
            "one.mat",
            "image 'one.mat': got int64 values from 0 to 0 and no window, expected ImageSpec.window (low, high)",
        ),
        ("medmnist:pathmnist", "data: got 'medmnist:pathmnist', expected its file at '"),
        ("none.csv", "labels: got 'none.csv', expected a CSV file"),
    ],
)
def test_what_cannot_be_read_is_one_line(work: Path, hscc, monkeypatch, data: str, message: str) -> None:
    monkeypatch.setenv("HOME", str(work))
    monkeypatch.setitem(sys.modules, "medmnist", None)
    for suffix in ("nii", "mat", "dcm", "npz"):
        (work / f"half.{suffix}").write_bytes(bytes(range(200)))
    with h5py.File(work / "one.mat", "w") as file:
        file["cjdata/image"] = np.zeros((4, 4), np.int64)
    errors = hscc("compress", *network(), "--data", data, "--flops", "2", "--out", "x.safetensors")
    assert refusal(*errors[::2]).startswith(message)


def test_wrong_slices_are_one_line(hscc) -> None:
    arguments = (
        "compress",
        *network("units.safetensors"),
        "--data",
        "head.nii.gz",
        "--flops",
        "2",
        "--out",
        "x.safetensors",
    )
    for text in ("3:1", "2:0.5", "2:40"):
        assert refusal(*hscc(*arguments, "--slices", text)[::2]).startswith(
            ("slices: got '", "image 'head.nii.gz': got 12")
        )


def test_missing_packages_are_one_line(hscc, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    arguments = (
        "compress",
        *network("units.safetensors"),
        "--data",
        "head.nii.gz",
        "--flops",
        "2",
        "--out",
        "x.safetensors",
    )
    assert refusal(*hscc(*arguments)[::2]) == "NIfTI files need nibabel: pip install 'hscc[medical]'"
