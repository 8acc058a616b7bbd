"""Weights from elsewhere into a network: all that the source names must fit, or nothing is loaded."""

from __future__ import annotations

import contextlib
import http.client
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import segmentation
from torchvision.models._api import WeightsEnum

from segtrain import checkpoint
from segtrain.errors import CheckpointError, ConfigError, closest, listed

KEYWORDS = ("none", "imagenet", "torchvision")
WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every key."""
COUNTER = "num_batches_tracked"
"""Absent from files older than PyTorch 0.4.1; read only by cumulative averages, which no network uses."""

State = dict[str, Tensor]


def load_weights(model: nn.Module, weights: str) -> str:
    """Fills `model` and returns the line to report, such as `loaded 312/312 backbone, head new`.

    Args:
        model: the network, changed in place only where everything fits.
        weights: "none"; "imagenet", torchvision's IMAGENET1K_V1 for the network's backbone; "torchvision",
            its segmentation weights (COCO images, VOC labels) for the networks of the same form; or the path
            of a file: a segtrain checkpoint, a whole state_dict, or that of a backbone alone.

    Raises:
        ConfigError: the network has no such weights.
        CheckpointError: missing, damaged or misfitting file, or a failed download.
    """
    if weights == "none":
        return "random initialisation"
    if weights == "imagenet":
        published = _imagenet(model)
        return _fill(model, _download(published), published.url)
    if weights == "torchvision":
        published = _coco(model)
        return _fill(model, _download(published), published.url)
    path = Path(weights).expanduser()
    return _fill(model, _read(path), str(path))


def _imagenet(model: nn.Module) -> WeightsEnum:
    name = getattr(getattr(model, "backbone", None), "name", None)
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ConfigError(
            f"{type(model).__name__} has no backbone with ImageNet weights",
            where="model.weights=imagenet",
            expected="a network on a ResNet or MobileNet backbone, such as model=deeplabv3plus",
            fix="model.weights=none"
            + (" model.weights_backbone=DEFAULT" if _is_torchvision(model) else ", or model.weights=PATH"),
        )
    # V1, not the newer recipes: what torchvision's own segmentation weights and the literature started from.
    return torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]


def _coco(model: nn.Module) -> WeightsEnum:
    form = getattr(model, "torchvision_form", None)
    known = torchvision.models.list_models(module=segmentation)
    if form not in known:
        raise ConfigError(
            f"torchvision publishes no segmentation weights for this {type(model).__name__}",
            where="model.weights=torchvision",
            expected=f"a network in the form of {listed(known)}: "
            "model=fcn_torchvision, deeplabv3_torchvision or lraspp",
            fix="model.weights=none, imagenet or PATH",
        )
    return torchvision.models.get_model_weights(form)["COCO_WITH_VOC_LABELS_V1"]


def _is_torchvision(model: nn.Module) -> bool:
    return type(model).__module__.startswith("torchvision.")


def _download(published: WeightsEnum) -> Mapping[str, Any]:
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


def _unwrap(content: Mapping[str, Any], where: str) -> State:
    """The state_dict inside a training script's file, without the prefixes of wrapped modules."""
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
    return state


def _backbone_alone(state: State, model: nn.Module) -> State | None:
    """The part of `state` for `model.backbone` where that is all it has, else None.

    The head of a classification network is dropped; any other key stays, to be refused as unexpected.
    """
    if all(key.startswith("backbone.") for key in state):
        return {key.removeprefix("backbone."): value for key, value in state.items()}
    if not state.keys().isdisjoint(model.state_dict()):
        return None
    if any(key.startswith("features.") for key in state):  # torchvision's MobileNets
        body = {key: value for key, value in state.items() if not key.startswith("classifier.")}
        return {key.removeprefix("features."): value for key, value in body.items()}
    if "conv1.weight" in state and any(key.startswith("layer1.") for key in state):  # its ResNets
        return {key: value for key, value in state.items() if not key.startswith("fc.")}
    return None


def _fill(model: nn.Module, content: Mapping[str, Any], where: str) -> str:
    state = _unwrap(content, where)
    alone = _backbone_alone(state, model)
    if alone is None:
        return _Fit(model, state, where).load_whole(_class_layers(model))
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise CheckpointError(
            f"the file holds a backbone, and {type(model).__name__} has none",
            where=where,
            expected="a whole state_dict of this network",
            fix="model.weights=none, or a network with that backbone",
        )
    return _Fit(backbone, alone, where).load_backbone()


def _class_layers(model: nn.Module) -> tuple[str, ...]:
    if isinstance(model, segmentation.LRASPP):
        return ("classifier.low_classifier", "classifier.high_classifier")
    if isinstance(model, segmentation.FCN | segmentation.DeepLabV3):
        return ("classifier.4", "aux_classifier.4")
    declared: tuple[str, ...] = getattr(model, "class_layers", ())
    return declared


@dataclass
class _Fit:
    """One state_dict on its way into one module, and what had to be said about it."""

    module: nn.Module
    state: State
    where: str
    notes: list[str] = field(default_factory=list)
    new: set[str] = field(default_factory=set)
    """Keys of the module that keep their fresh values."""

    def __post_init__(self) -> None:
        self.own: State = self.module.state_dict()
        self.state = dict(self.state)

    def load_backbone(self) -> str:
        self.notes.append("head new")
        self.sum_input_channels()
        return f"loaded {self.load()} backbone, {', '.join(self.notes)}"

    def load_whole(self, class_layers: tuple[str, ...]) -> str:
        self.drop_idle_aux()
        self.leave_other_classes(class_layers)
        self.sum_input_channels()
        return ", ".join([f"loaded {self.load()}", *self.notes])

    def drop_idle_aux(self) -> None:
        idle = [key for key in self.state if key.startswith("aux_classifier.")]
        if idle and not any(key.startswith("aux_classifier.") for key in self.own):
            for key in idle:
                del self.state[key]
            self.notes.append("aux_classifier dropped")

    def leave_other_classes(self, class_layers: tuple[str, ...]) -> None:
        """Class layers made for another number of classes stay new; any other misfit is refused later."""
        changes: list[str] = []
        for layer in class_layers:
            theirs, ours = self.state.get(f"{layer}.weight"), self.own.get(f"{layer}.weight")
            if theirs is None or ours is None or theirs.shape[1:] != ours.shape[1:]:
                continue
            if theirs.shape[0] != ours.shape[0]:
                keys = {key for key in self.own if key.startswith(f"{layer}.")}
                self.new |= keys
                for key in keys:
                    self.state.pop(key, None)
                changes.append(f"head new ({theirs.shape[0]} -> {ours.shape[0]} classes)")
        self.notes += dict.fromkeys(changes)

    def sum_input_channels(self) -> None:
        """Color weights for a gray image: their sum answers as if the image were repeated in each channel."""
        first = next((name for name, m in self.module.named_modules() if isinstance(m, nn.Conv2d)), "")
        theirs, ours = self.state.get(f"{first}.weight"), self.own.get(f"{first}.weight")
        if theirs is None or ours is None or theirs.ndim != 4 or ours.shape[1] != 1 or theirs.shape[1] != 3:
            return
        self.state[f"{first}.weight"] = theirs.sum(dim=1, keepdim=True)
        self.notes.append("first convolution summed over its 3 input channels")

    def load(self) -> str:
        """Checks, then copies; returns `<tensors loaded>/<tensors of the module>`."""
        wanted = set(self.own)
        if not any(key.endswith(COUNTER) for key in self.state):
            wanted = {key for key in wanted if not key.endswith(COUNTER)}
        missing = [key for key in self.own if key in wanted - self.new - self.state.keys()]
        unexpected = [key for key in self.state if key not in self.own]
        misshaped = [
            f"{key} {tuple(value.shape)}, the network's {tuple(self.own[key].shape)}"
            for key, value in self.state.items()
            if key in self.own and value.shape != self.own[key].shape
        ]
        if missing or unexpected or misshaped:
            raise self.misfit(missing, unexpected, misshaped)
        self.module.load_state_dict({**self.own, **self.state})
        return f"{len(self.state)}/{len(wanted)}"

    def misfit(self, missing: list[str], unexpected: list[str], misshaped: list[str]) -> CheckpointError:
        found = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
        lines = [f"{what}: {listed(keys, 3)}" for what, keys in found.items() if keys]
        only_aux = missing and all(key.startswith("aux_classifier.") for key in missing)
        return CheckpointError(
            "the weights do not fit the network, tensor by tensor: "
            + ", ".join(f"{len(keys)} {what}" for what, keys in found.items() if keys),
            where="\n".join([self.where, *lines]),
            expected=f"the {len(self.own)} tensors of {type(self.module).__name__}",
            fix="set model.aux=false: the file has no auxiliary head"
            if only_aux and not unexpected and not misshaped
            else "choose the model and model.backbone the file was made for, or model.weights=none",
        )
