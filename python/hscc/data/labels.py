"""A CSV file that says which label, and which groups such as site or sex, the files have."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILE, LABEL = "file", "label"


@dataclass(frozen=True)
class Row:
    """What a line says of a file; ``label`` is None without such a column."""

    line: int
    file: str
    label: str | None
    groups: dict[str, str]


def same(name: str) -> str:
    """The name as one compares it: some file systems write é as two characters."""
    return unicodedata.normalize("NFC", name)


@dataclass(frozen=True)
class LabelTable:
    """The rows of a CSV with the columns ``file``, ``label`` (for class folders optional) and any others, the groups.

    UTF-8; commas, semicolons or tabs divide it, as its first line shows.
    """

    path: Path
    rows: tuple[Row, ...]

    @classmethod
    def read(cls, path: str | Path) -> LabelTable:
        """Raises FileNotFoundError, or ValueError with file and line for what is no such table."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"labels: got {str(path)!r}, expected a CSV file")
        try:
            text = path.read_text("utf-8-sig")
            table = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=text.partition("\n")[0].count))
            (_, columns), *lines = [(table.line_num, [*map(str.strip, cells)]) for cells in table] or [(0, [])]
        except UnicodeDecodeError as error:
            raise ValueError(f"labels: got {str(path)!r} in another encoding ({error}), expected UTF-8") from error
        except csv.Error as error:
            raise ValueError(f"labels: got {str(path)!r}, which is no table ({error}), expected a CSV file") from error
        if FILE not in columns or len({*columns}) < len(columns):
            raise ValueError(f"labels: got columns {columns} in {str(path)!r}, expected 'file', 'label', and groups")
        rows = []
        for line, cells in lines:
            if not any(cells):
                continue
            if len(cells) != len(columns):
                raise ValueError(f"{path}, line {line}: got {len(cells)} cells, expected {len(columns)}")
            groups = dict(zip(columns, cells, strict=True))
            rows.append(Row(line, groups.pop(FILE), groups.pop(LABEL, None), groups))
        if not rows:
            raise ValueError(f"labels: got no rows in {str(path)!r}, expected one a file")
        return cls(path, tuple(rows))

    def match(self, root: Path, files: Sequence[Path]) -> dict[Path, Row]:
        """The row of each file that has one, in the table's order.

        A row gives the path from ``root`` (or an absolute one), or a name alone that only one of ``files`` has.

        Raises:
            FileNotFoundError: a row whose file is not there.
            ValueError: a name that several files have, or a file that has two rows.
        """
        paths = {same(file.relative_to(root).as_posix()): file for file in files}
        names: dict[str, list[Path]] = {}
        for file in files:
            names.setdefault(same(file.name), []).append(file)
        found: dict[Path, Row] = {}
        for row in self.rows:
            place = f"{self.path}, line {row.line}: got file {row.file!r}"
            name = same(os.path.normpath(row.file.replace("\\", "/"))) if row.file else ""
            file = paths.get(name)
            if file is None and name in names:
                if len(names[name]) > 1:
                    several = " and ".join(repr(str(one)) for one in names[name][:2])
                    raise ValueError(f"{place}, which may be {several}, expected its path from {str(root)!r}")
                file = names[name][0]
            if file is None and name and (root / name).is_file():  # outside of the root
                file = root / name
            if file is None:
                raise FileNotFoundError(f"{place}, expected one in {str(root)!r}")
            if file in found:
                raise ValueError(f"{place}, which line {found[file].line} has, too, expected one row a file")
            found[file] = row
        return found

    def label(self, row: Row, classes: Sequence[str]) -> int:
        """The index of a row's class; ValueError with file and line for an unknown one."""
        for index, name in enumerate(classes):
            if same(name) == same(row.label or ""):
                return index
        raise ValueError(
            f"{self.path}, line {row.line}: got label {row.label!r} of {row.file!r}, expected one of {list(classes)}"
        )
