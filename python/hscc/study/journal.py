"""A folder with what a sweep has done so far: a kill loses the setting at hand and no more."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..io import checkpoint
from ..report import Report
from .grid import Setting
from .points import Point

_TYPE, _VERSION = "hscc.sweep", 1


@dataclass(frozen=True)
class Journal:
    """``sweep.json`` says what is studied; each setting has a file of figures and one of weights; ``points.json`` has
    them all, for ``hscc report --points``.

    Args:
        folder: made where it is not there.
        metadata: texts for the headers of the weights, as for :func:`hscc.save`.
    """

    folder: Path
    metadata: Mapping[str, str] = field(default_factory=dict)

    def open(self, subject: Mapping[str, str]) -> None:
        """Begins, or goes on where ``subject`` is what is studied here. Raises ValueError where it is another."""
        file = self.folder / "sweep.json"
        wanted = {"_type": _TYPE, "_version": _VERSION, **subject}
        if file.is_file():
            found = _read(file)
            other = [key for key in wanted if found.get(key) != wanted[key]]
            if other:
                raise ValueError(
                    f"folder: got {str(self.folder)!r}, which has a sweep of another {other[0].lstrip('_')}, expected "
                    "the same model, data and options, or a new folder"
                )
            return
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise ValueError(f"folder: got {str(self.folder)!r}, which has other files, expected a new or empty one")
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(file, wanted)

    def done(self, setting: Setting) -> Point | None:
        """What came of it, if it was finished."""
        file = self._file(setting, "json")
        if not file.is_file():
            return None
        try:
            return Point.from_dict(_read(file))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file}: got other JSON ({error}), expected a point of a sweep; delete it") from error

    def write(self, point: Point, model: nn.Module | None = None, report: Report | None = None) -> None:
        """The weights first: figures say that the setting is done."""
        if model is not None:
            checkpoint.save(model, self.weights(point.setting), report=report, metadata=self.metadata)
        _write(self._file(point.setting, "json"), point.to_dict())

    def conclude(self, points: Sequence[Point]) -> None:
        _write(self.folder / "points.json", [point.to_dict() for point in points if point.refused is None])

    def weights(self, setting: Setting) -> Path:
        return self._file(setting, "safetensors")

    def _file(self, setting: Setting, kind: str) -> Path:
        return self.folder / f"{setting.name}.{kind}"


def digest(tensors: Sequence[Tensor]) -> str:
    """Of values, shapes and dtypes."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def _read(file: Path) -> dict:
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: got no JSON ({error}), expected a file of a sweep; delete it") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: got {type(found).__name__}, expected a file of a sweep; delete it")
    return found


def _write(file: Path, data: dict | list) -> None:
    """An interrupted write leaves no half file."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    partial.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(partial, file)
