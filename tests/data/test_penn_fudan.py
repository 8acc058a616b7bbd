"""Penn-Fudan: every number in a mask is a pedestrian, splits come by lists or by count, one by one or as a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain.data.instances.penn_fudan import PennFudan
from segtrain.data.penn_fudan import PennFudanSemantic
from segtrain.errors import ConfigError, DataError
from segtrain.experiment import build_dataset, compose

REAL = Path(__file__).parents[2] / "../shared/data"
CLASSES = ["background", "pedestrian"]
MASK = np.array([[0, 1, 1, 0, 0], [3, 1, 0, 0, 2], [3, 0, 0, 2, 2]], np.uint8)
NAMES = [f"FudanPed{number:05d}" for number in range(1, 10)]


@pytest.fixture
def root(tmp_path: Path, put: Any) -> Path:
    for name in NAMES:
        put(f"PennFudanPed/PNGImages/{name}.png", np.zeros((3, 5, 3), np.uint8))
        put(f"PennFudanPed/PedMasks/{name}_mask.png", MASK)
    return tmp_path


def names(dataset: PennFudan | PennFudanSemantic) -> list[str]:
    return [record.name for record in dataset.records]


def train(root: Path, split: str = "train") -> PennFudan:
    return PennFudan(split=split, root=str(root), classes=CLASSES)


@pytest.mark.parametrize("below", ["", "PennFudanPed"])
def test_each_number_is_a_pedestrian_with_its_pixels_and_box(root: Path, below: str) -> None:
    image, found, record = train(root / below)[0]
    assert (image.shape, record.name) == ((3, 5, 3), NAMES[0])
    assert found.ids.tolist() == [1, 2, 3]
    assert found.labels.tolist() == [1, 1, 1]
    assert found.boxes.tolist() == [[1, 0, 3, 2], [3, 1, 5, 3], [0, 1, 1, 3]]
    assert found.area.tolist() == [3, 3, 2]
    assert not found.crowd.any()
    for number, mask in zip((1, 2, 3), found.masks, strict=True):
        assert np.array_equal(mask.numpy() == 1, number == MASK)
    assert train(root).count_objects(0).tolist() == [0, 3]


def test_all_numbers_are_one_class_for_semantic_segmentation(root: Path) -> None:
    data = PennFudanSemantic(split="train", root=str(root), classes=CLASSES)
    assert np.array_equal(data[0][1], MASK > 0)
    assert data.task == "semantic"
    assert data.count_labels(0)[:3].tolist() == [7, 8, 0]
    swapped = PennFudanSemantic(split="train", root=str(root), classes=CLASSES, label_map={0: 255, 1: 1})
    assert set(np.unique(swapped[0][1])) == {1, 255}


def test_without_lists_every_fourth_image_by_name_is_val(root: Path) -> None:
    assert names(train(root, "val")) == [NAMES[3], NAMES[7]]
    assert names(train(root)) == [name for name in NAMES if name not in (NAMES[3], NAMES[7])]
    semantic = PennFudanSemantic(split="val", root=str(root), classes=CLASSES)
    assert names(semantic) == names(train(root, "val")), "both views have the same splits"


def test_lists_have_the_say_where_there_are_any(root: Path, texts: Any) -> None:
    texts("PennFudanPed/train.txt", NAMES[5], NAMES[2])
    assert names(train(root)) == [NAMES[5], NAMES[2]]
    with pytest.raises(DataError, match="list of split 'val' not found"):
        train(root, "val")
    texts("PennFudanPed/val.txt", NAMES[0], "FudanPed99999")
    with pytest.raises(DataError, match="2 of 4 files of split 'val' are missing") as caught:
        train(root, "val")
    assert "mask FudanPed99999" in str(caught.value.where)


def test_images_may_be_jpegs_in_a_folder_of_their_own(root: Path, put: Any) -> None:
    for path in (root / "PennFudanPed/PNGImages").iterdir():
        path.unlink()
    (root / "PennFudanPed/PNGImages").rmdir()
    with pytest.raises(DataError, match=r"folder of images \(PNGImages or JPEGImages\) not found"):
        train(root)
    for name in NAMES:
        put(f"PennFudanPed/JPEGImages/{name}.jpg", np.zeros((3, 5, 3), np.uint8))
    assert len(train(root)[0][1]) == 3


def test_a_street_without_people_is_a_sample(root: Path, put: Any) -> None:
    put(f"PennFudanPed/PedMasks/{NAMES[0]}_mask.png", np.zeros((3, 5), np.uint8))
    data = train(root)
    assert (len(data[0][1]), data[0][1].size) == (0, (3, 5))
    assert data.count_objects(0).tolist() == [0, 0]


def test_files_that_are_missing_or_of_another_size_are_named(root: Path, put: Any) -> None:
    path = put(f"PennFudanPed/PedMasks/{NAMES[0]}_mask.png", np.ones((4, 5), np.uint8))
    with pytest.raises(DataError, match="different sizes") as caught:
        train(root)[0]
    assert f"the objects of {path} are 5x4" in str(caught.value.where)
    path.unlink()
    with pytest.raises(DataError, match="images and masks do not pair up") as caught:
        train(root)
    assert NAMES[0] in str(caught.value.where)


def test_masks_that_hold_no_numbers_are_refused(root: Path, put: Any) -> None:
    path = root / f"PennFudanPed/PedMasks/{NAMES[0]}_mask.png"
    masks: list[tuple[Any, dict[str, Any], str]] = [
        (np.dstack([MASK, MASK, 2 * MASK]), {}, "told apart by colors"),
        (Image.fromarray(MASK.astype(np.float32)), {"format": "TIFF"}, "mask has mode F"),
        (Image.fromarray(MASK.astype(np.int32) - 1), {"format": "TIFF"}, "told apart by numbers down to -1"),
    ]
    for pixels, save, found in masks:
        put(str(path.relative_to(root)), pixels, **save)
        with pytest.raises(DataError, match=found) as caught:
            train(root).count_objects(0)
        assert caught.value.where == str(path)
    put(str(path.relative_to(root)), np.dstack([MASK, MASK, 2 * MASK]))
    with pytest.raises(DataError, match="told apart by colors"):
        PennFudanSemantic(split="train", root=str(root), classes=CLASSES)[0]


def test_numbers_beyond_a_byte_are_read(root: Path, put: Any) -> None:
    put(f"PennFudanPed/PedMasks/{NAMES[0]}_mask.png", MASK.astype(np.uint16) * 1000)
    assert train(root)[0][1].ids.tolist() == [1000, 2000, 3000]
    put(f"PennFudanPed/PedMasks/{NAMES[0]}_mask.png", Image.fromarray(MASK.astype(np.int32) * 100_000), format="TIFF")
    assert train(root)[0][1].ids.tolist() == [100_000, 200_000, 300_000]


def test_no_data_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="PennFudan data") as caught:
        train(tmp_path)
    assert "PennFudanPed/PedMasks/NAME_mask.png" in str(caught.value.expected)
    with pytest.raises(ConfigError, match="cannot be downloaded"):
        PennFudan(split="train", root=str(tmp_path), classes=CLASSES, download=True)


def test_both_configs_build(root: Path) -> None:
    one_by_one = build_dataset(compose(["data=pennfudan", "augment=instances", f"data.root={root}"]), "train")
    assert (type(one_by_one), len(one_by_one[0][1])) == (PennFudan, 3)
    semantic = build_dataset(compose(["data=pennfudan_semantic", f"data.root={root}"]), "val")
    assert (type(semantic), semantic.classes) == (PennFudanSemantic, CLASSES)


def test_the_real_files_hold_as_many_people_as_published() -> None:
    if not (REAL / "PennFudanPed").is_dir():
        pytest.skip(f"no real data at {REAL.resolve() / 'PennFudanPed'}")
    counts = {}
    for split in ("train", "val"):
        data = train(REAL, split)
        counts[split] = len(data), sum(int(data.count_objects(index)[1]) for index in range(len(data)))
    assert counts == {"train": (90, 213), "val": (30, 79)}, "292 in all"
    _, found, record = train(REAL, "val")[0]
    assert record.name == "FudanPed00001"
    # The publisher's boxes of the first file, (160, 182)-(302, 431) and (420, 171)-(535, 486), counted from 1 and
    # both ends in; they were drawn by hand, some pixels off the masks.
    expected = np.array([[159, 181, 302, 431], [419, 170, 535, 486]])
    assert np.abs(found.boxes.numpy() - expected).max() <= 5
