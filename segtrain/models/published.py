"""Torchvision's published weights: which fit a network, and getting them."""

from __future__ import annotations

import contextlib
import http.client
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import detection, segmentation
from torchvision.models._api import WeightsEnum

from segtrain import checkpoint
from segtrain.errors import CheckpointError, ConfigError, listed


def imagenet(model: nn.Module) -> WeightsEnum:
    """ImageNet weights of the network's backbone; a ConfigError where torchvision has none."""
    name = getattr(model, "imagenet_name", None) or getattr(getattr(model, "backbone", None), "name", None)
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ConfigError(
            f"{type(model).__name__} has no backbone with ImageNet weights",
            where="model.weights=imagenet",
            expected="a network on a ResNet, MobileNet, VGG-16 or timm backbone, such as model=deeplabv3plus",
            fix=_instead_of_imagenet(model, name),
        )
    # V1, not the newer recipes: what torchvision's own segmentation weights and the literature started from.
    return torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]


def _instead_of_imagenet(model: nn.Module, name: str | None) -> str:
    if type(model).__module__.startswith("torchvision."):
        return "model.weights=none model.weights_backbone=DEFAULT"
    if name == "xception65":
        return "model.backbone=timm/xception65 has timm's; or model.weights=none, or PATH of timm's xception65"
    if name is not None and name.endswith("_deep_stem"):
        return "model.stem=conv7 is what torchvision has weights for; or model.weights=none, or PATH of a deep stem's"
    return "model.weights=none, or model.weights=PATH"


def coco(model: nn.Module) -> WeightsEnum:
    """Weights of the whole network; a ConfigError where torchvision has none.

    All are from COCO's images: with VOC's labels for semantic segmentation, with COCO's own for objects.
    """
    form = getattr(model, "torchvision_form", None)
    of_objects = torchvision.models.list_models(module=detection, include="maskrcnn*")
    known = [*torchvision.models.list_models(module=segmentation), *of_objects]
    if form not in known:
        raise ConfigError(
            f"torchvision publishes no segmentation weights for this {type(model).__name__}",
            where="model.weights=torchvision",
            expected=f"a network in the form of {listed(known)}: "
            "model=fcn_torchvision, deeplabv3_torchvision, lraspp, or maskrcnn with model.backbone=resnet50",
            fix="model.weights=none, imagenet or PATH",
        )
    return torchvision.models.get_model_weights(form)["COCO_V1" if form in of_objects else "COCO_WITH_VOC_LABELS_V1"]


def download(published: WeightsEnum) -> Mapping[str, Any]:
    """The state_dict, from torch.hub's folder or from the network; a CheckpointError where neither has it."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(published.url).name
    if cached.is_file():
        return checkpoint.read(cached)
    try:
        # torch.hub announces a download on stdout, which is kept for results.
        with contextlib.redirect_stdout(sys.stderr):
            return published.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise CheckpointError(
            f"download failed: {str(error) or type(error).__name__}",
            where=f"{published.url}\nfor {cached}",
            expected="a network connection, or the file in that folder",
            fix="put the file there by hand, or set model.weights=PATH or model.weights=none",
        ) from error
