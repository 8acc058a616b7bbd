"""Two evaluations side by side: what the protocol card says, and which differences are real."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from segtrain.metrics.bootstrap import PerImageCounts

EXTRA = ("data.limit=6", "data.num_workers=0")


def scores_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture
def scored(door: Any, checkpoint: Path, tmp_path: Path) -> Any:
    """`scored("name", *words)` evaluates the shared checkpoint into a folder and returns it."""

    def call(name: str, *words: str) -> Path:
        done = door("evaluate", f"checkpoint={checkpoint}", f"hydra.run.dir={name}", *EXTRA, *words)
        assert done.code == 0, done.err
        return tmp_path / name

    return call


def test_the_protocol_card_tells_what_was_judged_and_how(scored: Any, checkpoint: Path) -> None:
    first = scores_of(scored("first"))["protocol"]
    again = scores_of(scored("again", "data.batch_size=3"))["protocol"]
    assert first["data_sha256"] == again["data_sha256"]  # neither batches nor order are part of the data
    assert first["split_sha256"] == again["split_sha256"]
    assert (first["images"], first["dataset"], first["split"]) == (6, "Shapes", "val")
    assert first["inference"] == {
        "protocol": "WholeImage",
        "size": None,
        "scales": [1.0],
        "flip": False,
        "crf": False,
    }
    assert first["ignore_index"] == 255
    assert (first["seed"], first["device"], first["precision"]) == (42, "cpu", "float32")
    assert len(first["checkpoint_sha256"]) == 64
    assert str(checkpoint.parent) not in json.dumps(first)  # a card is no place for a machine's paths
    fewer = scores_of(scored("fewer", "data.limit=5"))["protocol"]
    assert fewer["data_sha256"] != first["data_sha256"]
    assert fewer["split_sha256"] != first["split_sha256"]


def test_stored_counts_add_up_to_the_confusion_matrix(scored: Any) -> None:
    folder = scored("run")
    scores, counts = scores_of(folder), PerImageCounts.load(folder / "per_image.npz")
    assert len(counts.names) == 6
    correct, target, predicted = counts.sums().sum(1)
    matrix = np.array(scores["confusion"])
    assert correct.tolist() == matrix.diagonal().tolist()
    assert target.tolist() == matrix.sum(1).tolist()
    assert predicted.tolist() == matrix.sum(0).tolist()
    low, high = scores["interval"]["miou"]
    assert low <= scores["miou"] <= high


def test_a_run_does_not_differ_from_itself(door: Any, scored: Any) -> None:
    one, two = scored("one"), scored("two")
    done = door("compare", str(one), str(two), "hydra.run.dir=compared")
    assert done.code == 0, done.err
    assert "no significant difference (p = 1.000" in done.out
    tests = scores_of(one.parent / "compared")["comparisons"][str(two)]
    assert tests["miou"]["difference"] == 0
    assert tests["miou"]["p"] == 1
    assert (one.parent / "compared" / "report.html").read_text().startswith("<!doctype html>")


def test_another_protocol_is_refused_unless_forced(door: Any, scored: Any) -> None:
    whole, mirrored = scored("whole"), scored("mirrored", "inference.flip=true")
    refused = door("compare", str(whole), str(mirrored), "hydra.run.dir=compared")
    assert refused.code == 2
    assert "inference: " in refused.err
    assert "force=true" in refused.err
    forced = door("compare", str(whole), str(mirrored), "force=true", "hydra.run.dir=compared")
    assert forced.code == 0, forced.err
    assert "warning: force=true compares evaluations that differ in" in forced.out
    assert "inference.flip: False | True" in forced.out


def test_other_images_cannot_be_paired_even_by_force(door: Any, scored: Any) -> None:
    six, five = scored("six"), scored("five", "data.limit=5")
    done = door("compare", str(six), str(five), "force=true", "hydra.run.dir=compared")
    assert done.code == 2
    assert "split_sha256" in done.err
    assert "the same split and classes" in done.err


def test_a_folder_without_an_evaluation_says_what_to_run(door: Any, scored: Any, checkpoint: Path) -> None:
    run = checkpoint.parents[1]
    done = door("compare", str(scored("one")), str(run))
    assert done.code == 3
    assert "per_image.npz missing" in done.err
    assert f"evaluate checkpoint={run / 'checkpoints' / 'best.pt'}" in done.err
    damaged = scored("damaged")
    (damaged / "per_image.npz").write_bytes(b"PK")
    assert door("compare", str(damaged), str(damaged)).code == 3
    lone = door("compare", str(damaged))
    assert lone.code == 2
    assert "1 runs to compare" in lone.err


def test_a_run_may_be_named_twice(door: Any, scored: Any) -> None:
    one = str(scored("one"))
    done = door("compare", one, one, "hydra.run.dir=compared")
    assert done.code == 0, done.err
    assert f"{one} (2)" in scores_of(Path(one).parent / "compared")["comparisons"]


def test_a_run_folder_may_have_any_name(door: Any, scored: Any, tmp_path: Path) -> None:
    one = scored("one")
    for name in ("k=v", "a b", "it's", "[x,y]", "ü"):
        shutil.copytree(one, tmp_path / name)
        done = door("compare", "one", name)
        assert done.code == 0, done.err
        assert f"B  {name}" in done.out


def test_no_command_writes_over_anothers_run(door: Any, scored: Any, checkpoint: Path) -> None:
    one, two = scored("one"), scored("two")
    before = (one / "metrics.json").read_bytes()
    refused = door("compare", str(one), str(two), f"hydra.run.dir={one}")
    assert refused.code == 2
    assert "the files of `evaluate`" in refused.err
    assert (one / "metrics.json").read_bytes() == before
    assert door("compare", str(one), str(two), "hydra.run.dir=compared").code == 0
    assert door("evaluate", f"checkpoint={checkpoint}", "hydra.run.dir=compared", *EXTRA).code == 2


def test_a_report_of_an_earlier_evaluation_does_not_stay(scored: Any) -> None:
    folder = scored("again", "report=true")
    assert (folder / "report.html").is_file()
    assert not (scored("again", "data.limit=3") / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", "[]"),
        ("metrics.json", '{"confusion": [[1]]}'),
        ("config.yaml", "a: [b"),
        ("config.yaml", "- a"),
    ],
)
def test_damaged_files_of_an_evaluation_are_data_errors(door: Any, scored: Any, name: str, content: str) -> None:
    folder = scored("damaged")
    (folder / name).write_text(content)
    done = door("compare", str(folder), str(folder))
    assert done.code == 3, done.err
    assert str(folder) in done.err


def test_counts_of_another_run_are_found_out(door: Any, scored: Any) -> None:
    one, other = scored("one"), scored("other", "data.limit=5")
    (one / "per_image.npz").write_bytes((other / "per_image.npz").read_bytes())
    done = door("compare", str(one), str(one))
    assert done.code == 3
    assert "not of one evaluation" in done.err


def test_a_backbone_alone_is_nothing_to_score(door: Any, tmp_path: Path) -> None:
    file = tmp_path / "backbone.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    words = ["model=deeplabv3plus", "model.backbone=resnet18", f"model.weights={file}", "data=shapes"]
    for done in (door("evaluate", *words, *EXTRA), door("predict", *words, f"input={tmp_path}")):
        assert done.code in (2, 3)
        assert done.code == 3 or "trained" in done.err


def test_a_report_and_the_full_scores(scored: Any) -> None:
    folder = scored("full", "report=true")
    scores = scores_of(folder)
    assert {"boundary", "calibration", "anatomy", "interval", "protocol", "worst", "miou_conventions"} <= set(scores)
    wrong = sum(map(sum, scores["confusion"])) - sum(row[i] for i, row in enumerate(scores["confusion"]))
    assert sum(scores["anatomy"]["pixels"].values()) == wrong  # every wrong pixel has exactly one kind
    assert scores["miou_conventions"]["ignore"] == scores["miou"]
    page = (folder / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert str(folder) not in page
    basic = scores_of(scored("basic"))
    assert "boundary" not in basic
    assert basic["confusion"] == scores["confusion"]


def test_an_export_for_other_classes_is_refused(door: Any, checkpoint: Path) -> None:
    done = door("evaluate", f"checkpoint={checkpoint}", "export=voc", *EXTRA)
    assert done.code == 2
    assert "an export for VOC of 5 classes" in done.err


def test_exported_labels_are_the_predictions(door: Any, tmp_path: Path) -> None:
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    lists = voc / "ImageSets" / "Segmentation"
    for folder in (voc / "JPEGImages", voc / "SegmentationClass", lists):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("2007_000033", "2007_000042"):
        cv2.imwrite(str(voc / "JPEGImages" / f"{name}.jpg"), rng.integers(0, 256, (48, 64, 3), np.uint8))
        cv2.imwrite(str(voc / "SegmentationClass" / f"{name}.png"), rng.integers(0, 21, (48, 64), np.uint8))
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text("2007_000033\n2007_000042\n")
    small = ["model.base_channels=4", "model.depth=1", "data.num_workers=0", "data.crop_size=32", "data.batch_size=2"]
    run = ["data=voc", f"data.root={tmp_path}", *small, "trainer.max_steps=1", "trainer.epochs=1", "hydra.run.dir=run"]
    assert door(*run, "trainer.tensorboard=false").code == 0
    best = "checkpoint=run/checkpoints/best.pt"
    assert door("evaluate", best, "export=voc", "hydra.run.dir=scored").code == 0
    assert door("predict", best, f"input={voc / 'JPEGImages'}", "output=masks").code == 0
    exported = sorted((tmp_path / "scored" / "voc").rglob("2007_*.png"))
    assert [path.stem for path in exported] == ["2007_000033", "2007_000042"]
    for path in exported:
        with Image.open(path) as ours, Image.open(tmp_path / "masks" / "masks" / path.name) as mask:
            assert np.array_equal(np.asarray(ours), np.asarray(mask))
            assert ours.mode == "P"


def test_a_method_that_learns_nothing_is_scored_without_a_checkpoint(door: Any, tmp_path: Path) -> None:
    root = tmp_path / "discs"
    for kind in ("images", "masks"):
        (root / kind / "val").mkdir(parents=True)
    mask = np.zeros((40, 60), np.uint8)
    cv2.circle(mask, (30, 20), 12, 1, -1)
    cv2.imwrite(str(root / "masks" / "val" / "a.png"), mask)
    cv2.imwrite(str(root / "images" / "val" / "a.png"), 40 + 160 * mask)
    words = ["model=otsu", "data=folder", f"data.root={root}", "data.classes=[background,disc]", "data.num_workers=0"]
    done = door("evaluate", *words, "hydra.run.dir=otsu")
    assert done.code == 0, done.err
    assert scores_of(tmp_path / "otsu")["miou"] == 1.0
    assert scores_of(tmp_path / "otsu")["protocol"]["checkpoint_sha256"] is None
