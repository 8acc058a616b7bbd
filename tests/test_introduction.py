"""What is said of objects before the first step: groups are no objects, and scores that cannot be are foretold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from segtrain.data.instances.shapes_instances import ShapesInstances
from segtrain.instances import Instances
from segtrain.introduction import say_data
from segtrain.types import Record


class Crowds(ShapesInstances):
    """Image n of a split has `objects[split]` discs; and one group, but for the last image."""

    objects: ClassVar[dict[str, int]]

    def read_objects(self, record: Record) -> Instances:
        count, crowd = self.objects[self.split], record.extra["index"] < len(self) - 1
        labels = torch.ones(count + crowd, dtype=torch.int64)
        return Instances.of(
            torch.ones(count + crowd, 4, 4, dtype=torch.uint8), labels, crowd=torch.arange(count + crowd) >= count
        )


def said(train: int, val: int) -> str:
    class Known(Crowds):
        objects: ClassVar[dict[str, int]] = {"train": train, "val": val}

    splits = [
        Known(split=split, classes=["background", "disc", "square", "triangle", "ring"], train_images=4, val_images=4)
        for split in ("train", "val")
    ]
    lines: list[str] = []
    tracker: Any = SimpleNamespace(say=lines.append)
    rider = {"data": SimpleNamespace(scan=None), "model": SimpleNamespace(weights="none")}
    settings: Any = SimpleNamespace(rider=rider, node={"model": {}})
    say_data(tracker, settings, *splits)
    return "\n".join(lines)


def test_images_of_groups_alone_are_not_said_to_be_empty() -> None:
    assert "objects none; 4 images without any, 3 of them with groups (iscrowd) alone" in said(0, 1)
    assert "iscrowd" not in said(2, 1)


@pytest.mark.parametrize(("val", "warned"), [(0, 1), (1, 0)])
def test_a_validation_split_without_objects_is_warned_of_once(val: int, warned: int) -> None:
    assert said(1, val).count("box_ap and mask_ap have nothing to count") == warned
