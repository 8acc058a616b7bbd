"""Several losses as one: the weighted sum of the terms, and the same sum on an auxiliary head."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from segtrain.errors import ConfigError, listed
from segtrain.losses.base import Loss
from segtrain.losses.pixel import PixelLoss
from segtrain.types import NonNegativeFloat

RESULT_NAMES = ("loss", "aux", "unlabelled")
Resolution = Literal["full", "native"]


class SegmentationLoss(nn.Module):
    """Weighted sum of named losses on `outputs["out"]`, and `aux_weight` times the same on `outputs["aux"]`.

    Any other output, as those of single scales, counts as much as `out`.

    Args:
        terms: losses by name, each with its own `weight`.
        aux_weight: share of the auxiliary head's loss; 0.4 is PSPNet's (Zhao et al. 2017, section 4).
        resolution: "full" compares logits resized to the image with the target; "native" leaves the logits at the
            network's stride and takes the target's values there, as DeepLab v1 and v2 do. Only in training: losses
            of an evaluation are at full size.

    Raises:
        ConfigError: no term, a term that is no `Loss`, or a name that cannot be used.
    """

    def __init__(
        self, *, terms: dict[str, Loss], aux_weight: NonNegativeFloat = 0.4, resolution: Resolution = "full"
    ) -> None:
        super().__init__()
        if not isinstance(terms, dict):
            raise ConfigError(
                f"loss.terms={terms}",
                expected="losses by name, each with a _target_",
                fix="choose a loss, as loss=ce, and change single keys of its terms",
            )
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
        self.resolution = resolution

    def counts(self, target: Tensor) -> Tensor:
        """What each term is divided by, in the order of `terms`, (T,) float32; target (B, H, W)."""
        return torch.stack([term.count(target) for term in self._losses().values()])

    def forward(self, outputs: dict[str, Tensor], target: Tensor, counts: Tensor | None = None) -> dict[str, Tensor]:
        """The losses by name: each term without its weight, `aux` without `aux_weight`, and the sum `loss`.

        Other outputs keep their names.

        Args:
            outputs: `out`, maybe `aux` and others, logits (B, C, H, W) at the input's size; of any size where the
                resolution is native.
            target: (B, H, W) int64, classes or 255.
            counts: (T,), `counts(target)` added up over all that is averaged together; None: of this target.
        """
        if counts is None:
            counts = self.counts(target)
        losses = self._values(outputs["out"], target, counts)
        total = self._weighted(losses)
        for name, logits in outputs.items():
            if name != "out":
                losses[name] = self._weighted(self._values(logits, target, counts))
                total = total + (self.aux_weight if name == "aux" else 1.0) * losses[name]
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
        terms = self._losses()
        if self.resolution == "native" and logits.shape[-2:] != target.shape[-2:]:
            coarse = shrink(target, logits.shape[-2], logits.shape[-1])
            # A step's count is known at full size, before the network runs. The batch's own mean at native size
            # enters the step by the batch's share of that count: with one batch per step, it is the plain mean.
            counts = torch.stack(
                [
                    count * _ratio(t.count(coarse), t.count(target))
                    for t, count in zip(terms.values(), counts, strict=True)
                ]
            )
            target = coarse
        return {name: term(logits, target, count) for (name, term), count in zip(terms.items(), counts, strict=True)}

    def _weighted(self, values: dict[str, Tensor]) -> Tensor:
        return torch.stack([term.weight * values[name] for name, term in self._losses().items()]).sum()


def shrink(target: Tensor, height: int, width: int) -> Tensor:
    """Target (B, H, W) -> (B, height, width): the labels at the centers of a network's native grid, never mixed.

    The grid of padded convolutions has its corners on the image's: position i of 41 in 321 pixels is pixel 8i.
    """
    rows, columns = (
        _positions(of, to, target.device) for of, to in zip(target.shape[-2:], (height, width), strict=True)
    )
    return target[:, rows[:, None], columns]


def _positions(length: int, count: int, device: torch.device) -> Tensor:
    step = (length - 1) / (count - 1) if count > 1 else 0.0
    return (torch.arange(count, device=device) * step).round().long()


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.masked_fill(whole == 0, torch.inf)


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
