"""Cityscapes pairs images and labelIds by city and name; labels go by the published table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.data.cityscapes import Cityscapes
from segtrain.errors import ConfigError, DataError

FRAMES = [
    ("bochum", "bochum_000000_000313"),
    ("aachen", "aachen_000001_000019"),
    ("aachen", "aachen_000000_000019"),
]


@pytest.fixture
def root(tmp_path: Path, put: Any) -> Path:
    ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
    for city, name in FRAMES:
        put(f"leftImg8bit/train/{city}/{name}_leftImg8bit.png", np.zeros((2, 17, 3), np.uint8))
        put(f"gtFine/train/{city}/{name}_gtFine_labelIds.png", ids)
        put(f"gtFine/train/{city}/{name}_gtFine_instanceIds.png", ids.astype(np.uint16) * 1000)
        put(f"gtFine/train/{city}/{name}_gtFine_color.png", np.zeros((2, 17, 4), np.uint8))
    return tmp_path


@pytest.fixture
def arguments(published: dict[str, Any]) -> dict[str, Any]:
    table = published["cityscapes"]
    rows = [dict(zip(table["columns"].split(","), row, strict=True)) for row in table["labels"]]
    scored = sorted((row for row in rows if 0 <= row["trainId"] < 19), key=lambda row: row["trainId"])
    return {
        "classes": [row["name"] for row in scored],
        "palette": [row["color"] for row in scored],
        "label_map": {row["id"]: row["trainId"] % 256 for row in rows},
    }


def test_frames_come_by_city_and_name_with_the_19_scored_classes(root: Path, arguments: dict[str, Any]) -> None:
    dataset = Cityscapes(split="train", root=str(root), **arguments)
    assert [record.name for record in dataset.records] == [
        "aachen/aachen_000000_000019",
        "aachen/aachen_000001_000019",
        "bochum/bochum_000000_000313",
    ]
    void = 255
    assert dataset[0][1].ravel().tolist() == [
        *[void] * 7, 0, 1, void, void, 2, 3, 4, *[void] * 3, 5, void, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
        void, void, 16, 17, 18,
    ]  # fmt: skip


def test_a_frame_alone_is_named_on_either_side(root: Path, arguments: dict[str, Any]) -> None:
    (root / "leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png").unlink()
    (root / "gtFine/train/bochum/bochum_000000_000313_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError) as caught:
        Cityscapes(split="train", root=str(root), **arguments)
    where = str(caught.value.where)
    assert "1 images without a mask: bochum/bochum_000000_000313" in where
    assert "1 masks without an image: aachen/aachen_000001_000019" in where


def test_what_is_missing_is_told_with_the_way_to_get_it(root: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="folder of split 'val' not found") as caught:
        Cityscapes(split="val", root=str(root), **arguments)
    assert str(caught.value.where).endswith("leftImg8bit/val")
    for path in root.glob("gtFine/*/*/*_labelIds.png"):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    with pytest.raises(DataError, match=r"CITY/NAME_gtFine_labelIds\.png not found") as caught:
        Cityscapes(split="train", root=str(root), **arguments)
    assert "cityscapes-dataset.com" in str(caught.value.fix)
    with pytest.raises(ConfigError, match="cannot be downloaded"):
        Cityscapes(split="train", root=str(root), download=True, **arguments)
    with pytest.raises(ConfigError, match="has no split 'test'"):
        Cityscapes(split="test", root=str(root), **arguments)
