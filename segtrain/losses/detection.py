"""The five terms of Mask R-CNN, weighted: what the network computes of itself while it trains."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from segtrain.errors import ConfigError, listed
from segtrain.types import NonNegativeFloat

PREFIX = "loss_"
"""What torchvision puts before most of its names."""


class DetectionLoss:
    """Weights of the terms that a detector returns in training (He et al. 2017, section 3; all 1 there).

    Args:
        objectness: of the region proposal network: is there anything at this anchor?
        rpn_box_reg: of the region proposal network: from anchors to proposals.
        classifier: which class a proposal is.
        box_reg: from proposals to boxes.
        mask: per-pixel, of the true class's mask, over proposals that are objects.
    """

    def __init__(
        self,
        *,
        objectness: NonNegativeFloat = 1.0,
        rpn_box_reg: NonNegativeFloat = 1.0,
        classifier: NonNegativeFloat = 1.0,
        box_reg: NonNegativeFloat = 1.0,
        mask: NonNegativeFloat = 1.0,
    ) -> None:
        self.weights = {
            "objectness": objectness,
            "rpn_box_reg": rpn_box_reg,
            "classifier": classifier,
            "box_reg": box_reg,
            "mask": mask,
        }

    def __call__(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms by name, and their weighted sum under `loss`.

        Raises:
            ConfigError: the network returned other terms.
        """
        terms = {name.removeprefix(PREFIX): value.float() for name, value in found.items()}
        if terms.keys() != self.weights.keys():
            raise ConfigError(
                f"the network's losses are {listed(terms) or 'none'}",
                where="model",
                expected=listed(self.weights),
                fix="model=maskrcnn, or a network that returns these in training",
            )
        weighted = [weight * terms[name] for name, weight in self.weights.items()]
        return {**{name: terms[name] for name in self.weights}, "loss": torch.stack(weighted).sum()}
