"""`folder` finds the splits people make, pairs by name, and says what does not pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.data.folder import Folder
from segtrain.errors import ConfigError, DataError

IMAGE, MASK = np.zeros((2, 2, 3), np.uint8), np.array([[0, 1], [1, 255]], np.uint8)


def folder(root: Path, split: str = "train", **arguments: Any) -> Folder:
    return Folder(**{"split": split, "root": str(root), "classes": ["a", "b"], **arguments})


def names(dataset: Folder) -> list[str]:
    return [record.name for record in dataset.records]


def fill(put: Any, images: str, masks: str, *stems: str, end: str = "") -> None:
    for i, stem in enumerate(stems):
        put(f"{images}/{stem}.{('png', 'jpg')[i % 2]}", IMAGE)
        put(f"{masks}/{stem}{end}.png", MASK)


@pytest.mark.parametrize("pattern", ["images/{0} masks/{0}", "{0}/images {0}/masks"])
def test_splits_by_folders(tmp_path: Path, put: Any, pattern: str) -> None:
    for split, stems in (("train", ("b", "a", "deep/c")), ("val", ("d",)), ("test", ("e",))):
        fill(put, *pattern.format(split).split(), *stems)
    assert names(folder(tmp_path)) == ["a", "b", "deep/c"]
    assert names(folder(tmp_path, "val")) == ["d"]
    assert names(folder(tmp_path, "test")) == ["e"]
    assert folder(tmp_path)[2][1].tolist() == MASK.tolist()


@pytest.mark.parametrize("line", ["{}", "{}.png", "images/{}.jpg", "images/{}"])
def test_splits_by_lists_of_names_or_paths(tmp_path: Path, put: Any, texts: Any, line: str) -> None:
    fill(put, "images", "masks", "b", "a", "deep/c", "unused")
    texts("train.txt", line.format("deep/c"), line.format("a"))
    texts("val.txt", line.format("b"))
    assert names(folder(tmp_path)) == ["deep/c", "a"]
    assert names(folder(tmp_path, "val")) == ["b"]
    with pytest.raises(DataError, match="list of split 'test' not found"):
        folder(tmp_path, "test")


def test_a_name_twice_in_a_list_is_refused_however_it_is_written(tmp_path: Path, put: Any, texts: Any) -> None:
    fill(put, "images", "masks", "a", "b", "c")
    texts("train.txt", "a", "b", "images/b.jpg", "c", "c.png")
    texts("val.txt", "a")
    with pytest.raises(DataError, match=r"2 names are in train\.txt more than once") as caught:
        folder(tmp_path)
    assert caught.value.where == f"{tmp_path / 'train.txt'}\nb, c"


@pytest.mark.parametrize(("split", "other"), [("train", "val"), ("val", "train"), ("test", "train")])
def test_a_name_in_two_lists_is_refused(tmp_path: Path, put: Any, texts: Any, split: str, other: str) -> None:
    stems = [f"n{i:02d}" for i in range(15)]
    fill(put, "images", "masks", *stems)
    for name in ("train", "val", "test"):
        texts(f"{name}.txt", f"only_{name}")
    texts(f"{split}.txt", *stems[:12])
    texts(f"{other}.txt", *[f"images/{stem}.png" for stem in stems])
    with pytest.raises(DataError, match=rf"12 names of {split}\.txt are in {other}\.txt too") as caught:
        folder(tmp_path, split)
    assert f"{', '.join(stems[:10])} and 2 more" in str(caught.value.where)
    texts(f"{other}.txt", *stems[12:])
    assert names(folder(tmp_path, split)) == stems[:12]


def test_a_list_cannot_reach_outside(tmp_path: Path, put: Any, texts: Any) -> None:
    fill(put, "images", "masks", "a")
    texts("train.txt", "../../secret")
    with pytest.raises(DataError, match="outside its folder"):
        folder(tmp_path)


def test_names_of_a_list_that_nobody_has(tmp_path: Path, put: Any, texts: Any) -> None:
    fill(put, "images", "masks", "a")
    put("images/lone.png", IMAGE)
    texts("train.txt", "a", "lone", "x.y")
    with pytest.raises(DataError, match="3 of 6 files") as caught:
        folder(tmp_path)
    assert "image x.y\nmask lone\nmask x.y" in str(caught.value.where)


# --- split by hash ---


@pytest.fixture
def flat(tmp_path: Path, put: Any) -> Path:
    fill(put, "images", "masks", *[f"n{i:03d}" for i in range(200)])
    return tmp_path


def test_a_split_by_hash_takes_every_image_once_and_about_the_share(flat: Path) -> None:
    train, val = names(folder(flat)), names(folder(flat, "val"))
    assert sorted(train + val) == [f"n{i:03d}" for i in range(200)]
    assert 20 <= len(val) <= 60, "a fifth of 200, give or take"
    assert names(folder(flat)) == train
    assert names(folder(flat, "val", split_seed=1)) != val
    assert set(val) <= set(names(folder(flat, "val", val_fraction=0.5))), "a larger share only adds"
    assert len(names(folder(flat, val_fraction=0))) == 200


def test_new_files_move_no_old_one(flat: Path, put: Any) -> None:
    before = names(folder(flat, "val"))
    fill(put, "images", "masks", *[f"a{i}" for i in range(50)])
    after = names(folder(flat, "val"))
    assert [name for name in after if name.startswith("n")] == before
    assert len(after) > len(before)


def test_a_split_by_hash_is_the_same_on_every_machine(tmp_path: Path, put: Any) -> None:
    fill(put, "images", "masks", *"abcdefghij")
    assert names(folder(tmp_path, "val")) == ["c", "f", "g"]


def test_a_split_that_stays_empty_says_why(tmp_path: Path, put: Any) -> None:
    fill(put, "images", "masks", "a", "b")
    with pytest.raises(DataError, match="split 'val' is empty: none of 2 images falls into it") as caught:
        folder(tmp_path, "val", val_fraction=0)
    assert "data.val_fraction" in str(caught.value.fix)
    with pytest.raises(DataError, match="split 'test' does not exist") as caught:
        folder(tmp_path, "test")
    assert caught.value.fix == "set split=val"


# --- pairs ---


def test_what_stands_alone_is_counted_on_both_sides(tmp_path: Path, put: Any) -> None:
    fill(put, "images", "masks", "a")
    for i in range(12):
        put(f"images/i{i:02d}.png", IMAGE)
    put("masks/m.png", MASK)
    with pytest.raises(DataError, match="do not pair up") as caught:
        folder(tmp_path)
    where = str(caught.value.where)
    assert "12 images without a mask: i00, i01, i02, i03, i04, i05, i06, i07, i08, i09 and 2 more" in where
    assert "1 masks without an image: m" in where


def test_two_images_of_one_name(tmp_path: Path, put: Any) -> None:
    fill(put, "images", "masks", "a")
    put("images/a.jpg", IMAGE)
    with pytest.raises(DataError, match="two files share the name 'a'"):
        folder(tmp_path)


def test_other_names_and_a_suffix(tmp_path: Path, put: Any) -> None:
    fill(put, "photos", "labels", "a", "b", end="_mask")
    arguments = {"image_dir": "photos", "mask_dir": "labels", "mask_suffix": "_mask", "val_fraction": 0}
    assert names(folder(tmp_path, **arguments)) == ["a", "b"]
    with pytest.raises(DataError, match="image folder not found") as caught:
        folder(tmp_path, image_dir="pictures")
    assert "data.image_dir" in str(caught.value.fix)


def test_images_and_masks_in_one_folder(tmp_path: Path, put: Any) -> None:
    fill(put, "all", "all", "a", "b", end="_mask")
    both = {"image_dir": "all", "mask_dir": "all", "val_fraction": 0}
    assert names(folder(tmp_path, mask_suffix="_mask", **both)) == ["a", "b"]
    with pytest.raises(ConfigError, match="images and masks are both in 'all'"):
        folder(tmp_path, **both)


def test_an_empty_folder_is_an_empty_split(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="split 'train' has no samples") as caught:
        folder(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_masks_of_colors_go_by_the_palette(tmp_path: Path, put: Any) -> None:
    put("images/a.png", IMAGE)
    put("masks/a.png", np.array([[[9, 9, 9], [0, 200, 0]], [[200, 0, 0], [255, 255, 255]]], np.uint8))
    arguments = {"palette": [[0, 200, 0], [200, 0, 0]], "ignore_colors": [[255, 255, 255]], "val_fraction": 0}
    with pytest.raises(DataError, match="1 colors that are not in the palette"):
        folder(tmp_path, **arguments)[0]
    arguments["ignore_colors"].append([9, 9, 9])
    assert folder(tmp_path, **arguments)[0][1].tolist() == [[255, 0], [1, 255]]
