"""The files that predict writes for an image or a frame, each whole or not at all."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segtrain import pictures
from segtrain.atomic import write_atomically
from segtrain.tracking import write_json
from segtrain.types import IGNORE_INDEX

KINDS = {
    "masks": ".png",
    "overlays": ".jpg",
    "areas": ".json",
    "confidence": ".png",
    "probs": ".npz",
    "instances": ".png",
    "detections": ".json",
    "panoptic": ".png",
    "segments": ".json",
}
"""What any task can write for each image, each kind in a folder of its name; these names are predict's own."""
ALWAYS = ("masks", "overlays", "areas")
"""The kinds that every task writes."""
IN_AREAS = {"abstained", "frames", "counts", "objects", "segments"}
"""What a file of the areas may hold besides image, size and classes."""

LARGEST_OVERLAY = 64_000_000
"""Pixels of an overlay; that of a larger image shows every 2nd, 3rd, … pixel. JPEG takes no side beyond 65,500."""
LONGEST_SIDE = 65_500


@dataclass(frozen=True)
class Legend:
    """What all pictures of a run share: names and colors in index order, and how much of the color is laid over."""

    classes: list[str]
    palette: list[list[int]]
    opacity: float

    def counts(self, labels: np.ndarray) -> np.ndarray:
        """Pixels per class, and in the last place those of nobody: (C + 1,) int64."""
        counts = np.zeros(256, np.int64)
        for start in range(0, labels.shape[0], 256):  # bincount makes 8 bytes of each pixel
            counts += np.bincount(labels[start : start + 256].ravel(), minlength=256)
        return np.append(counts[: len(self.classes)], counts[IGNORE_INDEX])


def result_files(output: Path, name: str, kinds: Mapping[str, str]) -> dict[str, Path]:
    """Where the results of an image go; suffixes are added, because a name may hold dots."""
    return {kind: output / kind / f"{name}{suffix}" for kind, suffix in kinds.items()}


def write_areas(
    path: Path, file: Path, size: tuple[int, int], areas: np.ndarray, classes: list[str], more: Mapping[str, Any]
) -> None:
    """Pixels and share of each class, and what else the task says; `more` may hold the number of `frames`.

    Written before the other files: what is there says that those of its name are ours to overwrite.
    """
    total = max(1, int(areas.sum()))
    shares = {
        label: {"pixels": int(area), "share": float(area / total)} for label, area in zip(classes, areas, strict=False)
    }
    write_json(path, {"image": str(file), "size": list(size), "classes": shares, **more})


def write_labels(path: Path, labels: np.ndarray, palette: list[list[int]]) -> None:
    """Class indices (H, W) uint8, 255 where there is none, as an index PNG with the palette."""
    mask = Image.fromarray(labels)
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[IGNORE_INDEX] = pictures.VOID
    mask.putpalette(table.tobytes())
    write_png(path, mask)


def write_png(path: Path, picture: Image.Image) -> None:
    """A picture without loss."""
    _save(path, picture, "PNG")


def write_overlay(path: Path, picture: np.ndarray) -> None:
    """A picture (H, W, 3) uint8 for people."""
    _save(path, Image.fromarray(picture), "JPEG", quality=92)


def overlay_step(height: int, width: int) -> int:
    """1, or n where an overlay shows every n-th pixel alone."""
    return max(1, math.ceil(max(math.sqrt(height * width / LARGEST_OVERLAY), max(height, width) / LONGEST_SIDE)))


def _save(path: Path, picture: Image.Image, form: str, **options: Any) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    write_atomically(path, buffer.getbuffer())
