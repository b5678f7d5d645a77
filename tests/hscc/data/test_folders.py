"""Class folders and CSVs as people have them: other scripts, same names, missing, empty, broken, mixed."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hscc.data.folders import ClassFolders, Pictures
from hscc.data.labels import LabelTable
from hscc.data.sources import open_images, open_labelled
from hscc.data.spec import ImageSpec
from PIL import Image

SPEC = ImageSpec((8, 8), 1, (0,), (1,), ("healthy", "sick"))


def draw(*files: Path, level: int = 100, size: tuple[int, int] = (8, 8)) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(size, level, np.uint8)).save(file)


def table(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def names(images: ClassFolders) -> list[str]:
    return [item.path.name for item in images.pictures.items]


def test_names_of_all_kinds(tmp_path: Path) -> None:
    """Spaces and other scripts; é as one character in the spec and as two on the disk, and the other way round."""
    classes = ("healthy tissue", "Tumör é", "опухоль", "腫瘍")
    spec = ImageSpec((8, 8), 1, (0,), (1,), classes)
    for i, name in enumerate(classes):
        draw(tmp_path / unicodedata.normalize("NFD", name) / f"картина {i} ü.png", level=i)
    images = ClassFolders(tmp_path, spec)
    assert images.labels == [0, 1, 2, 3]
    assert [round(255 * float(image.mean())) for image, _ in images] == [0, 1, 2, 3]
    rows = [f"{name}/картина {i} ü.png,{name},Zürich" for i, name in enumerate(classes)]
    csv = table(tmp_path / "Etiketten é.csv", "file,label,site", *map(str.strip, rows))
    assert ClassFolders(tmp_path, spec, labels=csv).labels == [0, 1, 2, 3]


def test_mixed_sizes_and_kinds_make_one_batch(tmp_path: Path) -> None:
    for i, name in enumerate(("x.png", "x.jpg", "x.tif", "x.bmp", "x.webp")):
        draw(tmp_path / "sick" / name, size=(5 + 9 * i, 40 - 7 * i))
    draw(tmp_path / "healthy" / "x.png", size=(1, 1))
    images, _ = next(iter(torch.utils.data.DataLoader(ClassFolders(tmp_path, SPEC), 6)))
    assert images.shape == (6, 1, 8, 8)
    torch.testing.assert_close(images, torch.full_like(images, 100 / 255), rtol=0, atol=0.02)


def test_a_class_with_one_image_and_one_with_none(tmp_path: Path) -> None:
    draw(tmp_path / "healthy" / "x.png", tmp_path / "sick" / "x.png", tmp_path / "sick" / "y.png")
    assert ClassFolders(tmp_path, SPEC).labels == [0, 1, 1]
    (tmp_path / "healthy" / "x.png").unlink()
    (tmp_path / "healthy" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"data: got no images of class 'healthy' in '.*', expected one at least"):
        ClassFolders(tmp_path, SPEC)
    with pytest.raises(FileNotFoundError, match=r"labels missing in '.*': got \['healthy', 'sick'\], expected"):
        ClassFolders(tmp_path, ImageSpec((8, 8), 1, (0,), (1,), ("healthy", "ill")))
    (tmp_path / "sick" / "x.png").write_bytes(b"")
    (tmp_path / "sick" / "y.png").write_bytes(b"")
    draw(tmp_path / "healthy" / "x.png")
    with pytest.raises(ValueError, match="data: got no images of class 'sick'"):
        ClassFolders(tmp_path, SPEC, skip_broken=True)


def test_labels_and_groups(tmp_path: Path) -> None:
    draw(*(tmp_path / "images" / f"{i}.png" for i in range(4)))
    rows = ("2.png,sick,Oslo,f", '"0.png",healthy,"Köln, Süd",m', "", "3.png,sick,,f")
    csv = table(tmp_path / "labels.csv", "file,label,site,sex", *rows)
    images = ClassFolders(tmp_path / "images", SPEC, labels=csv)
    assert names(images) == ["2.png", "0.png", "3.png"]
    assert images.labels == [1, 0, 1]
    assert images.groups == {"site": ["Oslo", "Köln, Süd", ""], "sex": ["f", "m", "f"]}
    assert [file.name for file in images.unlisted] == ["1.png"]  # the file without a row
    assert images[0][1] == 1


@pytest.mark.parametrize(("divider", "encoding"), [(";", "utf-8"), ("\t", "utf-8-sig"), (",", "utf-8-sig")])
def test_spreadsheets(tmp_path: Path, divider: str, encoding: str) -> None:
    draw(tmp_path / "a" / "x.png")
    lines = [divider.join(cells) for cells in ((" file ", "site", "label"), ("a\\x.png", "Köln", " sick "))]
    csv = table(tmp_path / "labels.csv", *lines, encoding=encoding)
    images = open_labelled(csv, SPEC)  # the folder is the CSV's
    assert (images.labels, images.groups) == ([1], {"site": ["Köln"]})


def test_groups_beside_class_folders(tmp_path: Path) -> None:
    draw(tmp_path / "healthy" / "x.png", tmp_path / "sick" / "x.png", tmp_path / "sick" / "y.png")
    csv = table(tmp_path / "groups.csv", "file,site", "sick/y.png,Oslo", "healthy/x.png,Bonn")
    images = ClassFolders(tmp_path, SPEC, labels=csv)
    assert (images.labels, images.groups) == ([1, 0], {"site": ["Oslo", "Bonn"]})
    assert images.unlisted == [tmp_path / "sick" / "x.png"]
    draw(tmp_path / "other" / "z.png")
    with pytest.raises(FileNotFoundError, match=r"line 2: got file 'gone\.png', expected one in"):
        ClassFolders(tmp_path, SPEC, labels=table(csv, "file,site", "gone.png,Oslo"))
    with pytest.raises(ValueError, match=r"groups\.csv: got '.*z\.png', expected an image in the folder of a class"):
        ClassFolders(tmp_path, SPEC, labels=table(csv, "file,site", "other/z.png,Oslo"))


def test_one_name_in_two_folders(tmp_path: Path) -> None:
    draw(tmp_path / "p1" / "x.png", level=10)
    draw(tmp_path / "p2" / "x.png", tmp_path / "p2" / "y.png", level=20)
    csv = table(tmp_path / "labels.csv", "file,label", "p2/x.png,sick", "p1/x.png,healthy", "y.png,sick")
    images = ClassFolders(tmp_path, SPEC, labels=csv)
    assert images.labels == [1, 0, 1]
    assert [round(255 * float(image.mean())) for image, _ in images] == [20, 10, 20]
    table(csv, "file,label", "x.png,sick")
    with pytest.raises(
        ValueError, match=r"csv, line 2: got file 'x\.png', which may be '.*' and '.*', expected its path"
    ):
        ClassFolders(tmp_path, SPEC, labels=csv)


def test_files_outside_of_the_folder(tmp_path: Path) -> None:
    draw(tmp_path / "far" / "x.png", tmp_path / "far" / "y.png", tmp_path / "root" / "z.png")
    rows = (f"{tmp_path / 'far' / 'x.png'},sick", "../far/y.png,healthy", "./z.png,sick")
    images = ClassFolders(tmp_path / "root", SPEC, labels=table(tmp_path / "labels.csv", "file,label", *rows))
    assert names(images) == ["x.png", "y.png", "z.png"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,label", "x.png,sick", "y.png,sick"], r"labels\.csv, line 3: got file 'y\.png', expected one in"),
        (
            ["file,label", "x.png,ill"],
            r"csv, line 2: got label 'ill' of 'x\.png', expected one of \['healthy', 'sick'\]",
        ),
        (["file,label", "x.png,"], r"csv, line 2: got label '' of 'x\.png', expected one of"),
        (["file,label", ",sick"], r"csv, line 2: got file '', expected one in"),
        (
            ["file,label", "x.png,sick", "./x.png,sick"],
            r"line 3: got file '\./x\.png', which line 2 has, too, expected",
        ),
        (["file,label", "x.png,sick,Oslo"], "csv, line 2: got 3 cells, expected 2"),
        (["file,label", "x.png"], "csv, line 2: got 1 cells, expected 2"),
        (["file,label", "notes.txt,sick"], r"image '.*notes\.txt': got a file of another kind, expected one ending in"),
        (["file,label"], r"labels: got no rows in '.*labels\.csv', expected one a file"),
        (
            ["name,label", "x.png,sick"],
            r"labels: got columns \['name', 'label'\] in '.*', expected 'file', 'label', and",
        ),
        (["file,label,file", "x.png,sick,y"], r"labels: got columns \['file', 'label', 'file'\] in"),
        (["file,site", "x.png,Oslo"], r"labels missing in '.*': got \[\], expected \['healthy', 'sick'\]"),
        ([], r"labels: got columns \[\] in"),
    ],
)
def test_wrong_tables(tmp_path: Path, lines: list[str], message: str) -> None:
    draw(tmp_path / "x.png")
    (tmp_path / "notes.txt").write_text("no image")
    csv = table(tmp_path / "labels.csv", *lines)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        ClassFolders(tmp_path, SPEC, labels=csv)
    assert len(str(error.value).splitlines()) == 1


def test_tables_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("file,label\nü.png,sick".encode("utf-16"))
    with pytest.raises(ValueError, match=r"labels: got '.*x\.csv' in another encoding \(.*\), expected UTF-8"):
        LabelTable.read(tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError, match=r"labels: got '.*y\.csv', expected a CSV file"):
        open_labelled(tmp_path / "y.csv", SPEC)
    (tmp_path / "x.csv").write_bytes(b'file,label\n"' + b"x" * 200_000)
    with pytest.raises(ValueError, match=r"labels: got '.*x\.csv', which is no table"):
        LabelTable.read(tmp_path / "x.csv")


def test_broken_files_are_left_out_on_request(tmp_path: Path) -> None:
    draw(*(tmp_path / name / f"{i}.png" for name in SPEC.classes for i in range(3)))
    broken = [tmp_path / "healthy" / "1.png", tmp_path / "sick" / "2.png"]
    broken[0].write_bytes(b"<html>404</html>")
    broken[1].write_bytes((tmp_path / "sick" / "1.png").read_bytes()[:50])
    lazy = ClassFolders(tmp_path, SPEC)
    assert (len(lazy), lazy.broken) == (6, [])
    with pytest.raises(ValueError, match=r"unreadable image '.*1\.png'"):
        lazy[1]
    images = ClassFolders(tmp_path, SPEC, skip_broken=True)
    assert (images.labels, images.broken) == ([0, 0, 1, 1], broken)
    assert names(images) == ["0.png", "2.png", "0.png", "1.png"]
    rows = [f"{name}/{i}.png,{name},{i}" for name in SPEC.classes for i in range(3)]
    csv = table(tmp_path / "labels.csv", "file,label,number", *rows)
    images = ClassFolders(tmp_path, SPEC, labels=csv, skip_broken=True)
    assert (images.labels, images.groups["number"]) == ([0, 0, 1, 1], ["0", "2", "0", "1"])
    assert Pictures(tmp_path, SPEC, skip_broken=True).broken == broken
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"data: got no images in '.*' but 6 that cannot be read, expected files"):
        Pictures(tmp_path, SPEC, skip_broken=True)


def test_sources(tmp_path: Path) -> None:
    draw(tmp_path / "d" / "healthy" / "x.png", tmp_path / "d" / "sick" / "y.png", tmp_path / "d" / "sick" / "z.png")
    csv = table(tmp_path / "d" / "some.csv", "file", "sick/z.png", "healthy/x.png")
    assert len(open_images(tmp_path / "d", SPEC)) == 3
    assert [item.path.name for item in open_images(str(csv), SPEC).items] == ["z.png", "x.png"]
    assert [item.path.name for item in open_images(tmp_path / "d", SPEC, labels=csv).items] == ["z.png", "x.png"]
    assert len(open_images(tmp_path / "d" / "sick" / "y.png", SPEC)) == 1
    assert open_labelled(str(tmp_path / "d"), SPEC).labels == [0, 1, 1]
    own = torch.utils.data.TensorDataset(torch.zeros(3, 1, 8, 8), torch.zeros(3))
    assert open_images(own, SPEC) is own
    assert open_labelled(own, SPEC) is own


@pytest.mark.parametrize("source", ["nowhere", "x.txt", "x.png"])
def test_sources_without_labels(tmp_path: Path, monkeypatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "x.png")
    (tmp_path / "x.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=f"data: got '{source}', expected a folder of class folders"):
        open_labelled(source, SPEC)
    with pytest.raises(ValueError, match=f"data: got '{source}' with a CSV of labels, expected a folder"):
        open_labelled(source, SPEC, labels="x.csv")
    if source != "x.png":
        with pytest.raises(FileNotFoundError, match=f"data: got '{source}', expected a folder of images"):
            open_images(source, SPEC)
