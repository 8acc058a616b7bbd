"""Weights from elsewhere into a network: all that the source names must fit, or nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from segtrain import checkpoint
from segtrain.errors import CheckpointError, closest, listed
from segtrain.models.backbones.timm_features import TimmFeatures
from segtrain.models.class_transfer import ClassMap
from segtrain.models.fitting import Fit, State

KEYWORDS = ("none", "imagenet", "torchvision")
WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every key."""
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
"""Mean and deviation of the images that most published weights were trained on."""


@dataclass
class Source:
    """Weights on their way: tensors by name, where they are from, and the names of their classes where it says so."""

    state: State
    where: str
    classes: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    """What was done to them on the way."""


def load_weights(model: nn.Module, weights: str, classes: list[str] | None = None) -> str:
    """Fills `model` and returns the line to report, such as `loaded 312/312 backbone, head new`.

    The report has what was loaded (tensors of the file / tensors of the network), what stays new and what was
    dropped. Where the source names its classes, and they are not those of the data, the rows of the last layers go
    to the classes of the same name.

    Args:
        model: the network, changed in place only where everything fits.
        weights: "none"; "imagenet", torchvision's IMAGENET1K_V1 for the network's backbone, or timm's own;
            "torchvision", its weights of the whole network (COCO images; VOC's labels, or COCO's for Mask R-CNN) for
            the networks of the same form; or
            the path of a file: a segtrain checkpoint, a whole state_dict, that of a backbone alone or of a
            classification network, or that of a coarser network of the same kind (FCN-32s for FCN-16s).
        classes: names of the data's classes.

    Raises:
        ConfigError: the network has no such weights.
        CheckpointError: missing, damaged or misfitting file, or a failed download.
    """
    if weights == "none":
        return "random initialisation"
    backbone = getattr(model, "backbone", None)
    if weights == "imagenet" and isinstance(backbone, TimmFeatures):
        return _load_timm(backbone)
    if weights in ("imagenet", "torchvision"):
        from segtrain.models.published import coco, download, imagenet  # torchvision: slow, and only wanted here

        published = imagenet(model) if weights == "imagenet" else coco(model)
        source = _unwrap(download(published), published.url)
        if weights == "torchvision":
            source.classes = [name.strip("_") for name in published.meta["categories"]]
    else:
        path = Path(weights).expanduser()
        source = _unwrap(_read(path), str(path))
    names = ClassMap(source.classes, classes) if source.classes and classes else None
    return _fill(model, source, names)


def _load_timm(backbone: TimmFeatures) -> str:
    fit = Fit(backbone, backbone.published(), backbone.name, ["head new", *_adapted(backbone)])
    if backbone.normalization() != IMAGENET:
        mean, std = backbone.normalization()
        fit.notes.append(f"made for model.normalize.mean={mean} model.normalize.std={std}")
    return fit.load(" backbone")


def _adapted(backbone: TimmFeatures) -> list[str]:
    """What timm does to color weights for images of other channels."""
    return (
        [] if backbone.in_channels == 3 else [f"first convolution adapted to {backbone.in_channels} channels by timm"]
    )


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        near = closest(str(path), KEYWORDS)
        raise CheckpointError(
            "no such weights file",
            where=f"model.weights={path}",
            expected=f"{', '.join(KEYWORDS)}, or the path of a .pt or .pth file",
            fix=f"did you mean model.weights={near}?" if near else None,
        )
    content = checkpoint.read(path)
    if "format" in content and "model" in content:
        content = checkpoint.load(path)  # ours has a digest: a damaged one must not start a training
    return content


def _unwrap(content: Mapping[str, Any], where: str) -> Source:
    """The state_dict inside a training script's file, without the prefixes of wrapped modules."""
    classes = content.get("classes") if "format" in content else None  # of ours only: others have other habits
    for name in ("state_dict", "model"):
        if isinstance(content.get(name), Mapping):
            content = content[name]
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not state or len(state) < len(content):
        raise CheckpointError(
            f"the file is not a state_dict: it holds {listed(content, 5)}",
            where=where,
            expected="tensors by name, alone or under 'state_dict' or 'model'",
            fix="save model.state_dict()",
        )
    while prefix := next((p for p in WRAPPERS if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return Source(state, where, classes)


def _fill(model: nn.Module, source: Source, names: ClassMap | None) -> str:
    if adapt := getattr(model, "adapt", None):
        source.state, source.notes = adapt(source.state, Path(source.where).name)
    if all(key.startswith("backbone.") for key in source.state):
        state = {key.removeprefix("backbone."): value for key, value in source.state.items()}
        return _fill_backbone(model, Source(state, source.where, notes=source.notes))
    if _is_whole(source.state, model):
        return _fill_whole(model, source, names)
    parts, backbone = _classifier_parts(source.state), getattr(model, "backbone", None)
    if parts is not None and parts[0] == "features." and hasattr(model, "from_classifier"):
        return _fill_from_classifier(model, source)
    if isinstance(backbone, TimmFeatures):
        return _fill_timm(backbone, source)
    if parts is not None:
        return _fill_backbone(model, source, *parts)
    return _fill_whole(model, source, names)


def _is_whole(state: State, model: nn.Module) -> bool:
    """Whether the file shares keys with the network; a last layer of one name is in classification networks too."""
    shared = state.keys() & model.state_dict().keys()
    return any(not key.startswith("classifier.") for key in shared)


def _fill_whole(model: nn.Module, source: Source, names: ClassMap | None) -> str:
    fit = Fit(model, source.state, source.where, source.notes)
    fit.drop_idle_aux()
    fit.fit_classes(_class_layers(model), names)
    fit.stage(getattr(model, "staged_layers", ()))
    fit.sum_input_channels()
    return fit.load()


def _classifier_parts(state: State) -> tuple[str, str] | None:
    """Prefixes of body and head, where `state` is a classification network's, with its head or without."""
    if any(key.startswith("features.") for key in state):  # torchvision's MobileNets and VGGs
        return "features.", "classifier."
    if "conv1.weight" in state and any(key.startswith("layer1.") for key in state):  # its ResNets
        return "", "fc."
    if "stem.0.conv.weight" in state and any(key.startswith("blocks.") for key in state):  # timm's Xceptions
        return "", "head."
    return None


def _fill_backbone(model: nn.Module, source: Source, body: str = "", head: str | None = None) -> str:
    """The part of the file for `model.backbone`; whatever is neither body nor head is refused as unexpected."""
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise CheckpointError(
            f"the file holds a backbone, and {type(model).__name__} has none",
            where=source.where,
            expected="a whole state_dict of this network",
            fix="model.weights=none, or a network with that backbone",
        )
    inner = getattr(backbone, "body", None)
    if isinstance(inner, nn.Module) and not any(key.startswith("fpn.") for key in source.state):
        # A detector's backbone is a body and a pyramid on it, of which a classification network has only the first.
        state = {key.removeprefix("body."): value for key, value in source.state.items()}
        fit = Fit(inner, state, source.where, ["pyramid and heads new", *source.notes])
    else:
        fit = Fit(backbone, source.state, source.where, ["head new", *source.notes])
    if head:
        fit.drop(head)
    fit.state = {key.removeprefix(body): value for key, value in fit.state.items()}
    for layer in getattr(backbone, "left_out", ()):
        fit.drop(layer)
    fit.sum_input_channels()
    return fit.load(" backbone")


def _fill_from_classifier(model: Any, source: Source) -> str:
    """VGG-16 for classification into a network that has turned its layers into convolutions."""
    from segtrain.models.backbones.vgg import VGG16  # such a network has one, so that its module is loaded

    converted: State = model.from_classifier(source.state)
    fit = Fit(model, converted, source.where)
    # The convolutions are there or the file is broken; hidden layers may be missing.
    fit.leave_rest(f"{name}." for name, module in model.named_modules() if isinstance(module, VGG16))
    if any(key.startswith("classifier.") for key in source.state):
        hidden = any(name in key for key in converted for name in ("fc6", "fc7"))
        fit.notes.append("classifier.6 dropped" if hidden else "classifier dropped")
    fit.sum_input_channels()
    return fit.load()


def _fill_timm(backbone: TimmFeatures, source: Source) -> str:
    try:
        state = backbone.from_classifier(source.state)
    except CheckpointError as error:
        error.where = f"{source.where}\n{error.where}"
        raise
    dropped = [f"{head} dropped" for head in backbone.heads() if f"{head}.weight" in source.state]
    fit = Fit(backbone, state, source.where, ["head new", *dropped, *_adapted(backbone)])
    return fit.load(" backbone")


def _class_layers(model: nn.Module) -> tuple[str, ...]:
    if type(model).__module__.startswith("torchvision.models.segmentation."):
        if type(model).__name__ == "LRASPP":
            return ("classifier.low_classifier", "classifier.high_classifier")
        return ("classifier.4", "aux_classifier.4")
    declared: tuple[str, ...] = getattr(model, "class_layers", ())
    return declared
