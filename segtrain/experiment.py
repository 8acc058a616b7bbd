"""From a config to objects, and from a checkpoint to objects. The door for notebooks and tests too.

    from segtrain.experiment import compose, build
    trainer = build(compose(["data=pet", "model=unet"]))
    trainer.fit()

The config is resolved to plain data once and checked against the signatures of what it configures before anything is
built or any data is touched.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from segtrain import __version__, distributed
from segtrain.checkpoint_content import names_each_class
from segtrain.clashes import refuse_clashes
from segtrain.composition import compose, run_id
from segtrain.data.images import ImageDataset
from segtrain.data.loader import EvalLoader, LoaderOptions, TrainLoader
from segtrain.device import amp_dtype, be_deterministic, memory_format, pick_device
from segtrain.errors import ConfigError
from segtrain.introduction import environment_line, say_data, say_model, say_plan
from segtrain.parts import (
    make_class_weights,
    make_dataset,
    make_model,
    make_optimizer,
    make_task,
    refuse_batch_of_one,
    refuse_misfits,
    use_cache,
)
from segtrain.rng import seed_everything
from segtrain.segmenter import Segmenter
from segtrain.segmenters import from_checkpoint, from_config
from segtrain.settings import Plain, Settings
from segtrain.tasks.instance import InstanceTask
from segtrain.tracking import RunTracker, Tracker
from segtrain.trainer import Trainer

__all__ = ["Segmenter", "build", "build_dataset", "build_model", "compose", "from_checkpoint", "from_config"]


def join(settings: Settings) -> torch.device:
    """Picks the device and joins the other processes of torchrun, if there are any."""
    device = pick_device(settings.options.device)
    distributed.start(device)
    return device


def build_model(cfg: DictConfig) -> nn.Module:
    """The network alone, with `model.weights` loaded; needs no data."""
    return make_model(Settings(cfg))[0]


def build_dataset(cfg: DictConfig, split: str) -> ImageDataset[Any]:
    """One split of the dataset; the training split comes augmented, the others as they are."""
    return make_dataset(Settings(cfg), split)


def build(
    cfg: DictConfig,
    *,
    folder: Path | None = None,
    tracker: Tracker | None = None,
    resume: Mapping[str, Any] | None = None,
    resume_hint: str = "",
) -> Trainer:
    """A trainer ready to `fit()`.

    Args:
        folder: the run folder; None: a new one under outputs/train.
        tracker: who says what happens; None: console, files and TensorBoard in `folder`.
        resume: a loaded checkpoint to go on from.
        resume_hint: shown when the run is interrupted.

    Raises:
        ConfigError, DataError, CheckpointError: as each part finds.
    """
    settings = Settings(cfg)
    refuse_clashes(settings)
    inference = settings.make("inference")  # first: it may need a package that is not there
    options = settings.options
    device = join(settings)
    precision = amp_dtype(options.amp, device)
    folder = folder or Path(distributed.from_main(f"outputs/train/{settings.name}/{run_id()}"))
    tracker = tracker or _tracker(folder, options.tensorboard, resume)
    be_deterministic(options.deterministic)
    seed_everything(options.seed)
    tracker.say(environment_line(device, precision, options.seed))
    model = _network(settings, device, tracker, inference, load=resume is None)
    train = make_dataset(settings, "train")
    val = make_dataset(settings, settings.rider["data"].val_split, augmented=False)
    use_cache(settings, tracker, train, val)
    weights = make_class_weights(settings, say_data(tracker, settings, train, val))
    task = make_task(settings, weights, train.classes, train.palette, inference)
    train_loader, val_loader = _loaders(settings, train, val, device)
    optimizer, scheduler = make_optimizer(settings, model, train_loader.steps_per_epoch)
    seed_everything(options.seed + distributed.rank())  # ranks share the weights, not the dropout
    trainer = Trainer(
        model=model,
        task=task.to(device, memory_format(options.channels_last, device)),
        optimizer=optimizer,
        scheduler=scheduler,
        train_loader=train_loader,
        val_loader=val_loader,
        options=options,
        device=device,
        amp_dtype=precision,
        tracker=tracker,
        folder=folder,
        about={**_about(settings, train, task.name), "class_weights": weights},
        resume_hint=resume_hint,
        freeze_bn=settings.rider["model"].freeze_bn,
    )
    say_plan(tracker, trainer, folder)
    if resume is not None:
        trainer.restore(dict(resume))
        tracker.say(f"resumed  step {trainer.course.step}, epoch {trainer.course.epoch + 1}")
    return trainer


def _tracker(folder: Path, tensorboard: bool, resume: Mapping[str, Any] | None) -> Tracker:
    if not distributed.is_main():
        return Tracker()
    after = None if resume is None else int(resume["step"])
    return RunTracker(folder, tensorboard=tensorboard, purge_after=after)


def _network(settings: Settings, device: torch.device, tracker: Tracker, inference: Any, *, load: bool) -> nn.Module:
    model, report = make_model(settings, load)
    refuse_misfits(settings, model, inference)
    if distributed.world_size() > 1 and device.type == "cuda" and settings.options.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    refuse_batch_of_one(settings, model)
    say_model(tracker, settings, model, report)
    layout = memory_format(settings.options.channels_last, device)
    return model.to(device, memory_format=layout)  # type: ignore[call-overload, no-any-return]


def _loaders(
    settings: Settings, train: ImageDataset[Any], val: ImageDataset[Any], device: torch.device
) -> tuple[TrainLoader, EvalLoader]:
    loader: LoaderOptions = settings.rider["data"]
    shared: Plain = {
        "batch_size": loader.images,
        "num_workers": loader.num_workers,
        "prefetch": loader.prefetch,
        "pin_memory": device.type == "cuda",
    }
    options = settings.options
    group = loader.group_by_aspect
    return TrainLoader(
        train, accumulate=options.accumulate, seed=options.seed, group_by_aspect=group, **shared
    ), EvalLoader(val, **shared)


def _about(settings: Settings, dataset: ImageDataset[Any], task_name: str) -> Plain:
    return {
        "config": settings.tree,
        "task": task_name,
        "classes": dataset.classes,
        "palette": dataset.palette,
        "label_map": settings.node["data"].get("label_map"),
        "normalize": settings.rider["model"].normalize,
        "versions": versions(),
        **_category_ids(dataset),
    }


def _category_ids(dataset: ImageDataset[Any]) -> Plain:
    """The publisher's ids of classes of objects, by which results name them; of pixels nobody asks for them."""
    if getattr(dataset, "task", "") != InstanceTask.name or not hasattr(dataset, "category_ids"):
        return {}
    ids = {int(index): int(number) for index, number in dataset.category_ids.items()}
    if not names_each_class(ids, len(dataset.classes)):
        raise ConfigError(
            f"{type(dataset).__name__}.category_ids is {ids}",
            where="data",
            expected=f"a number of its own for each of the classes 1 to {len(dataset.classes) - 1}",
        )
    return {"category_ids": ids}


def versions() -> dict[str, str]:
    """What a number or a file was made with."""
    packages = ("torch", "torchvision", "albumentations", "numpy", "opencv-python-headless", "hydra-core")
    return {
        "segtrain": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
