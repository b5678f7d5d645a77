"""Files in a request's body: as those on a disk, and refused before they cost much."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hscc.data.readers import read_image
from hscc.data.spec import ImageSpec
from hscc.serving.errors import BadRequest
from hscc.serving.web import images
from hscc.serving.web.images import DICOM, decode
from hscc.serving.web.refusals import TooLarge, Unsupported
from PIL import Image

SPEC = ImageSpec((16, 16), 1, (0.5,), (0.25,), ("a", "b"))
COLOUR = ImageSpec((16, 16), 3, (0.5,) * 3, (0.25,) * 3, ("a", "b"))
MOST = 10_000


def picture(form: str, mode: str = "L", size: tuple[int, int] = (40, 30), **options) -> bytes:
    shape = (size[1], size[0], len(mode)) if mode != "L" else size[::-1]
    pixels = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **options)
    return out.getvalue()


def dicom(syntax: str = "ExplicitVRLittleEndian", **tags) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    from pydicom import uid
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = getattr(uid, syntax), uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    pixels = np.random.default_rng(0).integers(0, 1000, (20, 24), np.uint16)
    given = dict(Rows=20, Columns=24, SamplesPerPixel=1, BitsAllocated=16, BitsStored=16, HighBit=15)
    given |= dict(PixelRepresentation=0, PhotometricInterpretation="MONOCHROME2", PixelData=pixels.tobytes())
    given |= dict(WindowCenter=500, WindowWidth=1000, RescaleSlope=1, RescaleIntercept=-20)
    for key, value in (given | tags).items():
        setattr(data, key, value)
    out = io.BytesIO()
    pydicom.dcmwrite(out, data, enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize("spec", [SPEC, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize(
    ("body", "kind", "suffix"),
    [
        (picture("PNG"), "image/png", ".png"),
        (picture("PNG", "RGB"), "image/png", ".png"),
        (picture("PNG", "RGBA"), "image/png", ".png"),
        (picture("JPEG"), "image/jpeg", ".jpg"),
        (picture("JPEG", "RGB"), "image/jpeg", ".jpg"),
    ],
)
def test_pictures_are_read_as_from_a_disk(body: bytes, kind: str, suffix: str, spec: ImageSpec, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(body)
    assert torch.equal(decode(body, kind, spec, MOST), spec.preprocess(read_image(path, spec)[None]))


def test_dicom_is_read_as_from_a_disk(tmp_path: Path) -> None:
    body, path = dicom(), tmp_path / "x.dcm"
    path.write_bytes(body)
    assert torch.equal(decode(body, DICOM, SPEC, MOST), SPEC.preprocess(read_image(path, SPEC)[None]))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that says it is that large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(101, 100), (50_000, 50_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_that_would_be_large_is_never_decoded(size: tuple[int, int], monkeypatch) -> None:
    monkeypatch.setattr(images.rasters, "read", lambda *args: pytest.fail("decoded"))
    with pytest.raises((TooLarge, BadRequest), match="body: got"):
        decode(bomb(*size), "image/png", SPEC, MOST)


def test_dicom_that_would_be_large_is_never_decoded(monkeypatch) -> None:
    monkeypatch.setattr(images.dicom, "read", lambda *args: pytest.fail("decoded"))
    with pytest.raises(TooLarge, match="65535 x 65535"):
        decode(dicom(Rows=65535, Columns=65535), DICOM, SPEC, MOST)


def test_a_deflated_dicom_is_never_inflated(monkeypatch) -> None:
    monkeypatch.setattr(zlib, "decompress", lambda *args: pytest.fail("inflated"))
    body = dicom("DeflatedExplicitVRLittleEndian")
    with pytest.raises(BadRequest, match="deflated"):
        decode(body, DICOM, SPEC, MOST)


BAD = {
    "no picture": (b"GIF89a", "image/png", "damaged or other file"),
    "empty": (b"", "image/jpeg", "damaged or other file"),
    "a JPEG as PNG": (picture("JPEG"), "image/png", "damaged or other file"),
    "a TIFF as PNG": (picture("TIFF"), "image/png", "damaged or other file"),
    "half a PNG": (picture("PNG")[:300], "image/png", "damaged or other file"),
    "half a JPEG": (picture("JPEG")[:300], "image/jpeg", "damaged or other file"),
    "no DICOM": (b"\0" * 200, DICOM, "damaged or other file"),
    "a PNG as DICOM": (picture("PNG"), DICOM, "damaged or other file"),
    "a DICOM name of a file": (b"/etc/passwd", DICOM, "damaged or other file"),
    "several frames": (dicom(NumberOfFrames=4), DICOM, "4 frames"),
    "no pixels": (dicom(Rows=0), DICOM, "damaged or other file"),
    "pixels missing": (dicom(PixelData=b"\0" * 10), DICOM, "damaged or other file"),
    "no window": (dicom(WindowWidth=None), DICOM, "no window"),
}


@pytest.mark.parametrize(("body", "kind", "words"), BAD.values(), ids=BAD)
def test_refused(body: bytes, kind: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words) as caught:
        decode(body, kind, SPEC, MOST)
    assert "object at" not in str(caught.value)


def test_a_picture_for_values_with_units_is_refused() -> None:
    spec = ImageSpec((16, 16), 1, (0.5,), (0.25,), ("a", "b"), window=(-100, 300))
    with pytest.raises(BadRequest, match="8 bits or colours"):
        decode(picture("PNG"), "image/png", spec, MOST)


def test_without_pydicom(monkeypatch) -> None:
    def need(package: str, kind: str) -> None:
        raise ImportError(f"{kind} need {package}: pip install 'hscc[medical]'")

    monkeypatch.setattr(images, "need", need)
    with pytest.raises(Unsupported, match=r"pip install 'hscc\[medical\]'"):
        decode(b"", DICOM, SPEC, MOST)
