"""Cityscapes' objects: 1000 times the label id and a number, groups are crowds, all else is background."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.data.instances.cityscapes_instances import THINGS, CityscapesInstances
from segtrain.errors import ConfigError, DataError
from segtrain.experiment import build_dataset, compose

FRAMES = [("bochum", "bochum_000000_000313"), ("aachen", "aachen_000000_000019")]
# Road, a caravan and the ego vehicle; two persons and a group of them; a car and a bicycle.
IDS = np.array([[7, 29000, 1, 24000], [24001, 24001, 24, 24], [26017, 7, 33000, 33000]], np.uint16)
TARGET = "gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png"


@pytest.fixture
def root(tmp_path: Path, put: Any) -> Path:
    for city, name in FRAMES:
        put(f"leftImg8bit/train/{city}/{name}_leftImg8bit.png", np.zeros((3, 4, 3), np.uint8))
        put(f"gtFine/train/{city}/{name}_gtFine_instanceIds.png", IDS)
        put(f"gtFine/train/{city}/{name}_gtFine_labelIds.png", np.zeros((3, 4), np.uint8))
    return tmp_path


def cityscapes(root: Path, classes: list[str] | None = None) -> CityscapesInstances:
    names = ["background", *THINGS.values()] if classes is None else classes
    return CityscapesInstances(split="train", root=str(root), classes=names)


def test_things_are_objects_groups_are_crowds_and_the_rest_is_background(root: Path) -> None:
    data = cityscapes(root)
    _, found, record = data[0]
    assert record.name == "aachen/aachen_000000_000019"
    assert found.ids.tolist() == [24, 24000, 24001, 26017, 33000]
    assert [data.classes[label] for label in found.labels] == ["person", "person", "person", "car", "bicycle"]
    assert found.crowd.tolist() == [True, False, False, False, False]
    assert found.boxes.tolist() == [[2, 1, 4, 2], [3, 0, 4, 1], [0, 1, 2, 2], [0, 2, 1, 3], [2, 2, 4, 3]]
    for one, mask in zip(found.ids, found.masks, strict=True):
        assert np.array_equal(mask.numpy() == 1, int(one) == IDS)
    counts = data.count_objects(0)
    assert dict(zip(data.classes, counts.tolist(), strict=True)) == {
        **dict.fromkeys(data.classes, 0),
        "person": 2,
        "car": 1,
        "bicycle": 1,
    }, "a crowd is not counted"


def test_classes_that_are_left_out_are_background_and_others_are_refused(root: Path) -> None:
    found = cityscapes(root, ["background", "bicycle", "car"])[0][1]
    assert found.ids.tolist() == [26017, 33000]
    assert found.labels.tolist() == [2, 1]
    with pytest.raises(ConfigError, match=r"data\.classes has road, bus stop, of which Cityscapes has no objects"):
        cityscapes(root, ["background", "road", "bus stop", "car"])


def test_a_street_without_things_is_a_sample(root: Path, put: Any) -> None:
    put(TARGET, np.full((3, 4), 7, np.uint16))
    assert (len(cityscapes(root)[0][1]), cityscapes(root)[0][1].size) == (0, (3, 4))


@pytest.mark.parametrize("unknown", [34, 255, 7001, 34000, 65535])
def test_ids_that_mean_nothing_are_named(root: Path, put: Any, unknown: int) -> None:
    ids = IDS.copy()
    ids[0, 0] = unknown
    path = put(TARGET, ids)
    with pytest.raises(DataError, match=f"file has the ids {unknown}\n") as caught:
        cityscapes(root)[0]
    assert caught.value.where == str(path)


def test_missing_files_and_other_sizes_are_named(root: Path, put: Any) -> None:
    put(TARGET, IDS[:, :3])
    with pytest.raises(DataError, match="image and objects have different sizes"):
        cityscapes(root)[0]
    (root / TARGET).unlink()
    with pytest.raises(DataError, match="do not pair up") as caught:
        cityscapes(root)
    assert "1 images without a mask: aachen/aachen_000000_000019" in str(caught.value.where)
    for path in root.glob("gtFine/*/*/*_instanceIds.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"CITY/NAME_gtFine_instanceIds\.png not found") as caught:
        cityscapes(root)
    assert "cityscapes-dataset.com" in str(caught.value.fix)


def test_the_table_and_the_config_are_as_published(root: Path, published: dict[str, Any]) -> None:
    table = published["cityscapes"]
    rows = [dict(zip(table["columns"].split(","), row, strict=True)) for row in table["labels"]]
    colors = {row["name"]: row["color"] for row in rows}
    ids = {row["id"]: row["name"] for row in rows if row["id"] in THINGS}
    assert ids == THINGS
    data = build_dataset(compose(["data=cityscapes_instances", "augment=instances", f"data.root={root}"]), "train")
    assert isinstance(data, CityscapesInstances)
    assert data.classes == ["background", *THINGS.values()]
    assert data.palette[1:] == [colors[name] for name in data.classes[1:]]
    assert len(data[0][1]) == 5
