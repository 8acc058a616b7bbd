"""One weight per class, from how often each occurs or from a list."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from segtrain.errors import ConfigError, DataError


def class_weights(
    scheme: Literal["auto", "median_frequency"], pixels: Tensor, pixels_of_images_with_class: Tensor
) -> Tensor:
    """Weights that raise rare classes: (C,) float32, finite and positive.

    `median_frequency`: median(freq) / freq, a class's freq being its share of all pixels, unlabelled ones too, of
    the images that contain it (Eigen and Fergus 2015; SegNet). SegNet's published CamVid weights (0.2595 sky, 0.1826
    building, ..., 9.6446 sign) are not quite what its training labels give (0.2794, 0.2018, ..., 3.8464).
    `auto`: 1 / ln(1.02 + share of all labelled pixels), from 1.42 to 50.5 (ENet, Paszke et al. 2016).
    A class without pixels has weight 1: no pixel asks for it, and the formulas' answer is huge or infinite.

    Args:
        pixels: (C,) int64, labelled pixels of each class.
        pixels_of_images_with_class: (C,) int64, all pixels, unlabelled ones too, of the images that contain the
            class.

    Raises:
        DataError: no pixel is labelled.
    """
    present = pixels > 0
    if not present.any():
        raise DataError(
            "class weights cannot be computed: no pixel of the training split is labelled",
            expected="at least one pixel with a class",
            fix="check data.label_map, or set loss.class_weights=none",
        )
    found = pixels[present].double()
    if scheme == "median_frequency":
        frequency = found / pixels_of_images_with_class[present].double()
        weights = frequency.quantile(0.5) / frequency
    else:
        weights = 1 / torch.log(1.02 + found / found.sum())
    return torch.ones(len(pixels)).masked_scatter(present.cpu(), weights.float().cpu())


def listed_class_weights(weights: list[float], num_classes: int) -> Tensor:
    """The weights that a config lists: (C,) float32.

    Raises:
        ConfigError: not one weight per class, one that is negative or not finite, or nothing but zeros.
    """
    problem = None
    if len(weights) != num_classes:
        problem = f"{len(weights)} class weights are listed, the data have {num_classes} classes"
    elif not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        problem = f"a class weight is negative or not finite: {weights}"
    elif not any(weights):
        problem = "all class weights are 0, which leaves nothing to learn"
    if problem:
        raise ConfigError(
            problem,
            where="loss.class_weights",
            expected=f"{num_classes} finite weights of at least 0, in the order of data.classes",
            fix="correct the list, or set loss.class_weights=none|auto|median_frequency",
        )
    return torch.tensor(weights, dtype=torch.float32)
