"""DICOM as scanners write it: units, windows, inverted, compressed, frames, series, colours, damage."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hscc.data.folders import ClassFolders, Pictures
from hscc.data.pixels import Unreadable
from hscc.data.readers import Item, read_image
from hscc.data.slices import Slices
from hscc.data.spec import ImageSpec
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    RLELossless,
    generate_uid,
)

GREY = ImageSpec((16, 16), 1, (0,), (1,), ("a",))
COLOUR = ImageSpec((16, 16), 3, (0,) * 3, (1,) * 3, ("a",))
SOFT = ImageSpec((16, 16), 1, (0,), (1,), ("a",), window=(-160, 240))
RAMP = np.linspace(0, 3000, 256).reshape(16, 16).astype(np.uint16)
BYTES = np.arange(256, dtype=np.uint8).reshape(16, 16)
CT = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def dataset(pixels: np.ndarray, **fields) -> Dataset:
    """Stored values (H, W), (n, H, W) or with colour (H, W, 3), and any other fields."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.Modality, ds.SeriesInstanceUID = "CT", generate_uid()
    colour = pixels.shape[-1] == 3
    shape = pixels.shape[:-1] if colour else pixels.shape
    ds.Rows, ds.Columns = shape[-2:]
    if len(shape) == 3:
        ds.NumberOfFrames = shape[0]
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        ds.PlanarConfiguration = 0
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for name, value in fields.items():
        setattr(ds, name, value)
    return ds


def write(path: Path, pixels: np.ndarray, **fields) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset(pixels, **fields).save_as(path, enforce_file_format=True)
    return path


def test_hounsfield(tmp_path: Path) -> None:
    file = write(tmp_path / "x.dcm", RAMP, **CT)
    want = ((RAMP.astype(float) - 1024 + 160) / 400).clip(0, 1)
    got = read_image(file, SOFT)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(Pictures(tmp_path, SOFT)[0][0], want, atol=1e-6)
    signed = write(tmp_path / "y.dcm", RAMP.astype(np.int16) - 1024)
    np.testing.assert_allclose(read_image(signed, SOFT), want, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({"WindowCenter": 40, "WindowWidth": 400}, (-160, 239)),
        ({"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"}, (-160, 240)),
        ({"WindowCenter": [40, 600], "WindowWidth": [400, 1600]}, (-160, 239)),
    ],
)
def test_the_files_own_window(tmp_path: Path, fields: dict, ends: tuple[float, float]) -> None:
    file = write(tmp_path / "x.dcm", RAMP, **CT, **fields)
    want = ((RAMP.astype(float) - 1024 - ends[0]) / (ends[1] - ends[0])).clip(0, 1)
    np.testing.assert_allclose(read_image(file, GREY), want, atol=1e-6)
    voi = pydicom.pixels.apply_voi_lut(RAMP.astype(float) - 1024, pydicom.dcmread(file))  # the library's own
    np.testing.assert_allclose(want, (voi - voi.min()) / (voi.max() - voi.min()), atol=1e-5)
    np.testing.assert_allclose(read_image(file, SOFT), ((RAMP - 864.0) / 400).clip(0, 1), atol=1e-6)  # the spec's wins


def test_windows_that_are_missing_or_unknown(tmp_path: Path) -> None:
    file = write(tmp_path / "x.dcm", RAMP, **CT)
    with pytest.raises(ValueError, match=r"x\.dcm': got floats from -1024 to 1976 and no window, expected") as error:
        read_image(file, GREY)
    assert not isinstance(error.value, Unreadable)
    write(file, RAMP, **CT, WindowCenter=40, WindowWidth=400, VOILUTFunction="SIGMOID")
    with pytest.raises(ValueError, match=r"x\.dcm': got a window of kind SIGMOID, expected LINEAR, or ImageSpec"):
        read_image(file, GREY)
    assert read_image(file, SOFT).max() == 1


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    plain = write(tmp_path / "x.dcm", RAMP, WindowCenter=1500, WindowWidth=2000)
    inverse = write(
        tmp_path / "y.dcm", RAMP, WindowCenter=1500, WindowWidth=2000, PhotometricInterpretation="MONOCHROME1"
    )
    np.testing.assert_allclose(read_image(inverse, GREY), 1 - read_image(plain, GREY), atol=1e-6)
    small = write(tmp_path / "z.dcm", BYTES, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_image(small, GREY), 255 - BYTES)


def test_8_bits_and_colours(tmp_path: Path) -> None:
    grey = write(tmp_path / "x.dcm", BYTES, RescaleSlope=1, RescaleIntercept=0)
    assert np.array_equal(read_image(grey, GREY), BYTES)
    pixels = np.stack([BYTES, BYTES.T, 255 - BYTES], -1)
    colour = write(tmp_path / "y.dcm", pixels)
    assert np.array_equal(read_image(colour, COLOUR), pixels)
    for file in (grey, colour):
        with pytest.raises(ValueError, match="got 8 bits or colours, expected values in the units of the window -160"):
            read_image(file, SOFT)
    scaled = write(tmp_path / "z.dcm", BYTES, RescaleSlope=2, RescaleIntercept=-160)
    np.testing.assert_allclose(read_image(scaled, SOFT), (BYTES / 200).clip(0, 1), atol=1e-6)


def test_16_bit_colours_of_either_order(tmp_path: Path) -> None:
    pixels = np.stack([BYTES, BYTES.T, 255 - BYTES], -1).astype(np.uint16) * 257
    assert np.array_equal(read_image(write(tmp_path / "x.dcm", pixels), COLOUR), pixels // 257)
    ds = dataset(pixels.astype(">u2"))
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    ds.save_as(tmp_path / "y.dcm", enforce_file_format=True)
    assert np.array_equal(read_image(tmp_path / "y.dcm", COLOUR), pixels // 257)


def test_fewer_than_8_bits_have_no_known_white(tmp_path: Path) -> None:
    file = write(tmp_path / "x.dcm", BYTES // 64, BitsStored=2, HighBit=1)
    with pytest.raises(ValueError, match=r"x\.dcm': got uint8 values from 0 to 3 and no window"):
        read_image(file, GREY)


def test_palettes(tmp_path: Path) -> None:
    fields = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in (("Red", BYTES), ("Green", 255 - BYTES), ("Blue", BYTES // 2)):
        fields[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        fields[f"{name}PaletteColorLookupTableData"] = (table.astype(np.uint16) * 257).tobytes()
    file = write(tmp_path / "x.dcm", BYTES, **fields)
    assert np.array_equal(read_image(file, COLOUR), np.stack([BYTES, 255 - BYTES, BYTES // 2], -1))


def test_other_sizes(tmp_path: Path) -> None:
    file = write(tmp_path / "x.dcm", np.kron(RAMP, np.ones((3, 2), np.uint16)), **CT)
    got = read_image(file, SOFT)
    assert got.shape == (16, 16)
    assert np.abs(got - ((RAMP - 864.0) / 400).clip(0, 1)).max() < 0.06  # neighbours count, too


def test_frames(tmp_path: Path) -> None:
    stack = np.stack([np.full((16, 16), 1000 * i, np.uint16) for i in range(4)])
    file = write(tmp_path / "x.dcm", stack, WindowCenter=2000, WindowWidth=4000, VOILUTFunction="LINEAR_EXACT")
    pictures = Pictures(tmp_path, GREY)
    assert pictures.items == [Item(file, i) for i in range(4)]
    assert [round(float(pictures[i].mean()), 4) for i in range(4)] == [0, 0.25, 0.5, 0.75]
    assert Pictures(tmp_path, GREY, slices=Slices(share=(0.4, 1))).items == [Item(file, i) for i in (2, 3)]


def functional(slope: float, center: float) -> Dataset:
    rescale, window, group = Dataset(), Dataset(), Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = slope, 0
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = center, 1000, "LINEAR_EXACT"
    group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [rescale], [window]
    return group


def test_enhanced_frames_state_their_own(tmp_path: Path) -> None:
    stack = np.full((2, 16, 16), 250, np.uint16)
    groups = [functional(1, 500), functional(3, 500)]
    file = write(tmp_path / "x.dcm", stack, PerFrameFunctionalGroupsSequence=groups)
    assert [read_image(file, GREY, i)[0, 0] for i in (0, 1)] == [0.25, 0.75]
    write(file, stack, SharedFunctionalGroupsSequence=[functional(2, 500)])
    assert [read_image(file, GREY, i)[0, 0] for i in (0, 1)] == [0.5, 0.5]


def test_a_series_is_a_volume(tmp_path: Path) -> None:
    """Files without a suffix, named against the order of the slices."""
    uid, sides = generate_uid(), [1, 0, 0, 0, 1, 0]
    for i in range(6):
        place = {"SeriesInstanceUID": uid, "ImagePositionPatient": [0, 0, -5.0 * i], "ImageOrientationPatient": sides}
        write(tmp_path / "a" / f"IM{i}", np.full((16, 16), i * 100, np.uint16), **place, InstanceNumber=i)
    write(tmp_path / "a" / "1.2.840.5", RAMP)
    (tmp_path / "a" / "README").write_text("no image")
    (tmp_path / "a" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    names = [item.path.name for item in Pictures(tmp_path, SOFT).items]
    assert names == ["1.2.840.5", "IM5", "IM4", "IM3", "IM2", "IM1", "IM0"]
    folders = ClassFolders(tmp_path, SOFT, slices=Slices(share=(0.3, 0.7)))
    assert [item.path.name for item in folders.pictures.items] == ["1.2.840.5", "IM3", "IM2"]
    assert folders.labels == [0, 0, 0]
    with pytest.raises(ValueError, match="got 1 slices, expected one with index 3"):
        Pictures(tmp_path, SOFT, slices=Slices(indices=(3,)))


def test_numbers_order_radiographs(tmp_path: Path) -> None:
    uid = generate_uid()
    for i in range(3):
        write(tmp_path / f"{i}.dcm", RAMP, SeriesInstanceUID=uid, InstanceNumber=9 - i)
    assert [item.path.name for item in Pictures(tmp_path, SOFT).items] == ["2.dcm", "1.dcm", "0.dcm"]


def test_rle(tmp_path: Path) -> None:
    ds = dataset(RAMP, **CT)
    ds.compress(RLELossless)
    ds.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    np.testing.assert_allclose(read_image(tmp_path / "x.dcm", SOFT), ((RAMP - 864.0) / 400).clip(0, 1), atol=1e-6)
    ds = dataset(np.stack([RAMP, RAMP[::-1]]), **CT)
    ds.compress(RLELossless)
    ds.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    both = Pictures(tmp_path, SOFT)
    assert both[0].max() == 1
    assert both[0].equal(both[1].flip(1))


@pytest.mark.parametrize(
    ("syntax", "name", "plugins"),
    [
        (JPEGLosslessSV1, "JPEG Lossless", ()),
        (MPEG2MPML, "MPEG2", ("pillow",)),
        (JPEGExtended12Bit, "JPEG Extended", ("pillow",)),  # Pillow reads its 8 bits, not its 12
    ],
)
def test_what_nothing_decompresses(tmp_path: Path, monkeypatch, syntax, name: str, plugins: tuple) -> None:
    monkeypatch.setattr(pydicom.pixels.decoders.base.Decoder, "available_plugins", plugins)
    ds = dataset(RAMP)
    ds.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    with pytest.raises(ImportError, match=rf"x\.dcm': got pixels compressed as {name}.*, which need pylibjpeg: pip"):
        read_image(tmp_path / "x.dcm", SOFT)
    with pytest.raises(ImportError, match="pylibjpeg"):  # it is not the file that is broken
        Pictures(tmp_path, SOFT, skip_broken=True)


@pytest.mark.filterwarnings("ignore")
def test_damage(tmp_path: Path) -> None:
    file = write(tmp_path / "x.dcm", RAMP, **CT)
    whole, generator = file.read_bytes(), np.random.default_rng(0)
    cases = [b"", b"no DICOM", whole[:100], whole[:200], whole[:-200], whole.replace(b"MONOCHROME2 ", b"")]
    for at in generator.integers(132, len(whole) - 512, 60):
        cases.append(whole[:at] + generator.bytes(8) + whole[at + 8 :])
    failed = 0
    for case in cases:
        file.write_bytes(case)
        try:
            assert Pictures([file], SOFT)[0].shape == (1, 16, 16)
        except ValueError as error:
            assert "x.dcm'" in str(error)  # noqa: PT017
            assert len(str(error).splitlines()) == 1  # noqa: PT017
            failed += 1
        except ImportError as error:
            assert "x.dcm'" in str(error)  # noqa: PT017
    assert failed > 5
    file.write_bytes(whole[:-200])
    good = write(tmp_path / "y.dcm", RAMP, **CT)
    skipping = Pictures(tmp_path, SOFT, skip_broken=True)
    assert ([item.path for item in skipping.items], skipping.broken) == ([good], [file])


def test_a_report_has_no_pixels(tmp_path: Path) -> None:
    ds = dataset(RAMP, Modality="SR")
    for name in ("PixelData", "Rows", "Columns"):
        delattr(ds, name)
    ds.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    with pytest.raises(Unreadable, match=r"x\.dcm': got no pixels \(modality SR\), expected an image"):
        read_image(tmp_path / "x.dcm", SOFT)


def test_without_pydicom(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "x.dcm", RAMP)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    for skip_broken in (False, True):
        with pytest.raises(ImportError, match=r"^DICOM files need pydicom: pip install 'hscc\[medical\]'$"):
            Pictures(tmp_path, SOFT, skip_broken=skip_broken)
