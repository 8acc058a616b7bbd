"""Predictions as files for the judges of Cityscapes and VOC, and Cityscapes' own scores against its own script."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from segtrain.data.cityscapes import Cityscapes
from segtrain.data.labels import voc_palette
from segtrain.errors import ConfigError, DataError
from segtrain.export_formats import VOC_CLASSES, CityscapesExport, VocExport
from segtrain.metrics.base import Judged
from segtrain.metrics.cityscapes import CATEGORIES, LABEL_IDS, MEAN_INSTANCE_PIXELS, CityscapesScores
from segtrain.types import Record

ROOT = Path(__file__).parents[1]
FRAMES = ["aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313", "ulm_000012_000019"]
# numpy 2.4 has no in1d, which the script of 2.3.0 calls.
OFFICIAL = """
import numpy
numpy.in1d = getattr(numpy, "in1d", None) or (lambda a, b, invert=False: numpy.isin(a, b, invert=invert).ravel())
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as script
script.main()
"""


def configured(name: str) -> dict[str, Any]:
    node = yaml.safe_load((ROOT / "configs" / "data" / f"{name}.yaml").read_text())
    return {key: node[key] for key in ("classes", "palette", "label_map")}


CLASSES: list[str] = configured("cityscapes")["classes"]


def judged(prediction: np.ndarray, target: np.ndarray, record: Record) -> Judged:
    logits = torch.zeros(1, *target.shape)
    return Judged(logits, prediction, target, np.zeros((*target.shape, 3), np.uint8), record, 0)


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Label ids and instance ids (60, 90): blocks of every kind but trains, instances, and groups without one."""
    ids = np.kron(rng.choice([*range(31), 32, 33], (6, 9)), np.ones((10, 10), int)).astype(np.uint8)
    instances = ids.astype(np.uint16)
    for number in range(14):
        y, x = rng.integers(0, 50), rng.integers(0, 80)
        part = slice(y, y + rng.integers(1, 15)), slice(x, x + rng.integers(1, 20))
        label = int(rng.choice([24, 25, 26, 27, 28, 29, 30, 32, 33]))
        ids[part] = label
        instances[part] = label if number % 5 == 0 else label * 1000 + number
    return ids, instances


@pytest.fixture
def city(tmp_path: Path) -> Cityscapes:
    """Four frames of three cities in the publisher's layout."""
    rng = np.random.default_rng(3)
    for frame in FRAMES:
        ids, instances = scene(rng)
        truth = tmp_path / "gtFine" / "val" / frame.split("_")[0]
        photos = tmp_path / "leftImg8bit" / "val" / frame.split("_")[0]
        for folder in (truth, photos):
            folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(truth / f"{frame}_gtFine_labelIds.png")
        Image.fromarray(instances).save(truth / f"{frame}_gtFine_instanceIds.png")
        Image.fromarray(np.zeros((*ids.shape, 3), np.uint8)).save(photos / f"{frame}_leftImg8bit.png")
    return Cityscapes(split="val", root=str(tmp_path), **configured("cityscapes"))


@pytest.fixture
def frames(city: Cityscapes) -> list[Judged]:
    """Each frame with a prediction that is right on two thirds of the labelled pixels."""
    rng = np.random.default_rng(4)
    found = []
    for _, target, record in (city[index] for index in range(len(city))):
        guess = rng.integers(0, 19, target.shape).astype(np.uint8)
        right = (rng.random(target.shape) < 0.66) & (target != 255)
        found.append(judged(np.where(right, target, guess), target, record))
    return found


def scored(frames: list[Judged]) -> dict[str, Any]:
    scores = CityscapesScores(classes=CLASSES)
    for frame in frames:
        scores.update(frame)
    return scores.compute()["cityscapes"]


def test_every_score_is_the_official_scripts(frames: list[Judged], city: Cityscapes, tmp_path: Path) -> None:
    if importlib.util.find_spec("cityscapesscripts") is None:
        pytest.skip("needs pip install cityscapesscripts")
    export = CityscapesExport(tmp_path / "predictions", classes=CLASSES)
    for frame in frames:
        export.update(frame)
    said = {"format": "cityscapes", "path": str(tmp_path / "predictions"), "files": 4}
    assert export.compute() == {"export": said}
    (tmp_path / "out").mkdir()
    places = {"DATASET": city.root, "RESULTS": tmp_path / "predictions", "EXPORT_DIR": tmp_path / "out"}
    environment = {**os.environ, **{f"CITYSCAPES_{name}": str(path) for name, path in places.items()}}
    done = subprocess.run(
        [sys.executable, "-c", OFFICIAL], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    official = json.loads((tmp_path / "out" / "resultPixelLevelSemanticLabeling.json").read_text())
    ours = scored(frames)
    pairs = [("iou", "classScores"), ("iiou", "classInstScores")]
    pairs += [("category_iou", "categoryScores"), ("category_iiou", "categoryInstScores")]
    for mine, theirs in pairs:
        expected = {name: value for name, value in official[theirs].items() if name in ours[mine]}
        assert ours[mine] == pytest.approx(expected, abs=1e-12, nan_ok=True), mine
        left_out = {name for name, value in official[theirs].items() if not math.isnan(value)} - set(ours[mine])
        assert left_out == set()
    for mine, theirs in [("iou", "Classes"), ("iiou", "InstClasses"), ("category_iou", "Categories")]:
        assert ours[f"mean_{mine}"] == pytest.approx(official[f"averageScore{theirs}"], abs=1e-12)
    assert ours["mean_category_iiou"] == pytest.approx(official["averageScoreInstCategories"], abs=1e-12)
    assert 0.3 < ours["mean_iou"] < 0.7
    assert ours["iiou"]["car"] != pytest.approx(ours["iou"]["car"], abs=1e-3)


def test_the_worked_example_with_an_ignored_class_predicted() -> None:
    golden = json.loads((ROOT / "tests" / "goldens" / "cityscapes.json").read_text())
    scores = CityscapesScores(classes=CLASSES)
    arrays = (np.array(golden[name]) for name in ("pred_labelIds", "gt_labelIds", "gt_instanceIds"))
    scores.count(*(array.astype(np.uint16) for array in arrays))
    found = scores.compute()["cityscapes"]
    for kind in ("iou", "iiou"):
        present = {name: value for name, value in found[kind].items() if not math.isnan(value)}
        assert present == pytest.approx(golden[kind], abs=1e-12)
    assert found["mean_iou"] == pytest.approx(golden["miou"], abs=1e-12)


def test_a_license_plate_is_unlabelled_whether_the_file_says_minus_one_or_nothing() -> None:
    """Its id is -1, which a file of bytes holds as 255."""
    rng = np.random.default_rng(5)
    ids, instances = scene(rng)
    prediction = rng.choice(list(LABEL_IDS.values()), ids.shape).astype(np.uint8)
    ids[20:30] = 0
    instances[20:30] = 0
    plates = np.where(ids == 0, 255, ids)
    found = []
    for target in (ids, plates):
        scores = CityscapesScores(classes=CLASSES)
        scores.count(prediction, target, instances)
        found.append(scores.compute())
    assert repr(found[0]) == repr(found[1])


def test_neither_order_nor_processes_change_a_bit(frames: list[Judged]) -> None:
    halves = [CityscapesScores(classes=CLASSES) for _ in range(2)]
    for number, frame in enumerate(reversed(frames)):
        halves[number % 2].update(frame)
    halves[1].merge(halves[0].state())
    assert repr(halves[1].compute()["cityscapes"]) == repr(scored(frames))


def test_classes_in_another_order_give_the_same_scores(frames: list[Judged]) -> None:
    turned = CityscapesScores(classes=CLASSES[::-1])
    for frame in frames:
        target = np.where(frame.target == 255, 255, 18 - frame.target.astype(int)).astype(np.uint8)
        turned.update(judged(18 - frame.prediction, target, frame.record))
    assert repr(turned.compute()["cityscapes"]) == repr(scored(frames))


def test_the_table_is_that_of_the_data_set() -> None:
    map_of = configured("cityscapes")["label_map"]
    assert {CLASSES[index]: label for label, index in map_of.items() if index != 255} == LABEL_IDS
    assert [name for members in CATEGORIES.values() for name in members] == CLASSES
    assert set(MEAN_INSTANCE_PIXELS) == set(CATEGORIES["human"] + CATEGORIES["vehicle"])


@pytest.mark.parametrize("part", [CityscapesScores, lambda classes: CityscapesExport(Path("x"), classes=classes)])
def test_other_classes_are_refused(part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="does not know caravan") as found:
        part(classes=[*CLASSES[:-1], "caravan"])
    assert found.value.where == "data.classes"
    assert not list(tmp_path.iterdir())


def test_missing_and_misfitting_instances_are_named(frames: list[Judged]) -> None:
    target = frames[1].record.target
    assert target is not None
    path = target.with_name(target.name.replace("labelIds", "instanceIds"))
    Image.fromarray(np.zeros((3, 3), np.uint16)).save(path)
    with pytest.raises(DataError, match=r"uint16 of shape \(3, 3\)"):
        scored(frames)
    path.unlink()
    with pytest.raises(DataError, match="missing or damaged") as found:
        scored(frames)
    assert found.value.where == str(path)
    with pytest.raises(DataError, match="without Cityscapes' files"):
        scored([judged(frames[0].prediction, frames[0].target, Record("a"))])


def test_an_instance_of_a_class_that_has_none_is_refused() -> None:
    ids = np.full((2, 2), 7, np.uint8)
    with pytest.raises(DataError, match="instance of 'road'"):
        CityscapesScores(classes=CLASSES).count(ids, ids, np.full((2, 2), 7001, np.uint16))


def test_the_servers_files_hold_label_ids_at_full_size(frames: list[Judged], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export = CityscapesExport(folder, classes=CLASSES)
    for frame in frames:
        export.update(frame)
    assert sorted(path.name for path in folder.iterdir()) == [f"{frame}_labelIds.png" for frame in FRAMES]
    for frame, path in zip(frames, sorted(folder.iterdir()), strict=True):
        with Image.open(path) as picture:
            assert picture.mode == "L"
            saved = np.array(picture)
        back = {label: CLASSES.index(name) for name, label in LABEL_IDS.items()}
        assert (np.vectorize(back.get)(saved) == frame.prediction).all()


def test_an_export_does_not_mix_with_what_lies_there(frames: list[Judged], tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "aachen_000000_000019_other.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="holds 1 files") as found:
        CityscapesExport(tmp_path / "old", classes=CLASSES)
    assert "hydra.run.dir" in str(found.value)
    with pytest.raises(DataError, match="'photo' is no frame"):
        CityscapesExport(tmp_path / "new", classes=CLASSES).update(
            judged(frames[0].prediction, frames[0].target, Record("photo"))
        )


def voc_images() -> list[Judged]:
    rng = np.random.default_rng(6)
    sizes = [(37, 50), (50, 37), (1, 3)]
    labels = [rng.integers(0, 21, size).astype(np.uint8) for size in sizes]
    return [judged(label, label, Record(f"2007_{number:06}")) for number, label in enumerate(labels)]


def exported(folder: Path) -> VocExport:
    export = VocExport(folder, classes=VOC_CLASSES)
    for image in voc_images():
        export.update(image)
    return export


def test_vocs_archive_gives_the_predictions_back_with_vocs_palette(tmp_path: Path) -> None:
    said = {"format": "voc", "path": str(tmp_path / "results.zip"), "files": 3}
    assert exported(tmp_path).compute() == {"export": said}
    names = [f"results/VOC2012/Segmentation/comp6_val_cls/{image.record.name}.png" for image in voc_images()]
    with zipfile.ZipFile(tmp_path / "results.zip") as archive:
        assert archive.namelist() == names
        for name, image in zip(names, voc_images(), strict=True):
            with archive.open(name) as file, Image.open(file) as picture:
                assert picture.mode == "P"
                assert (np.array(picture) == image.prediction).all()
                colors = np.array(picture.convert("RGB"))
            assert (colors == np.array(voc_palette(21))[image.prediction]).all()
            assert (tmp_path / name).is_file()


def test_the_same_predictions_give_the_same_archive(tmp_path: Path) -> None:
    archives = []
    for folder, time in (("a", 1e9), ("b", 1.5e9)):
        export = exported(tmp_path / folder)
        for path in (tmp_path / folder).rglob("*.png"):
            os.utime(path, (time, time))
            path.chmod(0o600 if folder == "a" else 0o644)
        archives.append(Path(export.compute()["export"]["path"]).read_bytes())
    assert archives[0] == archives[1]


def test_voc_files_of_two_processes_are_counted_together_and_named_as_asked(tmp_path: Path) -> None:
    export = VocExport(tmp_path, classes=VOC_CLASSES, split="test", competition="comp5")
    export.merge(2)
    assert export.state() == export.compute()["export"]["files"] == 2
    assert export.images == tmp_path / "results/VOC2012/Segmentation/comp5_test_cls"


def test_voc_refuses_other_classes_and_an_earlier_export(tmp_path: Path) -> None:
    assert configured("voc")["classes"] == VOC_CLASSES
    with pytest.raises(ConfigError, match="2 classes: background, pet") as found:
        VocExport(tmp_path, classes=["background", "pet"])
    assert found.value.where == "data.classes"
    exported(tmp_path)
    with pytest.raises(ConfigError, match="holds 1 files or folders already: VOC2012"):
        VocExport(tmp_path, classes=VOC_CLASSES)
