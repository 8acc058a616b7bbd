"""Parts of a run that cannot work together, refused before any of them is built.

Each part has fitted its own signature by then: what is left is where one part contradicts another.
"""

from __future__ import annotations

from segtrain.errors import ConfigError, closest, listed
from segtrain.settings import Settings

TARGETS = {"semantic": "one class per pixel", "instance": "one mask per object", "panoptic": "segments"}
OTHER_DATA = {
    "semantic": "data=voc, coco_semantic, pennfudan_semantic, …; or model=maskrcnn for single objects",
    "instance": "data=coco, pennfudan, voc_instances, cityscapes_instances, folder_instances or shapes_instances; "
    "or a model with one class per pixel, such as model=deeplabv3plus",
}
"""What a task's data hold, and what to choose where others were."""


def refuse_clashes(settings: Settings) -> None:
    """Data, model and task of a training must agree.

    Raises:
        ConfigError: they do not.
    """
    _refuse_other_classes(settings)
    _refuse_other_parts(settings)
    _refuse_what_is_not_trained(settings)
    refuse_other_targets(settings)
    _refuse_other_monitors(settings)
    _refuse_other_channels(settings)
    _refuse_other_normalization(settings)


def refuse_other_targets(settings: Settings) -> None:
    """Data must hold what the task learns.

    Raises:
        ConfigError: they hold something else.
    """
    if settings.rider["data"].group_by_aspect and not hasattr(settings.target("data"), "aspect_ratios"):
        raise ConfigError(
            "data.group_by_aspect=true with data whose images are cropped to one size",
            expected="data of single objects, whose images keep their sizes",
            fix="data.group_by_aspect=false",
        )
    task, kind = settings.target("task").name, getattr(settings.target("data"), "task", "")
    if kind and kind != task:
        raise ConfigError(
            f"task={task} with data of the kind {kind}: {settings.node['data']['_target_'].rsplit('.', 1)[-1]}",
            where="data, model",
            expected=f"data with {TARGETS[task]}" if task in TARGETS else f"data for task={task}",
            fix=OTHER_DATA.get(task),
        )


def _refuse_other_classes(settings: Settings) -> None:
    names, model = settings.node["data"]["classes"], settings.node["model"]
    classes = settings.rider["data"].num_classes
    if len(names) != classes:
        raise ConfigError(f"data.num_classes={classes}", expected=f"{len(names)}, the length of data.classes")
    if model.get("num_classes", classes) != classes:
        raise ConfigError(
            f"model.num_classes={model['num_classes']}, but the data have {classes} classes",
            expected=f"{classes}: {listed(names)}",
            fix="leave model.num_classes alone: it follows data.classes",
        )


def _refuse_other_parts(settings: Settings) -> None:
    """Where a task names the kinds of its parts, the config must name such."""
    task = settings.target("task")
    for part, (kind, fix) in getattr(task, "parts", {}).items():
        found = settings.target(part)
        if not (isinstance(found, type) and issubclass(found, kind)):
            name = settings.node[part]["_target_"].rsplit(".", 1)[-1]
            raise ConfigError(
                f"task={task.name} with {part}={name}",
                where=f"{part}._target_",
                expected=f"{part} of the kind that task={task.name} uses",
                fix=fix,
            )


def _refuse_what_is_not_trained(settings: Settings) -> None:
    if not settings.target("task").monitors:
        raise ConfigError(
            "task=panoptic is not trained: it merges the answers of two networks",
            expected="a task that learns, for each of the two",
            fix="train model=maskrcnn and a model with one class per pixel, each on its own data; then "
            "evaluate task=panoptic task.semantic=PATH task.instance=PATH data=…",
        )


def _refuse_other_monitors(settings: Settings) -> None:
    monitors = settings.target("task").monitors
    if settings.monitor not in monitors:
        near = closest(settings.monitor, monitors)
        raise ConfigError(
            f"trainer.monitor={settings.monitor}",
            expected=listed(monitors),
            fix=f"did you mean trainer.monitor={near}?" if near else None,
        )


def _refuse_other_channels(settings: Settings) -> None:
    model, channels = settings.node["model"], _channels(settings)
    if model.get("in_channels", channels) != channels:
        raise ConfigError(
            f"model.in_channels={model['in_channels']}, but images have {channels} channels",
            fix=f"set data.channels={model['in_channels']} or leave model.in_channels alone",
        )
    if channels != 3 and "in_channels" not in model and model["_target_"].startswith("torchvision."):
        raise ConfigError(
            f"data.channels={channels}, but {model['_target_']} takes color images only",
            expected="data.channels=3, which reads grey files too, or a model with in_channels",
            fix="set data.channels=3, or choose a model of segtrain, as model=fcn_torchvision",
        )


def _refuse_other_normalization(settings: Settings) -> None:
    normalize, channels = settings.rider["model"].normalize, _channels(settings)
    wrong = [key for key in ("mean", "std") if len(normalize[key]) not in (1, channels)]
    if wrong:
        lengths = " and ".join(f"model.normalize.{key} has {len(normalize[key])} values" for key in wrong)
        # Pasted, it must work: both keys at once, each with as many values as there are channels.
        values = {key: [_average(normalize[key])] * channels for key in wrong}
        raise ConfigError(
            f"{lengths}, images have {channels} channels",
            expected="one value, or one per channel",
            fix=" ".join(f"'model.normalize.{key}={values[key]}'".replace(" ", "") for key in wrong),
        )


def _channels(settings: Settings) -> int:
    """Of the images as the network gets them."""
    channels: int = settings.node["data"].get("channels", 3)
    return channels


def _average(values: list[float]) -> float:
    """Three digits of the mean, which suits grey images where a value per color is given."""
    return float(f"{sum(values) / len(values):.3g}") if values else 0.5
