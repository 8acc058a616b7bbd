"""Every data YAML composes, fits its class's signature and says what a model needs without data on disk."""

from __future__ import annotations

import importlib
import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter

from segtrain.data.dataset import SegmentationDataset
from segtrain.data.labels import LabelMap
from segtrain.data.loader import LoaderOptions

CONFIGS = Path(__file__).parents[2] / "configs"
LOADER = {field.name for field in fields(LoaderOptions)}
NAMES = ["voc", "voc_aug", "cityscapes", "pet", "portrait", "camvid", "folder"]


def data(*overrides: str) -> dict[str, Any]:
    """The data node as plain values, without the notes that YAML keeps for itself."""
    OmegaConf.register_new_resolver("len", len, replace=True)
    with initialize_config_dir(str(CONFIGS), version_base=None):
        node = compose(overrides=[f"+data={overrides[0]}", *overrides[1:]]).data
        resolved = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    return {str(k): v for k, v in resolved.items() if k == "_target_" or not str(k).startswith("_")}


def target_class(node: dict[str, Any]) -> type[SegmentationDataset]:
    module, name = node["_target_"].rsplit(".", 1)
    found = getattr(importlib.import_module(module), name)
    assert found.__module__ == module
    return found  # type: ignore[no-any-return]


def signature(target: type) -> dict[str, Any]:
    """Type hints of the constructor's arguments, its parents' too where it passes on `**shared`."""
    hints: dict[str, Any] = {}
    for base in target.__mro__:
        if "__init__" in vars(base):
            own = get_type_hints(base.__init__, include_extras=True)  # type: ignore[misc]
            parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
            hints |= {
                p.name: own[p.name]
                for p in parameters
                if p.name in own and p.kind is p.KEYWORD_ONLY and p.name not in hints
            }
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return hints


CASES = [
    *[(name,) for name in NAMES if name != "folder"],
    ("folder", "data.classes=[road,crack]"),
    ("pet", "data.target=foreground"),
    ("pet", "data.target=breed"),
]


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_every_key_is_an_argument_of_its_type(overrides: tuple[str, ...]) -> None:
    node = data(*overrides)
    hints = signature(target_class(node))
    assert {"split", "root", "classes", "transform"} <= set(hints)
    for key, value in node.items():
        if key not in LOADER | {"_target_"}:
            TypeAdapter(hints[key]).validate_json(json.dumps(value), strict=True)


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_classes_palette_and_map_fit_each_other_without_data(overrides: tuple[str, ...]) -> None:
    node = data(*overrides)
    labels = LabelMap(node["classes"], node["palette"], node["label_map"], node.get("ignore_colors"))
    assert node["num_classes"] == labels.num_classes
    assert len({tuple(color) for color in labels.palette}) == labels.num_classes, "no two classes look alike"
    if node["label_map"] is not None:
        reached = set(node["label_map"].values()) - {255}
        wanted = {0, 1} if "data.target=breed" in overrides else set(range(labels.num_classes))
        assert reached == wanted, "every class can occur"


@pytest.mark.parametrize("name", NAMES)
def test_every_dataset_has_the_keys_that_commands_rely_on(name: str) -> None:
    node = data(name, "data.classes=[a,b]") if name == "folder" else data(name)
    shared = {"root": "./data", "download": False, "limit": None, "channels": 3}
    assert {key: node[key] for key in shared} == shared
    assert set(node) >= LOADER


def test_a_folder_must_be_told_its_classes() -> None:
    with pytest.raises(OmegaConfBaseException, match=r"Missing mandatory value: data\.classes"):
        data("folder")


def test_voc_is_as_published(published: dict[str, Any]) -> None:
    for name in ("voc", "voc_aug"):
        node = data(name)
        assert node["classes"] == published["voc12"]["classes"]
        assert node["palette"] == published["voc12"]["palette_21"]


def test_cityscapes_is_as_published(published: dict[str, Any]) -> None:
    node = data("cityscapes")
    table = published["cityscapes"]
    rows = [dict(zip(table["columns"].split(","), row, strict=True)) for row in table["labels"]]
    assert node["label_map"] == {**{row["id"]: row["trainId"] for row in rows}, -1: 255, 255: 255}
    scored = sorted((row for row in rows if 0 <= row["trainId"] < 19), key=lambda row: row["trainId"])
    assert node["classes"] == [row["name"] for row in scored]
    assert node["palette"] == [row["color"] for row in scored]
    labels = LabelMap(node["classes"], node["palette"], node["label_map"])
    assert labels.apply(np.array([[-1, 7, 33]], np.int32), "").tolist() == [[255, 0, 18]]


def test_pet_targets_are_as_published(published: dict[str, Any]) -> None:
    trimap, foreground, breed = (data("pet", f"data.target={t}") for t in ("trimap", "foreground", "breed"))
    assert trimap["label_map"] == {value: value - 1 for value in (1, 2, 3)}
    assert foreground["label_map"] == {1: 1, 2: 0, 3: 255}
    assert breed["num_classes"] == published["oxford_iiit_pet"]["breeds"] + 1
    cats = [name for name in breed["classes"][1:] if name[0].isupper()]
    assert len(cats) == published["oxford_iiit_pet"]["cats"], "cats have a capital initial"
    assert breed["classes"][1:] == sorted(breed["classes"][1:], key=str.lower), "ids go by the alphabet"
