"""Images in class folders: how pixels become network inputs, and a dataset that reads them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
METADATA_KEY = "hscc.images"


@dataclass(frozen=True)
class ImageSpec:
    """How a network wants its images; travels in the metadata of a weights file (key ``hscc.images``).

    Pixels have 8 bits a channel. :func:`read_image` scales 16-bit grey by 65535 and refuses what has no known white.

    Args:
        size: (H, W) in pixels.
        channels: 1 (grey) or 3; grey pictures are repeated, colour ones are reduced to luminance.
        mean, std: per channel, on pixel values scaled to 0..1.
        classes: names in the order of the network's outputs.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std", "classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.channels not in (1, 3):
            raise ValueError(f"channels: got {self.channels}, expected 1 or 3")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size: got {self.size}, expected two positive integers (H, W)")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"mean and std: got {len(self.mean)} and {len(self.std)} values, expected {self.channels} each"
            )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ImageSpec:
        return cls(**json.loads(text))

    def preprocess(self, pixels: np.ndarray) -> Tensor:
        """uint8 (n, H, W) or (n, H, W, 3) of the right size -> float32 (n, channels, H, W), normalised."""
        x = torch.from_numpy(np.ascontiguousarray(pixels))
        if x.dtype != torch.uint8 or tuple(x.shape[1:3]) != self.size:
            raise ValueError(
                f"pixels: got {x.dtype} {tuple(x.shape)}, expected uint8 (n, {self.size[0]}, {self.size[1]}[, 3])"
            )
        x = x.unsqueeze(-1) if x.ndim == 3 else x
        x = x.permute(0, 3, 1, 2).float() / 255
        if x.shape[1] != self.channels:
            luminance = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
            x = x.expand(-1, 3, -1, -1) if self.channels == 3 else (x * luminance).sum(1, keepdim=True)
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


class ClassFolders(torch.utils.data.Dataset):
    """A folder of class folders of images (``root/<class>/*.png``); items are (float32 (C, H, W), label).

    Hidden files and folders below ``root`` are skipped. Raises FileNotFoundError when ``root`` or one of the classes is
    missing and ValueError when no image is found or, with the file's name, when one cannot be read.
    """

    def __init__(self, root: str | Path, spec: ImageSpec):
        self.spec = spec
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"data: got {str(root)!r}, expected a folder of class folders")
        missing = [name for name in spec.classes if not (root / name).is_dir()]
        if missing:
            present = sorted(p.name for p in root.iterdir() if p.is_dir())
            raise FileNotFoundError(f"labels missing in {str(root)!r}: got {present}, expected {list(spec.classes)}")
        self.files = [(path, label) for label, name in enumerate(spec.classes) for path in _pictures(root / name)]
        if not self.files:
            raise _no_images(root)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        return self.spec.preprocess(read_image(path, self.spec)[None])[0], label


class Pictures(torch.utils.data.Dataset):
    """All images below a folder, without labels; items are float32 (C, H, W). Raises as :class:`ClassFolders`."""

    def __init__(self, root: str | Path, spec: ImageSpec):
        self.spec = spec
        if not Path(root).is_dir():
            raise FileNotFoundError(f"data: got {str(root)!r}, expected a folder of images")
        self.files = _pictures(Path(root))
        if not self.files:
            raise _no_images(root)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.spec.preprocess(read_image(self.files[index], self.spec)[None])[0]


def _pictures(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_dir())
    # other programs leave pictures' names there: ._x.png, .ipynb_checkpoints/x.png
    return sorted(path for path in files if not any(part[0] == "." for part in path.relative_to(folder).parts))


def _no_images(root: str | Path) -> ValueError:
    return ValueError(f"data: got no images in {str(root)!r}, expected files ending in {sorted(SUFFIXES)}")


def read_image(path: Path, spec: ImageSpec) -> np.ndarray:
    """A file as uint8 (H, W) or (H, W, 3), resized to the spec's size.

    16-bit grey becomes value / 257, rounded, so that 65535 is white; of 16-bit colour the high byte is taken.

    Raises:
        ValueError: with the file's name, for what is no picture, damaged, or larger than Pillow allows, and where a
            scale would be a guess: floats, integers of 32 or 16 signed bits, and 16 bits that look like 12.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            deep = ";16" in str(image.tile)  # 16 bits in the file; loading empties the list
            image.load()
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise ValueError(f"unreadable image {str(path)!r}: {error}") from error
    image = _in_8_bits(image, deep, path)
    image = image.convert("L" if spec.channels == 1 or image.mode in ("L", "1") else "RGB")
    height, width = spec.size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(image)


def _in_8_bits(image, deep: bool, path: Path):
    """The Pillow image itself, or as "L" where it is 16-bit grey; ``Image.convert`` would clip that at 255."""
    from PIL import Image

    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # Pillow before 11 opens 16-bit PNG as "I"
        kind = "floats" if image.mode == "F" else "integers of 32 or 16 signed bits"
        low, high = image.getextrema()
        raise ValueError(f"image {str(path)!r}: got {kind} from {low:g} to {high:g}, expected 8 bits, or 16 unsigned")
    grey = image.mode.startswith("I")
    if not (grey or deep):
        return image
    values = np.asarray(image if grey else image.convert("RGB")).astype(np.int32)
    top = int(values.max())
    top = top if grey or not top else 256 * top + 255
    if 0 < top < 4096:
        raise ValueError(
            f"image {str(path)!r}: got 16-bit values up to {top}, which look like 12 bits, expected 65535 as white"
        )
    if not grey:
        return image
    if getattr(image, "tag_v2", {}).get(262) == 0:  # TIFF's WhiteIsZero, which Pillow heeds at 8 bits only
        values = 65535 - values
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
