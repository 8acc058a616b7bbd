"""Equal files in two splits are found by their bytes, whatever their names, and no others are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segtrain.data import duplicates
from segtrain.data.dataset import SegmentationDataset
from segtrain.data.duplicates import shared_files
from segtrain.data.shapes import Shapes
from segtrain.types import Record


class Listed(SegmentationDataset):
    """Samples of a given folder, whatever its files hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(split="train", classes=["a", "b"])

    def find_records(self) -> list[Record]:
        return [Record(path.name, path, path) for path in sorted(self.folder.iterdir())]


def splits(root: Path, train: dict[str, bytes], val: dict[str, bytes]) -> tuple[Listed, Listed]:
    for folder, files in (("train", train), ("val", val)):
        (root / folder).mkdir()
        for name, content in files.items():
            (root / folder / name).write_bytes(content)
    return Listed(root / "train"), Listed(root / "val")


def test_equal_bytes_are_found_under_any_name_and_equal_sizes_alone_are_not(tmp_path: Path) -> None:
    train, val = splits(
        tmp_path,
        {"a": b"one", "b": b"two", "c": b"three", "d": b"one"},
        {"x": b"three", "y": b"one", "z": b"six", "only": b"something else"},
    )
    assert shared_files(train, val) == [("c", "x"), ("a", "y")]


def test_files_are_read_only_where_the_sizes_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = splits(
        tmp_path,
        {f"{i:04d}": bytes(i + 1) for i in range(300)},
        {f"{i:04d}": bytes(1000 + i) for i in range(300)} | {"twin": bytes(7)},
    )
    read: list[Any] = []
    digest = duplicates._digest
    monkeypatch.setattr(duplicates, "_digest", lambda path: read.append(path) or digest(path))
    assert shared_files(train, val) == [("0006", "twin")]
    assert len(read) == 2


def test_a_file_that_is_gone_is_left_to_whoever_reads_it(tmp_path: Path) -> None:
    train, val = splits(tmp_path, {"a": b"one"}, {"x": b"one", "y": b"one"})
    (tmp_path / "val" / "x").unlink()
    assert shared_files(train, val) == [("a", "y")]


def test_generated_samples_have_no_files() -> None:
    train, val = (
        Shapes(split=split, classes=["background", "disc", "square", "triangle", "ring"]) for split in ("train", "val")
    )
    assert shared_files(train, val) == []
