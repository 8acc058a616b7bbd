"""From a checkpoint, or from published weights, to a model ready to use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from segtrain import checkpoint, distributed
from segtrain.checkpoint_content import fetch_nothing, refuse_misfitting_content
from segtrain.clashes import refuse_other_targets
from segtrain.data.labels import voc_palette
from segtrain.device import amp_dtype, memory_format, pick_device
from segtrain.errors import CheckpointError, ConfigError
from segtrain.losses.weights import listed_class_weights
from segtrain.overlay import lay_over
from segtrain.parts import make_model, make_task, refuse_misfits
from segtrain.segmenter import Segmenter
from segtrain.settings import ModelOptions, Settings
from segtrain.tasks.panoptic import INSTANCE, SEMANTIC, PanopticTask


def from_checkpoint(
    path: str | Path,
    *,
    over: Mapping[str, Any] | None = None,
    choices: Mapping[str, str] | None = None,
    allow_targets: list[str] | None = None,
) -> Segmenter:
    """The model of a checkpoint, with its averaged weights where it has them, ready to predict.

    Its config fetches neither data nor weights, whatever it says; `over` and `choices` may.

    Args:
        path: a file written by training.
        over: nested values laid over the checkpoint's config, e.g. `{"trainer": {"device": "cpu"}}`.
        choices: other groups, e.g. `{"inference": "slide"}`.
        allow_targets: packages of your own that the config may name; never taken from the file.

    Raises:
        CheckpointError: missing, damaged or misfitting file.
        ConfigError: a key or group that does not exist.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        inside = file / "checkpoints" / "best.pt"
        raise CheckpointError(
            "the checkpoint is a folder",
            where=path,
            expected="a file written by training (best.pt, last.pt)",
            fix=f"checkpoint={inside}" if inside.is_file() else None,
        )
    state = checkpoint.load(file)
    refuse_misfitting_content(state, file)
    base = {**state["config"], "allow_targets": allow_targets or []}
    cfg = lay_over(base, over or {}, choices or {})
    settings = Settings(cfg)
    _refuse_merging(settings, file)
    refuse_other_targets(settings)
    fetch_nothing(settings, over or {}, choices or {})
    settings.rider["model"] = ModelOptions(**{**vars(settings.rider["model"]), "weights": "none"})
    model = make_model(settings)[0]
    weights = state["model"] if state["ema"] is None else state["ema"]["model"]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights do not fit the model: {str(error).splitlines()[-1].strip()}",
            where=path,
            expected=f"model {settings.node['model']['_target_']} as configured in the file",
            fix="drop the overrides of model.* and data.classes",
        ) from error
    class_weights = _class_weights(settings, state)
    return segmenter(cfg, settings, model, state["classes"], state["palette"], class_weights, state.get("category_ids"))


def _refuse_merging(settings: Settings, path: Path) -> None:
    if settings.target("task").name == PanopticTask.name:
        raise ConfigError(
            "task=panoptic with checkpoint=",
            where=path,
            expected="two checkpoints, which the task itself names: task.semantic= and task.instance=",
            fix="leave checkpoint= out: task=panoptic task.semantic=PATH task.instance=PATH data=coco_panoptic, "
            "cityscapes_panoptic or shapes_panoptic",
        )


def _class_weights(settings: Settings, state: Mapping[str, Any]) -> torch.Tensor | None:
    """The class weights that the config, as laid over the checkpoint's, asks for.

    Raises:
        ConfigError: weights to be computed from training masks, other than those that the checkpoint holds.
    """
    scheme = settings.rider["loss"].class_weights
    if scheme == "none":
        return None
    if isinstance(scheme, list):
        return listed_class_weights(scheme, len(state["classes"]))
    trained = OmegaConf.select(OmegaConf.create(state["config"]), "loss.class_weights")
    if scheme != trained or state["class_weights"] is None:
        raise ConfigError(
            f"loss.class_weights={scheme}: the checkpoint has no such weights",
            where=f"it was trained with loss.class_weights={trained}",
            expected=f"none, {'' if trained in (None, 'none') else f'{trained}, '}or one weight per class",
            fix=f"list them: loss.class_weights=[{','.join(['1'] * len(state['classes']))}]",
        )
    weights: torch.Tensor = state["class_weights"]
    return weights


def from_config(cfg: DictConfig, fix: str) -> tuple[Segmenter, str]:
    """A model with published weights, or without need of any, and no checkpoint; and what was loaded.

    Raises:
        ConfigError: a network of which some layers are not trained; `fix` says what to set.
    """
    settings = Settings(cfg)
    if settings.target("task").name == PanopticTask.name:
        return merged(cfg, settings), "two networks merged"
    refuse_other_targets(settings)
    weights = settings.rider["model"].weights
    model, report = make_model(settings, load=weights != "imagenet")  # a backbone: not worth a download
    untrained = weights in ("none", "imagenet") or "head new" in report
    if untrained and any(True for _ in model.parameters()):
        raise ConfigError(
            f"nothing trained: checkpoint is not set and model.weights={weights}",
            expected="checkpoint=PATH, a model with published weights, or a method without weights, as model=otsu",
            fix=fix,
        )
    data = settings.node["data"]
    palette = data.get("palette") or voc_palette(len(data["classes"]))
    return segmenter(cfg, settings, model, data["classes"], palette), report


def merged(cfg: DictConfig, settings: Settings) -> Segmenter:
    """The two networks of `task=panoptic` as one, each with its own inference.

    Raises:
        ConfigError: a checkpoint is not named, or is of another kind of task.
        CheckpointError: as `from_checkpoint`.
    """
    node = settings.node["task"]
    shared = {"trainer": {key: cfg.trainer[key] for key in ("device", "amp", "channels_last")}}
    parts = {}
    for kind in (SEMANTIC, INSTANCE):
        if node[kind] is None:
            raise ConfigError(
                f"task=panoptic without task.{kind}",
                expected="two checkpoints to merge",
                fix="task.semantic=PATH task.instance=PATH",
            )
        part = from_checkpoint(node[kind], over=shared, allow_targets=settings.allow)
        if part.task.name != kind:
            raise ConfigError(
                f"task.{kind} is a checkpoint of task={part.task.name}",
                where=node[kind],
                expected=f"a checkpoint of task={kind}",
            )
        parts[kind] = part
    data = settings.node["data"]
    if "things" not in data:
        raise ConfigError(
            f"task=panoptic with data of the kind {data['_target_'].rsplit('.', 1)[-1]}",
            where="data",
            expected="data that say which classes are things",
            fix="data=coco_panoptic, cityscapes_panoptic or shapes_panoptic",
        )
    classes = data["classes"]
    palette = data.get("palette") or voc_palette(len(classes))
    task = settings.make(
        "task",
        parts=(parts[SEMANTIC].task, parts[INSTANCE].task),
        classes=classes,
        palette=palette,
        things=data["things"],
    )
    return Segmenter(
        model=nn.ModuleDict({kind: part.model for kind, part in parts.items()}),
        task=task,
        classes=list(classes),
        palette=palette,
        normalize={kind: part.normalize for kind, part in parts.items()},
        config=cfg,
        settings=settings,
        device=parts[SEMANTIC].device,
        amp=parts[SEMANTIC].amp,
    )


def segmenter(
    cfg: DictConfig,
    settings: Settings,
    model: nn.Module,
    classes: list[str],
    palette: list[list[int]],
    class_weights: torch.Tensor | None = None,
    category_ids: dict[int, int] | None = None,
) -> Segmenter:
    """Puts a model with its weights on its device, with everything around it."""
    device = pick_device(settings.options.device)
    distributed.start(device)
    inference = settings.make("inference")
    refuse_misfits(settings, model, inference)
    task = make_task(settings, class_weights, classes, palette, inference)
    layout = memory_format(settings.options.channels_last, device)
    return Segmenter(
        model=model.to(device, memory_format=layout).eval(),  # type: ignore[call-overload]
        task=task.to(device, layout),
        classes=list(classes),
        palette=palette,
        normalize=settings.rider["model"].normalize,
        config=cfg,
        settings=settings,
        device=device,
        amp=amp_dtype(settings.options.amp, device),
        category_ids=category_ids,
    )
