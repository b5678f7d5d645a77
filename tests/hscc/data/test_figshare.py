"""The brain tumours of Figshare: HDF5 as MATLAB writes it, columns first."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hscc.data import figshare
from hscc.data.folders import Pictures
from hscc.data.pixels import Unreadable
from hscc.data.readers import read_image
from hscc.data.sources import open_images, open_labelled
from hscc.data.spec import ImageSpec

SPEC = ImageSpec((4, 6), 1, (0,), (1,), ("glioma", "meningioma", "pituitary_tumor"), window=(0, 230))
IMAGE = np.arange(24, dtype=np.int16).reshape(4, 6) * 10
MASK = IMAGE > 100


def write(path: Path, label: int = 1, patient: str = "100360", image: np.ndarray = IMAGE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["cjdata/image"] = image.T
        file["cjdata/label"] = np.array([[label]], float)
        file["cjdata/PID"] = np.array([[ord(letter)] for letter in patient], np.uint16)
        file["cjdata/tumorMask"] = MASK.T.astype(np.uint8)
    return path


def test_an_image_stands_as_in_matlab(tmp_path: Path) -> None:
    file = write(tmp_path / "1.mat")
    np.testing.assert_allclose(read_image(file, SPEC), IMAGE / 230, atol=1e-6)
    np.testing.assert_allclose(open_images(file, SPEC)[0][0], IMAGE / 230, atol=1e-6)
    assert np.array_equal(figshare.mask(file, SPEC), MASK)
    double = figshare.mask(file, ImageSpec((8, 12), 1, (0,), (1,), SPEC.classes))
    assert np.array_equal(double, np.kron(MASK, np.ones((2, 2), bool)))


def test_labels_and_patients_are_in_the_files(tmp_path: Path) -> None:
    for i, label in enumerate((1, 2, 3, 2)):
        write(tmp_path / f"{i}.mat", label, patient=f"MR{i // 2}")
    images = open_labelled(tmp_path, SPEC)
    assert images.labels == [1, 0, 2, 0]
    assert images.groups == {"patient": ["MR0", "MR0", "MR1", "MR1"]}
    assert images[2][0].shape == (1, 4, 6)
    assert images[2][1] == 2
    assert open_labelled(tmp_path / "2.mat", SPEC).labels == [2]


def test_class_folders_count_where_there_are_any(tmp_path: Path) -> None:
    for name in SPEC.classes:
        write(tmp_path / name / "1.mat", 3)
    assert open_labelled(tmp_path, SPEC).labels == [0, 1, 2]


@pytest.mark.parametrize(("label", "named"), [(4, "number 4"), (1, "meningioma")])
def test_labels_of_no_class(tmp_path: Path, label: int, named: str) -> None:
    write(tmp_path / "1.mat", label)
    spec = ImageSpec((4, 6), 1, (0,), (1,), ("glioma", "pituitary"), window=(0, 230))
    with pytest.raises(ValueError, match=rf"1\.mat': got label '{named}', expected one of \['glioma', 'pituitary'\]"):
        open_labelled(tmp_path, spec)


def test_without_a_window(tmp_path: Path) -> None:
    file = write(tmp_path / "1.mat")
    with pytest.raises(ValueError, match=r"1\.mat': got int16 values from 0 to 230 and no window, expected"):
        read_image(file, ImageSpec((4, 6), 1, (0,), (1,), ("a",)))


def test_other_files(tmp_path: Path) -> None:
    whole = write(tmp_path / "good.mat").read_bytes()
    with h5py.File(tmp_path / "fields.mat", "w") as file:
        file["image"] = IMAGE
    write(tmp_path / "volume.mat", image=np.zeros((2, 3, 4)))
    (tmp_path / "old.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    (tmp_path / "half.mat").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mat").write_bytes(b"")
    for name, why in {
        "fields": "got no cjdata/image of a MATLAB 7.3 file",
        "volume": r"got cjdata/image of shape \(2, 3, 4\), expected \(H, W\)",
        "old": "got no cjdata/image of a MATLAB 7.3 file",
        "half": "got no cjdata/image",
        "empty": "got no cjdata/image",
    }.items():
        with pytest.raises(Unreadable, match=rf"{name}\.mat': {why}"):
            read_image(tmp_path / f"{name}.mat", SPEC)
    skipping = open_labelled(tmp_path, SPEC, skip_broken=True)
    assert skipping.labels == [1]
    assert sorted(file.stem for file in skipping.broken) == ["empty", "fields", "half", "old", "volume"]


def test_without_h5py(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "1.mat")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"^MATLAB 7.3 files need h5py: pip install 'hscc\[medical\]'$"):
        Pictures(tmp_path, SPEC)[0]
