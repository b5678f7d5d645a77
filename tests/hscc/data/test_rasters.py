"""Pictures as they come: of 8, 12 and 16 bits, floats, damaged, hidden, and no pictures at all."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hscc.data.folders import ClassFolders, Pictures
from hscc.data.pixels import Unreadable
from hscc.data.readers import Item, read_image
from hscc.data.spec import ImageSpec
from PIL import Image, PngImagePlugin

GREY = ImageSpec((16, 16), 1, (0.5,), (0.25,), ("a",))
COLOUR = ImageSpec((16, 16), 3, (0.5,) * 3, (0.25,) * 3, ("a",))
GRADIENT = np.arange(256, dtype=np.uint8).reshape(16, 16)
TWINS = {
    "white": np.full((16, 16), 255, np.uint8),
    "black": np.zeros((16, 16), np.uint8),
    "mid-grey": np.full((16, 16), 128, np.uint8),
    "gradient": GRADIENT,
    "larger": np.kron(GRADIENT, np.ones((3, 2), np.uint8)),
}
WAYS = {
    "png": ("x.png", "<u2", {}),
    "tiff": ("x.tif", "<u2", {}),
    "big-endian tiff": ("x.tiff", ">u2", {}),
    "packed tiff": ("x.tif", "<u2", {"compression": "tiff_deflate"}),
    "packed big-endian tiff": ("x.tif", ">u2", {"compression": "tiff_lzw"}),
}


def picture(root: Path, pixels: np.ndarray, name: str = "x.png", **options) -> Path:
    """Writes ``root/a/name``, so that ``root`` is a folder of class folders; returns the root."""
    (root / "a").mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / "a" / name, **options)
    return root


def deep(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.uint16) * 257


def png(path: Path, pixels: np.ndarray, kind: int) -> None:
    """A 16-bit PNG (H, W, C), which Pillow cannot write; kind 2 is RGB, 4 grey with alpha."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND"]
    sums = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(sums))


def refused(root: Path, *parts: str) -> None:
    """Both datasets say so in one sentence with the file's name."""
    for data in (Pictures(root, GREY), ClassFolders(root, GREY), Pictures(root, COLOUR)):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            data[0]
        assert all(part in str(error.value) for part in parts), error.value
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("twin", TWINS)
def test_16_bits_are_as_their_twin_of_8(tmp_path: Path, twin: str, way: str, spec: ImageSpec) -> None:
    name, dtype, options = WAYS[way]
    picture(tmp_path / "deep", deep(TWINS[twin]).astype(dtype), name, **options)
    picture(tmp_path / "flat", TWINS[twin], name)
    want = Pictures(tmp_path / "flat", spec)[0]
    assert torch.equal(Pictures(tmp_path / "deep", spec)[0], want)
    assert torch.equal(ClassFolders(tmp_path / "deep", spec)[0][0], want)


def test_16_bits_are_rounded(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (16, 16), dtype=np.uint16)
    picture(tmp_path, values, "x.png")
    want = np.round(values / 257)
    assert np.array_equal(read_image(tmp_path / "a" / "x.png", GREY), want)
    picture(tmp_path, values, "inverse.tif", tiffinfo={262: 0})  # WhiteIsZero
    assert np.array_equal(read_image(tmp_path / "a" / "inverse.tif", GREY), 255 - want)


def test_an_older_pillow_opens_16_bit_png_as_integers(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(PngImagePlugin._MODES, (16, 0), ("I", "I;16B"))
    picture(tmp_path, deep(GRADIENT))
    assert Image.open(tmp_path / "a" / "x.png").mode == "I"
    assert np.array_equal(read_image(tmp_path / "a" / "x.png", GREY), GRADIENT)
    picture(tmp_path, deep(GRADIENT) // 16)
    refused(tmp_path, "x.png", "got 16-bit values up to 4095")


@pytest.mark.parametrize("kind", [2, 4])
def test_16_bit_colour(tmp_path: Path, kind: int) -> None:
    file = picture(tmp_path, GRADIENT) / "a" / "x.png"
    grey = np.repeat(deep(GRADIENT)[..., None], 3 if kind == 2 else 2, 2)
    grey[..., 3 if kind == 2 else 1 :] = 65535
    png(file, grey, kind)
    assert np.array_equal(read_image(file, GREY), GRADIENT)
    assert np.array_equal(read_image(file, COLOUR), np.repeat(GRADIENT[..., None], 3, 2))
    grey[..., : 3 if kind == 2 else 1] //= 16
    png(file, grey, kind)
    refused(tmp_path, "x.png", "got 16-bit values up to 4095, which look like 12 bits, expected 65535 as white")
    grey[..., : 3 if kind == 2 else 1] = 0
    png(file, grey, kind)
    assert read_image(file, GREY).max() == 0


FLOATS = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
GUESSES = {
    "12 bits in png": (
        "x.png",
        deep(GRADIENT) // 16,
        "got 16-bit values up to 4095, which look like 12 bits, expected",
    ),
    "12 bits in tiff": ("x.tif", deep(GRADIENT) // 16, "got 16-bit values up to 4095, which look like 12 bits"),
    "12 bits, big-endian": ("x.tif", (deep(GRADIENT) // 16).astype(">u2"), "got 16-bit values up to 4095"),
    "almost black": ("x.png", np.eye(16, dtype=np.uint16), "got 16-bit values up to 1,"),
    "floats": ("x.tif", FLOATS, "got floats from 0 to 1, expected 8 bits, or 16 unsigned"),
    "large floats": ("x.tif", FLOATS * 4095, "got floats from 0 to 4095, expected"),
    "white floats": ("x.tif", np.ones_like(FLOATS), "got floats from 1 to 1, expected"),
    "halves of 16 signed bits": ("x.tif", GRADIENT.astype(np.int16), "got integers of 32 or 16 signed bits from 0"),
    "32 bits": (
        "x.tif",
        GRADIENT.astype(np.int32) - 5,
        "got integers of 32 or 16 signed bits from -5 to 250, expected",
    ),
}


@pytest.mark.parametrize("kind", GUESSES)
def test_depths_without_a_known_white(tmp_path: Path, kind: str) -> None:
    name, pixels, message = GUESSES[kind]
    refused(picture(tmp_path, pixels, name), f"{name}'", message)


def test_4096_is_no_12_bits(tmp_path: Path) -> None:
    file = picture(tmp_path, np.full((16, 16), 4096, np.uint16)) / "a" / "x.png"
    assert (read_image(file, GREY) == 16).all()


def whole() -> bytes:
    """A PNG whose pixels take two chunks."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


NOT_PICTURES = {
    "HTML": ("x.jpg", b"<!DOCTYPE html><html><body>404</body></html>"),
    "empty": ("x.png", b""),
    "half": ("x.png", whole()[:2000]),
    "header": ("x.png", whole()[:40]),
    "no chunk": ("x.png", b"\x12\xdd\xec\x14".join(whole().rsplit(b"IDAT", 1))),
    "half an IHDR": ("x.png", b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 5) + b"IHDR12345" + b"\0" * 4),
    "noise": ("x.tif", b"II*\0" + b"\x80" * 999),
}


@pytest.mark.parametrize("kind", NOT_PICTURES)
def test_files_that_are_no_pictures(tmp_path: Path, kind: str) -> None:
    name, data = NOT_PICTURES[kind]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(data)
    refused(tmp_path, "unreadable image", f"{name}'")


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of what it mends
@pytest.mark.parametrize("damage", ["truncated", "noisy"])
def test_damage_anywhere(tmp_path: Path, damage: str) -> None:
    generator = np.random.default_rng(0)
    for name in ("x.png", "x.jpg", "x.tif", "x.bmp", "x.webp"):
        file = picture(tmp_path, generator.integers(0, 256, (16, 16, 3), dtype=np.uint8), name) / "a" / name
        whole = file.read_bytes()
        for at in generator.integers(0, len(whole), 200):
            noisy = whole[:at] + generator.bytes(8) + whole[at + 8 :]
            file.write_bytes(whole[:at] if damage == "truncated" else noisy)
            try:
                assert read_image(file, COLOUR).shape[:2] == (16, 16)
            except ValueError as error:
                assert f"{name}'" in str(error)  # noqa: PT017


def test_more_pixels_than_pillow_allows(tmp_path: Path, monkeypatch) -> None:
    picture(tmp_path, GRADIENT)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(tmp_path, "unreadable image", "x.png'", "256 pixels")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.warns(Image.DecompressionBombWarning):
        assert np.array_equal(read_image(tmp_path / "a" / "x.png", GREY), GRADIENT)


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    root = picture(tmp_path / ".cache" / "data", GRADIENT)  # the root may lie below a hidden one
    picture(root / "a", GRADIENT, "y.png")
    (root / "a" / "folder.png" / ".git").mkdir(parents=True)
    picture(root / "a" / "folder.png", GRADIENT, "z.PNG")
    for hidden in ("._x.png", ".ipynb_checkpoints/x.png", "a/.thumbs/deeper/x.png", "folder.png/.git/x.jpg"):
        file = root / "a" / hidden
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"no picture")
    want = [root / "a" / name for name in ("a/y.png", "folder.png/a/z.PNG", "x.png")]
    assert Pictures(root, GREY).items == ClassFolders(root, GREY).pictures.items == [Item(file) for file in want]
    assert ClassFolders(root, GREY).labels == [0, 0, 0]
    for file in want:
        file.unlink()
    for data in (Pictures, ClassFolders):
        with pytest.raises(ValueError, match="data: got no images in"):
            data(root, GREY)


def test_a_relative_root(tmp_path: Path, monkeypatch) -> None:
    picture(tmp_path, GRADIENT)
    (tmp_path / "b").mkdir()
    for folder, root in ((tmp_path, "."), (tmp_path / "b", ".."), (tmp_path / "b", "../b/..")):
        monkeypatch.chdir(folder)
        assert len(Pictures(root, GREY)) == len(ClassFolders(root, GREY)) == 1


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").symlink_to(tmp_path / "moved.png")
    refused(tmp_path, "unreadable image", "x.png'", "No such file")


WINDOW = ImageSpec((16, 16), 1, (0,), (1,), ("a",), window=(0, 4095))
UNITS = ImageSpec((16, 16), 3, (0,) * 3, (1,) * 3, ("a",), window=(-0.5, 0.5))


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_a_window_gives_12_bits_their_white(tmp_path: Path, name: str) -> None:
    values = np.linspace(0, 5000, 256).reshape(16, 16).astype(np.uint16)
    file = picture(tmp_path, values, name) / "a" / name
    want = torch.tensor(values / 4095).clip(0, 1).float()
    assert read_image(file, WINDOW).dtype == np.float32
    torch.testing.assert_close(Pictures(tmp_path, WINDOW)[0], want[None])
    torch.testing.assert_close(ClassFolders(tmp_path, WINDOW)[0][0], want[None])


def test_a_window_scales_floats_and_integers(tmp_path: Path) -> None:
    values = FLOATS - 0.75
    values[0, 0] = np.nan
    picture(tmp_path, values, "x.tif")
    want = np.nan_to_num((values + 0.5).clip(0, 1))
    torch.testing.assert_close(Pictures(tmp_path, UNITS)[0], torch.tensor(want).expand(3, -1, -1))
    picture(tmp_path, GRADIENT.astype(np.int32) - 128, "x.tif")
    assert read_image(tmp_path / "a" / "x.tif", UNITS)[7, 15] == 0  # -1
    assert read_image(tmp_path / "a" / "x.tif", UNITS)[8, 0] == 0.5
    inverse = picture(tmp_path, deep(GRADIENT) // 17, "inverse.tif", tiffinfo={262: 0}) / "a" / "inverse.tif"
    np.testing.assert_allclose(read_image(inverse, WINDOW), 1 - (deep(GRADIENT) // 17) / 4095, atol=1e-6)


def test_a_window_resizes_what_it_has_clipped(tmp_path: Path) -> None:
    values = np.zeros((32, 32), np.float32)
    values[::2] = 1e6  # as metal in a CT
    picture(tmp_path, values, "x.tif")
    assert abs(read_image(tmp_path / "a" / "x.tif", UNITS).mean() - 0.75) < 0.02


@pytest.mark.parametrize("pixels", [GRADIENT, np.stack([GRADIENT] * 3, -1)], ids=["grey", "colour"])
def test_8_bits_have_no_units(tmp_path: Path, pixels: np.ndarray) -> None:
    picture(tmp_path, pixels)
    with pytest.raises(ValueError, match=r"x\.png': got 8 bits or colours, expected values in the units of the window"):
        Pictures(tmp_path, WINDOW)[0]


def test_damage_is_of_its_own_kind(tmp_path: Path) -> None:
    """``skip_broken`` leaves out what is damaged, not what lacks a window."""
    picture(tmp_path, FLOATS, "x.tif")
    with pytest.raises(ValueError, match=r"ImageSpec\.window") as error:
        read_image(tmp_path / "a" / "x.tif", GREY)
    assert not isinstance(error.value, Unreadable)
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(Unreadable, match="unreadable image"):
        read_image(tmp_path / "x.png", GREY)
    with pytest.raises(ValueError, match=r"x\.txt': got a file of another kind, expected one ending in"):
        read_image(tmp_path / "x.txt", GREY)
