"""The weighted sum of losses, and the shipped loss configs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import get_class, instantiate
from torch import Tensor, nn

from segtrain.errors import ConfigError
from segtrain.losses.base import Loss
from segtrain.losses.combine import SegmentationLoss
from segtrain.losses.pixel import CrossEntropy, Focal
from segtrain.losses.region import Dice, Lovasz

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "loss").glob("*.yaml"))
EXPECTED_TERMS = {
    "ce": ["ce"],
    "ohem": ["ohem"],
    "focal": ["focal"],
    "dice": ["dice"],
    "tversky": ["tversky"],
    "lovasz": ["lovasz"],
    "ce_dice": ["ce", "dice"],
    "ce_lovasz": ["ce", "lovasz"],
}


def example() -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    out, aux = torch.randn(2, 2, 3, 8, 6, generator=generator)
    target = torch.randint(0, 3, (2, 8, 6), generator=generator)
    target[0, :3] = 255
    return {"out": out, "aux": aux}, target


def ce_dice(**kwargs: Any) -> SegmentationLoss:
    return SegmentationLoss(terms={"ce": CrossEntropy(weight=0.5), "dice": Dice(weight=2.0)}, **kwargs)


def test_terms_are_unweighted_and_the_sum_is_weighted() -> None:
    outputs, target = example()
    losses = ce_dice()({"out": outputs["out"]}, target)
    assert list(losses) == ["ce", "dice", "loss"]
    assert losses["ce"] == CrossEntropy()(outputs["out"], target)
    assert losses["dice"] == Dice()(outputs["out"], target)
    torch.testing.assert_close(losses["loss"], 0.5 * losses["ce"] + 2 * losses["dice"])


def test_the_auxiliary_head_adds_the_same_sum_with_its_weight() -> None:
    outputs, target = example()
    main = ce_dice()({"out": outputs["out"]}, target)["loss"]
    aux = ce_dice()({"out": outputs["aux"]}, target)["loss"]
    losses = ce_dice(aux_weight=0.3)(outputs, target)
    assert losses["aux"] == aux
    torch.testing.assert_close(losses["loss"], main + 0.3 * aux)


def test_gradients_reach_both_heads() -> None:
    outputs, target = example()
    leaves = {name: logits.requires_grad_() for name, logits in outputs.items()}
    ce_dice(aux_weight=0.4)(leaves, target)["loss"].backward()
    assert leaves["out"].grad is not None
    assert leaves["aux"].grad is not None
    alone = leaves["aux"].detach().requires_grad_()
    ce_dice()({"out": alone}, target)["loss"].backward()
    torch.testing.assert_close(leaves["aux"].grad, 0.4 * alone.grad)


def test_counts_come_in_the_order_of_the_terms_and_divide_each() -> None:
    outputs, target = example()
    loss = ce_dice()
    counts = loss.counts(target)
    assert counts.tolist() == [(target != 255).sum().item(), 1.0]
    assert list(loss.terms) == ["ce", "dice"]
    own, passed = loss(outputs, target), loss(outputs, target, counts * torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(passed["ce"], own["ce"] / 2)
    torch.testing.assert_close(passed["dice"], own["dice"] / 4)
    aux = SegmentationLoss(terms={"ce": CrossEntropy()})
    halved = aux(outputs, target, aux.counts(target) * 2)["aux"]
    torch.testing.assert_close(halved, aux(outputs, target)["aux"] / 2)


def test_class_weights_reach_every_term_that_takes_them() -> None:
    outputs, target = example()
    weights = torch.tensor([1.0, 0.0, 5.0])
    loss = SegmentationLoss(terms={"ce": CrossEntropy(), "focal": Focal(), "dice": Dice()})
    before = loss(outputs, target)
    loss.use_class_weights(weights)
    after = loss(outputs, target)
    expected = nn.functional.cross_entropy(outputs["out"], target, weight=weights, ignore_index=255)
    torch.testing.assert_close(after["ce"], expected)
    assert after["focal"] != before["focal"]
    assert after["dice"] == before["dice"]
    assert loss.counts(target)[0] == weights[target[target != 255]].sum()


def test_class_weights_that_no_term_takes_are_refused() -> None:
    loss = SegmentationLoss(terms={"dice": Dice(), "lovasz": Lovasz()})
    with pytest.raises(ConfigError) as error:
        loss.use_class_weights(torch.ones(3))
    assert "no term of the loss takes them: dice, lovasz" in str(error.value)
    assert "loss.class_weights=none" in str(error.value)


@pytest.mark.parametrize("name", ["loss", "aux", "keys", "a.b", ""])
def test_names_that_cannot_be_used_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot be named '{name}'"):
        SegmentationLoss(terms={name: Dice()})


def test_a_loss_without_terms_is_refused() -> None:
    with pytest.raises(ConfigError, match="no terms"):
        SegmentationLoss(terms={})


def test_a_loss_of_torch_is_refused_because_it_counts_nothing() -> None:
    with pytest.raises(ConfigError) as error:
        SegmentationLoss(terms={"ce": nn.CrossEntropyLoss()})  # type: ignore[dict-item]
    assert "torch.nn.modules.loss.CrossEntropyLoss is no loss of segtrain" in str(error.value)
    assert "loss.terms.ce._target_" in str(error.value)


def test_all_loss_configs_are_known() -> None:
    assert {path.stem for path in CONFIGS} == set(EXPECTED_TERMS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_builds_the_loss_it_names(path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config.pop("class_weights") == "none"
    loss = instantiate(config, _convert_="all")
    assert isinstance(loss, SegmentationLoss)
    assert list(loss.terms) == EXPECTED_TERMS[path.stem]
    outputs, target = example()
    value = loss(outputs, target)["loss"]
    terms = [term(outputs[head], target) for head in ("out", "aux") for term in loss.terms.values()]
    shares = [1.0] * len(loss.terms) + [0.4] * len(loss.terms)
    expected = sum(share * term for share, term in zip(shares, terms, strict=True))
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_shows_every_argument_with_its_default(path: Path) -> None:
    for name, term in yaml.safe_load(path.read_text(encoding="utf-8"))["terms"].items():
        target = get_class(term.pop("_target_"))
        assert issubclass(target, Loss)
        parameters = inspect.signature(target).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        assert term == {**defaults, "weight": 1.0}, name
