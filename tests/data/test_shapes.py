"""The generated dataset: always the same, every class in it, and form rather than color decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segtrain.data.shapes import Shapes
from segtrain.errors import ConfigError

CLASSES = ["background", "disc", "square", "triangle", "ring"]


def shapes(**options: Any) -> Shapes:
    return Shapes(**{"split": "train", "size": 48, "classes": CLASSES, **options})


def test_a_sample_depends_on_data_seed_split_and_index_alone() -> None:
    data = shapes()
    image, target, record = data[3]
    data[9]
    again = shapes(train_images=7, seed=5)[3]
    assert np.array_equal(image, again[0])
    assert np.array_equal(target, again[1])
    assert record.source == "train/00003"
    for other in (shapes(data_seed=1)[3], shapes(split="val")[3], data[4]):
        assert not np.array_equal(image, other[0])
    assert np.array_equal(data.read_target(data.records[3]), target)


def test_samples_have_the_form_that_datasets_promise() -> None:
    for channels in (1, 3):
        image, target, _ = shapes(channels=channels, size=33)[0]
        assert (image.shape, image.dtype) == ((33, 33, channels), np.uint8)
        assert (target.shape, target.dtype) == ((33, 33), np.uint8)
    assert len(shapes(train_images=9)) == 9
    assert len(shapes(split="val", val_images=5)) == 5
    assert len(shapes(limit=2)) == 2


def test_every_class_occurs_the_rare_one_least_and_borders_are_void() -> None:
    data = shapes(train_images=150)
    targets = [data[i][1] for i in range(150)]
    images_with = [sum((target == label).any() for target in targets) for label in range(5)]
    assert images_with[0] == 150
    assert images_with[1] > images_with[2] > images_with[3] > images_with[4] > 30
    assert all((target == 255).any() for target in targets)
    assert set(np.unique(np.stack(targets))) == {0, 1, 2, 3, 4, 255}


def test_two_classes_never_touch_without_a_void_line() -> None:
    data = shapes(train_images=40, size=64)
    for index in range(40):
        target = data[index][1]
        for one, other in ((target[:, :-1], target[:, 1:]), (target[:-1], target[1:])):
            labelled = (one != 255) & (other != 255)
            assert (one == other)[labelled].all()


def test_other_class_names_are_refused_before_the_first_image() -> None:
    with pytest.raises(ConfigError, match="disc") as caught:
        shapes(classes=["background", "circle", "square", "triangle", "ring"])
    assert caught.value.where == "data.classes"
    renumbered = shapes(classes=["nothing", "ring", "disc", "square", "triangle"])
    assert np.array_equal(renumbered[3][1] == 2, shapes()[3][1] == 1)
