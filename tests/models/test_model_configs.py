"""The YAML files of configs/model against the constructors they name."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from torch import nn

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
OURS: dict[str, set[str]] = {
    "fcn8s": set(),
    "fcn16s": {"stride"},
    "fcn32s": {"stride"},
    "fcn8s_atonce": {"at_once"},
    "fcn_torchvision": set(),
    "unet": set(),
    "unet_small": {"base_channels"},
    "unet_valid": set(),
    "segnet": set(),
    "pspnet": set(),
    "deeplabv1": set(),
    "deeplabv2": set(),
    "deeplabv3": {"multi_grid", "head_conv", "output_stride", "dropout", "aux"},
    "deeplabv3_cascade": {"multi_grid", "head_conv", "output_stride", "dropout", "aux", "head"},
    "deeplabv3_mobilenet": {
        "backbone",
        "output_stride",
        "aux",
        "atrous_rates",
        "last_channels",
        "head_conv",
        "dropout",
        "align_corners",
    },
    # torchvision's rates do not follow the output stride, the paper's do.
    "deeplabv3_torchvision": {"atrous_rates"},
    "deeplabv3plus": set(),
    "lraspp": set(),
}
"""Our networks, and where their files differ from the constructors' defaults."""
UNTRAINED: dict[str, set[str]] = {
    name: set() for name in ("otsu", "double_peak", "morphology", "watershed", "slic_kmeans")
}
"""Rules without parameters, for two classes (test_classical.py builds them)."""
DETECTORS: dict[str, set[str]] = {"maskrcnn": set(), "maskrcnn_v2": {"version"}}
"""Networks that find objects: their files choose task, loss, augmentation, optimizer and inference, too."""
GROUPS = ("task", "augment", "loss", "optimizer", "inference")
FOR_THE_APP = {"_target_", "weights", "freeze_bn", "normalize"}


def composed(name: str, *overrides: str) -> dict[str, Any]:
    """The model node, with the class count and channels of a data set of 5 classes in color."""
    with initialize_config_dir(str(CONFIGS.parent), version_base="1.3"):
        if name in DETECTORS:  # a file that chooses other groups needs groups to choose from
            cfg = compose("train", ["data=shapes_instances", f"model={name}", *overrides])
        else:
            cfg = compose(f"model/{name}", ["+data.num_classes=5", "+data.channels=3", *overrides])
    OmegaConf.register_new_resolver("len", len, replace=True)
    node: Any = OmegaConf.to_container(cfg.model, resolve=True)
    return node


def chosen(name: str, *overrides: str) -> dict[str, str]:
    """The options of the other groups that stand in a whole config."""
    with initialize_config_dir(str(CONFIGS.parent), version_base="1.3"):
        cfg = compose("train", [f"model={name}", *overrides], return_hydra_config=True)
    return {group: str(option) for group, option in cfg.hydra.runtime.choices.items() if group in GROUPS}


def build(node: dict[str, Any]) -> nn.Module:
    model = instantiate({key: value for key, value in node.items() if key not in FOR_THE_APP - {"_target_"}})
    assert isinstance(model, nn.Module)
    return model


@pytest.mark.parametrize("name", [*OURS, *UNTRAINED, *DETECTORS])
def test_every_constructor_argument_is_in_the_file_with_the_same_default(name: str) -> None:
    node = composed(name)
    signature = inspect.signature(get_object(node["_target_"])).parameters
    assert set(node) - FOR_THE_APP == set(signature)
    assert set(node) >= FOR_THE_APP
    changed = {
        key
        for key, parameter in signature.items()
        if parameter.default is not inspect.Parameter.empty and node[key] != parameter.default
    }
    assert changed == {**OURS, **UNTRAINED, **DETECTORS}[name]


def test_every_file_is_looked_at() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*OURS, *UNTRAINED, *DETECTORS, "torchvision", "_model"}


@pytest.mark.parametrize("name", [*OURS, "torchvision"])
def test_builds_offline_with_the_class_count_of_the_data(name: str) -> None:
    node = composed(name)
    assert node["weights"] == "none"
    assert node.get("weights_backbone") is None
    assert node["freeze_bn"] is False
    with torch.device("meta"):
        model = build(node)
    assert model.eval()(torch.zeros(1, 3, 64, 64, device="meta"))["out"].shape == (1, 5, 64, 64)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_has_the_class_count_of_the_data_and_brings_what_it_needs(name: str) -> None:
    with torch.device("meta"):
        model: Any = build(composed(name))
    assert model.roi_heads.box_predictor.cls_score.out_features == 5
    assert model.roi_heads.mask_predictor.mask_fcn_logits.out_channels == 5
    needed = {"task": "instance", "augment": "instances", "loss": "maskrcnn", "optimizer": "sgd"}
    assert chosen(name) == {**needed, "inference": "instances"}
    assert chosen(name, "optimizer=adamw", "augment=lsj") == {
        **needed,
        "optimizer": "adamw",
        "augment": "lsj",
        "inference": "instances",
    }, "the command line goes before"


@pytest.mark.parametrize("name", OURS)
def test_gray_images(name: str) -> None:
    node = composed(name, "data.channels=1")
    with torch.device("meta"):
        model = build(node)
    assert model.eval()(torch.zeros(1, 1, 64, 64, device="meta"))["out"].shape == (1, 5, 64, 64)


def test_lraspp_by_torchvisions_builder() -> None:
    target = "torchvision.models.segmentation.lraspp_mobilenet_v3_large"
    node = composed("torchvision", f"model._target_={target}", "model.aux_loss=false")
    assert type(build(node)).__name__ == "LRASPP"


@pytest.mark.parametrize("name", [*OURS, *UNTRAINED, *DETECTORS, "torchvision", "_model"])
def test_every_key_says_what_it_does(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    node = yaml.safe_load(text)
    if node.get("defaults", ["_model"])[0] != "_model":  # a variant: the file it starts from says it
        assert text.startswith("# ") or len(node) == 2
        return
    bare = [
        key
        for key in node.keys() - {"defaults", "_target_"}
        if "#" not in next(line for line in text.splitlines() if line.startswith(f"{key}:"))
    ]
    assert bare == []
