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

from segtrain.data.images import ImageDataset
from segtrain.data.labels import LabelMap
from segtrain.data.loader import LoaderOptions

CONFIGS = Path(__file__).parents[2] / "configs"
LOADER = {field.name for field in fields(LoaderOptions)}
NAMES = ["voc", "voc_aug", "cityscapes", "pet", "portrait", "camvid", "folder"]
NAMES += ["coco_semantic", "coco_voc", "pennfudan_semantic"]
INSTANCES = ["coco", "pennfudan", "voc_instances", "cityscapes_instances", "folder_instances"]
PANOPTIC = ["coco_panoptic", "cityscapes_panoptic"]
DRAWN = {
    "shapes": "semantic",
    "shapes_scenes": "semantic",
    "shapes_instances": "instance",
    "shapes_objects": "instance",
    "shapes_panoptic": "panoptic",
}
"""Without files, and the kind of task that each is for."""
KINDS = {
    **dict.fromkeys(NAMES, "semantic"),
    **dict.fromkeys(INSTANCES, "instance"),
    **dict.fromkeys(PANOPTIC, "panoptic"),
    **DRAWN,
}
NO_CLASSES = {"folder": "data.classes=[road,crack]", "folder_instances": "data.classes=[background,crack]"}
"""Files of one's own, whose classes nobody else knows."""


def data(*overrides: str) -> dict[str, Any]:
    """The data node as plain values, without the notes that YAML keeps for itself."""
    OmegaConf.register_new_resolver("len", len, replace=True)
    with initialize_config_dir(str(CONFIGS), version_base=None):
        node = compose(overrides=[f"+data={overrides[0]}", *overrides[1:]]).data
        resolved = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    return {str(k): v for k, v in resolved.items() if k == "_target_" or not str(k).startswith("_")}


def named(name: str) -> tuple[str, ...]:
    """The overrides that make a whole node of a dataset."""
    return (name, NO_CLASSES[name]) if name in NO_CLASSES else (name,)


def target_class(node: dict[str, Any]) -> type[ImageDataset[Any]]:
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
    *[named(name) for name in NAMES],
    ("pet", "data.target=foreground"),
    ("pet", "data.target=breed"),
]


OBJECTS_AND_SEGMENTS = [named(name) for name, kind in KINDS.items() if kind != "semantic"]


def test_every_file_is_looked_at() -> None:
    assert {path.stem for path in (CONFIGS / "data").glob("[!_]*.yaml")} == set(KINDS)


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_every_dataset_says_which_task_its_targets_are_for(name: str, kind: str) -> None:
    assert target_class(data(*named(name))).task == kind


@pytest.mark.parametrize("overrides", [*CASES, ("shapes",), ("shapes_scenes",), *OBJECTS_AND_SEGMENTS], ids=" ".join)
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


@pytest.mark.parametrize("overrides", OBJECTS_AND_SEGMENTS, ids=" ".join)
def test_classes_of_objects_and_segments_fit_their_palette(overrides: tuple[str, ...]) -> None:
    node = data(*overrides)
    classes, palette = node["classes"], node["palette"]
    assert node["num_classes"] == len(classes) == len(set(classes))
    if palette is not None:
        assert len({tuple(color) for color in palette}) == len(palette) == len(classes), "no two classes look alike"
        assert all(0 <= value <= 255 for color in palette for value in color)
    if "things" in node:
        assert set(node["things"]) < set(classes), "some classes are things and some are not"
    else:
        assert classes[0] == "background", "which no object has"
        assert (node["effective_batch"], node["cache"]) == (2, "none")


@pytest.mark.parametrize("name", [*NAMES, *INSTANCES, *PANOPTIC])
def test_every_dataset_has_the_keys_that_commands_rely_on(name: str) -> None:
    node = data(*named(name))
    shared = {"root": "./data", "download": False, "limit": None, "channels": 3}
    assert {key: node[key] for key in shared} == shared
    assert set(node) >= LOADER - {"group_by_aspect"}
    assert ("group_by_aspect" in node) == (name in INSTANCES), "only objects keep the sizes of their images"


def test_a_folder_must_be_told_its_classes() -> None:
    for name in NO_CLASSES:
        with pytest.raises(OmegaConfBaseException, match=r"Missing mandatory value: data\.classes"):
            data(name)


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
