"""The five terms of a detector: weighted as the config says, and none that is missing or new goes by unseen."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
import yaml

from segtrain.errors import ConfigError
from segtrain.losses.detection import DetectionLoss

FILE = Path(__file__).parents[2] / "configs" / "loss" / "maskrcnn.yaml"
FOUND = {
    # As torchvision names them: two have no prefix that the others have.
    "loss_objectness": 1.0,
    "loss_rpn_box_reg": 2.0,
    "loss_classifier": 4.0,
    "loss_box_reg": 8.0,
    "loss_mask": 16.0,
}
TERMS = ["objectness", "rpn_box_reg", "classifier", "box_reg", "mask"]


def found(**changes: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in {**FOUND, **changes}.items()}


def test_terms_by_name_and_their_sum() -> None:
    terms = DetectionLoss()(found())
    assert list(terms) == [*TERMS, "loss"]
    assert {name: value.item() for name, value in terms.items()} == {
        **dict(zip(TERMS, [1, 2, 4, 8, 16], strict=True)),
        "loss": 31,
    }


def test_weights_count_in_the_sum_and_its_gradient_and_nowhere_else() -> None:
    given = found()
    terms = DetectionLoss(objectness=0.5, mask=3, box_reg=0)(given)
    assert terms["loss"].item() == 0.5 + 2 + 4 + 0 + 48
    assert terms["mask"].item() == 16
    terms["loss"].backward()
    assert {name: value.grad.item() for name, value in given.items() if value.grad is not None} == {
        **dict.fromkeys(FOUND, 1.0),
        "loss_objectness": 0.5,
        "loss_mask": 3.0,
        "loss_box_reg": 0.0,
    }


def test_sums_are_made_in_full_precision() -> None:
    halves = {name: torch.tensor(2049.0 if name == "loss_mask" else 1.0).to(torch.bfloat16) for name in FOUND}
    terms = DetectionLoss()(halves)
    assert {value.dtype for value in terms.values()} == {torch.float32}
    assert terms["loss"].item() == halves["loss_mask"].float().item() + 4


def test_a_term_too_few_or_too_many_is_an_error() -> None:
    without = {name: value for name, value in found().items() if name != "loss_mask"}
    for given in (without, found(loss_keypoint=1.0), {}):
        with pytest.raises(ConfigError, match="the network's losses are") as error:
            DetectionLoss()(given)
        assert "objectness, rpn_box_reg, classifier, box_reg, mask" in str(error.value)
    with pytest.raises(ConfigError, match="losses are none"):
        DetectionLoss()({})


def test_the_file_has_every_weight_with_the_same_default() -> None:
    node = yaml.safe_load(FILE.read_text())
    assert node.pop("_target_") == "segtrain.losses.detection.DetectionLoss"
    assert node.pop("class_weights", "none") == "none"
    node.pop("defaults", None)
    assert node == {name: one.default for name, one in inspect.signature(DetectionLoss).parameters.items()}
