"""What all datasets with one class per pixel share: checked (image, target, record) samples out.

Reading masks, the label map and the label check happen here, once, for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from segtrain.data.batches import stacked
from segtrain.data.images import ImageDataset, Transform, refuse_unequal
from segtrain.data.labels import LabelMap
from segtrain.data.reading import read_mask
from segtrain.errors import SegtrainError
from segtrain.types import Batch, Record

Sample = tuple[np.ndarray, np.ndarray, Record]


class SegmentationDataset(ImageDataset[np.ndarray]):
    """Images with one class index per pixel.

    `target` (H, W) uint8 holds class indices in [0, len(classes)) and 255 where unlabelled.

    Args:
        classes: names in index order.
        palette: one RGB triple per class for pictures; also the colors of color-coded masks. None: VOC's.
        label_map: file value -> class index (255 = ignore); None: file values are class indices already.
        ignore_colors: RGB triples that mean unlabelled in color-coded masks.
        shared: as in `ImageDataset`.

    Raises:
        DataError: root, split or files are not as the publisher ships them.
    """

    task: ClassVar[str] = "semantic"

    def __init__(
        self,
        *,
        classes: list[str],
        palette: list[list[int]] | None = None,
        label_map: dict[int, int] | None = None,
        ignore_colors: list[list[int]] | None = None,
        **shared: Any,
    ) -> None:
        self.labels = LabelMap(classes, palette, label_map, ignore_colors)
        self.label_counts: Callable[[int], np.ndarray] = self._count_in_file
        """Sample number -> how often each value occurs in its target, (256,) int64; a cache may know without a file."""
        super().__init__(classes=classes, palette=self.labels.palette, **shared)

    @staticmethod
    def collate(samples: Sequence[Any]) -> Batch | SegtrainError:
        """Samples of one size, stacked."""
        return stacked(samples)

    @staticmethod
    def transform_of(steps: dict[str, Any]) -> Transform:
        """The named transforms, applied to image and target together."""
        from segtrain.data.transforms import SegmentationTransform  # albumentations: only training needs it

        return SegmentationTransform(steps)

    def load(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        """The untransformed image (H, W, C) and class indices (H, W) uint8 of one record."""
        image = self.read_image(record)
        target = self.read_target(record)
        refuse_unequal(
            image,
            record,
            target.shape,
            found="image and mask have different sizes",
            other=f"{record.target} is",
            expected="one mask pixel per image pixel",
            fix="resize or re-export the mask",
        )
        return image, target

    def read_target(self, record: Record) -> np.ndarray:
        """Class indices (H, W) uint8 of one record, label map applied and checked; needs no image."""
        assert record.target is not None
        values = read_mask(record.target, keep_channels=True, max_pixels=self.max_pixels)
        return self.labels.apply(values, record.target)

    def count_labels(self, index: int) -> np.ndarray:
        """How often each value occurs in the untransformed target of one sample: (256,) int64."""
        return self.label_counts(index)

    def _count_in_file(self, index: int) -> np.ndarray:
        return np.bincount(self.read_target(self.records[index]).ravel(), minlength=256)
