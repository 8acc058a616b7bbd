"""State_dicts of older Mask R-CNNs, as the network of today understands them."""

from __future__ import annotations

import re

from torch import Tensor

State = dict[str, Tensor]

OLD_NAMES = (
    (re.compile(r"(^|\.)(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1\2.0.\3"),
    (re.compile(r"^(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
)
"""Names before torchvision 0.13, and after. Its modules rename on loading, which is after keys were compared."""
OLD_MASK_LAYER = re.compile(r"^roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)$")
"""The same, counted from 1."""

TRAINED_WITHOUT_EPS = "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
"""Torchvision's COCO_V1 of v1: its frozen normalizations had eps = 0 (pytorch/vision#2933). No other file is known."""
EPS = 1e-5
"""Of FrozenBatchNorm2d and BatchNorm2d."""


def adapt(state: State, file: str) -> tuple[State, list[str]]:
    """The weights under today's names and for today's eps, and what to report; `file` is the name of their file."""
    state = {modern(key): value for key, value in state.items()}
    if file != TRAINED_WITHOUT_EPS:
        return state, []
    return with_eps(state), [f"normalization scales adjusted: trained with eps 0, now {EPS:g}"]


def modern(key: str) -> str:
    """`rpn.head.conv.weight` -> `rpn.head.conv.0.0.weight`; names of today stay."""
    for old, new in OLD_NAMES:
        key = old.sub(new, key)
    return OLD_MASK_LAYER.sub(lambda match: f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}", key)


def with_eps(state: State) -> State:
    """Normalizations learned with eps = 0 so that they compute the same with `EPS`.

    An eps is no part of a state_dict: set on the module, it would be lost by our own checkpoints. So the scale w turns
    into w sqrt((v + eps) / v) for the variance v. Taking eps off the variance would do the same on paper, but in
    float32 a variance far below eps is lost in the difference, and its scale is infinite.
    """
    adjusted = dict(state)
    for key, variance in state.items():
        scale = f"{key.removesuffix('running_var')}weight"
        if key.endswith(".running_var") and scale in state:
            wide = variance.double()
            adjusted[scale] = (state[scale].double() * ((wide + EPS) / wide).sqrt()).to(state[scale])
    return adjusted
