"""Pictures of all modes: palettes, alpha, CMYK, turned cameras, several pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hscc.data.readers import read_image
from hscc.data.spec import ImageSpec
from PIL import Image

GREY = ImageSpec((16, 16), 1, (0.5,), (0.25,), ("a",))
COLOUR = ImageSpec((16, 16), 3, (0.5,) * 3, (0.25,) * 3, ("a",))
GRADIENT = np.arange(256, dtype=np.uint8).reshape(16, 16)


def picture(root: Path, pixels: np.ndarray, name: str, **options) -> None:
    (root / "a").mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / "a" / name, **options)


def modes() -> dict[str, Image.Image]:
    """The same picture in modes that have colours or a transparent part."""
    colours = np.stack([GRADIENT, GRADIENT.T, 255 - GRADIENT], -1) // 64 * 64
    image = Image.fromarray(colours)
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray(GRADIENT))
    return {"RGB": image, "RGBA": clear, "P": image.convert("P", palette=Image.Palette.ADAPTIVE)}


@pytest.mark.parametrize(("mode", "name"), [("RGBA", "x.png"), ("RGBA", "x.webp"), ("RGBA", "x.tif"), ("P", "x.png")])
def test_palettes_and_alpha(tmp_path: Path, mode: str, name: str) -> None:
    several = modes()
    (tmp_path / "a").mkdir()
    options = {"lossless": True, "exact": True} if name == "x.webp" else {}
    several[mode].save(tmp_path / "a" / name, **options)
    assert np.array_equal(read_image(tmp_path / "a" / name, COLOUR), np.asarray(several["RGB"]))
    assert np.array_equal(read_image(tmp_path / "a" / name, GREY), np.asarray(several["RGB"].convert("L")))


def test_grey_with_alpha_and_one_bit(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "x.png"
    Image.merge("LA", [Image.fromarray(GRADIENT), Image.fromarray(GRADIENT.T)]).save(file)
    assert np.array_equal(read_image(file, GREY), GRADIENT)
    Image.fromarray(GRADIENT > 99).save(file)
    assert np.array_equal(read_image(file, COLOUR), 255 * (GRADIENT > 99))


@pytest.mark.parametrize("name", ["x.tif", "x.jpg"])
def test_cmyk(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "a" / name)  # cyan
    assert np.abs(read_image(tmp_path / "a" / name, COLOUR).astype(int) - (0, 255, 255)).max() <= 2
    assert np.abs(read_image(tmp_path / "a" / name, GREY).astype(int) - 179).max() <= 2


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.tif", "deep.png"])
def test_turned_cameras(tmp_path: Path, name: str) -> None:
    """EXIF 6: the camera lay on its side, the first row is the right column."""
    pixels = np.zeros((32, 32), np.uint8)
    pixels[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path, pixels.astype(np.uint16) * 257 if name == "deep.png" else pixels, name, exif=exif)
    got = read_image(tmp_path / "a" / name, GREY).astype(int)
    assert (got[:, 9:] > 240).all()
    assert (got[:, :7] < 15).all()


@pytest.mark.parametrize("name", ["x.tif", "x.webp", "x.png"])
def test_several_pages_are_refused(tmp_path: Path, name: str) -> None:
    """Which one is meant nobody has said; taking the first would lose the others without a word."""
    other = Image.fromarray(255 - GRADIENT)
    picture(tmp_path, GRADIENT, name, save_all=True, append_images=[other, Image.fromarray(GRADIENT.T)])
    with pytest.raises(ValueError, match=rf"{name}': got 3 pages, expected one; each page may be a file of its own"):
        read_image(tmp_path / "a" / name, GREY)


def test_a_phones_picture_has_a_preview(tmp_path: Path) -> None:
    white = Image.fromarray(np.full((16, 16, 3), 255, np.uint8))
    (tmp_path / "a").mkdir()
    white.save(tmp_path / "a" / "x.jpg", "MPO", save_all=True, append_images=[white.resize((8, 8))])
    assert Image.open(tmp_path / "a" / "x.jpg").n_frames == 2
    assert (read_image(tmp_path / "a" / "x.jpg", GREY) == 255).all()
