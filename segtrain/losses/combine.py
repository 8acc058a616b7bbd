"""Several losses as one: the weighted sum of the terms, and the same sum on an auxiliary head."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from segtrain.errors import ConfigError, listed
from segtrain.losses.base import Loss
from segtrain.losses.pixel import PixelLoss
from segtrain.types import NonNegativeFloat

RESULT_NAMES = ("loss", "aux")


class SegmentationLoss(nn.Module):
    """Weighted sum of named losses on `outputs["out"]`, and `aux_weight` times the same on `outputs["aux"]`.

    Args:
        terms: losses by name, each with its own `weight`.
        aux_weight: share of the auxiliary head's loss; 0.4 is PSPNet's (Zhao et al. 2017, section 4).

    Raises:
        ConfigError: no term, a term that is no `Loss`, or a name that cannot be used.
    """

    def __init__(self, *, terms: dict[str, Loss], aux_weight: NonNegativeFloat = 0.4) -> None:
        super().__init__()
        if not terms:
            raise ConfigError(
                "the loss has no terms",
                where="loss.terms",
                expected="one or more",
                fix="choose one, as loss=ce",
            )
        for name, term in terms.items():
            _check(name, term)
        self.terms = nn.ModuleDict(terms)
        self.aux_weight = aux_weight

    def counts(self, target: Tensor) -> Tensor:
        """What each term is divided by, in the order of `terms`, (T,) float32; target (B, H, W)."""
        return torch.stack([term.count(target) for term in self._losses().values()])

    def forward(self, outputs: dict[str, Tensor], target: Tensor, counts: Tensor | None = None) -> dict[str, Tensor]:
        """The losses by name: each term without its weight, `aux` without `aux_weight`, and the sum `loss`.

        Args:
            outputs: `out` and maybe `aux`, logits (B, C, H, W) at the input's size.
            target: (B, H, W) int64, classes or 255.
            counts: (T,), `counts(target)` added up over all that is averaged together; None: of this target.
        """
        if counts is None:
            counts = self.counts(target)
        losses = self._values(outputs["out"], target, counts)
        total = self._weighted(losses)
        if "aux" in outputs:
            losses["aux"] = self._weighted(self._values(outputs["aux"], target, counts))
            total = total + self.aux_weight * losses["aux"]
        losses["loss"] = total
        return losses

    def use_class_weights(self, weights: Tensor) -> None:
        """Gives the weights (C,) to every term that takes them.

        Raises:
            ConfigError: no term does.
        """
        takers = [term for term in self.terms.values() if isinstance(term, PixelLoss)]
        if not takers:
            raise ConfigError(
                f"class weights are set, but no term of the loss takes them: {listed(self.terms)}",
                where="loss.class_weights",
                expected="a term that is a mean over pixels: cross-entropy, OHEM or focal",
                fix="set loss.class_weights=none, or choose another loss, as loss=ce_dice",
            )
        for term in takers:
            term.use_class_weights(weights)

    def _losses(self) -> dict[str, Loss]:
        # A ModuleDict forgets what kind of module it holds.
        return cast("dict[str, Loss]", dict(self.terms.items()))

    def _values(self, logits: Tensor, target: Tensor, counts: Tensor) -> dict[str, Tensor]:
        terms = self._losses().items()
        return {name: term(logits, target, count) for (name, term), count in zip(terms, counts, strict=True)}

    def _weighted(self, values: dict[str, Tensor]) -> Tensor:
        return torch.stack([term.weight * values[name] for name, term in self._losses().items()]).sum()


def _check(name: str, term: object) -> None:
    """A term must say what it counts, and its name be free, in the result and in a `ModuleDict`."""
    where = f"loss.terms.{name}"
    if name in RESULT_NAMES or not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise ConfigError(
            f"a loss term cannot be named '{name}'",
            where=where,
            expected=f"a plain word but {listed(RESULT_NAMES)}: the result uses those itself",
            fix="give the term another name, as ce",
        )
    if not isinstance(term, Loss):
        raise ConfigError(
            f"{type(term).__module__}.{type(term).__qualname__} is no loss of segtrain",
            where=where,
            expected="a segtrain.losses.base.Loss: it counts apart, for means over a whole step",
            fix=f"set {where}._target_ to a class in segtrain.losses, or to your own subclass of Loss",
        )
