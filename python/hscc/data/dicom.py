"""DICOM files, with one frame or several, and series of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .pixels import Unreadable, need, of_8_bits, reading
from .slices import Slices
from .spec import ImageSpec

SUFFIXES = (".dcm", ".dicom", ".ima")
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
ORDER = ["SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber", "NumberOfFrames"]


def unnamed(path: Path) -> bool:
    """Whether a file without a suffix, as scanners write them, is DICOM: its bytes 128 to 131 say so."""
    if path.suffix.strip(".0123456789") or path.name == "DICOMDIR":  # UIDs have numbers for a suffix
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def frames(path: Path, slices: Slices) -> list[int]:
    """Which frames of a file are taken; of one with a single frame that one, as slices then count in the series.

    Raises as :func:`read`.
    """
    with reading(path):
        count = int(_header(path, ["NumberOfFrames"]).get("NumberOfFrames") or 1)
    return slices.of(count, f"image {str(path)!r}") if count > 1 else [0]


def in_series(files: Sequence[Path], slices: Slices) -> list[Path]:
    """DICOM files, those of each series in a folder in the order of their slices, of which ``slices`` says which.

    The order is that of the positions along the slices' normal, then of the instance numbers, then of ``files``.
    """
    series: dict[Any, list[tuple[Any, Path]]] = {}
    for path in files:
        try:
            key, position = _place(path)
        except Unreadable:  # whoever reads it says so
            key, position = path, (0.0, 0)
        series.setdefault(key, []).append((position, path))
    found = []
    for several in series.values():
        ordered = [path for _, path in sorted(several, key=lambda pair: pair[0])]
        found += [ordered[i] for i in slices.of(len(ordered), f"series of {str(ordered[0])!r}")]
    return found


def read(path: Path, frame: int, spec: ImageSpec) -> np.ndarray:
    """A frame as float32 (H, W) in 0..1, or where it has 8 bits without units as uint8 (H, W) or (H, W, 3).

    Rescale slope and intercept (or a modality LUT) give the units, then the spec's window counts, else the first one
    that the file states. MONOCHROME1 is inverted, palettes become colours.

    Raises:
        Unreadable: for what is no DICOM, damaged, or has no pixels.
        ImportError: without pydicom, or with the file's name without what decompresses it.
        ValueError: with the file's name, without a window, or with a window of a kind that is not read.
    """
    name = f"image {str(path)!r}"
    with reading(path):
        header = _header(path)
        kind, parts = header.get("PhotometricInterpretation"), _parts(header, frame)
        window = None if spec.window else _window(parts)
        values, units = _in_units(_pixels(path, frame, header), header, parts)
        units = units or header.BitsStored != 8  # 255 is white where nobody says otherwise
    if values.ndim == 3 or (values.dtype == np.uint8 and window is None and not units):
        values = of_8_bits(values, spec, name)
        return 255 - values if kind == "MONOCHROME1" else values
    if window is not None and window.function not in ("LINEAR", "LINEAR_EXACT"):
        raise ValueError(f"{name}: got a window of kind {window.function}, expected LINEAR, or ImageSpec.window")
    scaled = spec.scale(values, name, window and window.ends)
    return 1 - scaled if kind == "MONOCHROME1" else scaled


class _Window(NamedTuple):
    center: float
    width: float
    function: str

    @property
    def ends(self) -> tuple[float, float]:
        """(low, high), as the standard defines them in part 3, C.11.2.1."""
        exact = self.function == "LINEAR_EXACT"
        center, width = (self.center, self.width) if exact else (self.center - 0.5, self.width - 1)
        return center - max(width, 1e-3) / 2, center + max(width, 1e-3) / 2  # LINEAR of width 1 is a threshold


def _header(path: Path, tags: list[str] | None = None):
    """The file without its pixels."""
    pydicom = need("pydicom", "DICOM files")
    with reading(path):
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)


def _place(path: Path) -> tuple[Any, tuple[float, int]]:
    """(series, position in it): in mm along the normal of the slices, and a number."""
    with reading(path):
        header = _header(path, ORDER)
        uid, number = header.get("SeriesInstanceUID"), int(header.get("InstanceNumber") or 0)
        alone = not uid or int(header.get("NumberOfFrames") or 1) > 1
        corner, sides = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
        along = 0.0
        if corner and sides:  # a radiograph has none
            along = float(np.cross(*np.reshape(np.asarray(sides, float), (2, 3))) @ np.asarray(corner, float))
        return path if alone else (path.parent, str(uid)), (round(along, 3), number)


def _pixels(path: Path, frame: int, header) -> np.ndarray:
    """A frame's stored values, (H, W) or (H, W, 3)."""
    pixels = need("pydicom.pixels", "DICOM files")
    syntax = getattr(header.file_meta, "TransferSyntaxUID", None)
    if "Rows" not in header:
        raise Unreadable(path, f"got no pixels (modality {header.get('Modality')}), expected an image")
    if syntax is not None and syntax.is_compressed and syntax.is_encapsulated:
        try:
            able = {*pixels.get_decoder(syntax).available_plugins}
        except NotImplementedError:
            able = set()
        if syntax == JPEG_EXTENDED and header.BitsStored > 8:
            able.discard("pillow")  # which reads 8 bits of it
        if not able:
            packages = "pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
            raise ImportError(
                f"image {str(path)!r}: got pixels compressed as {syntax.name}, which need pylibjpeg: "
                f"pip install {packages}"
            )
    values = pixels.pixel_array(path, index=frame)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _parts(header, frame: int) -> list:
    """Where a frame's attributes may stand, nearest first: its functional groups, those of all frames, the file."""
    groups = [*(header.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]]
    groups += header.get("SharedFunctionalGroupsSequence") or []
    names = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
    return [*(group.get(name)[0] for group in groups for name in names if group.get(name)), header]


def _window(parts: list) -> _Window | None:
    """The first window stated."""
    part = next((part for part in parts if part.get("WindowCenter") is not None and part.get("WindowWidth")), None)
    if part is None:
        return None
    center, width = (float(np.ravel(np.asarray(part.get(key), float))[0]) for key in ("WindowCenter", "WindowWidth"))
    return _Window(center, width, part.get("VOILUTFunction") or "LINEAR")


def _in_units(values: np.ndarray, header, parts: list) -> tuple[np.ndarray, bool]:
    """Stored values as grey ones in the file's units, and whether it states any; colours as uint8 (H, W, 3)."""
    pixels = need("pydicom.pixels", "DICOM files")
    if header.get("PhotometricInterpretation") == "PALETTE COLOR":
        values = pixels.apply_color_lut(values, header)
    if values.ndim == 3:
        if values.dtype == np.uint16:
            values = ((values.astype(np.int32) + 128) // 257).astype(np.uint8)
        if values.dtype != np.uint8:
            raise ValueError(f"got colours of {values.dtype}, expected 8 or 16 unsigned bits")
        return values, False
    for part in parts:
        slope, intercept = part.get("RescaleSlope", 1), part.get("RescaleIntercept", 0)
        if (slope, intercept) != (1, 0) or part.get("ModalityLUTSequence"):
            return pixels.apply_modality_lut(values, part), True
    return values, False
