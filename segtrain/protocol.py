"""The protocol card: all that must agree for two scores to be comparable, and what else made them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from segtrain import distributed
from segtrain.metrics.digest import DataDigest
from segtrain.models.pretrained import KEYWORDS
from segtrain.segmenter import Segmenter
from segtrain.types import IGNORE_INDEX

COMPARED = (
    *("dataset", "data_sha256", "split_sha256", "images", "classes", "ignore_index", "label_map"),
    *("inference", "absent_classes"),
)
"""The card's entries without which two scores mean different things; the others say how a score came about."""


def protocol_card(
    segmenter: Segmenter,
    split: str,
    digest: DataDigest,
    checkpoint: str | None,
    versions: dict[str, str],
    absent_classes: str,
) -> dict[str, Any]:
    """Data, protocol, weights and machine of one evaluation, as plain values; no path of this machine.

    Args:
        absent_classes: which classes the mean over classes leaves out.
    """
    settings = segmenter.settings
    data, model, inference = (settings.node[name] for name in ("data", "model", "inference"))
    return {
        "dataset": data["_target_"].rsplit(".", 1)[-1],
        "split": split,
        **digest.digests(),
        "images": len(digest.images),
        "classes": segmenter.classes,
        "ignore_index": IGNORE_INDEX,
        "label_map": data.get("label_map"),
        "inference": _protocol(inference),
        "absent_classes": absent_classes,
        "model": model["_target_"].rsplit(".", 1)[-1],
        "backbone": model.get("backbone"),
        "parameters": sum(p.numel() for p in segmenter.model.parameters()),
        "checkpoint_sha256": None if checkpoint is None else file_digest(Path(checkpoint).expanduser()),
        **_weights(settings.rider["model"].weights if checkpoint is None else None),
        "normalize": segmenter.normalize,
        "seed": settings.options.seed,
        "device": segmenter.device.type,
        "precision": "float32" if segmenter.amp is None else str(segmenter.amp).removeprefix("torch."),
        "batch_size": settings.rider["data"].images,
        "processes": distributed.world_size(),
        "versions": versions,
    }


def _weights(named: str | None) -> dict[str, str | None]:
    """Published weights by their name, a file by its bytes: where it lies is nobody's business."""
    if named in (None, *KEYWORDS):
        return {"weights": named, "weights_sha256": None}
    return {"weights": "file", "weights_sha256": file_digest(Path(str(named)).expanduser())}


def _protocol(node: dict[str, Any]) -> dict[str, Any]:
    """The inference node by the name of its class; a CRF's settings only where there is a CRF."""
    kept = {key: value for key, value in node.items() if key != "crf_settings" or node.get("crf")}
    return {"protocol": kept.pop("_target_").rsplit(".", 1)[-1], **kept}


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(card: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The entries in which two cards disagree so that their scores cannot be compared."""
    return {key: (card.get(key), other.get(key)) for key in COMPARED if card.get(key) != other.get(key)}
