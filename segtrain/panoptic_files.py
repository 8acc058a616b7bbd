"""Writes predictions in COCO's panoptic format, which panopticapi and others score.

`segtrain.data.panoptic.files` describes the format and reads it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from segtrain.atomic import write_atomically
from segtrain.panoptic import Panoptic, colors_of


class PanopticWriter:
    """One PNG per image in `folder`, and beside it `folder.json`, as panopticapi looks for them.

    Args:
        folder: made where it is missing; its name with `.json` is the list's.
        classes: names in index order.
        things: the names of those that are objects.
        palette: one RGB triple per class, which the list tells; None: none.
        category_ids: the ids that the truth's publisher knows the classes by; None: 1 + class index.

    Raises:
        ValueError: a class has no category id, or two share one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        classes: Sequence[str],
        things: Collection[str],
        palette: Sequence[Sequence[int]] | None = None,
        category_ids: Mapping[str, int] | None = None,
    ) -> None:
        ids = {name: n for n, name in enumerate(classes, 1)} if category_ids is None else category_ids
        absent = [name for name in classes if name not in ids]
        self.ids = [ids[name] for name in classes if name in ids]
        if absent or len(set(self.ids)) != len(self.ids):
            raise ValueError(f"category ids {dict(ids)} for classes {list(classes)}: one of its own for each")
        self.folder = folder
        colors = {} if palette is None else {"color": [list(color) for color in palette]}
        self.categories = [
            {"id": self.ids[n], "name": name, "isthing": int(name in things), "supercategory": name}
            | {key: values[n] for key, values in colors.items()}
            for n, name in enumerate(classes)
        ]
        self.images: dict[int | str, dict[str, Any]] = {}
        self.annotations: dict[int | str, dict[str, Any]] = {}

    def add(self, panoptic: Panoptic, *, image_id: int | str, image: str) -> Path:
        """Writes the PNG of one image; returns its path.

        Args:
            image_id: the publisher's id of the image.
            image: the name of the image's file, of which the PNG's is made; may lie in folders.

        Raises:
            DataError: ids and segments do not belong together.
            ResourceError: the disk is full.
            ValueError: an image of that id was written already.
        """
        if image_id in self.images:
            raise ValueError(f"image {image_id} is written twice")
        name = Path(image).with_suffix(".png").as_posix()
        path = self.folder / name
        segments = self._segments(panoptic, path)
        buffer = io.BytesIO()
        Image.fromarray(colors_of(panoptic.ids)).save(buffer, "PNG")
        write_atomically(path, buffer.getvalue())
        height, width = panoptic.size
        self.images[image_id] = {"id": image_id, "file_name": image, "height": height, "width": width}
        self.annotations[image_id] = {"image_id": image_id, "file_name": name, "segments_info": segments}
        return path

    def _segments(self, panoptic: Panoptic, path: Path) -> list[dict[str, Any]]:
        places = panoptic.positions(path)
        entries = []
        for place, segment in enumerate(panoptic.segments, 1):
            mask = (places == place).view(np.uint8)
            entry = {
                "id": segment.id,
                "category_id": self.ids[segment.category],
                "area": int(cv2.countNonZero(mask)),
                "bbox": list(cv2.boundingRect(mask)),  # x, y, width, height
                "iscrowd": int(segment.crowd),
            }
            entries.append(entry if segment.score is None else {**entry, "score": segment.score})
        return entries

    def state(self) -> tuple[dict[int | str, dict[str, Any]], dict[int | str, dict[str, Any]]]:
        """What another process wrote, for the one that writes the list."""
        return self.images, self.annotations

    def merge(self, state: tuple[dict[int | str, dict[str, Any]], dict[int | str, dict[str, Any]]]) -> None:
        """Adds what another process wrote."""
        self.images.update(state[0])
        self.annotations.update(state[1])

    def finish(self) -> Path:
        """Writes the list of all images added, in the order of their ids; returns its path."""
        order = sorted(self.images, key=lambda one: (isinstance(one, str), one))
        content = {
            "images": [self.images[one] for one in order],
            "annotations": [self.annotations[one] for one in order],
            "categories": self.categories,
        }
        path = self.folder.with_name(self.folder.name + ".json")
        write_atomically(path, json.dumps(content).encode())
        return path
