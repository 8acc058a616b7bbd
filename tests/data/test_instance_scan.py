"""What is said of objects before the first step: all of them, crowds left out, faults of many images at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segtrain.data.instances.scan import scan_objects
from segtrain.data.instances.shapes_instances import ShapesInstances
from segtrain.errors import DataError
from segtrain.instances import Instances
from segtrain.types import Record

CLASSES = ["background", "disc", "square", "triangle", "ring"]


class Known(ShapesInstances):
    """Image n has n % 3 discs and a crowd of rings; reading pixels is an error."""

    faulty: tuple[int, ...] = ()

    def read_image(self, record: Record) -> np.ndarray:
        raise AssertionError("no image is needed to count objects")

    def read_objects(self, record: Record) -> Instances:
        number = record.extra["index"]
        if number in self.faulty:
            raise DataError(f"object {number} is empty", where=record.name)
        count = number % 3
        labels = torch.tensor([1] * count + [4])
        return Instances.of(torch.ones(count + 1, 4, 4, dtype=torch.uint8), labels, crowd=labels == 4)


def known(images: int) -> Known:
    return Known(split="train", classes=CLASSES, train_images=images)


@pytest.mark.parametrize("threads", [1, 4])
def test_all_objects_are_counted_and_crowds_are_none(threads: int) -> None:
    found = scan_objects(known(9), threads=threads)
    assert found.objects.tolist() == [0, 9, 0, 0, 0]
    assert (found.images, found.of, found.empty) == (9, 9, 3)


def test_a_sample_is_spread_over_the_whole_set() -> None:
    found = scan_objects(known(85), 10)
    assert (found.images, found.of) == (10, 85)
    assert 0 < found.objects[1] < 20


def test_faults_of_several_images_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    data = known(9)
    monkeypatch.setattr(Known, "faulty", (2, 7))
    with pytest.raises(DataError) as error:
        scan_objects(data)
    for part in ("2 of 9", "object 2 is empty", "train/00002", "train/00007"):
        assert part in str(error.value)


def test_the_generated_objects_are_those_that_samples_have() -> None:
    data = ShapesInstances(split="val", classes=CLASSES, val_images=5, size=48)
    samples = [data[number][1] for number in range(5)]
    labels = torch.cat([target.labels for target in samples])
    assert scan_objects(data).objects.tolist() == torch.bincount(labels, minlength=5).tolist()
