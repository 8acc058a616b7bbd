"""`predict` with a checkpoint that finds objects: pictures, maps of ids, COCO's results, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from interruption import contents, stopped_and_gone_on
from PIL import Image

from segtrain.checkpoint import load, save
from segtrain.commands.predict import _published
from segtrain.data.coco.instances import Coco
from segtrain.data.reading import read_image
from segtrain.errors import CheckpointError
from segtrain.experiment import build, compose, from_checkpoint
from segtrain.instances import Detections
from segtrain.prediction.collected import image_ids
from segtrain.prediction.objects import Objects, category_ids
from segtrain.rle import decode
from segtrain.segmenter import Segmenter
from segtrain.tracking import Tracker

pytest.importorskip("pycocotools")

SMALL = [
    "model=maskrcnn",
    "model.backbone=resnet18",
    "model.weights=none",
    "model.min_size=64",
    "model.max_size=96",
    "model.anchor_sizes=[8,16,32,64,128]",
    "model.rpn_post_nms_test=8",
    "inference.nms_threshold=0.2",
    "data=shapes_instances",
    "data.limit=2",
    "data.num_workers=0",
    "trainer.max_steps=1",
    "trainer.forecast=false",
    "trainer.device=cpu",
]


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose network finds objects of many scores, by chance: its head is drawn wide."""
    folder = tmp_path_factory.mktemp("detector")
    trainer = build(compose(SMALL), folder=folder, tracker=Tracker())
    with torch.no_grad():
        trainer.model.roi_heads.box_predictor.cls_score.weight.mul_(12)  # type: ignore[union-attr, operator]
    trainer.save("some.pt")
    return folder / "checkpoints" / "some.pt"


@pytest.fixture(scope="session")
def segmenter(detector: Path) -> Segmenter:
    return from_checkpoint(detector)


@pytest.fixture
def predict(door: Any, detector: Path) -> Any:
    """`predict("input=a.png")` writes into out/."""
    return lambda *argv: door("predict", f"checkpoint={detector}", "output=out", "hydra.run.dir=run", *argv)


def photo(path: Path, size: tuple[int, int] = (40, 32), seed: int = 0, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, size in enumerate([(40, 32)] * 3 + [(33, 47)] * 2):
        photo(tmp_path / "photos" / f"{number}.png", size, number)
    return tmp_path / "photos"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


# --- what is written ---------------------------------------------------------------------------------------------


NAMES = {"a": "a.png", "deep/12": "deep/12.jpg", "dots.in.name": "dots.in.name.png", "grey": "grey.png"}


@pytest.fixture
def done_tree(predict: Any, tmp_path: Path) -> Path:
    """The results of four images of four sizes."""
    for seed, name in enumerate(NAMES.values()):
        photo(tmp_path / "photos" / name, (40 + 3 * seed, 32), seed, mode="L" if name == "grey.png" else "RGB")
    done = predict("input=photos")
    assert done.code == 0, done.err
    return tmp_path / "out"


def test_every_picture_shows_what_the_network_says(done_tree: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    kinds = {"masks", "overlays", "areas", "instances", "detections"}
    assert {path.name for path in done_tree.iterdir()} == {*kinds, "results.jsonl", "coco_results.json"}
    for result, name in NAMES.items():
        image = read_image(tmp_path / "photos" / name)
        found = segmenter.predict(image)
        sure = int((found.scores >= 0.5).sum())
        assert 0 < sure < len(found)
        # The first in order of scores is on top: pixel by pixel, in plain Python.
        ids, labels = np.zeros(image.shape[:2], int), np.zeros(image.shape[:2], int)
        for row, column in np.ndindex(ids.shape):
            over = [number for number in range(sure) if found.masks[number, row, column]]
            if over:
                ids[row, column], labels[row, column] = over[0] + 1, found.labels[over[0]]
        stored = pixels(done_tree / "instances" / f"{result}.png")
        assert stored.dtype == np.uint16
        assert np.array_equal(stored, ids)
        with Image.open(done_tree / "masks" / f"{result}.png") as mask:
            assert mask.mode == "P"
            assert np.array_equal(np.array(mask), labels)
        assert pixels(done_tree / "overlays" / f"{result}.jpg").shape == (*ids.shape, 3)
        areas = read(done_tree / "areas" / f"{result}.json")
        assert [entry["pixels"] for entry in areas["classes"].values()] == [(labels == n).sum() for n in range(5)]


def test_every_list_says_what_the_network_says(done_tree: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    totals = dict.fromkeys(segmenter.classes[1:], 0)
    for result, name in NAMES.items():
        image = read_image(tmp_path / "photos" / name)
        found = segmenter.predict(image)
        sure = int((found.scores >= 0.5).sum())
        areas = read(done_tree / "areas" / f"{result}.json")
        assert sum(areas["counts"].values()) == sure
        assert [entry["id"] for entry in areas["objects"]] == list(range(1, sure + 1))
        for number, entry in enumerate(areas["objects"]):
            x0, y0, x1, y1 = found.boxes[number].tolist()
            assert entry["class"] == segmenter.classes[found.labels[number]]
            assert entry["score"] == pytest.approx(float(found.scores[number]), abs=1e-5)
            assert entry["box"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=0.01)
            assert entry["area"] == found.masks[number].sum()
            totals[entry["class"]] += 1
        everything = read(done_tree / "coco_results.json")
        mine = [entry for entry in everything if entry["image_id"] == (12 if result == "deep/12" else result)]
        assert len(mine) == len(found)  # the unsure ones too
        assert torch.equal(decode([entry["segmentation"] for entry in mine], *image.shape[:2]), found.masks)
        assert [entry["category_id"] for entry in mine] == found.labels.tolist()
        assert [entry["score"] for entry in mine] == pytest.approx(found.scores.tolist(), abs=1e-5)
    summary = read(tmp_path / "run/metrics.json")
    assert (summary["images"], summary["objects"]) == (4, totals)
    assert sum(summary["pixels"].values()) == sum(32 * (40 + 3 * seed) for seed in range(4))


def test_the_results_are_what_pycocotools_takes(predict: Any, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    photo(tmp_path / "photos" / "000000000139.jpg")
    photo(tmp_path / "photos" / "000000000285.jpg", seed=1)
    assert predict("input=photos").code == 0
    truth = COCO()
    truth.dataset = {
        "images": [{"id": number, "height": 32, "width": 40} for number in (139, 285)],
        "categories": [{"id": number, "name": str(number)} for number in range(1, 5)],
        "annotations": [],
        "info": {},
    }
    truth.createIndex()
    loaded = truth.loadRes(str(tmp_path / "out/coco_results.json"))
    assert set(loaded.getImgIds()) == {139, 285}
    assert all(loaded.annToMask(entry).shape == (32, 40) for entry in loaded.dataset["annotations"])


def test_nobody_sure_enough_leaves_the_image_as_it_is_and_the_results_whole(predict: Any, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    assert predict("input=a.png", "score=0").code == 0
    everything = read(tmp_path / "out/coco_results.json")
    assert len(read(tmp_path / "out/areas/a.json")["objects"]) == len(everything) > 0
    done = predict("input=a.png", "score=1")
    assert done.code == 0, done.err
    assert "done   " not in done.out  # another score is another result
    assert read(tmp_path / "out/areas/a.json")["objects"] == []
    assert not pixels(tmp_path / "out/instances/a.png").any()
    assert not pixels(tmp_path / "out/masks/a.png").any()
    with Image.open(tmp_path / "a.png") as image:
        image.save(tmp_path / "same.jpg", quality=92)
    assert np.array_equal(pixels(tmp_path / "out/overlays/a.jpg"), pixels(tmp_path / "same.jpg"))
    assert read(tmp_path / "out/coco_results.json") == everything


def test_opacity_changes_objects_alone(predict: Any, tmp_path: Path) -> None:
    photo(tmp_path / "a.png", (64, 64))
    assert predict("input=a.png", "opacity=0").code == 0
    clear = pixels(tmp_path / "out/overlays/a.jpg")
    assert predict("input=a.png", "opacity=1").code == 0
    assert not np.array_equal(pixels(tmp_path / "out/overlays/a.jpg"), clear)


def test_results_depend_on_neither_batches_nor_threads(predict: Any, photos: Path, tmp_path: Path) -> None:
    found = []
    for batch, workers in ((1, 0), (3, 2)):
        done = predict("input=photos", f"data.batch_size={batch}", f"data.num_workers={workers}", "overwrite=true")
        assert done.code == 0, done.err
        found.append(contents(tmp_path / "out"))
    # Sums of a batch may be added in another order: scores and boxes agree to their last written digit but one.
    for entry, other in zip(*(json.loads(one.pop("coco_results.json")) for one in found), strict=True):
        assert entry["image_id"] == other["image_id"]
        assert entry["score"] == pytest.approx(other["score"], abs=1e-4)
        assert entry["bbox"] == pytest.approx(other["bbox"], abs=0.02)
    assert found[0].keys() == found[1].keys()


def test_overlapping_objects_in_one_pixel() -> None:
    masks = torch.zeros(3, 1, 4, dtype=torch.uint8)
    masks[0, 0, :2], masks[1, 0, 1:3], masks[2] = 1, 1, 1
    boxes = torch.zeros(3, 4)
    found = Objects(Detections(boxes, torch.tensor([2, 1, 3]), torch.tensor([0.9, 0.5, 0.4]), masks), 0.5)
    assert found.ids.tolist() == [[1, 1, 2, 0]]
    assert found.labels.tolist() == [[2, 2, 1, 0]]


# --- who is who --------------------------------------------------------------------------------------------------


def test_names_that_are_numbers_of_one_image_each_are_image_ids() -> None:
    lines = [{"name": name} for name in ("000000000139", "a/7", "b/007", "c/8", "dog", "12a", "²", "٣")]
    assert image_ids([*lines, {"name": "9", "frames": 3}]) == {"000000000139": 139, "c/8": 8}


def test_categories_of_coco_have_cocos_ids_and_others_their_index() -> None:
    coco = list(compose(["data=coco", "model=maskrcnn"]).data.classes)
    named = dict(zip(coco[1:], (category_ids(_with(Coco, coco))[n] for n in range(1, 81)), strict=True))
    assert (named["person"], named["stop sign"], named["toothbrush"]) == (1, 13, 90)
    assert len(set(named.values())) == 80
    assert category_ids(_with(Coco, ["background", "crack", "dog"])) == {1: 1, 2: 2}
    assert category_ids(_with(object, coco))[80] == 80


def test_results_name_classes_as_the_training_data_did(door: Any, detector: Path, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    state, named = load(detector), {}
    for key, ids in {"own": {1: 11, 2: 5, 3: 90, 4: 2}, "older": None}.items():
        state["category_ids"] = ids
        if ids is None:
            del state["category_ids"]  # as checkpoints were before
        save(tmp_path / f"{key}.pt", state)
        done = door("predict", f"checkpoint={key}.pt", "input=a.png", f"output={key}", f"hydra.run.dir=run_{key}")
        assert done.code == 0, done.err
        named[key] = [entry["category_id"] for entry in read(tmp_path / key / "coco_results.json")]
    own = {1: 11, 2: 5, 3: 90, 4: 2}
    assert named["own"] == [own[index] for index in named["older"]]
    assert len(set(named["older"])) > 1, "a test of one class would show little"


@pytest.fixture(scope="module")
def without_weights(detector: Path) -> dict[str, Any]:
    """What the checkpoint holds beside its 30 million numbers, which are read last."""
    return {**load(detector), "model": {}}


WRONG_PAIRS = [(4, 3), ("4", 4), (4, "4"), (4, True), (5, 5)]


@pytest.mark.parametrize(
    "ids",
    [None, [], {1: 1, 2: 2, 3: 3}, *({1: 1, 2: 2, 3: 3, key: value} for key, value in WRONG_PAIRS)],
)
def test_ids_of_categories_that_training_never_writes_are_refused(
    without_weights: dict[str, Any], tmp_path: Path, ids: Any
) -> None:
    save(tmp_path / "other.pt", {**without_weights, "category_ids": ids})
    with pytest.raises(CheckpointError, match="its category_ids has not the form that training writes"):
        from_checkpoint(tmp_path / "other.pt")


def test_published_detectors_know_cocos_classes_and_published_networks_of_pixels_vocs() -> None:
    objects = _published({"model": {"backbone": "resnet50"}}, {"model": "maskrcnn"})
    assert (objects.name, len(objects.data.classes), objects.data.classes[1]) == ("coco_maskrcnn", 81, "person")
    pixels = _published({}, {"model": "lraspp"})
    assert (pixels.name, len(pixels.data.classes), pixels.data.classes[1]) == ("voc_lraspp", 21, "aeroplane")
    own = _published({"data": {"classes": ["background", "crack"]}}, {"model": "maskrcnn", "data": "folder_instances"})
    assert list(own.data.classes) == ["background", "crack"]


def _with(kind: type, classes: list[str]) -> Any:
    return SimpleNamespace(settings=SimpleNamespace(target=lambda name: kind), classes=classes, category_ids=None)


# --- going on ----------------------------------------------------------------------------------------------------


def test_after_a_stop_the_results_are_those_of_one_call(predict: Any, photos: Path, tmp_path: Path) -> None:
    whole = stopped_and_gone_on(predict, tmp_path / "out", images=5, collected="coco_results.json")
    # Nor is anything lost where all is done, or where one call after the other adds images.
    assert predict("input=photos").code == 0
    assert contents(tmp_path / "out") == whole
    photo(tmp_path / "more" / "x.png")
    done = predict("input=more")
    assert "coco_results.json: out/coco_results.json, 6 images\n" in done.out
    assert read(tmp_path / "out/coco_results.json")[: len(json.loads(whole["coco_results.json"]))] == json.loads(
        whole["coco_results.json"]
    )


def test_results_of_other_settings_and_lost_ones_are_not_mixed_in(predict: Any, photos: Path, tmp_path: Path) -> None:
    assert predict("input=photos").code == 0
    photo(tmp_path / "x.png")
    done = predict("input=x.png", "inference.max_detections=3")
    assert "1 images, without 5 of other weights or settings" in done.out
    results = read(tmp_path / "out/coco_results.json")
    assert [entry["image_id"] for entry in results] == ["x"] * 3
    (tmp_path / "out/detections/2.json").unlink()
    assert predict("input=photos/1.png").code == 0
    assert {entry["image_id"] for entry in read(tmp_path / "out/coco_results.json")} == {0, 1, 3, 4}


def test_a_damaged_image_leaves_the_results_of_the_others(predict: Any, photos: Path, tmp_path: Path) -> None:
    (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:90])
    done = predict("input=photos")
    assert (done.code, "2.png" in done.err) == (3, True)
    assert {entry["image_id"] for entry in read(tmp_path / "out/coco_results.json")} == {0, 1, 3, 4}


def test_files_of_someone_else_are_not_overwritten(predict: Any, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/coco_results.json").write_text("[]")
    done = predict("input=photos")
    assert done.code == 2
    assert f"where     {Path('out/coco_results.json')}\n" in done.err
    assert (tmp_path / "out/coco_results.json").read_text() == "[]"
    (tmp_path / "out/coco_results.json").unlink()
    photo(tmp_path / "out/instances/3.png")
    done = predict("input=photos")
    assert (done.code, str(Path("out/instances/3.png")) in done.err) == (2, True)


def test_one_folder_for_photos_and_results(predict: Any, photos: Path, tmp_path: Path) -> None:
    for _ in range(2):
        done = predict("input=photos", "output=photos")
        assert done.code == 0, done.err
    assert "images 5 on cpu, 15 results of predict passed over" in done.out
    assert "done   5 of 5" in done.out


# --- video -------------------------------------------------------------------------------------------------------


def test_a_video_frame_by_frame(predict: Any, tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 32))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    for seed in range(3):
        writer.write(np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8))
    writer.release()
    done = predict("input=film.avi")
    assert done.code == 0, done.err
    frames = [f"{number:06}" for number in (1, 2, 3)]
    for kind in ("masks", "instances", "detections"):
        assert sorted(path.stem for path in (tmp_path / "out" / kind / "film").iterdir()) == frames
    ids = [pixels(tmp_path / "out/instances/film" / f"{frame}.png") for frame in frames]
    areas = read(tmp_path / "out/areas/film.json")
    assert (areas["frames"], areas["size"]) == (3, [32, 48])
    assert areas["classes"]["background"]["pixels"] == sum((one == 0).sum() for one in ids)
    assert sum(areas["counts"].values()) >= sum(len(np.unique(one)) - 1 for one in ids) > 0
    results = read(tmp_path / "out/coco_results.json")
    assert {entry["image_id"] for entry in results} == {f"film/{frame}" for frame in frames}
    assert f"film.avi: 3 frames, {areas['counts']['disc']} disc" in done.out or not areas["counts"]["disc"]


# --- what has no meaning here ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wish", ["probs=true", "confidence=true", "abstain=0.6"])
def test_wishes_for_pixels_are_refused(predict: Any, tmp_path: Path, wish: str) -> None:
    photo(tmp_path / "a.png")
    done = predict("input=a.png", wish)
    assert done.code == 2
    assert f"error[config] {wish} with task=instance" in done.err
    assert "score=0.7" in done.err
    assert not (tmp_path / "out/masks").exists()


def test_a_score_is_refused_where_pixels_have_classes(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    done = door("predict", f"checkpoint={checkpoint}", "input=a.png", "hydra.run.dir=run", "score=0.7")
    assert (done.code, "error[config] score=0.7 with task=semantic" in done.err) == (2, True)
    assert "abstain=0.7" in done.err


def test_the_python_door_gives_objects_in_the_main_memory(segmenter: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    found = segmenter.predict(image)
    assert isinstance(found, Detections)
    assert found.masks.device.type == "cpu"
    assert found.masks.shape == (len(found), 32, 40)
    assert bool((found.scores.diff() <= 0).all())
    with pytest.raises(ValueError, match="multiply it by 255"):
        segmenter.predict(image.astype(np.float32) / 255)
