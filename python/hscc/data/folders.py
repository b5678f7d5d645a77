"""Datasets of files: all images of a folder, and those with labels, by class folders or a CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from . import dicom
from .labels import LabelTable, same
from .pixels import Unreadable
from .readers import READERS, find, items, read_image, reader
from .slices import Slices
from .spec import ImageSpec


class Pictures(Dataset):
    """All images below a folder, or of some files, without labels; items are float32 (C, H, W).

    Hidden files and folders are skipped. A volume or a file with several frames gives as many items.

    Args:
        files: a folder, or files in order.
        spec: how the network wants them.
        slices: which slices of volumes.
        skip_broken: opens every file once, here, and leaves out those that cannot be read.

    Attributes:
        items: file and frame of each.
        broken: the files left out.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no image is found, or with its name, here or when it is read, a file cannot be read.
        ImportError: a kind of file needs a package that is not installed.
    """

    def __init__(
        self,
        files: str | Path | Iterable[Path],
        spec: ImageSpec,
        *,
        slices: Slices | None = None,
        skip_broken: bool = False,
    ):
        slices = slices or Slices()
        place = "the files named"
        if isinstance(files, (str, Path)):
            place, root = repr(str(files)), Path(files)
            if not root.is_dir():
                raise FileNotFoundError(f"data: got {place}, expected a folder of images")
            files = find(root)
        self.spec, self.items, self.broken = spec, [], []
        for file in _in_series(files, slices):
            try:
                found = items(file, slices)
                for item in found if skip_broken else ():
                    read_image(item.path, spec, item.frame)
                self.items += found
            except Unreadable:
                if not skip_broken:
                    raise
                self.broken.append(file)
        if not self.items:
            but = f" but {len(self.broken)} that cannot be read" if self.broken else ""
            raise ValueError(f"data: got no images in {place}{but}, expected files ending in {sorted(READERS)}")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        path, frame = self.items[index]
        return self.spec.preprocess(read_image(path, self.spec, frame)[None])[0]


class Labelled(Dataset):
    """Images with labels; items are (float32 (C, H, W), label).

    Attributes:
        pictures: the images alone, as a dataset.
        labels: index of each item's class.
        groups: by name, e.g. ``"site"``, the value of each item.
        broken: files left out, as they cannot be read.
        unlisted: files left out, as the CSV has no row for them.
    """

    def __init__(self, pictures: Dataset, labels: Sequence[int], groups: Mapping[str, Sequence[str]] | None = None):
        self.pictures, self.labels = pictures, [int(label) for label in labels]
        self.groups = {name: [*values] for name, values in (groups or {}).items()}
        self.broken: list[Path] = getattr(pictures, "broken", [])
        self.unlisted: list[Path] = []

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pictures[index], self.labels[index]


class ClassFolders(Labelled):
    """A folder of class folders of images (``root/<class>/*.png``), or of any images with a CSV of their labels.

    With ``labels`` only the files that the CSV lists are taken. Its column ``label`` names the classes; without that
    column the class folders do. All others are groups. Without a CSV each class needs an image.

    Raises as :class:`Pictures` and :class:`LabelTable`, FileNotFoundError when one of the classes has no folder, and
    ValueError with the name for an unknown class, and for an empty one.
    """

    def __init__(
        self,
        root: str | Path,
        spec: ImageSpec,
        *,
        labels: str | Path | None = None,
        slices: Slices | None = None,
        skip_broken: bool = False,
    ):
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"data: got {str(root)!r}, expected a folder of class folders")
        table = None if labels is None else LabelTable.read(labels)
        named = table is not None and table.rows[0].label is not None
        known = dict.fromkeys(find(root)) if named else _by_folder(root, spec)
        rows = {} if table is None else table.match(root, [*known])
        wanted = {file: table.label(row, spec.classes) for file, row in rows.items()} if named else known
        beside = [file for file in rows if file not in wanted]
        if beside:
            raise ValueError(f"{table.path}: got {str(beside[0])!r}, expected an image in the folder of a class")
        pictures = Pictures(rows or wanted, spec, slices=slices, skip_broken=skip_broken)
        files = [item.path for item in pictures.items]
        names = [*next(iter(rows.values())).groups] if rows else []
        super().__init__(
            pictures,
            [wanted[file] for file in files],
            {name: [rows[file].groups[name] for file in files] for name in names},
        )
        self.unlisted = [file for file in known if file not in rows] if rows else []
        for label, name in enumerate(spec.classes if table is None else ()):
            if label not in self.labels:
                raise ValueError(f"data: got no images of class {name!r} in {str(root)!r}, expected one at least")


def _in_series(files: Iterable[Path], slices: Slices) -> list[Path]:
    """Files in their order, then those that are DICOM, of which slices choose some."""
    several = [(file, reader(file)) for file in files]
    others = [file for file, module in several if module is not dicom]
    return others + dicom.in_series([file for file, module in several if module is dicom], slices)


def _by_folder(root: Path, spec: ImageSpec) -> dict[Path, int]:
    """The label of each file in the class folders."""
    folders = {same(path.name): path for path in root.iterdir() if path.is_dir()}
    if any(same(name) not in folders for name in spec.classes):
        present = sorted(path.name for path in folders.values())
        raise FileNotFoundError(f"labels missing in {str(root)!r}: got {present}, expected {list(spec.classes)}")
    found = {file: label for label, name in enumerate(spec.classes) for file in find(folders[same(name)])}
    if not found:
        raise ValueError(f"data: got no images in {str(root)!r}, expected files ending in {sorted(READERS)}")
    return found
