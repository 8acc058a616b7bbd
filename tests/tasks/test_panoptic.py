"""The panoptic task, and two small checkpoints merged from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segtrain.data.batches import Loaded
from segtrain.data.panoptic.files import read_index, read_panoptic
from segtrain.errors import ConfigError
from segtrain.experiment import build_dataset, compose
from segtrain.instances import Detections
from segtrain.metrics.panoptic import PanopticQuality
from segtrain.panoptic import Panoptic, Segment
from segtrain.panoptic_files import PanopticWriter
from segtrain.scoring.panoptic import PanopticExport, refuse_namesakes
from segtrain.tasks.panoptic import JudgedSegments, PanopticTask
from segtrain.types import Record

pytest.importorskip("pycocotools")

QUICK = ["trainer.epochs=1", "trainer.forecast=false", "trainer.tensorboard=false", "trainer.samples=0"]
QUICK += ["trainer.device=cpu", "data.num_workers=0", "data.size=64", "data.limit=4", "data.batch_size=2"]
SEMANTIC = ["data=shapes_scenes", "model=unet_small", "model.base_channels=4", "model.depth=2", "data.crop_size=64"]
OBJECTS = ["data=shapes_objects", "model=maskrcnn", "model.backbone=resnet18", "model.min_size=64", "model.max_size=64"]
OBJECTS += ["model.anchor_sizes=[4,8,16,32,64]", "model.rpn_post_nms_train=20", "model.rpn_post_nms_test=6"]
OBJECTS += ["model.rpn_batch=32", "model.box_batch=16", "optimizer.momentum=0"]  # less to write and to read
DATA = ["task=panoptic", "data=shapes_panoptic", "data.size=64", "data.limit=3", "data.num_workers=0"]
DATA += ["trainer.device=cpu", "task.stuff_area_limit=64"]


@pytest.fixture(scope="module")
def pair(here: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, `classes` and `objects`; what they learned is little, and they are merged as well."""
    cwd = tmp_path_factory.mktemp("pair")
    for name, words in (("classes", SEMANTIC), ("objects", OBJECTS)):
        done = here(*words, *QUICK, f"hydra.run.dir={name}", cwd=cwd)
        assert done.code == 0, done.err
    return cwd


@pytest.fixture
def merged(door: Any, pair: Path, tmp_path: Path) -> Any:
    """`merged("export=coco")` evaluates the two together in this process."""
    parts = [f"task.semantic={pair}/classes/checkpoints/best.pt", f"task.instance={pair}/objects/checkpoints/best.pt"]
    return lambda *argv: door("evaluate", *DATA, *parts, *argv)


def dataset() -> Any:
    return build_dataset(compose(["data=shapes_panoptic", "data.size=64", "data.limit=3"]), "val")


def read_back(folder: Path, classes: list[str], things: list[str]) -> dict[Any, Panoptic]:
    """The exported files as panopticapi would read them, by image id."""
    index = read_index(folder.with_name(folder.name + ".json"))
    names = {number: category.name for number, category in index.categories.items()}
    assert {category.name for category in index.categories.values() if category.thing} == set(things)
    return {
        one.image_id: read_panoptic(
            folder / one.png,
            one,
            {number: classes.index(name) for number, name in names.items()},
            {number for number, category in index.categories.items() if category.thing},
        )
        for one in index.images
    }


def test_the_scores_are_those_of_the_exported_files(merged: Any, tmp_path: Path) -> None:
    done = merged("export=coco", "task.score_threshold=0.05", "hydra.run.dir=scores")
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    truth = dataset()
    found = read_back(tmp_path / "scores" / "panoptic", truth.classes, truth.things)
    assert sorted(found) == [1, 2, 3]
    quality = PanopticQuality(truth.classes, truth.things)
    for _, target, record in (truth[number] for number in range(3)):
        quality.update(found[record.extra["image_id"]], target)
    again = json.loads(json.dumps(quality.compute()).replace("NaN", "null"))
    assert {key: metrics[key] for key in again} == again
    assert any(segment.thing for one in found.values() for segment in one.segments), "objects are among the segments"
    assert any(not segment.thing for one in found.values() for segment in one.segments)
    assert f"export: {tmp_path / 'scores' / 'panoptic.json'}" in done.out
    assert metrics["images"] == metrics["protocol"]["images"] == 3
    assert len(metrics["protocol"]["data_sha256"]) == 64
    assert metrics["protocol"]["dataset"] == "ShapesPanoptic"
    rows = {line.split()[0] for line in done.out.splitlines() if line}
    assert rows >= {"all", "things", "stuff", *truth.classes}


def test_images_of_one_name_in_two_folders_have_files_of_their_own(tmp_path: Path) -> None:
    writer = PanopticWriter(tmp_path / "found", classes=["sky", "disc"], things=["disc"])
    export = PanopticExport(writer)
    for number, name in enumerate(("a/1", "b/1", "b/1.5")):
        prediction = Panoptic(np.full((2, 3), 7, np.int32), [Segment(7, number % 2, bool(number % 2))])
        record = Record(name, tmp_path / f"{name}.jpg", extra={"image_id": number})
        export.update(JudgedSegments(torch.zeros(2, 3, 3), prediction, prediction, record, number))
    writer.finish()
    images = json.loads((tmp_path / "found.json").read_text())["images"]
    assert [one["file_name"] for one in images] == ["a/1.jpg", "b/1.jpg", "b/1.5.jpg"]
    found = read_back(tmp_path / "found", ["sky", "disc"], ["disc"])
    assert [found[number].segments[0].category for number in range(3)] == [0, 1, 0]
    files = sorted(path.relative_to(tmp_path / "found").as_posix() for path in (tmp_path / "found").rglob("*.png"))
    assert files == ["a/1.png", "b/1.5.png", "b/1.png"]


def test_images_that_differ_in_their_suffix_alone_are_refused() -> None:
    records = [Record(name) for name in ("a/1", "b/1", "a/1")]
    with pytest.raises(ConfigError, match=r"several images of one name: a/1\n"):
        refuse_namesakes(records)


def test_batches_change_nothing_and_thresholds_do(merged: Any, tmp_path: Path) -> None:
    scores = {}
    for name, words in {
        "usual": ["data.batch_size=1"],
        "batches": ["data.batch_size=3"],
        "wide": ["data.batch_size=3", "task.stuff_area_limit=4097"],
    }.items():
        done = merged(f"hydra.run.dir={name}", *words)
        assert done.code == 0, done.err
        content = json.loads((tmp_path / name / "metrics.json").read_text())
        scores[name] = {key: value for key, value in content.items() if key.endswith("per_class")}
    assert scores["usual"] == scores["batches"]
    assert sum(scores["wide"]["tp_per_class"].values()) <= sum(scores["usual"]["tp_per_class"].values())
    assert sum(scores["wide"]["fp_per_class"][name] for name in ("sky", "ground", "water")) == 0


@pytest.mark.parametrize(
    ("words", "code", "block"),
    [
        (["report=true"], 2, "report=true with task=panoptic|scores=basic report=false"),
        (["scores=full"], 2, "scores=full with task=panoptic|scores=basic report=false"),
        (["export=voc"], 2, "export=voc with task=panoptic|export=coco"),
        (["task.semantic=null"], 2, "task=panoptic without task.semantic|task.semantic=PATH task.instance=PATH"),
        (["task.instance=null"], 2, "task=panoptic without task.instance|task.instance=PATH"),
        (["task.instance=${task.semantic}"], 2, "task.instance is a checkpoint of task=semantic"),
        (["task.semantic=${task.instance}"], 2, "task.semantic is a checkpoint of task=instance"),
        (["task.instance=nowhere.pt"], 4, "nowhere.pt"),
        (["task.stuff_area=3"], 2, "task.stuff_area"),
        (["task.score_threshold=2"], 2, "task.score_threshold"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refusals(merged: Any, words: list[str], code: int, block: str) -> None:
    done = merged(*words)
    assert done.code == code, done.out + done.err
    for part in block.split("|"):
        assert part in done.err


@pytest.mark.parametrize("data", ["shapes_scenes", "shapes_objects", "shapes"])
def test_data_that_hold_no_segments_are_refused(door: Any, pair: Path, data: str) -> None:
    argv = ["task=panoptic", f"data={data}", f"task.semantic={pair}/classes/checkpoints/best.pt"]
    done = door("evaluate", *argv, f"task.instance={pair}/objects/checkpoints/best.pt", "trainer.device=cpu")
    assert done.code == 2, done.out + done.err
    assert "data=coco_panoptic, cityscapes_panoptic or shapes_panoptic" in done.err


class Fixed:
    """A part that says what it is told to."""

    def __init__(self, classes: list[str], answer: Any) -> None:
        self.classes, self.answer = classes, answer

    def predict(self, model: Any, image: Any) -> Any:
        return self.answer


def test_two_perfect_answers_merge_to_a_perfect_score_in_batches_of_any_size() -> None:
    scenes, objects = (
        build_dataset(compose([f"data={name}", "data.size=64", "data.limit=3", *more]), "val")
        for name, more in (("shapes_scenes", []), ("shapes_objects", ["model=maskrcnn"]))
    )
    truth = dataset()
    networks = torch.nn.ModuleDict({"semantic": torch.nn.Identity(), "instance": torch.nn.Identity()})

    def found(number: int) -> Detections:
        target = objects[number][1]
        order = torch.arange(len(target)).flip(0)  # what was drawn last lies on top: let it be the surer one
        scores = torch.linspace(0.99, 0.9, len(target))
        return Detections(target.boxes[order], target.labels[order], scores, target.masks[order])

    for places in ([0], [0, 1, 2]):
        labels = torch.stack([torch.from_numpy(scenes[number][1]) for number in places])
        semantic = Fixed(scenes.classes, labels)
        instance = Fixed(objects.classes, [found(number) for number in places])
        task = PanopticTask(
            stuff_area_limit=0,
            parts=(semantic, instance),  # type: ignore[arg-type]
            classes=truth.classes,
            palette=truth.palette,
            things=truth.things,
        )
        samples = [truth[number] for number in places]
        loaded = [
            Loaded(*sample[:2], place, sample[2], None, 0, 0) for place, sample in zip(places, samples, strict=True)
        ]
        meter = task.meter()
        meter.update(networks, truth.collate(loaded))
        scores = meter.scores()
        assert scores["pq"] == scores["sq"] == scores["rq"] == 1
        assert sum(scores["tp_per_class"].values()) == sum(len(target.segments) for _, target, _ in samples)
    image, target, _ = samples[0]
    picture = task.panel(networks, image, target, torch.device("cpu"))
    assert (picture.dtype, picture.ndim, picture.shape[1] % 3) == (np.uint8, 3, 0)
