"""`evaluate`: the scores of training's own validation, from the checkpoint alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from segtrain.checkpoint import load, save
from segtrain.experiment import from_checkpoint

KEYS = {"miou", "pixel_accuracy", "mean_accuracy", "iou", "images_per_second", "confusion", "loss", "classes_counted"}


def scores_of(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)  # type: ignore[no-any-return]


def counts(scores: dict[str, Any]) -> Any:
    return scores["confusion"]


def test_as_its_own_process_it_gives_the_scores_of_training(program: Any, trained: Any, tmp_path: Path) -> None:
    done = program("evaluate", f"checkpoint={trained.best}", cwd=tmp_path)
    assert done.code == 0, done.err
    (folder,) = tmp_path.glob("outputs/evaluate/shapes_unet_small/*")
    found, trainings = scores_of(folder), scores_of(trained.folder)
    assert set(found) >= KEYS
    assert set(trainings) >= KEYS
    assert counts(found) == counts(trainings)
    for key in ("miou", "pixel_accuracy", "mean_accuracy", "iou", "accuracy", "pixels", "classes_counted", "images"):
        assert found[key] == trainings[key], key
    assert found["loss"] == pytest.approx(trainings["loss"], rel=1e-5)
    assert (found["split"], found["checkpoint"]) == ("val", str(trained.best))
    assert f"metrics: {folder.relative_to(tmp_path) / 'metrics.json'}" in done.out
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "overrides.txt",
        "env.json",
        "evaluate.log",
        "metrics.json",
        "per_image.npz",
    }


def test_batches_and_workers_change_nothing(door: Any, trained: Any, tmp_path: Path) -> None:
    for number, extra in enumerate(([], ["data.batch_size=3"], ["data.batch_size=8", "data.num_workers=2"])):
        done = door("evaluate", f"checkpoint={trained.best}", f"hydra.run.dir={number}", *extra)
        assert done.code == 0, done.err
        assert counts(scores_of(tmp_path / str(number))) == counts(scores_of(trained.folder))


def test_keys_and_groups_of_the_checkpoints_config_are_laid_over(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    slide = ["inference=slide", "inference.window_size=16", "inference.window_stride=16"]
    done = door("evaluate", f"checkpoint={checkpoint}", "hydra.run.dir=a", *slide, "data.limit=4")
    assert done.code == 0, done.err
    assert scores_of(tmp_path / "a")["images"] == 4
    config = (tmp_path / "a/config.yaml").read_text()
    assert "segtrain.inference.slide.SlidingWindow" in config
    assert "base_channels: 4" in config, "the checkpoint's own value stays"
    assert (tmp_path / "a/overrides.txt").read_text().split() == [f"checkpoint={checkpoint}", *slide, "data.limit=4"]
    done = door("evaluate", f"checkpoint={checkpoint}", "hydra.run.dir=b", "inference.size=${data.crop_size}")
    assert done.code == 0, done.err


def test_the_split_is_the_one_asked_for(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    done = door("evaluate", f"checkpoint={checkpoint}", "split=train", "hydra.run.dir=a")
    assert done.code == 0, done.err
    train = scores_of(tmp_path / "a")
    assert train["split"] == "train"
    door("evaluate", f"checkpoint={checkpoint}", "hydra.run.dir=b")
    assert counts(train) != counts(scores_of(tmp_path / "b"))
    done = door("evaluate", f"checkpoint={checkpoint}", "split=test", "hydra.run.dir=c")
    assert done.code == 2
    assert "Shapes has no split 'test'" in done.err


def test_a_class_that_is_nowhere_is_null(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    # One 8x8 image holds few classes, and NaN is what an absent one's recall is.
    done = door("evaluate", f"checkpoint={checkpoint}", "hydra.run.dir=a", "data.limit=1")
    assert done.code == 0, done.err
    scores = scores_of(tmp_path / "a")
    rows = [sum(row) for row in scores["confusion"]]
    assert 0 in rows
    assert [value is None for value in scores["accuracy"].values()] == [row == 0 for row in rows]
    assert "    -" in done.out


@pytest.mark.parametrize(
    ("extra", "code", "block"),
    [
        ("data.bath_size=3", 2, "there is no config key 'data.bath_size'|did you mean data.batch_size?"),
        ("spilt=val", 2, "there is no config key 'spilt'|did you mean split?"),
        ("inference=slid", 2, "did you mean inference=slide?"),
        ("debug=fast", 2, "debug=fast cannot be laid over a checkpoint"),
        ("data.batch_size=0", 2, "data.batch_size=0|greater than 0"),
        ("model.base_channels=8", 4, "the weights do not fit the model|drop the overrides of model.*"),
        ("data.classes=[a,b]", 4, "the weights do not fit the model"),
        ("data.classes=[a,b,c,d,e]", 2, "data.classes has no disc, square, triangle, ring"),
        ("split=3", 2, "split=3|string"),
        ("data=voc data.root=/nowhere data.classes=[a,b,c,d,e] data.palette=null", 3, "where     /nowhere"),
    ],
)
def test_refusals_beside_a_checkpoint(door: Any, checkpoint: Path, extra: str, code: int, block: str) -> None:
    done = door("evaluate", f"checkpoint={checkpoint}", "hydra.run.dir=a", *extra.split())
    assert done.code == code, done.err
    for part in block.split("|"):
        assert part in done.err


def test_data_of_other_classes(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "own" / folder).mkdir(parents=True)
        Image.new("L", (32, 24), 1).save(tmp_path / "own" / folder / "x.png")
    (tmp_path / "own" / "val.txt").write_text("x\n")
    argv = ["evaluate", f"checkpoint={checkpoint}", "hydra.run.dir=a", "data=folder", "data.root=own"]
    done = door(*argv, "data.classes=[a,b,c,d,e]")
    assert done.code == 2
    assert "the data have 5 classes: a, b, c, d, e" in done.err
    assert "the 5 the model was trained on: background, disc" in done.err
    done = door(*argv, "data.classes=[background,disc,square,triangle,ring]", "data.label_map={1:4}")
    assert done.code == 0, done.err
    assert [sum(row) for row in counts(scores_of(tmp_path / "a"))] == [0, 0, 0, 0, 32 * 24]


def test_a_damaged_checkpoint(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    content = bytearray(checkpoint.read_bytes())
    cut = tmp_path / "cut.pt"
    cut.write_bytes(content[: len(content) // 2])
    done = door("evaluate", f"checkpoint={cut}")
    assert (done.code, "error[checkpoint] file damaged" in done.err) == (4, True)
    assert not (tmp_path / "outputs").exists()


def test_a_folder_is_no_checkpoint(door: Any, trained: Any, tmp_path: Path) -> None:
    done = door("evaluate", f"checkpoint={trained.folder}")
    assert done.code == 4
    assert "error[checkpoint] the checkpoint is a folder" in done.err
    assert f"fix       checkpoint={trained.best}" in done.err
    done = door("evaluate", f"checkpoint={tmp_path}")
    assert (done.code, "is a folder" in done.err, "fix" in done.err) == (4, True, False)


CONTENT = [
    # key, what is there instead (... is nothing), what the error names
    ("config", ..., "it has no config"),
    ("config", "hi", "its config has not the form"),
    ("config", {}, "its config has not the form"),
    ("config", {"data": {"num_classes": "${len:${data.classes}}"}}, "its config cannot be read"),
    ("model", ..., "it has no model"),
    ("model", [1], "its model has not the form"),
    ("ema", ..., "it has no ema"),
    ("ema", {"decay": 0.9}, "its ema has not the form"),
    ("class_weights", ..., "it has no class_weights"),
    ("class_weights", [1.0], "its class_weights has not the form"),
    ("class_weights", torch.ones(4), "its class_weights has not the form"),
    ("palette", [[0, 0, 0]] * 300, "its palette has not the form"),
    ("palette", [[0, 0, 300]] * 5, "its palette has not the form"),
    ("classes", ["one"], "its classes has not the form"),
    ("classes", [1, 2, 3, 4, 5], "its classes has not the form"),
]


@pytest.mark.parametrize(("key", "value", "found"), CONTENT)
def test_a_whole_file_with_wrong_content(
    door: Any, checkpoint: Path, tmp_path: Path, key: str, value: Any, found: str
) -> None:
    state = load(checkpoint)
    if value is ...:
        del state[key]
    else:
        state[key] = value
    save(tmp_path / "other.pt", state)
    done = door("evaluate", "checkpoint=other.pt")
    assert done.code == 4, done.err
    assert f"error[checkpoint] this file cannot be used as a checkpoint: {found}" in done.err
    assert "where     other.pt\n" in done.err
    assert not (tmp_path / "outputs").exists()


def with_class_weights(checkpoint: Path, path: Path, scheme: str) -> Path:
    state = load(checkpoint)
    state["config"]["loss"]["class_weights"] = scheme
    state["class_weights"] = None if scheme == "none" else torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    save(path, state)
    return path


def weights_of(path: Path, **over: Any) -> list[float] | None:
    weights = from_checkpoint(path, **over).task.loss.terms["ce"].class_weights
    return None if weights is None else weights.tolist()


def test_class_weights_are_those_the_config_asks_for(checkpoint: Path, tmp_path: Path) -> None:
    stored = with_class_weights(checkpoint, tmp_path / "auto.pt", "auto")
    assert weights_of(stored) == [1, 2, 3, 4, 5]
    assert weights_of(stored, over={"loss": {"class_weights": "auto"}}) == [1, 2, 3, 4, 5]
    assert weights_of(stored, over={"loss": {"class_weights": "none"}}) is None
    assert weights_of(stored, over={"loss": {"class_weights": [5.0, 4, 3, 2, 1]}}) == [5, 4, 3, 2, 1]
    # Another loss comes with its own loss.class_weights=none.
    assert list(from_checkpoint(stored, choices={"loss": "dice"}).task.loss.terms) == ["dice"]


@pytest.mark.parametrize(("trained_with", "asked"), [("none", "auto"), ("auto", "median_frequency")])
def test_class_weights_that_the_checkpoint_has_not(
    door: Any, checkpoint: Path, tmp_path: Path, trained_with: str, asked: str
) -> None:
    with_class_weights(checkpoint, tmp_path / "own.pt", trained_with)
    done = door("evaluate", "checkpoint=own.pt", f"loss.class_weights={asked}")
    assert done.code == 2
    assert f"error[config] loss.class_weights={asked}: the checkpoint has no such weights" in done.err
    assert f"trained with loss.class_weights={trained_with}" in done.err
    fix = re.findall(r"fix .* (loss\.class_weights=\S+)", done.err)
    done = door("evaluate", "checkpoint=own.pt", "hydra.run.dir=scored", *fix)
    assert done.code == 0, done.err


@pytest.mark.parametrize("rank", [0, 1])
def test_what_refuses_every_rank_is_told_by_the_first(
    door: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    done = door("evaluate", f"checkpoint={checkpoint}", "export=voc", "data.num_workers=0", "hydra.run.dir=run")
    assert done.code == 2
    assert ("an export for VOC of 5 classes" in done.err) == (rank == 0)
    done = door("evaluate", "checkpoint=nowhere.pt")
    assert (done.code, "no such file" in done.err) == (4, True)  # each may have another disk


def test_a_dataset_of_the_users_own_class_takes_the_place_of_the_checkpoints(
    door: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_shapes_of_evaluate.py").write_text(
        "from segtrain.data.shapes import Shapes\nclass Own(Shapes):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["data._target_=own_shapes_of_evaluate.Own", "data.num_workers=0", "data.limit=1"]
    done = door("evaluate", f"checkpoint={checkpoint}", *words)
    assert (done.code, "is not a class or function of an allowed package" in done.err) == (2, True)
    done = door("evaluate", f"checkpoint={checkpoint}", *words, "allow_targets=[own_shapes_of_evaluate]")
    assert done.code == 0, done.err
    assert "Own val, 1 images" in done.out
