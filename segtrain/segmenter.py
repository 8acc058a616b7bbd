"""A trained model ready to use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from segtrain.data.images import ImageDataset
from segtrain.data.loader import EvalLoader, LoaderOptions
from segtrain.errors import ConfigError, listed
from segtrain.instances import Detections
from segtrain.parts import make_dataset
from segtrain.settings import Settings


@dataclass
class Segmenter:
    """A trained model with all that is needed to use it: no dataset, no config files.

    Attributes:
        category_ids: class index -> the id that the publisher of the training data knows the class by; None: nobody
            wrote it down, as in older checkpoints, or classes are of pixels.
    """

    model: nn.Module
    task: Any
    classes: list[str]
    palette: list[list[int]]
    normalize: dict[str, Any]
    config: DictConfig
    settings: Settings
    device: torch.device
    amp: torch.dtype | None
    category_ids: dict[int, int] | None = None

    def predict(self, image: np.ndarray) -> Any:
        """Image (H, W, C) uint8 RGB, or float32 in [0, 255] -> what the network says of it, in the main memory.

        With task=semantic class indices, an array (H, W) uint8. With task=instance the objects, a
        `segtrain.instances.Detections` with those of `inference.score_threshold` and above, the likeliest first. With
        task=panoptic a `segtrain.panoptic.Panoptic`.

        Raises:
            ValueError: an image of another shape or type, or one scaled to [0, 1]: it would be classified wrongly.
        """
        if image.ndim != 3 or image.shape[2] != self.channels or image.dtype not in (np.uint8, np.float32):
            raise ValueError(
                f"image is {image.dtype} of shape {image.shape}, expected uint8 of shape (H, W, {self.channels})"
            )
        if image.dtype == np.float32 and 0 < image.max(initial=0) <= 1:
            raise ValueError(f"image is float32 with values up to {image.max()}, expected [0, 255]: multiply it by 255")
        with torch.inference_mode(), self.precision():
            # A copy only where torch needs one: it warns of arrays that it must not write to, as Pillow's are.
            batch = torch.from_numpy(np.require(image, requirements=["C", "W"]))[None].to(self.device)
            found = self.task.predict(self.model, batch)[0]
        if isinstance(found, torch.Tensor):
            return found.cpu().numpy()
        return found.cpu() if isinstance(found, Detections) else found

    def precision(self) -> torch.autocast:
        """The autocast context this model is used in."""
        # Not the trainer's: where this model is used in float32, whoever calls it may be in another precision.
        return torch.autocast(self.device.type, self.amp, enabled=self.amp is not None)

    @property
    def channels(self) -> Literal[1, 3]:
        """Channels of the images it takes."""
        return 1 if self.settings.node["data"].get("channels", 3) == 1 else 3

    def dataset(self, split: str) -> ImageDataset[Any]:
        """A split of the dataset in the config, untransformed.

        Raises:
            ConfigError: the dataset has other classes than the model was trained on.
        """
        dataset = make_dataset(self.settings, split, augmented=False)
        if dataset.classes != self.classes:
            raise ConfigError(
                f"the data have {len(dataset.classes)} classes: {listed(dataset.classes)}",
                expected=f"the {len(self.classes)} the model was trained on: {listed(self.classes)}",
                fix="set data.classes and data.label_map so that they match",
            )
        return dataset

    def loader(self, dataset: ImageDataset[Any]) -> EvalLoader:
        """Batches for evaluation, as `data.batch_size` and `data.num_workers` say."""
        options: LoaderOptions = self.settings.rider["data"]
        pin = self.device.type == "cuda"
        return EvalLoader(
            dataset,
            batch_size=options.images,
            num_workers=options.num_workers,
            prefetch=options.prefetch,
            pin_memory=pin,
        )
