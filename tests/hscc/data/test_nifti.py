"""NIfTI volumes: which way they lie, which slices are taken, what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hscc.data.folders import Pictures
from hscc.data.pixels import Unreadable
from hscc.data.readers import Item, read_image
from hscc.data.slices import Slices
from hscc.data.spec import ImageSpec

SPEC = ImageSpec((5, 4), 1, (0,), (1,), ("a",), window=(0, 100))
# (right to left, front to back, head to feet), as slices are shown
HEAD = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6) % 100
UPRIGHT = np.diag([-1, -1, -1, 1.0])  # of world coordinates, which count to the right, front and head


def write(path: Path, volume: np.ndarray, affine: np.ndarray = UPRIGHT, kind: type = nibabel.Nifti1Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(kind(volume, affine), path)
    return path


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x y ü.NII.GZ"])
def test_slices_are_pictures(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, HEAD)
    pictures = Pictures(tmp_path, SPEC)
    assert pictures.items == [Item(file, (2, i)) for i in range(6)]
    for i in range(6):
        np.testing.assert_allclose(pictures[i][0], HEAD[:, :, i].T / 100, atol=1e-6)


@pytest.mark.parametrize("way", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flipped", [(), (0,), (1, 2)])
def test_however_the_file_stores_it(tmp_path: Path, way: tuple, flipped: tuple) -> None:
    """The same head, its axes stored in any order and direction, gives the same slices."""
    stored, affine = HEAD.transpose(way), np.eye(4)
    affine[:3, :3] = UPRIGHT[:3, :3][:, way]
    for axis in flipped:
        stored = np.flip(stored, axis)
        affine[:, axis] *= -1
    file = write(tmp_path / "x.nii", stored, affine)
    for axis in range(3):
        pictures = Pictures(
            tmp_path, ImageSpec(HEAD.take(0, axis).T.shape, 1, (0,), (1,), ("a",), (0, 100)), slices=Slices(axis)
        )
        assert len(pictures) == HEAD.shape[axis]
        for i in range(len(pictures)):
            np.testing.assert_allclose(pictures[i][0], HEAD.take(i, axis).T / 100, atol=1e-6)
    assert Pictures(tmp_path, SPEC, slices=Slices(share=(0.3, 0.7))).items == [Item(file, (2, i)) for i in (2, 3)]
    assert Pictures(tmp_path, SPEC, slices=Slices(0, indices=(3, 1))).items == [Item(file, (0, i)) for i in (3, 1)]
    with pytest.raises(ValueError, match=r"x\.nii': got 4 slices, expected one with index 4"):
        Pictures(tmp_path, SPEC, slices=Slices(0, indices=(4,)))


def test_scaled_integers(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image((HEAD * 2).astype(np.int16), UPRIGHT)
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "x.nii")
    got = read_image(tmp_path / "x.nii", SPEC, (2, 0))
    np.testing.assert_allclose(
        got, ((nibabel.load(tmp_path / "x.nii").get_fdata()[:, :, 0].T) / 100).clip(0, 1), atol=1e-6
    )
    assert got.max() > HEAD[:, :, 0].max() / 100


def test_one_more_axis(tmp_path: Path) -> None:
    write(tmp_path / "x.nii", HEAD[..., None])
    assert len(Pictures(tmp_path, SPEC)) == 6
    write(tmp_path / "y.nii", HEAD[:, :, :1], kind=nibabel.Nifti2Image)
    assert len(Pictures(tmp_path, SPEC)) == 7


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    file = write(tmp_path / "x.nii", HEAD)
    first = read_image(file, SPEC, (2, 0))
    write(file, np.zeros((4, 5, 7), np.float32))
    assert first.max() > 0
    assert read_image(file, SPEC, (2, 0)).max() == 0


def test_without_a_window(tmp_path: Path) -> None:
    head = HEAD - 7
    head[0, 0, 0] = np.nan
    file = write(tmp_path / "x.nii", head)
    bare = ImageSpec((5, 4), 1, (0,), (1,), ("a",))
    with pytest.raises(
        ValueError, match=r"^image '.*x\.nii': got floats from -7 to 92 and no window, expected"
    ) as error:
        read_image(file, bare, (2, 0))
    assert not isinstance(error.value, Unreadable)
    assert read_image(file, SPEC, (2, 0))[0, 0] == 0


COLOURS = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.zeros((4, 5, 6, 2), np.float32), r"got float32 of shape \(4, 5, 6, 2\), expected one volume of real"),
        (np.zeros((4, 5), np.float32), r"got float32 of shape \(4, 5\), expected one volume of real numbers"),
        (np.zeros((4, 5, 6), np.complex64), r"got complex64 of shape \(4, 5, 6\), expected one volume of real"),
        (COLOURS, r"got .*'R', .* of shape \(4, 5, 6\), expected one volume of real numbers"),
    ],
    ids=["4-D", "2-D", "complex", "colours"],
)
def test_what_is_no_volume(tmp_path: Path, volume: np.ndarray, message: str) -> None:
    write(tmp_path / "x.nii", volume)
    with pytest.raises(Unreadable, match=rf"x\.nii': {message}"):
        Pictures(tmp_path, SPEC)


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_damage(tmp_path: Path, name: str) -> None:
    good = write(tmp_path / "y.nii", HEAD)
    file = write(tmp_path / name, HEAD)
    whole, generator, failed = file.read_bytes(), np.random.default_rng(0), 0
    cases = [b"", b"no volume", whole[:100], whole[: len(whole) // 2], whole[:-30]]
    for at in generator.integers(0, min(len(whole), 350) - 8, 40):
        cases.append(whole[:at] + generator.bytes(8) + whole[at + 8 :])
    for case in cases:
        file.write_bytes(case)
        try:
            assert Pictures([file], SPEC)[0].shape == (1, 5, 4)
        except ValueError as error:
            assert f"{name}'" in str(error)  # noqa: PT017
            assert len(str(error).splitlines()) == 1  # noqa: PT017
            failed += 1
    assert failed >= 5
    file.write_bytes(whole[: len(whole) // 2])
    skipping = Pictures(tmp_path, SPEC, skip_broken=True)
    assert ({item.path for item in skipping.items}, skipping.broken) == ({good}, [file])


def test_without_nibabel(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "x.nii", HEAD)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ImportError, match=r"^NIfTI files need nibabel: pip install 'hscc\[medical\]'$"):
        Pictures(tmp_path, SPEC)
