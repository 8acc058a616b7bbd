"""Names of samples from a COCO file's images: each its own, each of a file that is there."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segtrain.data.coco.folder import FolderInstances
from segtrain.data.coco.samples import record_names
from segtrain.errors import DataError

pytest.importorskip("pycocotools")


def folder(root: Path, listed: list[str], there: list[str]) -> FolderInstances:
    """Data whose file lists some images, and whose folder holds others."""
    images = [{"id": number, "file_name": name, "width": 8, "height": 6} for number, name in enumerate(listed)]
    content: dict[str, Any] = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "nut"}]}
    (root / "annotations").mkdir()
    (root / "annotations/train.json").write_text(json.dumps(content), encoding="utf-8")
    (root / "images").mkdir()
    for name in there:
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(root / "images" / name)
    return FolderInstances(split="train", root=str(root), classes=["background", "nut"])


NAMES = [
    (["a.jpg", "sub/a.jpg", "b.png"], ["a", "sub/a", "b"]),
    (["1.jpg", "1.png", "2.png"], ["1.jpg", "1.png", "2"]),
    (["1.jpg", "1.png", "1.jpg.png"], ["1.jpg", "1.png", "1.jpg.png"]),
]


@pytest.mark.parametrize(("files", "names"), NAMES)
def test_names_are_unique(tmp_path: Path, files: list[str], names: list[str]) -> None:
    assert record_names(files) == names
    assert [record.name for record in folder(tmp_path, files, files).records] == names


def test_a_file_listed_twice_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 image files are listed more than once") as caught:
        folder(tmp_path, ["a.jpg", "b.jpg", "./a.jpg"], ["a.jpg", "b.jpg"])
    assert str(caught.value.where).splitlines()[1:] == ["a.jpg"]


def test_a_missing_image_is_one_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 4 files") as caught:
        folder(tmp_path, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], ["a.jpg", "b.jpg", "d.jpg"])
    assert "is there as" not in str(caught.value.fix)


OTHERWISE = [
    ("sub\\a.jpg", "sub/a.jpg"),
    (unicodedata.normalize("NFC", "Kühler.jpg"), unicodedata.normalize("NFD", "Kühler.jpg")),
    (unicodedata.normalize("NFD", "Kühler.jpg"), unicodedata.normalize("NFC", "Kühler.jpg")),
]


@pytest.mark.parametrize(("listed", "there"), OTHERWISE, ids=["backslash", "NFC", "NFD"])
def test_a_file_under_another_spelling_is_pointed_out(tmp_path: Path, listed: str, there: str) -> None:
    with pytest.raises(DataError, match="1 of 2 files") as caught:
        folder(tmp_path, ["b.jpg", listed], ["b.jpg", there])
    assert f"{listed!a} is there as {there!a}" in str(caught.value.fix)
