"""The generated objects are those of the generated classes: same pictures, and what is to be seen of each shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from segtrain.data.instances.shapes_instances import ShapesInstances
from segtrain.data.shapes import Shapes
from segtrain.errors import ConfigError
from segtrain.experiment import build_dataset, compose
from segtrain.instances import boxes_around

CLASSES = ["background", "disc", "square", "triangle", "ring"]


def shapes(kind: type, **options: Any) -> Any:
    return kind(**{"split": "train", "size": 48, "classes": CLASSES, **options})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_pictures_are_those_of_the_other_view(split: str, channels: int) -> None:
    one_by_one, semantic = (shapes(k, split=split, channels=channels) for k in (ShapesInstances, Shapes))
    for index in range(10):
        image, found, record = one_by_one[index]
        same, target, other = semantic[index]
        assert np.array_equal(image, same)
        assert record.name == other.name
        labels = np.zeros_like(target)
        for mask, label in zip(found.masks.numpy(), found.labels.tolist(), strict=True):
            labels[mask == 1] = label
        inside = target != 255
        assert np.array_equal(labels[inside], target[inside]), "the classes agree wherever there is no border"


def test_objects_are_what_is_to_be_seen_and_nothing_hidden() -> None:
    data, hidden = shapes(ShapesInstances, size=40, train_images=150), 0
    for index in range(150):
        _, found, _ = data[index]
        assert found.masks.sum(0).max() <= 1, "no pixel is of two objects"
        assert (found.area > 0).all()
        assert torch.equal(found.boxes, boxes_around(found.masks))
        assert found.ids.tolist() == sorted(set(found.ids.tolist()))
        assert 1 <= len(found) <= 6
        shapes_drawn = data.draw(data.records[index]).shapes
        assert [CLASSES[label] for label in found.labels] == [shapes_drawn[one - 1][0] for one in found.ids]
        assert int(found.ids[-1]) == len(shapes_drawn), "the foremost is always seen"
        hidden += len(shapes_drawn) - len(found)
        assert np.array_equal(data.count_objects(index), np.bincount(found.labels, minlength=5))
    assert hidden > 0, "no shape was hidden, so nothing was tested"


def test_the_config_builds_and_other_classes_are_refused() -> None:
    data = build_dataset(compose(["data=shapes_instances", "augment=instances"]), "val")
    assert isinstance(data, ShapesInstances)
    assert np.array_equal(data[0][0], build_dataset(compose(["data=shapes"]), "val")[0][0])
    with pytest.raises(ConfigError, match="disc"):
        shapes(ShapesInstances, classes=["background", "circle", "square", "triangle", "ring"])
