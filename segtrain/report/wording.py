"""What the page says in words: names of error kinds, the summary, and which option computes what is missing."""

from __future__ import annotations

from typing import Any

from segtrain.metrics.anatomy import KINDS
from segtrain.report.markup import count, number, percent

KIND_NAMES = {
    "boundary_slip": "boundary slip",
    "class_confusion": "class confusion",
    "missed_region": "missed region",
    "invented_region": "invented region",
}
KIND_MEANINGS = {
    "boundary_slip": "the right class, its edge a few pixels off",
    "class_confusion": "the object was found and called something else",
    "missed_region": "most of the object was not found",
    "invented_region": "most of what was predicted is not there",
}
KIND_PLURALS = {
    "boundary_slip": "boundary slips",
    "class_confusion": "class confusions",
    "missed_region": "missed regions",
    "invented_region": "invented regions",
}
OUTCOME_MEANINGS = {
    "found": "a detection of its class overlaps the object by half or more",
    "missed": "no detection of its class overlaps the object by half",
    "invented": "the detection overlaps no object of its class that is left by half",
}
EVALUATE = "python -m segtrain evaluate"
OPTIONS = {
    "interval": EVALUATE,
    "boundary": f"{EVALUATE} scores=full",
    "calibration": f"{EVALUATE} scores=full",
    "anatomy": f"{EVALUATE} scores=full",
    "worst": f"{EVALUATE} report=true",
    "protocol": EVALUATE,
}
"""What computes a section that is not there."""


def summary(scores: dict[str, Any], classes: list[str]) -> str:
    """What goes wrong most, in one or two sentences."""
    accuracy = number(scores.get("pixel_accuracy"))
    if accuracy is None:
        return "No labelled pixel was evaluated."
    if accuracy == 1:
        return "Every labelled pixel is right."
    parts = [f"{percent(1 - accuracy)} % of the labelled pixels are wrong{_most_common_kind(scores)}."]
    parts += [_weakest(scores), _worst_confusion(scores, classes), _largest_gain(scores)]
    return " ".join(part for part in parts if part)


def object_summary(scores: dict[str, Any]) -> str:
    """Where an evaluation of single objects is weakest, in a few sentences."""
    objects = scores.get("instances_per_class", {})
    total = sum(objects.values())
    if number(scores.get("mask_ap")) is None:
        return "There was no object to find."
    number_of = "There was 1 object" if total == 1 else f"There were {count(total)} objects"
    parts = [f"{number_of} to find.", _weakest_objects(scores), _weakest_size(scores)]
    loose, tight = (number(scores.get(f"mask_{key}")) for key in ("ap50", "ap75"))
    if loose is not None and tight is not None and tight < loose:
        parts.append(f"Where masks must overlap by 75 % instead of 50 %, AP is {percent(loose - tight)} points lower.")
    return " ".join(part for part in parts if part)


def _weakest_objects(scores: dict[str, Any]) -> str:
    known = {name: ap for name, found in scores["mask_ap_per_class"].items() if (ap := number(found)) is not None}
    if len(known) < 2:
        return ""
    objects = scores.get("instances_per_class", {})
    name = min(known, key=lambda key: (known[key], -objects.get(key, 0)))  # of several the one with most objects
    return f"The weakest class is {name} with mask AP {percent(known[name])} %."


def _weakest_size(scores: dict[str, Any]) -> str:
    sizes = ("small", "medium", "large")
    known = {size: ap for size in sizes if (ap := number(scores.get(f"mask_ap_{size}"))) is not None}
    if len(known) < 2:
        return ""
    low, high = min(known, key=lambda key: known[key]), max(known, key=lambda key: known[key])
    if known[low] == known[high]:
        return ""
    return f"{low.capitalize()} objects reach AP {percent(known[low])} %, {high} ones {percent(known[high])} %."


def _most_common_kind(scores: dict[str, Any]) -> str:
    shares = scores.get("anatomy", {}).get("share_of_errors", {})
    known = {kind: share for kind in KINDS if (share := number(shares.get(kind)))}
    if not known:
        return ""
    kind = max(known, key=lambda name: known[name])
    return f", {percent(known[kind], 0)} % of these by {KIND_PLURALS[kind]} ({KIND_MEANINGS[kind]})"


def _weakest(scores: dict[str, Any]) -> str:
    # A class that no target has is not weak but invented: the confusions tell of it.
    labelled = [name for name in scores.get("iou", {}) if number(scores.get("pixels", {}).get(name))]
    known = {name: found for name in labelled if (found := number(scores["iou"][name])) is not None}
    if not known:
        return ""
    name = min(known, key=lambda key: known[key])
    return f"The weakest class is {name} with IoU {percent(known[name])} %."


def _worst_confusion(scores: dict[str, Any], classes: list[str]) -> str:
    rows = scores.get("confusion", [])
    wrong = [(n, row, column) for row, cells in enumerate(rows) for column, n in enumerate(cells) if row != column]
    most, row, column = max(wrong, default=(0, 0, 0))
    if not most:
        return ""
    return f"Most often {classes[row]} is taken for {classes[column]} ({count(most)} pixels)."


def _largest_gain(scores: dict[str, Any]) -> str:
    gains = scores.get("anatomy", {}).get("gain", {})
    known = {kind: gain for kind in KINDS if (gain := number(gains.get(kind)))}
    if not known:
        return ""
    kind = max(known, key=lambda name: known[name])
    return f"Without {KIND_PLURALS[kind]} mIoU would rise by {percent(known[kind])} points."
