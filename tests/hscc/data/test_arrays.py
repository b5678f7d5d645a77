"""NumPy files, and the sets of MedMNIST, which are such."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hscc.data.pixels import Unreadable
from hscc.data.sources import open_images, open_labelled
from hscc.data.spec import ImageSpec

GREY = ImageSpec((8, 8), 1, (0,), (1,), ("a", "b"))
COLOUR = ImageSpec((8, 8), 3, (0,) * 3, (1,) * 3, ("a", "b"))
UNITS = ImageSpec((8, 8), 1, (0,), (1,), ("a", "b"), window=(-1, 1))
BYTES = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 1, 0, 1])


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 1)])
def test_bytes(tmp_path: Path, shape: tuple) -> None:
    np.save(tmp_path / "x.npy", BYTES.reshape(shape))
    np.savez(tmp_path / "x.npz", images=BYTES.reshape(shape), labels=LABELS)
    for images in (open_images(tmp_path / "x.npy", GREY), open_images(tmp_path / "x.npz", GREY)):
        assert len(images) == 5
        assert torch.equal(images[3], torch.tensor(BYTES[3:4]) / 255)
    assert open_images(tmp_path / "x.npy", COLOUR)[0].shape == (3, 8, 8)


def test_colours_and_one_picture(tmp_path: Path) -> None:
    pixels = np.stack([BYTES, BYTES[::-1], 255 - BYTES], -1)
    np.save(tmp_path / "x.npy", pixels)
    assert torch.equal(open_images(tmp_path / "x.npy", COLOUR)[1], torch.tensor(pixels[1]).permute(2, 0, 1) / 255)
    np.save(tmp_path / "x.npy", BYTES[0])
    assert len(open_images(tmp_path / "x.npy", GREY)) == 1


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int16, np.uint16, bool])
def test_units_need_a_window(tmp_path: Path, dtype: type) -> None:
    values = np.linspace(0, 2, 64).reshape(1, 8, 8).astype(dtype)
    np.save(tmp_path / "x.npy", values)
    want = torch.tensor((values.astype(float) + 1) / 2).clip(0, 1).float()
    torch.testing.assert_close(open_images(tmp_path / "x.npy", UNITS)[0], want, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match=r"array '.*x\.npy': got .* from 0 to [12] and no window, expected ImageSpec"):
        open_images(tmp_path / "x.npy", GREY)
    colours = np.stack([values] * 3, -1)
    np.save(tmp_path / "x.npy", np.kron(colours, np.ones((1, 2, 2, 1))).astype(dtype))
    torch.testing.assert_close(open_images(tmp_path / "x.npy", UNITS)[0].mean(), want.mean(), rtol=0, atol=0.02)


def test_bytes_have_no_units(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", BYTES)
    with pytest.raises(ValueError, match=r"x\.npy': got 8 bits or colours, expected values in the units of the window"):
        open_images(tmp_path / "x.npy", UNITS)


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.zeros((2, 3, 8, 8), np.uint8), r"uint8 \(2, 3, 8, 8\)"),
        (np.zeros(8, np.uint8), r"uint8 \(8,\)"),
        (np.zeros((0, 8, 8), np.uint8), r"uint8 \(0, 8, 8\)"),
        (np.zeros((2, 8, 8), complex), r"complex128 \(2, 8, 8\)"),
        (np.zeros((2, 8, 8), "U1"), r"<U1 \(2, 8, 8\)"),
    ],
)
def test_other_arrays(tmp_path: Path, array: np.ndarray, got: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=rf"x\.npy': got {got}, expected real numbers \(n, H, W\) or \(n, H, W, 3\)"):
        open_images(tmp_path / "x.npy", GREY)


def test_labels_and_groups(tmp_path: Path) -> None:
    sites, ages = np.array(["Köln", "Oslo", "Köln", "Oslo", "Oslo"]), np.arange(5)
    np.savez(tmp_path / "x.npz", images=BYTES, labels=LABELS, site=sites, age=ages, spacing=np.ones(3))
    images = open_labelled(tmp_path / "x.npz", GREY)
    assert images.labels == LABELS.tolist()
    assert images.groups == {"site": sites.tolist(), "age": ["0", "1", "2", "3", "4"]}
    assert torch.equal(images[4][0], torch.tensor(BYTES[4:]) / 255)
    assert images[4][1] == 1
    np.savez(tmp_path / "x.npz", images=BYTES, labels=np.array(["b", "a", "a", "b", "a"]))
    assert open_labelled(tmp_path / "x.npz", GREY).labels == [1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS + 1, r"array 'labels' of '.*x\.npz': got label 2, expected one of \[0, 1\]"),
        (LABELS - 1, r"got label -1, expected one of \[0, 1\]"),
        (np.array(["a", "b", "c", "a", "b"]), r"got label 'c', expected one of \['a', 'b'\]"),
        (LABELS[:4], r"got int64 \(4,\), expected one label for 5 images"),
        (LABELS.astype(float), r"got float64 \(5,\), expected one label for 5 images"),
        (np.zeros((5, 14), int), r"got int64 \(5, 14\), expected one label for 5 images"),
    ],
)
def test_wrong_labels(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "x.npz", images=BYTES, labels=labels)
    with pytest.raises(ValueError, match=message):
        open_labelled(tmp_path / "x.npz", GREY)


def test_missing_arrays_and_damage(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", pictures=BYTES)
    with pytest.raises(ValueError, match=r"data: got arrays \['pictures'\] in '.*x\.npz', expected 'images'"):
        open_images(tmp_path / "x.npz", GREY)
    np.save(tmp_path / "x.npy", BYTES)
    with pytest.raises(ValueError, match=r"x\.npy' without labels, expected an \.npz with 'images' and 'labels'"):
        open_labelled(tmp_path / "x.npy", GREY)
    np.savez(tmp_path / "x.npz", images=BYTES, labels=LABELS)
    whole = (tmp_path / "x.npz").read_bytes()
    np.save(tmp_path / "objects.npy", np.array([{}, None]), allow_pickle=True)
    for name, content in {
        "half.npz": whole[: len(whole) // 2],
        "noisy.npz": whole[:200] + bytes(20) + whole[220:],
        "empty.npy": b"",
        "text.npy": b"no array",
        "half.npy": (tmp_path / "x.npy").read_bytes()[:200],
        "objects.npy": (tmp_path / "objects.npy").read_bytes(),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Unreadable, match=f"unreadable image '.*{name}': .") as error:
            open_images(tmp_path / name, GREY)
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(FileNotFoundError, match=r"data: got '.*none\.npy', expected a NumPy file"):
        open_images(tmp_path / "none.npy", GREY)


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    """A home folder with a set of MedMNIST in it, and no package that would download others."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "medmnist", None)
    (tmp_path / ".medmnist").mkdir()
    arrays = {}
    for i, split in enumerate(("train", "val", "test")):
        arrays |= {f"{split}_images": BYTES[i:], f"{split}_labels": LABELS[i:, None].astype(np.uint8)}
    np.savez(tmp_path / ".medmnist" / "pneumoniamnist.npz", **arrays)
    return tmp_path


def test_medmnist(home: Path) -> None:
    assert [len(open_images(f"medmnist:pneumoniamnist{split}", GREY)) for split in ("", ":val", ":test")] == [5, 4, 3]
    images = open_labelled("medmnist:pneumoniamnist", GREY)
    assert images.labels == LABELS[2:].tolist()
    assert torch.equal(images[0][0], torch.tensor(BYTES[2:3]) / 255)
    assert images.groups == {}
    assert open_labelled(Path("medmnist:PneumoniaMNIST:train"), GREY).labels == LABELS.tolist()
    assert open_labelled(home / ".medmnist" / "pneumoniamnist.npz", GREY).labels == LABELS[2:].tolist()


def test_medmnist_that_is_not_there(home: Path) -> None:
    place = str(home / ".medmnist" / "pathmnist_64.npz")
    with pytest.raises(FileNotFoundError) as error:
        open_labelled("medmnist:pathmnist_64", GREY)
    assert str(error.value) == (
        f"data: got 'medmnist:pathmnist_64', expected its file at {place!r}, from https://zenodo.org/records/10519652, "
        "or the package: pip install medmnist"
    )
    with pytest.raises(ValueError, match="data: got split 'dev' in 'medmnist:pathmnist:dev', expected one of"):
        open_images("medmnist:pathmnist:dev", GREY)
    for name in ("medmnist:", "medmnist:../x"):
        with pytest.raises(ValueError, match=r"data: got 'medmnist:.*', expected e\.g\. 'medmnist:pathmnist'"):
            open_images(name, GREY)


def test_the_package_downloads(home: Path, monkeypatch) -> None:
    def download(split: str, download: bool, root: str, size: int | None) -> None:
        if size:
            raise RuntimeError("no\nnetwork")
        np.savez(Path(root) / "pathmnist.npz", test_images=BYTES, test_labels=LABELS[:, None])

    package = ModuleType("medmnist")
    package.INFO, package.PathMNIST = {"pathmnist": {"python_class": "PathMNIST"}}, download
    monkeypatch.setitem(sys.modules, "medmnist", package)
    assert open_labelled("medmnist:pathmnist", GREY).labels == LABELS.tolist()
    for name, why in {"pathmnist_64": "says: no network", "mnist": "knows no 'mnist'"}.items():
        with pytest.raises(FileNotFoundError, match=rf"{name}\.npz', from .* \(the package medmnist {why}\)$"):
            open_images(f"medmnist:{name}", GREY)
