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
from segtrain.losses.combine import SegmentationLoss, shrink
from segtrain.losses.pixel import CrossEntropy, Focal
from segtrain.losses.region import Dice, Lovasz

FOLDER = Path(__file__).parents[2] / "configs" / "loss"
CONFIGS = sorted(path for path in FOLDER.glob("*.yaml") if path.stem != "maskrcnn")  # test_detection.py has that one
EXPECTED_TERMS = {
    "ce": ["ce"],
    "ohem": ["ohem"],
    "focal": ["focal"],
    "dice": ["dice"],
    "tversky": ["tversky"],
    "lovasz": ["lovasz"],
    "ce_dice": ["ce", "dice"],
    "ce_lovasz": ["ce", "lovasz"],
    "border": ["border"],
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


def test_shrinking_takes_the_label_under_each_position_of_the_grid() -> None:
    target = torch.randint(0, 21, (2, 321, 65), generator=torch.Generator().manual_seed(1))
    target[0, :, ::3] = 255
    assert torch.equal(shrink(target, 41, 9), target[:, ::8, ::8])
    assert torch.equal(shrink(target, 321, 65), target)
    assert torch.equal(shrink(target, 1, 1), target[:, :1, :1])
    odd = shrink(target, 40, 12)  # no multiple: nearest, so only labels that were there
    assert odd.shape == (2, 40, 12)
    assert set(odd.unique().tolist()) <= set(target.unique().tolist())


def test_a_native_loss_is_the_mean_over_the_native_pixels() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, 5, 4, generator=generator)
    target = torch.randint(0, 3, (2, 33, 25), generator=generator)
    target[:, 10:20] = 255
    coarse = target[:, ::8, ::8]
    losses = SegmentationLoss(terms={"ce": CrossEntropy()}, resolution="native")({"out": logits}, target)
    torch.testing.assert_close(losses["ce"], nn.functional.cross_entropy(logits, coarse, ignore_index=255))
    with pytest.raises(ConfigError, match="resize the logits"):
        SegmentationLoss(terms={"ce": CrossEntropy()})({"out": logits}, target)


def test_native_losses_of_several_batches_are_weighed_by_their_labelled_pixels() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 1, 3, 5, 5, generator=generator)
    target = torch.randint(0, 3, (2, 1, 33, 33), generator=generator)
    target[0, :, :17] = 255
    loss = SegmentationLoss(terms={"ce": CrossEntropy()}, resolution="native")
    counts = loss.counts(target[0]) + loss.counts(target[1])
    found = sum(loss({"out": logits[i]}, target[i], counts)["loss"] for i in (0, 1))
    means = [loss({"out": logits[i]}, target[i])["loss"] for i in (0, 1)]
    labelled = [float((target[i] != 255).sum()) for i in (0, 1)]
    expected = (labelled[0] * means[0] + labelled[1] * means[1]) / sum(labelled)
    torch.testing.assert_close(found, expected)


def test_a_native_loss_without_labels_is_zero_with_a_gradient_of_zero() -> None:
    loss = SegmentationLoss(terms={"ce": CrossEntropy(), "dice": Dice()}, resolution="native")
    logits = torch.randn(1, 3, 5, 5, requires_grad=True)
    for target in (torch.full((1, 33, 33), 255), torch.full((1, 33, 33), 255).index_fill(1, torch.tensor([1]), 2)):
        value = loss({"out": logits}, target)["ce"]  # the second has labels, but none where the grid looks
        (gradient,) = torch.autograd.grad(value, logits)
        assert value == 0
        assert not gradient.any()


def test_outputs_of_single_scales_count_as_much_as_their_fusion() -> None:
    generator = torch.Generator().manual_seed(4)
    target = torch.randint(0, 3, (1, 33, 33), generator=generator)
    outputs = {
        name: torch.randn(1, 3, n, n, generator=generator) for name, n in (("out", 5), ("scale_50", 3), ("aux", 5))
    }
    loss = SegmentationLoss(terms={"ce": CrossEntropy()}, aux_weight=0.25, resolution="native")
    losses = loss(outputs, target)
    assert list(losses) == ["ce", "scale_50", "aux", "loss"]
    torch.testing.assert_close(losses["loss"], losses["ce"] + losses["scale_50"] + 0.25 * losses["aux"])
    alone = nn.functional.cross_entropy(outputs["scale_50"], target[:, ::16, ::16])
    torch.testing.assert_close(losses["scale_50"], alone)


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
    assert config.pop("class_weights") == ("median_frequency" if path.stem == "border" else "none")
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
