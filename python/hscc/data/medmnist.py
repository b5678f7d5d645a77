"""The sets of MedMNIST (https://medmnist.com) by name, e.g. ``medmnist:pathmnist`` or ``medmnist:pathmnist_64:val``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from . import arrays
from .folders import Labelled
from .spec import ImageSpec

PREFIX = "medmnist:"
URL = "https://zenodo.org/records/10519652"  # of all files, version 3.0


def images(source: str, spec: ImageSpec) -> arrays.Arrays:
    """The images of a split, ``train`` when none is named. Raises as :func:`labelled`."""
    path, split = _find(source)
    return arrays.images(path, spec, split or "train")


def labelled(source: str, spec: ImageSpec) -> Labelled:
    """Images and labels of a split, ``test`` when none is named; labels are numbers in the order of the spec's classes.

    The file is ``.medmnist/<name>.npz`` in the home folder, where the package ``medmnist`` puts it; if it is missing,
    that package downloads it, where it is installed.

    Raises:
        FileNotFoundError: no such file; says where it is expected.
        ValueError: another split, several labels an image, volumes, or as :func:`hscc.data.arrays.labelled`.
    """
    path, split = _find(source)
    return arrays.labelled(path, spec, split or "test")


def _find(source: str) -> tuple[Path, str | None]:
    """(file, split) of ``medmnist:name[:split]``."""
    name, _, split = source.removeprefix(PREFIX).partition(":")
    if not name.replace("_", "").isalnum():
        raise ValueError(f"data: got {source!r}, expected e.g. 'medmnist:pathmnist' or 'medmnist:pathmnist:val'")
    if split and split not in arrays.SPLITS:
        raise ValueError(f"data: got split {split!r} in {source!r}, expected one of {list(arrays.SPLITS)}")
    path = Path.home() / ".medmnist" / f"{name.lower()}.npz"
    why = "" if path.is_file() else _download(path)
    if not path.is_file():
        raise FileNotFoundError(f"data: got {source!r}, expected its file at {str(path)!r}, from {URL}{why}")
    return path, split or None


def _download(path: Path) -> str:
    """Lets the package fetch the file, where there is one; else why it is not there."""
    name, _, size = path.stem.partition("_")
    try:
        package = import_module("medmnist")
        path.parent.mkdir(exist_ok=True)
        kind = getattr(package, package.INFO[name]["python_class"])
        kind(split="train", download=True, root=str(path.parent), size=int(size) if size else None)
    except ImportError:
        return ", or the package: pip install medmnist"
    except KeyError:
        return f" (the package medmnist knows no {name!r})"
    except Exception as error:  # no network, no space, another checksum
        return f" (the package medmnist says: {' '.join(str(error).split())})"
    return ""
