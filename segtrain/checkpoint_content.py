"""What a checkpoint of ours holds: checked once, so that a foreign file is named and not stumbled over.

Its config is someone else's: it may say where files are, but not that some are fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segtrain import signatures, targets
from segtrain.composition import register_resolvers
from segtrain.errors import CheckpointError, listed
from segtrain.settings import Settings

NETWORK_WEIGHTS = ("weights", "weights_backbone")
"""Parameters of torchvision's builders; where they are left out, some builders fetch weights all the same."""
OLD_NETWORK_WEIGHTS = ("pretrained", "pretrained_backbone")
"""What they were called before, which the builders still take."""


def refuse_misfitting_content(state: Mapping[str, Any], path: Path) -> None:
    """Checks what is taken from a checkpoint once: the digest says that it is whole, not that it is ours.

    Raises:
        CheckpointError: something is missing, of another type, or of another length than there are classes.
    """
    names, colors, weights, ema = (state.get(key) for key in ("classes", "palette", "class_weights", "ema"))
    config, count = state.get("config"), None
    if isinstance(config, dict):
        register_resolvers()
        try:
            count = OmegaConf.select(OmegaConf.create(config), "data.num_classes")
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise _misfit(path, f"its config cannot be read: {str(error).splitlines()[0]}") from error
    missing = [key for key in ("config", "model", "ema", "classes", "palette", "class_weights") if key not in state]
    sound = {
        "config": isinstance(config, dict) and isinstance(count, int),
        "model": _is_weights(state.get("model")),
        "ema": ema is None or (isinstance(ema, dict) and _is_weights(ema.get("model"))),
        "classes": isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names),
        "palette": isinstance(colors, list) and len(colors) == count and all(_is_color(color) for color in colors),
        "class_weights": weights is None
        or (isinstance(weights, torch.Tensor) and weights.is_floating_point() and tuple(weights.shape) == (count,)),
        "category_ids": "category_ids" not in state or names_each_class(state["category_ids"], count),
    }
    if missing:
        raise _misfit(path, f"it has no {listed(missing)}")
    wrong = [key for key, fits in sound.items() if not fits]
    if wrong:
        raise _misfit(path, f"its {listed(wrong[:1])} has not the form that training writes")


def names_each_class(ids: object, count: int | None) -> bool:
    """Whether `ids` is one publisher's id, unlike the others, for each class but the background."""
    return (
        isinstance(ids, dict)
        and all(type(number) is int for pair in ids.items() for number in pair)
        and set(ids) == set(range(1, count or 0))
        and len(set(ids.values())) == len(ids)
    )


def fetch_nothing(settings: Settings, over: Mapping[str, Any], choices: Mapping[str, str]) -> None:
    """Takes out of a checkpoint's config, resolved and in place, what would fetch data or weights.

    Args:
        settings: of the checkpoint's config with the user's values over it.
        over, choices: the user's own values and groups, which may fetch what they like.
    """
    for name, node in settings.node.items():
        if name not in choices:
            own = over.get(name)
            if own is None or isinstance(own, Mapping):
                _fetch_nothing(node, own or {}, settings.allow)


def _fetch_nothing(node: Any, own: Mapping[str, Any], allow: list[str]) -> None:
    if isinstance(node, list):
        for item in node:
            _fetch_nothing(item, {}, allow)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        inner = own.get(key)
        if key not in own or isinstance(inner, Mapping):
            _fetch_nothing(value, inner or {}, allow)
    if "download" in node and "download" not in own:
        node["download"] = False
    if "_target_" not in node:
        return
    # The target itself and not its name: a name may lead to it by way of another module.
    target = targets.resolve(node["_target_"], "model", allow)
    if target.__module__.split(".")[0] == "torchvision":
        node.update({key: None for key in NETWORK_WEIGHTS if key not in own and signatures.takes(target, key)})
        for key in set(OLD_NETWORK_WEIGHTS) & node.keys() - own.keys():
            del node[key]


def _misfit(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"this file cannot be used as a checkpoint: {found}",
        where=path,
        expected="config, model, ema, classes, palette and class_weights as training writes them, for the same classes",
        fix="use a checkpoint that segtrain wrote (best.pt, last.pt); plain weights are loaded with model.weights=PATH",
    )


def _is_weights(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _is_color(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(v in range(256) for v in value)
