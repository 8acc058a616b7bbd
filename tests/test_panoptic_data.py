"""Datasets with segments: COCO's and Cityscapes' layouts, and generated scenes that serve all three tasks."""

from __future__ import annotations

import importlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from segtrain import signatures, targets
from segtrain.data.loader import LoaderOptions
from segtrain.data.panoptic.cityscapes import CityscapesPanoptic
from segtrain.data.panoptic.coco import CocoPanoptic
from segtrain.data.panoptic.dataset import PanopticDataset
from segtrain.data.panoptic.scenes import FORMS, STUFF, VISIBLE, scene
from segtrain.data.panoptic.shapes import ShapesObjects, ShapesPanoptic, ShapesScenes
from segtrain.errors import ConfigError, DataError
from segtrain.metrics.panoptic import PanopticQuality
from segtrain.panoptic import Panoptic, Segment
from segtrain.panoptic_files import PanopticWriter

CONFIGS = Path(__file__).parents[1] / "configs"
SCENE_CLASSES = ["sky", "ground", "water", "disc", "square", "triangle", "ring"]
NAMES = ["coco_panoptic", "cityscapes_panoptic", "shapes_panoptic"]


def node(name: str) -> dict[str, Any]:
    """The data node of a YAML as plain values, without the loader's keys."""
    OmegaConf.register_new_resolver("len", len, replace=True)
    with initialize_config_dir(str(CONFIGS), version_base=None):
        found = OmegaConf.to_container(compose(overrides=[f"+data={name}"]).data, resolve=True, throw_on_missing=True)
    assert isinstance(found, dict)
    loader = {field.name for field in fields(LoaderOptions)} | {"num_classes", "crop_size", "val_split", "scan"}
    return {str(key): value for key, value in found.items() if key not in loader | {"effective_batch"}}


def put(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_an_argument_and_classes_things_and_colors_fit(name: str) -> None:
    config = node(name)
    target = targets.resolve(config["_target_"], "data")
    known, _ = signatures.parameters(target)
    assert set(config) - {"_target_"} <= set(known)
    assert set(config["things"]) < set(config["classes"])
    assert len({tuple(color) for color in config["palette"]}) == len(config["classes"]) == len(set(config["classes"]))
    assert issubclass(target, PanopticDataset)  # type: ignore[arg-type]


def test_coco_has_its_80_things_and_53_kinds_of_stuff() -> None:
    config = node("coco_panoptic")
    assert (len(config["classes"]), len(config["things"])) == (133, 80)
    assert config["classes"][:80] == config["things"]
    assert config["classes"][-1] == "rug-merged"


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two images of val in COCO's layout: sky, two cats that touch and a crowd of them; and one image of nothing."""
    rng = np.random.default_rng(0)
    for name in ("0007", "0009"):
        put(tmp_path / f"val2017/{name}.jpg", rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    writer = PanopticWriter(
        tmp_path / "panoptic_val2017",
        classes=["cat", "sky", "dog"],
        things=["cat", "dog"],
        category_ids={"cat": 17, "dog": 18, "sky": 187},
    )
    ids = np.array([[70000, 70000, 300, 300, 0, 9]] * 3 + [[5, 5, 5, 5, 0, 8]], np.int32)
    segments = [Segment(70000, 0, True), Segment(300, 0, True), Segment(9, 0, True, crowd=True)]
    segments += [Segment(5, 1, False), Segment(8, 2, True)]
    writer.add(Panoptic(ids, segments), image_id=7, image="0007.jpg")
    writer.add(Panoptic(np.zeros((4, 6), np.int32), []), image_id=9, image="0009.jpg")
    (tmp_path / "annotations").mkdir()
    writer.finish().rename(tmp_path / "annotations/panoptic_val2017.json")
    return tmp_path


def coco_data(root: Path, **changes: Any) -> CocoPanoptic:
    options = {"split": "val", "root": str(root), "classes": ["sky", "cat", "dog"], "things": ["cat", "dog"], **changes}
    return CocoPanoptic(**options)


def test_coco_gives_images_segments_and_ids(coco: Path) -> None:
    data = coco_data(coco)
    image, target, record = data[0]
    assert image.shape == (4, 6, 3)
    assert target.ids.tolist()[0] == [70000, 70000, 300, 300, 0, 9]
    assert target.segments == [
        Segment(70000, 1, True), Segment(300, 1, True), Segment(9, 1, True, crowd=True), Segment(5, 0, False),
        Segment(8, 2, True),
    ]  # fmt: skip
    assert (record.name, record.extra["image_id"]) == ("0007", 7)
    assert data[1][1].segments == []
    assert data.category_ids == {"sky": 187, "cat": 17, "dog": 18}
    assert data.task == "panoptic"
    assert len(coco_data(coco, limit=1)) == 1


def test_coco_matches_classes_by_name_and_things_by_the_list(coco: Path) -> None:
    only = coco_data(coco, classes=["dog"], things=["dog"])[0][1]
    assert only.segments == [Segment(8, 0, True)]
    assert (only.ids != 0).sum() == 1
    with pytest.raises(ConfigError, match="no category sofa"):
        coco_data(coco, classes=["sky", "sofa"], things=[])
    for things, wrong in ((["cat"], "dog"), (["cat", "dog", "sky"], "sky")):
        with pytest.raises(ConfigError, match=f"do not agree on {wrong}") as caught:
            coco_data(coco, things=things)
        assert "things there: cat, dog" in str(caught.value.fix)
    with pytest.raises(ConfigError, match=r"data\.things names sofa"):
        coco_data(coco, things=["sofa"])
    with pytest.raises(ConfigError, match="names sky twice"):
        coco_data(coco, classes=["sky", "sky"], things=[])


def test_coco_finds_its_folders_where_the_archives_put_them(coco: Path) -> None:
    expected = coco_data(coco)[0][1].ids
    (coco / "images").mkdir()
    (coco / "val2017").rename(coco / "images/val2017")
    (coco / "panoptic_val2017").rename(coco / "annotations/panoptic_val2017")
    assert np.array_equal(coco_data(coco)[0][1].ids, expected)
    (coco / "annotations/panoptic_val2017/0009.png").unlink()
    with pytest.raises(DataError, match="1 of 4 files") as caught:
        coco_data(coco)
    assert "0009.png" in str(caught.value.where)
    with pytest.raises(DataError, match="not found"):
        coco_data(coco, split="train")
    (coco / "annotations/panoptic_val2017").rename(coco / "elsewhere")
    with pytest.raises(DataError, match="folder panoptic_val2017 not found"):
        coco_data(coco)


def test_coco_names_the_files_whose_content_does_not_fit(coco: Path) -> None:
    put(coco / "val2017/0007.jpg", np.zeros((6, 4, 3), np.uint8))
    with pytest.raises(DataError, match="image and segments have different sizes") as caught:
        coco_data(coco)[0]
    assert "0007.jpg is 4x6" in str(caught.value.where)
    assert "0007.png is 6x4" in str(caught.value.where)
    path = coco / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"].pop(0)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="list of segments has not: 70000") as caught:
        coco_data(coco).read_segments(coco_data(coco).records[0])
    assert "0007.png (image 7)" in str(caught.value.where)


CITY = "aachen/aachen_000000_000019"


@pytest.fixture
def city(tmp_path: Path) -> Path:
    """One frame: road, sky, two cars, a group of cars, a group of people, a caravan, ego vehicle, unlabelled."""
    values = np.array(
        [[7, 7, 23, 23, 26000, 26001, 26, 24], [7, 7, 23, 23, 26000, 26001, 29000, 1], [0] * 8], np.uint16
    )
    put(tmp_path / f"gtFine/val/{CITY}_gtFine_instanceIds.png", values)
    put(tmp_path / f"leftImg8bit/val/{CITY}_leftImg8bit.png", np.zeros((3, 8, 3), np.uint8))
    return tmp_path


def city_data(root: Path, **changes: Any) -> CityscapesPanoptic:
    config = {key: value for key, value in node("cityscapes_panoptic").items() if key != "_target_"}
    return CityscapesPanoptic(split="val", **{**config, "root": str(root), **changes})


def test_cityscapes_values_below_1000_are_stuff_or_crowds(city: Path) -> None:
    data = city_data(city)
    _, target, record = data[0]
    index = {name: n for n, name in enumerate(data.classes)}
    assert target.segments == [
        Segment(7, index["road"], False),
        Segment(23, index["sky"], False),
        Segment(24, index["person"], True, crowd=True),
        Segment(26, index["car"], True, crowd=True),
        Segment(26000, index["car"], True),
        Segment(26001, index["car"], True),
    ]
    assert target.ids.tolist() == [[7, 7, 23, 23, 26000, 26001, 26, 24], [7, 7, 23, 23, 26000, 26001, 0, 0], [0] * 8]
    assert (record.name, record.extra["image_id"]) == (CITY, "aachen_000000_000019")
    assert data.category_ids["car"] == 26
    assert len(data.category_ids) == 19


def test_cityscapes_is_scored_by_segments_whatever_ids_a_prediction_has(city: Path, tmp_path: Path) -> None:
    data = city_data(city)
    truth = data[0][1]
    index = {name: n for n, name in enumerate(data.classes)}
    # Road right, sky in two halves of which neither is enough, one car found, one car in the crowd, one on the void.
    ids = np.array([[1, 1, 2, 3, 4, 0, 5, 0], [1, 1, 2, 3, 4, 0, 0, 0], [6] * 8], np.int32)
    segments = [Segment(1, index["road"], False), Segment(2, index["sky"], False), Segment(3, index["sky"], False)]
    segments += [Segment(n, index["car"], True) for n in (4, 5, 6)]
    quality = PanopticQuality(data.classes, data.things)
    quality.update(Panoptic(ids, segments), truth)
    scores = quality.compute()
    assert scores["pq_per_class"]["road"] == 1
    assert scores["pq_per_class"]["car"] == pytest.approx(1 / 1.5)
    assert scores["pq_per_class"]["sky"] == 0
    assert [scores[f"{name}_per_class"]["sky"] for name in ("tp", "fp", "fn")] == [0, 2, 1]
    assert scores["classes_counted"] == 3, "a crowd alone is not counted"
    assert scores["pq_stuff"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("value", "message"),
    [(77, "hold 77, of label id 77"), (60003, "hold 60003, of label id 60"), (11002, "a single 'building', which is")],
)
def test_cityscapes_values_that_nobody_publishes_are_named(city: Path, value: int, message: str) -> None:
    pixels = np.full((3, 8), value, np.uint16)
    put(city / f"gtFine/val/{CITY}_gtFine_instanceIds.png", pixels)
    with pytest.raises(DataError, match=message) as caught:
        city_data(city)[0]
    assert str(caught.value.where).endswith("instanceIds.png")


def test_cityscapes_asks_for_a_whole_label_map_and_for_its_files(city: Path) -> None:
    with pytest.raises(ConfigError, match="leads to none of sidewalk"):
        city_data(city, label_map={7: 0})
    with pytest.raises(ConfigError, match="leads to 19"):
        city_data(city, label_map={n: n for n in range(1, 20)})
    with pytest.raises(ConfigError, match="label id 0"):
        city_data(city, label_map={n: n for n in range(19)})
    (city / f"gtFine/val/{CITY}_gtFine_instanceIds.png").rename(city / f"gtFine/val/{CITY}_gtFine_labelIds.png")
    with pytest.raises(DataError, match=r"CITY/NAME_gtFine_instanceIds\.png not found"):
        city_data(city)


def shapes(kind: Any = ShapesPanoptic, **changes: Any) -> Any:
    options: dict[str, Any] = {"split": "train", "classes": SCENE_CLASSES, "size": 48, **changes}
    if kind is ShapesPanoptic:
        options.setdefault("things", list(FORMS))
    return kind(**options)


def test_the_three_tasks_have_one_image_and_one_truth() -> None:
    panoptic, semantic = shapes(), shapes(ShapesScenes)
    objects = shapes(ShapesObjects, classes=["background", *FORMS])
    for index in range(25):
        image, target, _ = panoptic[index]
        other, labels, _ = semantic[index]
        third, found, _ = objects[index]
        assert np.array_equal(image, other)
        assert np.array_equal(image, third)
        assert np.array_equal(target.labels(), labels)
        again = target.instances({SCENE_CLASSES.index(form): n for n, form in enumerate(FORMS, 1)})
        assert again.labels.tolist() == found.labels.tolist()
        assert (again.masks == found.masks).all()
        assert (again.boxes == found.boxes).all()
    assert [panoptic.task, semantic.task, objects.task] == ["panoptic", "semantic", "instance"]


def test_a_scene_depends_on_data_seed_split_and_index_alone() -> None:
    data = shapes()
    image, target, record = data[3]
    data[5]
    again = shapes(train_images=9, seed=4)[3]
    assert np.array_equal(image, again[0])
    assert np.array_equal(target.ids, again[1].ids)
    assert target.segments == again[1].segments
    assert record.extra["image_id"] == 4
    for other in (shapes(data_seed=1)[3], shapes(split="val")[3], data[4]):
        assert not np.array_equal(image, other[0])
    assert np.array_equal(data.read_segments(data.records[3]).ids, target.ids)
    grey = shapes(channels=1, size=33)[0]
    assert (grey[0].shape, grey[0].dtype) == ((33, 33, 1), np.uint8)


def test_scenes_hold_all_classes_and_objects_that_can_be_seen() -> None:
    counts = dict.fromkeys(SCENE_CLASSES, 0)
    hidden = 0
    for number in range(120):
        made = scene(64, [0, 0, number])
        assert 1 <= len(made.forms) == len(made.masks) <= 6
        assert made.masks.sum(0).max() == 1, "what is seen of objects never overlaps"
        assert made.masks.reshape(len(made.masks), -1).any(1).all()
        for name in {*made.forms, *(STUFF[n] for n in np.unique(made.stuff))}:
            counts[name] += 1
        seen = made.masks.sum((1, 2))
        assert (seen >= VISIBLE * made.areas).all()
        hidden += bool((seen < made.areas).any())
    assert min(counts.values()) >= 24
    assert counts["sky"] == counts["ground"] == 120
    assert counts["water"] < 110
    assert hidden > 30, "and hidden in part, often enough to matter"


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_the_smallest_scenes_are_whole(size: int) -> None:
    for number in range(20):
        target = shapes(size=size, train_images=20)[number][1]
        target.positions()
        assert target.size == (size, size)


def test_texture_tells_stuff_apart() -> None:
    """Rows of water differ, its columns do not; grain of the ground differs both ways: a network has what to learn."""
    rough: dict[str, list[float]] = {"sky": [], "ground": [], "water": []}
    for number in range(40):
        made = scene(64, [1, 0, number])
        grey = made.image.astype(float).mean(-1)
        down = np.abs(np.diff(grey, axis=0))[:, :-1]
        free = ~made.masks.any(0)
        for name in rough:
            mine = (made.stuff == STUFF.index(name)) & free
            inside = mine[:-1, :-1] & mine[1:, :-1]
            if inside.sum() > 30:
                rough[name].append(float(down[inside].mean()))
    assert np.mean(rough["sky"]) * 1.5 < np.mean(rough["water"]) < np.mean(rough["ground"])


def test_scenes_refuse_other_classes() -> None:
    with pytest.raises(ConfigError, match=r"data\.classes are sky"):
        shapes(classes=["sky"], things=[])
    with pytest.raises(ConfigError, match="begins with disc"):
        shapes(ShapesObjects, classes=["disc", "background", "square", "triangle", "ring"])
    order = ["ring", "sky", "disc", "water", "ground", "square", "triangle"]
    one, other = shapes()[0][1], shapes(classes=order)[0][1]
    assert [SCENE_CLASSES[s.category] for s in one.segments if s.thing] == [
        order[s.category] for s in other.segments if s.thing
    ]


def test_the_configured_scenes_build_from_their_yaml() -> None:
    config = node("shapes_panoptic")
    module, name = config.pop("_target_").rsplit(".", 1)
    data = getattr(importlib.import_module(module), name)(split="val", **config)
    assert len(data) == 64
    assert data[0][0].shape == (96, 96, 3)
