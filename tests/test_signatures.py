"""Values against type hints, however deep in a config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Interval
from torch import nn
from torchvision.models import ResNet50_Weights

from segtrain import signatures
from segtrain.errors import ConfigError
from segtrain.types import Fraction, PositiveFloat, PositiveInt, Size


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, int),
        (1, float),
        (1.5, float),
        (None, int | None),
        (320, Size),
        ([320, 480], Size),
        ([1, 2], tuple[int, int]),
        ({0: 1, 255: 0}, dict[int, int] | None),
        ("DEFAULT", ResNet50_Weights | None),
        ("IMAGENET1K_V1", ResNet50_Weights | None),
        ("anything", Any),
        (3, nn.Module),  # no plain value can be one: left to the constructor
        ([], list[str]),
    ],
)
def test_values_that_fit(value: Any, hint: Any) -> None:
    signatures.check_value(value, hint, "here")


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("1", int, "integer"),
        (True, int, "integer"),
        (True, float, "number"),
        (1.0, int, "integer"),
        ("1e-3", float, "number"),
        (1, bool, "boolean"),
        ("true", bool, "boolean"),
        (1, str, "string"),
        (0, PositiveInt, "greater than 0"),
        (-0.1, Fraction, "greater than or equal to 0"),
        (float("nan"), PositiveFloat, "finite"),
        (float("inf"), PositiveFloat, "finite"),
        (None, int, "integer"),
        ([320], Size, "at least 2 items"),
        ([320, 0], Size, "greater than 0"),
        ([320, 320, 320], Size, "at most 2 items"),
        ([1, "b"], list[str], "string"),
        ({"a": 1}, dict[int, int], "integer"),
        (3, Annotated[int, Interval(ge=0, le=2)], "less than or equal to 2"),
        ("NOPE", ResNet50_Weights | None, "'IMAGENET1K_V1'"),
    ],
)
def test_values_that_do_not_fit(value: Any, hint: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        signatures.check_value(value, hint, "here")
    assert caught.value.found.startswith("here=")
    assert expected in str(caught.value.expected)


def test_a_value_that_must_be_given_is_asked_for() -> None:
    with pytest.raises(ConfigError) as caught:
        signatures.check_value("???", str, "here")
    assert (caught.value.found, caught.value.fix) == ("here is not set", "set here=…")


def test_a_literals_typo_is_answered_with_the_nearest_choice() -> None:
    with pytest.raises(ConfigError) as caught:
        signatures.check_value("reisze", Literal["resize", "pad"], "augment.mode")
    assert caught.value.fix == "did you mean augment.mode=resize?"
    with pytest.raises(ConfigError) as caught:
        signatures.check_value("zzzz", Literal["resize", "pad"], "augment.mode")
    assert caught.value.fix is None


# --- targets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        [{"_target_": "os.system", "command": "ls"}],
        {"deep": {"er": [{"fine": 1}, [{"_target_": "os.system"}]]}},
        {"_target_": "torch.nn.Identity", "x": 1} | {"_target_": "os.system"},
        [{"_target_": "torch.nn.ReLU"}, {"_target_": "os.system"}],
        {"a": {"_target_": "torch.nn.ReLU"}, "b": {"_target_": "os.system"}},
    ],
)
def test_a_target_is_found_however_deep(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"_target_=os\.system is not a class or function"):
        signatures.check_targets(value, "node")


def test_the_place_of_a_nested_target_is_in_the_error() -> None:
    node = {"steps": [{"_target_": "torch.nn.ReLU"}, {"_target_": "torch.nn.ReLU", "inplce": True}]}
    with pytest.raises(ConfigError) as caught:
        signatures.check_targets(node, "augment")
    assert caught.value.found.startswith("augment.steps[1].inplce is not a key of torch.nn")
    assert caught.value.fix == "did you mean augment.steps[1].inplace?"


# --- nodes -------------------------------------------------------------------------------------------------------


@dataclass
class Parent:
    """Takes two keys."""

    width: PositiveInt
    depth: PositiveInt = 2


class Child(Parent):
    """Passes on what it does not know."""

    def __init__(self, *, color: Literal["red", "blue"] = "red", **shared: Any) -> None:
        super().__init__(**shared)
        self.color = color


def builder(width: PositiveInt, *, split: str) -> int:
    return width


def test_keys_that_a_class_passes_on_to_its_parent_are_checked_too() -> None:
    signatures.check({"width": 1, "color": "blue"}, Child, "x")
    for node, message in (
        ({"width": 0}, r"x\.width=0"),
        ({"width": 1, "dpth": 3}, r"x\.dpth is not a key of .*Child"),
        ({"color": "red"}, r"x\.width is missing"),
        ({"width": 1, "color": "green"}, r"x\.color=green"),
    ):
        with pytest.raises(ConfigError, match=message):
            signatures.check(node, Child, "x")


def test_what_the_program_passes_itself_need_not_be_in_the_node() -> None:
    signatures.check({"width": 1}, builder, "x", runtime=["split"])
    with pytest.raises(ConfigError, match=r"x\.split is missing"):
        signatures.check({"width": 1}, builder, "x")


def test_hints_of_functions_are_read_where_annotations_are_text() -> None:
    assert signatures.parameters(builder)[0]["width"].annotation == PositiveInt
    with pytest.raises(ConfigError, match=r"x\.width=0"):
        signatures.check({"width": 0, "split": "a"}, builder, "x")


def test_objects_are_built_from_the_inside_out_with_the_runtime_arguments() -> None:
    node = {"_target_": "torch.nn.Sequential"}
    assert isinstance(signatures.instantiate(node, "x"), nn.Sequential)
    conv = signatures.instantiate(
        {"_target_": "torch.nn.Conv2d", "in_channels": 3, "kernel_size": 1}, "x", out_channels=2
    )
    assert conv.weight.shape == (2, 3, 1, 1)
    nested = signatures.instantiate({"a": [{"_target_": "torch.nn.ReLU"}], "b": 1}, "x")
    assert isinstance(nested["a"][0], nn.ReLU)
    assert nested["b"] == 1


def test_a_constructor_that_refuses_becomes_a_config_error() -> None:
    node = {"_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 2, "kernel_size": 1, "groups": 2}
    with pytest.raises(ConfigError, match="model cannot be built: in_channels must be divisible by groups") as caught:
        signatures.instantiate(node, "model")
    assert caught.value.where == "torch.nn.Conv2d"


def test_a_builder_that_cannot_do_what_is_asked_becomes_a_config_error() -> None:
    target = "torchvision.models.segmentation.lraspp_mobilenet_v3_large"
    node = {"_target_": target, "num_classes": 2, "weights_backbone": None, "aux_loss": True}
    with pytest.raises(ConfigError, match=r"model cannot be built: .*auxiliary loss") as caught:
        signatures.instantiate(node, "model")
    assert caught.value.where == target


def test_a_checked_node_is_still_resolved_when_built() -> None:
    with pytest.raises(ConfigError, match="allowed package"):
        signatures.instantiate({"_target_": "torch.os.getcwd"}, "model")
    assert torch.os.getcwd()  # the alias does lead there
