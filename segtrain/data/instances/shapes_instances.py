"""The pictures of `segtrain.data.shapes`, object by object: a first run that needs no download."""

from __future__ import annotations

import numpy as np
import torch

from segtrain.data.instances.dataset import InstanceDataset
from segtrain.data.shapes import DrawnShapes, Scene
from segtrain.instances import Instances
from segtrain.types import Record


class ShapesInstances(DrawnShapes[Instances], InstanceDataset):
    """Discs, squares, triangles and rings: what is to be seen of each is an object, from its edge on.

    Ids count up from 1 from the hindmost shape to the foremost; a shape that others hide has none.
    """

    def load(self, record: Record) -> tuple[np.ndarray, Instances]:
        scene = self.draw(record)
        return scene.image, self._visible(scene)

    def read_objects(self, record: Record) -> Instances:
        return self.load(record)[1]

    def _visible(self, scene: Scene) -> Instances:
        owner = np.zeros((self.size, self.size), np.uint8)
        for number, (_, mask) in enumerate(scene.shapes, 1):
            owner[mask > 0] = number
        ids = np.arange(1, len(scene.shapes) + 1)
        masks = owner == ids[:, None, None]
        seen = masks.any((1, 2))
        labels = np.array([self.classes.index(name) for name, _ in scene.shapes])
        return Instances.of(
            torch.from_numpy(masks[seen].view(np.uint8)),
            torch.from_numpy(labels[seen]),
            ids=torch.from_numpy(ids[seen]),
        )
