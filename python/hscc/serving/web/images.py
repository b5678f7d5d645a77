"""Pictures and DICOM files in a request's body become a model's input, in memory."""

from __future__ import annotations

import io

from torch import Tensor

from ...data import dicom, rasters
from ...data.pixels import Unreadable, need, resized
from ...data.spec import ImageSpec
from ..errors import BadRequest
from .refusals import TooLarge, Unsupported

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG"}
DICOM = "application/dicom"
KINDS = (*FORMATS, DICOM)
DEFLATED = b"1.2.840.10008.1.2.1.99"  # a transfer syntax that is inflated as a whole, whatever it becomes


class Upload(io.BytesIO):
    """Bytes for the readers, which name what they read by ``str``."""

    def __str__(self) -> str:
        return "body"


def decode(body: bytes | bytearray, kind: str, spec: ImageSpec, pixels: int) -> Tensor:
    """A file of a content type of :data:`KINDS` -> float32 (1, C, H, W), as ``hscc.data`` reads it from a disk.

    Args:
        pixels: H x W of the file, at most; checked in its header, before anything is decoded.

    Raises:
        BadRequest: damaged, of another format, of several frames, or without the window that its values need.
        TooLarge: more pixels than allowed.
        Unsupported: the package that reads this kind is not installed, or its compression is not read.
    """
    try:
        height, width = _dicom_size(body) if kind == DICOM else _picture_size(body, FORMATS[kind])
        if height * width > pixels:
            raise TooLarge(f"body: got {height} x {width} pixels, expected at most {pixels} in all")
        read = dicom.read if kind == DICOM else rasters.read
        return spec.preprocess(resized(read(Upload(body), 0, spec), spec.size)[None])
    except Unreadable as error:  # whose words are a library's
        raise BadRequest(f"body: got a damaged or other file, expected {kind}") from error
    except ImportError as error:
        raise Unsupported(f"body: got {kind} that cannot be read here: {error}") from error
    except ValueError as error:
        raise error if isinstance(error, BadRequest | TooLarge) else BadRequest(str(error)) from error


def _picture_size(body: bytes | bytearray, form: str) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(Upload(body), formats=[form]) as image:
            width, height = image.size
    except Exception as error:  # nearly anything, of a damaged file
        raise Unreadable("body", error) from error
    return height, width


def _dicom_size(body: bytes | bytearray) -> tuple[int, int]:
    if DEFLATED in body:
        raise BadRequest("body: got a deflated DICOM file, expected one of another transfer syntax")
    pydicom = need("pydicom", "DICOM files")
    try:
        header = pydicom.dcmread(Upload(body), stop_before_pixels=True)
        height, width = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
        frames, samples = int(header.get("NumberOfFrames") or 1), int(header.get("SamplesPerPixel") or 1)
    except Exception as error:
        raise Unreadable("body", error) from error
    if frames != 1 or samples not in (1, 3):
        raise BadRequest(f"body: got {frames} frames of {samples} samples, expected one of 1 or 3")
    return height, width
