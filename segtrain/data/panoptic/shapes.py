"""`shapes_panoptic`: generated scenes, with truth for each of the three tasks on the same images.

A panoptic answer is merged from a semantic and an instance network: `ShapesScenes` and `ShapesObjects` train these two,
`ShapesPanoptic` scores what they make together. Same `data_seed`, split and number, same image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from segtrain.data.dataset import SegmentationDataset
from segtrain.data.generated import GeneratedImages
from segtrain.data.instances.dataset import InstanceDataset
from segtrain.data.panoptic.dataset import PanopticDataset
from segtrain.data.panoptic.scenes import FORMS, STUFF, Scene, scene
from segtrain.errors import ConfigError, listed
from segtrain.instances import Instances
from segtrain.panoptic import Panoptic, from_instances
from segtrain.types import Record


class _Scenes(GeneratedImages[Any]):
    """What the three have in common: the scenes.

    Args:
        shared: as in `GeneratedImages`.
    """

    names: tuple[str, ...] = (*STUFF, *FORMS)
    """What `classes` must hold, in any order."""

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        if sorted(self.classes) != sorted(self.names):
            raise ConfigError(
                f"data.classes are {listed(self.classes)}",
                where="data.classes",
                expected=f"{listed(self.names)}, in any order",
                fix="leave data.classes as the data's YAML has it",
            )

    def scene(self, record: Record) -> Scene:
        """The scene of a record."""
        return scene(self.size, self.seeds_of(record))

    def load(self, record: Record) -> tuple[np.ndarray, Any]:
        made = self.scene(record)
        return self.in_channels(made.image), self.target_of(made)

    def target_of(self, made: Scene) -> Any:
        """The truth of a scene, as the task has it."""
        raise NotImplementedError(f"{type(self).__name__} must say what the truth of a scene is")


class ShapesPanoptic(_Scenes, PanopticDataset):
    """Scenes as segments: each object, and sky, ground and water.

    Args:
        shared: as in `GeneratedImages`, and `things`.
    """

    def find_records(self) -> list[Record]:
        return [
            Record(one.name, extra={**one.extra, "image_id": number})
            for number, one in enumerate(super().find_records(), 1)
        ]

    def read_segments(self, record: Record) -> Panoptic:
        return self.target_of(self.scene(record))

    def target_of(self, made: Scene) -> Panoptic:
        objects = _objects(made, [self.classes.index(form) for form in made.forms])
        return from_instances(objects, background=_stuff(made, self.classes))


class ShapesScenes(_Scenes, SegmentationDataset):
    """Scenes with one class per pixel, things among them."""

    def read_target(self, record: Record) -> np.ndarray:
        return self.target_of(self.scene(record))

    def target_of(self, made: Scene) -> np.ndarray:
        target = _stuff(made, self.classes)
        for mask, form in zip(made.masks, made.forms, strict=True):
            target[mask] = self.classes.index(form)
        return target


class ShapesObjects(_Scenes, InstanceDataset):
    """The objects of the scenes, one mask each; `classes` begins with `background`."""

    names = ("background", *FORMS)

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        if self.classes[0] != "background":
            raise ConfigError(
                f"data.classes begins with {self.classes[0]}", where="data.classes", expected="background first"
            )

    def read_objects(self, record: Record) -> Instances:
        return self.target_of(self.scene(record))

    def target_of(self, made: Scene) -> Instances:
        return _objects(made, [self.classes.index(form) for form in made.forms])


def _stuff(made: Scene, classes: list[str]) -> np.ndarray:
    """Class indices (size, size) uint8 of the stuff, also behind objects."""
    return np.array([classes.index(name) for name in STUFF], np.uint8)[made.stuff]


def _objects(made: Scene, labels: list[int]) -> Instances:
    return Instances.of(torch.from_numpy(made.masks.astype(np.uint8)), torch.tensor(labels))
