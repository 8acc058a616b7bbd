"""`predict task=panoptic`: two checkpoints merged, COCO's panoptic files, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruption import stopped_and_gone_on
from PIL import Image

from segtrain.data.panoptic.files import read_index
from segtrain.data.reading import read_image
from segtrain.experiment import build, compose, from_checkpoint
from segtrain.panoptic import Panoptic, ids_of
from segtrain.postprocess.panoptic import map_classes, merge
from segtrain.tracking import Tracker

pytest.importorskip("pycocotools")

SHARED = [
    "data.limit=2",
    "data.batch_size=2",
    "data.num_workers=0",
    "trainer.max_steps=1",
    "trainer.forecast=false",
    "trainer.device=cpu",
]
SCENES = ["data=shapes_scenes", "model=unet_small", "model.base_channels=4", "model.depth=2", "model.weights=none"]
OBJECTS = [
    "data=shapes_objects",
    "model=maskrcnn",
    "model.backbone=resnet18",
    "model.weights=none",
    "model.min_size=64",
    "model.max_size=96",
    "model.anchor_sizes=[8,16,32,64,128]",
    "model.rpn_post_nms_test=8",
    "inference.nms_threshold=0.2",
]
CLASSES = ["sky", "ground", "water", "disc", "square", "triangle", "ring"]
THINGS = CLASSES[3:]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two checkpoints that were never trained; the detector's head is drawn wide, so that it finds objects."""
    found = {}
    for kind, words in (("semantic", SCENES), ("instance", OBJECTS)):
        folder = tmp_path_factory.mktemp(kind)
        trainer = build(compose([*words, *SHARED]), folder=folder, tracker=Tracker())
        if kind == "instance":
            with torch.no_grad():
                trainer.model.roi_heads.box_predictor.cls_score.weight.mul_(12)  # type: ignore[union-attr, operator]
        trainer.save("some.pt")
        found[kind] = folder / "checkpoints" / "some.pt"
    return found


@pytest.fixture
def predict(door: Any, pair: dict[str, Path]) -> Any:
    """`predict("input=a.png")` writes into out/."""
    named = [f"task.{kind}={path}" for kind, path in pair.items()]
    fixed = ["task=panoptic", *named, "task.stuff_area_limit=9", "data=shapes_panoptic", "trainer.device=cpu"]
    return lambda *argv: door("predict", *fixed, "output=out", "hydra.run.dir=run", *argv)


def wanted(pair: dict[str, Path], file: Path) -> Panoptic:
    """The two networks asked one by one, and merged."""
    semantic, instance = (from_checkpoint(pair[kind]) for kind in ("semantic", "instance"))
    maps = map_classes(CLASSES, THINGS, instance=instance.classes, semantic=semantic.classes)
    image = read_image(file)
    return merge(instance.predict(image), semantic.predict(image), maps, stuff_area_limit=9)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "deep/12.png", "dots.in.name.png")):
        noise = np.random.default_rng(seed).integers(0, 256, (40, 48 + seed, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_pictures_and_lists_say_what_the_two_networks_say(
    predict: Any, pair: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    done = predict("input=photos")
    assert done.code == 0, done.err
    out = tmp_path / "out"
    kinds = {"masks", "overlays", "areas", "panoptic", "segments"}
    assert {path.name for path in out.iterdir()} == {*kinds, "results.jsonl", "panoptic.json"}
    index = read_index(out / "panoptic.json")  # as truth is read: every entry is checked
    assert [category.name for category in index.categories.values()] == CLASSES
    assert [category.thing for category in index.categories.values()] == [name in THINGS for name in CLASSES]
    stored = {entry.image_id: entry for entry in index.images}
    objects = 0
    for name, image_id in (("a", "a"), ("deep/12", 12), ("dots.in.name", "dots.in.name")):
        found = wanted(pair, photos / f"{name}.png")
        entry = stored[image_id]
        assert (entry.image, entry.png) == (f"{name}.png", f"{name}.png")
        with Image.open(out / "panoptic" / entry.png) as picture:
            assert np.array_equal(ids_of(np.array(picture)), found.ids)
        assert [(one.id, one.category - 1) for one in entry.segments] == [(s.id, s.category) for s in found.segments]
        with Image.open(out / "masks" / f"{name}.png") as mask:
            assert np.array_equal(np.array(mask), found.labels())
        with Image.open(out / "overlays" / f"{name}.jpg") as overlay:
            assert overlay.size == found.size[::-1]
        areas = json.loads((out / "areas" / f"{name}.json").read_text())
        assert [(s["id"], s["class"], s["thing"]) for s in areas["segments"]] == [
            (s.id, CLASSES[s.category], s.thing) for s in found.segments
        ]
        assert [s["area"] for s in areas["segments"]] == [(found.ids == s.id).sum() for s in found.segments]
        assert areas["abstained"]["pixels"] == (found.ids == 0).sum()
        objects += sum(areas["counts"].values())
        assert sum(areas["counts"].values()) == sum(segment.thing for segment in found.segments)
        assert set(areas["counts"]) == set(THINGS)
    assert objects > 0
    summary = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (summary["images"], sum(summary["objects"].values())) == (3, objects)
    assert sum(summary["pixels"].values()) + summary["abstained"] == 40 * (48 + 49 + 50)


def test_after_a_stop_the_list_is_that_of_one_call(predict: Any, photos: Path, tmp_path: Path) -> None:
    stopped_and_gone_on(predict, tmp_path / "out", images=3, collected="panoptic.json")


@pytest.mark.parametrize(
    ("wish", "instead"), [("probs=true", "task.score_threshold=0.7"), ("score=0.6", "task.score_threshold=0.6")]
)
def test_wishes_without_a_meaning_are_refused(
    predict: Any, photos: Path, tmp_path: Path, wish: str, instead: str
) -> None:
    done = predict("input=photos", wish)
    assert (done.code, f"error[config] {wish} with task=panoptic" in done.err) == (2, True)
    assert instead in done.err
    assert not (tmp_path / "out/masks").exists()
