"""The dataset of what a command line names: a folder, a file, a CSV, a set of MedMNIST."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import Dataset

from . import arrays, figshare, medmnist
from .folders import ClassFolders, Labelled, Pictures
from .labels import LabelTable
from .readers import find, reader
from .slices import Slices
from .spec import ImageSpec


def open_images(
    source: str | Path | Dataset,
    spec: ImageSpec,
    *,
    labels: str | Path | None = None,
    slices: Slices | None = None,
    skip_broken: bool = False,
) -> Dataset:
    """Images without labels; items are float32 (C, H, W). A dataset is given back as it is.

    Args:
        source: a folder, a file of images (picture, DICOM, NIfTI, ``.mat``, ``.npy``, ``.npz``), a CSV of files beside
            it, or ``medmnist:name``.
        spec: how the network wants them.
        labels: a CSV: of a folder, only the files that it lists.
        slices: which slices of volumes; None is all.
        skip_broken: opens every file once and leaves out those that cannot be read, see :class:`Pictures`.

    Raises:
        FileNotFoundError, ValueError, ImportError: as the classes and functions that read them.
    """
    if isinstance(source, Dataset):
        return source
    path, labels = _split(source, labels)
    if path is None:
        return medmnist.images(str(source), spec)
    if _is_array(path):
        return arrays.images(path, spec)
    if path.is_dir() and labels is not None:
        files = LabelTable.read(labels).match(path, find(path))
        return Pictures(files, spec, slices=slices, skip_broken=skip_broken)
    single = [path] if path.is_file() and reader(path) else path
    return Pictures(single, spec, slices=slices, skip_broken=skip_broken)


def open_labelled(
    source: str | Path | Dataset,
    spec: ImageSpec,
    *,
    labels: str | Path | None = None,
    slices: Slices | None = None,
    skip_broken: bool = False,
) -> Labelled | Dataset:
    """Images with labels; items are (float32 (C, H, W), label). A dataset is given back as it is.

    Arguments and errors are those of :func:`open_images`. Labels are those of ``labels``, else of the class folders, of
    the ``.npz``, or of Figshare's ``.mat`` files themselves.
    """
    if isinstance(source, Dataset):
        return source
    path, labels = _split(source, labels)
    if path is None:
        return medmnist.labelled(str(source), spec)
    if _is_array(path):
        return arrays.labelled(path, spec)
    if labels is None:
        files = [path] if path.is_file() else _unsorted(path, spec)
        if files and all(reader(file) is figshare for file in files):
            pictures = Pictures(files, spec, skip_broken=skip_broken)
            found = [item.path for item in pictures.items]
            groups = {"patient": [figshare.patient(file) for file in found]}
            return Labelled(pictures, [figshare.label(file, spec) for file in found], groups)
    return ClassFolders(path, spec, labels=labels, slices=slices, skip_broken=skip_broken)


def _split(source: str | Path, labels: str | Path | None) -> tuple[Path | None, str | Path | None]:
    """(path, labels), of a CSV its folder and itself; no path for MedMNIST."""
    path = None if str(source).startswith(medmnist.PREFIX) else Path(source)
    if labels is not None and (path is None or not path.is_dir()):
        raise ValueError(f"data: got {str(source)!r} with a CSV of labels, expected a folder")
    return (path.parent, path) if path is not None and _is_csv(path) else (path, labels)


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and not path.is_dir()


def _is_array(path: Path) -> bool:
    return path.suffix.lower() in arrays.SUFFIXES and not path.is_dir()


def _unsorted(root: Path, spec: ImageSpec) -> list[Path]:
    """The images of a folder that has no folder of a class."""
    if not root.is_dir() or any((root / name).is_dir() for name in spec.classes):
        return []
    return find(root)
