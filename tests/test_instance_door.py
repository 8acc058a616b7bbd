"""Objects from the command line: training, its scores again from the checkpoint, COCO's results, and refusals."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segtrain.checkpoint import load
from segtrain.commands import evaluate
from segtrain.inference.instances import InstanceInference
from segtrain.instances import Detections, boxes_around
from segtrain.types import Score

pytest.importorskip("pycocotools")
from pycocotools import mask as codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SMALL = [
    "model=maskrcnn",
    "model.backbone=resnet18",
    "model.min_size=64",
    "model.max_size=80",
    "model.anchor_sizes=[4,8,16,32,64]",
    "model.rpn_post_nms_train=20",
    "model.rpn_post_nms_test=6",
    "model.rpn_batch=32",
    "model.box_batch=16",
    "data.num_workers=0",
    "trainer.epochs=1",
    "trainer.forecast=false",
    "trainer.tensorboard=false",
    "trainer.samples=0",
    "trainer.device=cpu",
]
OWN = ["data=folder_instances", "data.root=own", "data.classes=[background,nut,bolt]"]
SHAPES = ["data=shapes_instances", "data.limit=2"]
SIZES = {"train": [(60, 80), (80, 60), (64, 64), (60, 80)], "val": [(60, 80), (80, 60), (64, 72), (64, 64)]}
TIMES = {"images_per_second", "seconds", "train_images_per_second"}


def write(root: Path) -> None:
    """Squares of two categories whose ids are not in the classes' order; val has a crowd and an image of nothing."""
    draw = np.random.default_rng(0)
    for split, sizes in SIZES.items():
        images, annotations = [], []
        (root / split).mkdir(parents=True)
        for number, (height, width) in enumerate(sizes):
            pixels = draw.integers(0, 80, (height, width, 3), dtype=np.uint8)
            images.append({"id": 100 - number, "file_name": f"{number}.png", "height": height, "width": width})
            for place in range(0 if split == "val" and number == 3 else 3):
                x, y, side = 2 + 18 * place, int(draw.integers(2, 30)), int(draw.integers(9, 17))
                pixels[y : y + side, x : x + side] = [200, 60 + 60 * place, 30]
                entry = {"id": len(annotations) + 1, "image_id": 100 - number, "category_id": (7, 3, 7)[place]}
                entry |= {"bbox": [x, y, side, side], "area": side**2, "iscrowd": 0}
                entry["segmentation"] = [[x, y, x + side, y, x + side, y + side, x, y + side]]
                if split == "val" and (number, place) == (1, 2):
                    mask = np.zeros((height, width), np.uint8, order="F")
                    mask[y : y + side, x : x + side] = 1
                    packed = codec.encode(mask)
                    entry |= {"iscrowd": 1, "segmentation": {**packed, "counts": packed["counts"].decode()}}
                annotations.append(entry)
            Image.fromarray(pixels).save(root / split / f"{number}.png")
        categories = [{"id": 7, "name": "nut"}, {"id": 3, "name": "bolt"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def own_run(here: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `own`, the data, and `run`, one epoch on them."""
    cwd = tmp_path_factory.mktemp("objects")
    write(cwd / "own")
    # Without momentum, which would be as much again to read for all who ask the checkpoint.
    done = here(*SMALL, *OWN, "optimizer.momentum=0", "hydra.run.dir=run", cwd=cwd)
    assert done.code == 0, done.err
    assert "objects nut 8, bolt 4" in done.out
    return cwd


@pytest.fixture
def scored(door: Any, own_run: Path, tmp_path: Path) -> Any:
    """`scored("export=coco")` evaluates the checkpoint in this process and gives `metrics.json`."""
    shutil.copytree(own_run / "own", tmp_path / "own")

    def call(*argv: str, folder: str = "scores") -> dict[str, Any]:
        best = own_run / "run" / "checkpoints" / "best.pt"
        done = door("evaluate", f"checkpoint={best}", f"hydra.run.dir={folder}", *argv)
        assert done.code == 0, done.err
        return json.loads((tmp_path / folder / "metrics.json").read_text())  # type: ignore[no-any-return]

    return call


def test_evaluate_gives_the_scores_of_trainings_own_validation(program: Any, own_run: Path) -> None:
    done = program("evaluate", "checkpoint=run/checkpoints/best.pt", "hydra.run.dir=scores", cwd=own_run)
    assert done.code == 0, done.err
    found, trainings = (json.loads((own_run / name / "metrics.json").read_text()) for name in ("scores", "run"))
    shared = found.keys() & trainings.keys() - TIMES - {"split", "checkpoint"}
    assert shared >= {"mask_ap", "box_ap", "mask_ap_per_class", "instances_per_class", "loss", "losses", "images"}
    assert {key: found[key] for key in shared} == {key: trainings[key] for key in shared}
    assert trainings["monitor"] == "mask_ap"
    assert found["instances_per_class"] == {"nut": 5, "bolt": 3}, "crowds are not counted"
    assert found["images"] == 4
    assert {"class", "nut", "bolt", "mask", "box"} <= {line.split()[0] for line in done.out.splitlines() if line}


def test_the_card_tells_the_data_and_the_protocol(scored: Any, own_run: Path, tmp_path: Path) -> None:
    card = scored()["protocol"]
    assert (card["dataset"], card["split"], card["images"]) == ("FolderInstances", "val", 4)
    assert card["classes"] == ["background", "nut", "bolt"]
    assert card["model"] == "MaskRCNN"
    assert card["inference"]["protocol"] == "InstanceInference"
    assert card["inference"]["score_threshold"] == 0.05
    assert "0.50:0.05:0.95" in card["absent_classes"]
    assert scored("data.batch_size=3", folder="again")["protocol"]["data_sha256"] == card["data_sha256"]
    file = tmp_path / "own" / "val" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["area"] += 1
    file.write_text(json.dumps(content))
    other = scored(folder="other")["protocol"]
    assert other["data_sha256"] != card["data_sha256"], "an area parts small from large"
    assert other["split_sha256"] == card["split_sha256"]


def near_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network finds what is there, but shifted, of a wrong class or twice: scores are neither 0 nor 1."""
    see = InstanceInference.see

    def seen(self: Any, model: Any, images: Any, targets: Any = None) -> Any:
        found = see(self, model, images, targets)
        found.given = targets
        return found

    def detect(self: Any, model: Any, seen: Any) -> list[Detections]:
        (truth,), ((height, width),) = seen.given, seen.sizes
        masks = [mask.roll(number % 3, 1) for number, mask in enumerate(truth["masks"])]
        labels = [int(label) for label in truth["labels"]]
        if masks:
            masks, labels = [*masks, masks[0].roll(1, 0), masks[1]], [*labels, labels[0], 3 - labels[1]]
        corner = torch.zeros(height, width, dtype=torch.uint8)
        corner[-9:, -9:] = 1
        masks, labels = [*masks, corner], [*labels, 1]
        scores = torch.tensor([0.8 - 0.1 * number + height / 1000 + width / 3000 for number in range(len(masks))])
        return [Detections(boxes_around(torch.stack(masks)), torch.tensor(labels), scores, torch.stack(masks))]

    monkeypatch.setattr(InstanceInference, "see", seen)
    monkeypatch.setattr(InstanceInference, "detect", detect)


def by_pycocotools(truth: Path, results: Path, kind: str) -> list[float]:
    """COCO's twelve figures of a file of results."""
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO(str(truth))
        judge = COCOeval(data, data.loadRes(str(results)), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [float(value) for value in judge.stats]


def test_exported_results_are_scored_the_same_by_cocos_own_code(
    scored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near_truth(monkeypatch)
    given: list[Score] = []
    run = evaluate.run
    monkeypatch.setattr(evaluate, "run", lambda *arguments: given.append(run(*arguments)) or given[-1])
    metrics = scored("export=coco")
    results = tmp_path / "scores" / "coco_results.json"
    truth = tmp_path / "own" / "val" / "_annotations.coco.json"
    sizes = [f"{score}_{size}" for score in ("ap", "ar") for size in ("small", "medium", "large")]
    names = ["ap", "ap50", "ap75", *sizes[:3], "ar1", "ar10", "ar100", *sizes[3:]]
    for kind, theirs in (("box", "bbox"), ("mask", "segm")):
        stats = by_pycocotools(truth, results, theirs)
        ours = [metrics[f"{kind}_{name}"] for name in names]
        assert [-1 if value is None else value for value in ours] == pytest.approx(stats, abs=1e-9)
        assert 0.2 < metrics[f"{kind}_ap"] < 0.9, "the test's detections are neither all right nor all wrong"
    content = json.loads(results.read_text())
    assert {one["image_id"] for one in content} == {100, 99, 98, 97}
    assert {one["category_id"] for one in content} == {7, 3}
    assert metrics["export"]["detections"] == len(content)
    assert [(one.name, one.value, one.higher_is_better) for one in given] == [("mask_ap", metrics["mask_ap"], True)]


def test_predict_names_categories_as_the_file_that_the_network_was_trained_on(door: Any, own_run: Path) -> None:
    best = own_run / "run" / "checkpoints" / "best.pt"
    assert load(best)["category_ids"] == {1: 7, 2: 3}
    words = ["inference.score_threshold=0", "output=found", "hydra.run.dir=predicted"]
    done = door("predict", f"checkpoint={best}", f"input={own_run}/own/val", *words)
    assert done.code == 0, done.err
    content = json.loads(Path("found/coco_results.json").read_text())
    assert {one["category_id"] for one in content} <= {7, 3}
    assert content


def test_full_scores_have_boundaries_and_a_report_is_written(scored: Any, tmp_path: Path, monkeypatch: Any) -> None:
    near_truth(monkeypatch)
    plain, full = scored(), scored("scores=full", folder="full")
    assert "boundary_ap" not in plain
    assert 0 < full["boundary_ap"] <= full["mask_ap"]
    assert {key: full[key] for key in plain if key.startswith("mask_")} == {
        key: plain[key] for key in plain if key.startswith("mask_")
    }
    scored("report=true", folder="report")
    assert (tmp_path / "report" / "report.html").stat().st_size > 1000


def test_an_inference_of_its_own_is_laid_over(scored: Any) -> None:
    card = scored("inference.score_threshold=0.5", "inference.min_size=48", "data.limit=1")["protocol"]
    assert card["inference"]["min_size"] == 48
    assert card["images"] == 1


# --- refusals


@pytest.mark.parametrize(
    ("words", "block"),
    [
        (["data=shapes_instances"], "task=semantic with data of the kind instance: ShapesInstances|model=maskrcnn"),
        (["model=maskrcnn"], "task=instance with data of the kind semantic: Shapes|shapes_instances"),
        (["task=panoptic"], "task=panoptic is not trained|task.semantic=PATH task.instance=PATH"),
        (["task=panoptic", "data=shapes_panoptic"], "task=panoptic is not trained|evaluate task=panoptic"),
        (["data=shapes_panoptic"], "task=semantic with data of the kind panoptic|data=voc"),
        ([*SMALL, "data=shapes_panoptic"], "task=instance with data of the kind panoptic|shapes_instances"),
        ([*SMALL, *SHAPES, "data.cache=ram"], "data.cache=ram with ShapesInstances|data.cache=none"),
        ([*SMALL, *SHAPES, "loss.class_weights=auto"], "loss.class_weights=auto|loss.class_weights=none"),
        ([*SMALL, *SHAPES, "loss.class_weights=[1,1,1,1,1]"], "task=instance|loss.class_weights=none"),
        ([*SMALL, *SHAPES, "trainer.monitor=miou"], "trainer.monitor=miou|mask_ap, mask_ap50, box_ap, box_ap50"),
        ([*SMALL, *SHAPES, "trainer.monitor=mask_ab"], "did you mean trainer.monitor=mask_ap?"),
        (
            [*SMALL, *SHAPES, "trainer.monitor=loss", "trainer.val_loss=false"],
            "trainer.monitor=loss with trainer.val_loss=false|trainer.val_loss=true",
        ),
        ([*SMALL, *SHAPES, "loss=ce"], "task=instance with loss=SegmentationLoss|loss=maskrcnn"),
        ([*SMALL, *SHAPES, "inference=whole"], "task=instance with inference=WholeImage|inference=instances"),
        (
            ["task=instance", "loss=maskrcnn", "inference=instances", "augment=instances", *SHAPES],
            "UNet, which finds no objects|model=maskrcnn",
        ),
        (["inference=instances"], "which finds no objects|task=semantic"),
        (["model.base_channels=4", "loss=maskrcnn"], "task=semantic with DetectionLoss|loss=ce"),
        (["+data.group_by_aspect=true"], "data.group_by_aspect=true|data.group_by_aspect=false"),
        ([*SMALL, *SHAPES, "data.classes=[disc,square,triangle,ring]"], "data.classes begins with disc|background"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(word for word in value if word not in SMALL),
)
def test_parts_that_do_not_fit_are_refused_and_what_fits_is_named(door: Any, words: list[str], block: str) -> None:
    done = door(*words)
    assert done.code == 2, done.out + done.err
    for part in block.split("|"):
        assert part in done.err


@pytest.mark.parametrize(
    ("words", "block"),
    [
        (["export=voc"], "export=voc with a checkpoint that finds objects|export=coco"),
        (["export=cityscapes"], "export=cityscapes with a checkpoint that finds objects|export=coco"),
        (["data=shapes"], "task=instance with data of the kind semantic: Shapes|shapes_instances"),
        (["data=shapes_panoptic"], "task=instance with data of the kind panoptic|shapes_instances"),
        (["data.classes=[background,bolt,nut]"], "the 3 the model was trained on: background, nut, bolt"),
        (["inference=whole"], "task=instance with inference=WholeImage|inference=instances"),
        (["loss=ce"], "task=instance with loss=SegmentationLoss|loss=maskrcnn"),
        (["task=panoptic"], "task=panoptic with checkpoint=|task.semantic=PATH task.instance=PATH"),
        (["task=panoptic", "data=shapes_panoptic"], "task=panoptic with checkpoint=|task.semantic=PATH"),
        (["data=coco_semantic"], "task=instance with data of the kind semantic: CocoSemantic|data=coco"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_refusals_beside_a_checkpoint_of_objects(
    door: Any, own_run: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], block: str
) -> None:
    monkeypatch.chdir(own_run)  # where data.root=own leads
    done = door("evaluate", "checkpoint=run/checkpoints/best.pt", "hydra.run.dir=refused", *words)
    assert done.code == 2, done.out + done.err
    for part in block.split("|"):
        assert part in done.err


def test_refusals_beside_a_checkpoint_of_classes(door: Any, checkpoint: Path) -> None:
    done = door("evaluate", f"checkpoint={checkpoint}", "export=coco")
    assert (done.code, "export=coco with a checkpoint of one class per pixel" in done.err) == (2, True)
    done = door("evaluate", f"checkpoint={checkpoint}", "data=shapes_instances")
    assert done.code == 2, done.err
    assert "task=semantic with data of the kind instance: ShapesInstances" in done.err


def test_a_run_without_losses_of_validation_says_so_and_ends(door: Any, tmp_path: Path) -> None:
    words = [*SMALL, *SHAPES, "trainer.val_loss=false", "trainer.amp=bf16", "hydra.run.dir=run", "trainer.samples=1"]
    done = door(*words, "trainer.tensorboard=true")
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["loss"] is None
    assert "losses" not in metrics
    state = load(tmp_path / "run" / "checkpoints" / "last.pt")
    assert {value.dtype for value in state["model"].values() if value.is_floating_point()} == {torch.float32}
