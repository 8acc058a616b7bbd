"""Portraits with the person cut out (Shen et al. 2016), from any of the mask kinds that are about."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from segtrain.data.dataset import SegmentationDataset
from segtrain.data.reading import read_alpha, read_mask
from segtrain.errors import DataError
from segtrain.types import Fraction, Record


class Portrait(SegmentationDataset):
    """Two classes, background and person, in the order of the split's list.

    What a mask may be, told apart file by file:

    - values 0 and 1: class indices;
    - 0 and 255, or a matte of grey values up to 255 (16 bits: 65535): person from `matte_threshold` of full
      on;
    - a picture with alpha that is not opaque all over: alpha is the matte;
    - no folder `masks` at all: the alpha of the image itself is the matte.

    With `label_map` the file values go by that map instead.

    Args:
        matte_threshold: share of full opacity, in [0, 1], from which a pixel is person.
    """

    layout: ClassVar[str] = (
        "{train,val}.txt with one ID per line\n"
        "images/ID.{jpg,png}\n"
        "masks/ID.png (or no folder masks, and images with alpha)"
    )
    get_it: ClassVar[str] = (
        "the originals of Shen et al. 2016 are no longer published as one archive: arrange any portrait set "
        "(such as EG1800) like this and set data.root to it"
    )

    def __init__(self, *, matte_threshold: Fraction = 0.5, **shared: object) -> None:
        self.matte_threshold = matte_threshold
        super().__init__(**shared)  # type: ignore[arg-type]

    def find_records(self) -> list[Record]:
        path = self.root / f"{self.split}.txt"
        names = [name.removesuffix(".png").removesuffix(".jpg") for name in self.read_list(path)]
        images = self.files_in(self.root / "images")
        targets = self.files_in(self.root / "masks") if (self.root / "masks").is_dir() else images
        return self.pick(names, images, targets, path)

    def read_target(self, record: Record) -> np.ndarray:
        assert record.target is not None
        if record.target == record.image:
            return self._person(self._own_alpha(record.target))
        alpha = read_alpha(record.target, max_pixels=self.max_pixels)
        if alpha is not None and alpha.min() < 255:
            return self._person(alpha)
        mapped = self.labels.label_map is not None
        values = read_mask(record.target, keep_channels=mapped, max_pixels=self.max_pixels)
        if mapped or values.ndim == 3:
            return self.labels.apply(values, record.target)
        return self.labels.apply(values, record.target) if values.max() <= 1 else self._person(values)

    def _person(self, matte: np.ndarray) -> np.ndarray:
        """1 where a matte of uint8 or uint16 reaches the threshold."""
        full = 255 if matte.dtype == np.uint8 else 65535
        return (matte >= self.matte_threshold * full).astype(np.uint8)

    def _own_alpha(self, path: Path) -> np.ndarray:
        alpha = read_alpha(path, upright=self.exif == "apply", max_pixels=self.max_pixels)
        if alpha is None:
            raise DataError(
                "image has no alpha to take the person from",
                where=path,
                expected=f"data.root={self.root} to hold\n{self.layout}",
                fix="put the masks into the folder masks",
            )
        return alpha
