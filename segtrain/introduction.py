"""What a run says before its first step: where it runs, what it trains, on which data, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from segtrain import __version__, distributed
from segtrain.data.dataset import SegmentationDataset
from segtrain.data.duplicates import shared_files
from segtrain.data.images import ImageDataset
from segtrain.data.instances.dataset import InstanceDataset
from segtrain.data.instances.scan import scan_objects
from segtrain.data.scan import Scan, scan
from segtrain.errors import ConfigError, listed
from segtrain.models.summary import measure
from segtrain.parts import FROM_CHECKPOINT
from segtrain.settings import Settings
from segtrain.tracking import Tracker
from segtrain.trainer import Trainer
from segtrain.types import height_width


def environment_line(device: torch.device, precision: torch.dtype | None, seed: int) -> str:
    """Versions, device, precision and seed."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    number = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(precision, "fp32")  # type: ignore[arg-type]
    ranks = f" x {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
    return f"segtrain {__version__} | torch {torch.__version__} | {device} ({kind}){ranks} | {number} | seed {seed}"


def model_name(settings: Settings) -> str:
    """`DeepLabV3Plus / resnet50`."""
    node = settings.node["model"]
    return node["_target_"].rsplit(".", 1)[-1] + (f" / {node['backbone']}" if "backbone" in node else "")


def say_model(tracker: Tracker, settings: Settings, model: nn.Module, weights: str) -> None:
    """What the network costs at the training size, its stride, and which weights it starts from."""
    # A network that brings images to a size of its own says which.
    size = getattr(model, "usual_size", None) or settings.augment.get("crop_size") or settings.rider["data"].crop_size
    cost = measure(model, height_width(size), settings.node["data"].get("channels", 3))
    stride = getattr(model, "output_stride", None)
    tracker.say(
        f"model    {model_name(settings)}   {cost}" + (f"   output stride {stride}" if isinstance(stride, int) else "")
    )
    tracker.say(f"weights  {weights}")
    rider = settings.rider["model"]
    idle = getattr(model, "fixed_parts", ())
    if idle and rider.weights == "none" and weights != FROM_CHECKPOINT:
        tracker.say(f"         warning: {listed(idle)} stay random: set model.weights, or train them")
    if rider.freeze_bn and rider.weights == "none" and weights != FROM_CHECKPOINT:
        tracker.say(
            "         warning: model.freeze_bn=true keeps statistics that nothing has learned: set model.weights"
        )


def say_data(tracker: Tracker, settings: Settings, train: ImageDataset[Any], val: ImageDataset[Any]) -> Scan | None:
    """Checks targets before the first step, and says how common each class is; None: targets are no class per pixel."""
    if isinstance(train, InstanceDataset) and isinstance(val, InstanceDataset):
        _say_objects(tracker, settings, train, val)
        counted = None
    elif isinstance(train, SegmentationDataset) and isinstance(val, SegmentationDataset):
        counted = _say_pixels(tracker, settings, train, val)
    else:
        raise ConfigError(
            f"training on {type(train).__name__}",
            where="data",
            expected="a SegmentationDataset or an InstanceDataset",
            fix="derive your dataset from one of them",
        )
    if settings.rider["model"].weights == "none" and "backbone" in settings.node["model"] and train.records[0].image:
        tracker.say("           note: training from random weights; model.weights=imagenet usually scores far higher")
    return counted


def _say_pixels(tracker: Tracker, settings: Settings, train: SegmentationDataset, val: SegmentationDataset) -> Scan:
    limit = settings.rider["data"].scan
    scheme = settings.rider["loss"].class_weights
    needs_all = isinstance(scheme, str) and scheme != "none"
    tracker.say(f"data     {type(train).__name__}   {len(train.classes)} classes, 255 ignored")
    counted = scan(train, None if needs_all else limit)
    checked = scan(val, limit)
    tracker.say(
        f"           train {len(train)}   val {len(val)}   masks checked {counted.images}/{counted.of} and "
        f"{checked.images}/{checked.of}: all usable"
    )
    _warn_of_shared_images(tracker, train, val)
    shares = [f"{name} {share:.1%}" for name, share in zip(train.classes, counted.shares(), strict=True)]
    tracker.say(f"           pixels {listed(shares, 12)}, ignored {counted.ignored_share():.1%}")
    unseen = [name for name, pixels in zip(train.classes, counted.pixels, strict=True) if pixels == 0]
    if unseen and counted.images == counted.of:  # a sample of the masks may have missed a rare class
        tracker.say(f"           warning: no training pixel is {listed(unseen)}: the model cannot learn it")
    return counted


def _say_objects(tracker: Tracker, settings: Settings, train: InstanceDataset, val: InstanceDataset) -> None:
    limit = settings.rider["data"].scan
    tracker.say(f"data     {type(train).__name__}   {len(train.classes) - 1} classes of objects")
    counted, checked = scan_objects(train, limit), scan_objects(val, limit)
    tracker.say(
        f"           train {len(train)}   val {len(val)}   checked {counted.images}/{counted.of} and "
        f"{checked.images}/{checked.of}: all usable"
    )
    _warn_of_shared_images(tracker, train, val)
    for note in [*train.notes, *val.notes]:
        tracker.say(f"           note: {note}")
    common = sorted(zip(train.classes[1:], counted.objects[1:].tolist(), strict=True), key=lambda pair: -pair[1])
    named = listed([f"{name} {count}" for name, count in common if count], 12) or "none"
    empty = f"; {counted.empty} images without any" if counted.empty else ""
    empty += f", {counted.crowded} of them with groups (iscrowd) alone" if counted.crowded else ""
    tracker.say(f"           objects {named}{empty}")
    unseen = [name for name, count in common if count == 0]
    if unseen and counted.images == counted.of:
        tracker.say(f"           warning: no training object is {listed(unseen)}: the model cannot learn it")
    if not checked.objects.any() and checked.images == checked.of:
        tracker.say(
            "           warning: no object of the validation images can be scored: "
            "box_ap and mask_ap have nothing to count"
        )


def _warn_of_shared_images(tracker: Tracker, train: ImageDataset[Any], val: ImageDataset[Any]) -> None:
    both = shared_files(train, val) if train.split != val.split else []
    if both:
        names = listed([first if first == second else f"{first} = {second}" for first, second in both], 4)
        tracker.say(f"           warning: {len(both)} images are in both train and val, which flatters scores: {names}")


def say_plan(tracker: Tracker, trainer: Trainer, folder: Path) -> None:
    """How long the run is and where it writes."""
    steps, options = trainer.train_loader.steps_per_epoch, trainer.options
    tracker.say(
        f"plan     {options.epochs} epochs x {steps} steps of {trainer.train_loader.samples_per_step} images, "
        f"{trainer.course.total_steps} steps in all   validation every epoch   best by {trainer.course.monitor}"
    )
    tracker.say(f"run      {folder}")
    tracker.say(f"watch    tensorboard --logdir {folder}" if options.tensorboard else "watch    metrics.jsonl")
    tracker.say()
