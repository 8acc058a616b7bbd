"""Checked settings -> the objects of a run, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from segtrain import signatures, startup
from segtrain.data.caching.cache import open_cache
from segtrain.data.dataset import SegmentationDataset
from segtrain.data.images import ImageDataset
from segtrain.data.loader import LoaderOptions
from segtrain.data.scan import Scan
from segtrain.device import usable_cores
from segtrain.errors import ConfigError
from segtrain.inference.base import ImageInference
from segtrain.inference.instances import InstanceInference
from segtrain.losses.weights import class_weights, listed_class_weights
from segtrain.models.layers import needs_two_samples
from segtrain.models.pretrained import load_weights
from segtrain.models.segmentation import SegmentationModel
from segtrain.optim.optimizers import parameter_groups
from segtrain.optim.schedules import make_scheduler
from segtrain.settings import GroupOptions, Settings
from segtrain.tracking import Tracker

FROM_CHECKPOINT = "weights from the checkpoint"
"""What stands in place of a report where a checkpoint fills the network."""


def make_model(settings: Settings, load: bool = True) -> tuple[nn.Module, str]:
    """The network, and the line that says which weights it has; `load=False`: a checkpoint will fill it."""
    model: nn.Module = settings.make("model")
    weights = settings.rider["model"].weights
    classes = settings.node["data"].get("classes")
    return model, load_weights(model, weights, classes) if load else FROM_CHECKPOINT


def make_dataset(settings: Settings, split: str, augmented: bool = True) -> ImageDataset[Any]:
    """One split; the training split with its transform unless `augmented` is False."""
    transform = None
    if augmented and split == "train":
        steps = signatures.instantiate(settings.augment["transforms"], "augment.transforms", allow=settings.allow)
        transform = getattr(settings.target("data"), "transform_of", SegmentationDataset.transform_of)(steps)
    dataset: ImageDataset[Any] = settings.make("data", split=split, transform=transform, seed=settings.options.seed)
    return dataset


def use_cache(settings: Settings, tracker: Tracker, *datasets: ImageDataset[Any]) -> None:
    """Lets the datasets take decoded samples from `data.cache`, building what is missing."""
    options: LoaderOptions = settings.rider["data"]
    if options.cache == "none":
        return
    for dataset in datasets:
        if not isinstance(dataset, SegmentationDataset):
            raise ConfigError(
                f"data.cache={options.cache} with {type(dataset).__name__}",
                expected="data with one class per pixel: masks of single objects are not cached",
                fix="data.cache=none",
            )
        cache = open_cache(
            dataset,
            kind=options.cache,
            folder=Path(options.cache_dir),
            settings=settings.node["data"],
            say=tracker.say,
            bar=tracker.bar,
            threads=usable_cores() + 1,
        )
        cache.attach(dataset)


def make_class_weights(settings: Settings, counted: Scan | None) -> torch.Tensor | None:
    """`loss.class_weights` as one weight per class (C,) float32, from the training masks where it says so.

    Args:
        counted: the training masks' pixels; None: the data have no pixels of classes.

    Raises:
        ConfigError: weights for a loss that has none.
    """
    scheme = settings.rider["loss"].class_weights
    if counted is None and scheme != "none":
        raise ConfigError(
            f"loss.class_weights={scheme} with task={settings.target('task').name}",
            expected="none: only losses of pixels weigh classes",
            fix="loss.class_weights=none",
        )
    if isinstance(scheme, list):
        return listed_class_weights(scheme, settings.rider["data"].num_classes)
    if scheme == "none":
        return None
    assert counted is not None
    counts = (torch.from_numpy(array) for array in (counted.pixels, counted.pixels_of_images_with_class))
    return class_weights(scheme, *counts)


def make_task(
    settings: Settings,
    weights: torch.Tensor | None,
    classes: list[str],
    palette: list[list[int]],
    inference: ImageInference,
) -> Any:
    """Loss with its class weights, scores, inference."""
    loss = settings.make("loss")
    if weights is not None:
        loss.use_class_weights(weights)
    normalize = settings.rider["model"].normalize
    return settings.make(
        "task",
        loss=loss,
        classes=classes,
        palette=palette,
        mean=normalize["mean"],
        std=normalize["std"],
        inference=inference,
    )


def make_optimizer(
    settings: Settings, model: nn.Module, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The optimizer over the model's parameter groups, and its schedule over the whole run."""
    node = settings.node["optimizer"]
    shape: GroupOptions = settings.rider["optimizer"]
    groups = parameter_groups(model, lr=node["lr"], weight_decay=node.get("weight_decay", 0.0), **vars(shape))
    if not settings.options.compile:
        startup.prepare_optimizers()
    optimizer = settings.make("optimizer", params=groups)
    if not settings.options.compile:
        startup.lighten(optimizer)
    steps = settings.options.total_steps(steps_per_epoch)
    return optimizer, make_scheduler(optimizer, settings.make("scheduler"), steps)


def refuse_batch_of_one(settings: Settings, model: nn.Module) -> None:
    """BatchNorm needs two values per channel to have statistics: found here, not in the first step."""
    if settings.rider["data"].images == 1 and not settings.rider["model"].freeze_bn and needs_two_samples(model):
        raise ConfigError(
            "data.batch_size=1 with a model that pools the image to one value before BatchNorm",
            expected="at least 2 values per channel, or the statistics are undefined",
            fix="data.batch_size=2, or model.freeze_bn=true; trainer.accumulate does not help BatchNorm",
        )


def refuse_misfits(settings: Settings, model: nn.Module, inference: ImageInference) -> None:
    """What a loss or an inference protocol asks of the network, the network must have."""
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    if settings.node["loss"].get("resolution") == "native" and not isinstance(model, SegmentationModel):
        raise ConfigError(
            f"loss.resolution=native with {name}",
            expected="a segtrain.models.segmentation.SegmentationModel, which has logits at its own stride",
            fix="set loss.resolution=full",
        )
    if getattr(model, "context", None) == "crop":
        refuse_judged_margin(settings.augment, int(model.margin))  # type: ignore[arg-type]
    if isinstance(inference, ImageInference | InstanceInference):  # a user's own may be any callable
        inference.check(model)
    if isinstance(inference, InstanceInference):
        inference.prepare(model)
        if settings.options.compile:
            raise ConfigError(
                f"trainer.compile=true with {name}",
                expected="a network whose shapes are the same from step to step: every image has as many proposals "
                "and objects as it has, and each number would be compiled anew",
                fix="trainer.compile=false",
            )


def refuse_judged_margin(augment: dict[str, Any], margin: int) -> None:
    """Where the crop is its own surroundings, nobody may judge its border: it has no logits, only zeros."""
    if augment.get("margin") != margin:
        raise ConfigError(
            f"model.context=crop, and augment.margin is {augment.get('margin', 'not there')}",
            expected=f"augment.margin={margin}: the pixels per side that the network loses, which are then not judged",
            fix=f"augment=elastic augment.margin={margin}, or model.context=mirror",
        )
