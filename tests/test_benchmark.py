"""`python -m segtrain benchmark`: each topic runs small, and leaves numbers that can be cited."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

QUICK = ("repeats=1", "seconds=0.01", "trainer.device=cpu")
SMALL = ("data.num_workers=0", "data.size=32", "data.crop_size=32", "data.batch_size=2", "model.base_channels=4")


def results(folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    return json.loads((folder / "benchmark.json").read_text()), json.loads((folder / "metrics.json").read_text())


def test_training_is_timed_beside_a_bare_loop_and_the_references(
    door: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segtrain.benchmark import train

    # Two processes less; that the steps they would make can be made is seen all the same.
    monkeypatch.setattr(
        train, "peaks", lambda jobs, _: {key: float(job[0](*job[1])() is None) for key, job in jobs.items()}
    )
    done = door("benchmark", "what=train", *QUICK, *SMALL, "data.train_images=8", "hydra.run.dir=out")
    assert done.code == 0, done.err
    whole, numbers = results(tmp_path / "out")
    assert set(whole["tables"]) == {"train_overhead", "train_model", "train_run"}
    assert whole["machine"]["processor"]
    assert whole["machine"]["cores"] >= 1
    assert whole["versions"]["torch"]
    assert whole["command"].startswith("python -m segtrain benchmark what=train")
    assert "++over" not in whole["command"]
    assert "32x32, batch 2" in whole["tables"]["train_model"]["title"]
    assert numbers["train_overhead/trainer_tiny/ratio"] > 0
    assert 0 < numbers["train_model/ours/MFU %"] < 150
    assert numbers["train_model/ours/peak MiB"] > 0
    assert 0 <= numbers["train_run/run/wait %"] <= 100
    assert all(math.isfinite(value) for value in numbers.values())
    for line in ("ratio", "ours: Trainer", "torchvision's references", "commit "):
        assert line in done.out
    assert not list(tmp_path.glob("outputs/**/last.pt"))  # nothing but the results is left


def test_data_are_timed_with_and_without_a_cache(door: Any, tmp_path: Path) -> None:
    done = door("benchmark", "what=data", "profile=voc", *QUICK, "data.num_workers=0", "hydra.run.dir=out")
    assert done.code == 0, done.err
    whole, numbers = results(tmp_path / "out")
    assert set(whole["tables"]) == {"data_voc", "data_voc_loader"}
    keys = [row["key"] for row in whole["tables"]["data_voc"]["rows"]]
    assert keys == ["naive", "ours", "ours_float", "ours_disk", "ours_disk_float", "ours_ram"]
    assert (numbers["data_voc/ours/goal"], numbers["data_voc/ours_disk/goal"]) == (1.9, 10.0)
    assert numbers["data_voc/naive/ratio"] == 1
    assert numbers["data_voc_loader/collate_ours/per_second"] > 0
    assert all(math.isfinite(value) for value in numbers.values())
    assert "ms to read and decode" in whole["tables"]["data_voc"]["notes"][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]  # the generated files and the cache are gone


def test_data_of_the_users_own_are_timed_where_the_config_names_them(
    door: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segtrain.benchmark import samples

    small = samples.Profile("small", (60, 40), 3, 32, ".png", 1.0)
    samples.write_folder(tmp_path / "mine", small, 3)
    words = ("data=folder", "data.root=mine", "data.classes=[a,b,c]", "data.crop_size=32", "data.num_workers=0")
    done = door("benchmark", "what=data", *QUICK, *words, "hydra.run.dir=out")
    assert done.code == 0, done.err
    whole, _ = results(tmp_path / "out")
    assert set(whole["tables"]) == {"data_own", "data_own_loader"}
    assert "Folder, its first 3 images, crop 32x32" in whole["tables"]["data_own"]["title"]


def test_a_checkpoints_own_config_is_timed(
    door: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segtrain.benchmark import losses
    from segtrain.benchmark.bench import Bench

    seen: list[Bench] = []
    monkeypatch.setattr(losses, "measure", lambda bench: seen.append(bench) or [])
    words = (f"checkpoint={checkpoint}", "trainer.amp=bf16", "hydra.run.dir=out")
    done = door("benchmark", "what=losses", *words)
    assert done.code == 0, done.err
    settings = seen[0].settings()
    assert settings.node["model"]["base_channels"] == 4  # as in the checkpoint, and not in the default config
    assert settings.options.amp == "bf16"
    assert "base_channels: 4" in (tmp_path / "out" / "config.yaml").read_text()


def test_a_topic_that_does_not_exist_is_named_with_those_that_do(door: Any, tmp_path: Path) -> None:
    done = door("benchmark", "what=losess")
    assert done.code == 2
    assert "what=losess" in done.err
    for topic in ("data", "train", "eval", "losses", "start", "all"):
        assert f"'{topic}'" in done.err
    assert "did you mean what=losses?" in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["repeats=0", "seconds=0", "profile=ade", "trainer.amp=fp8", "model.depht=2"])
def test_a_wrong_value_ends_the_run_before_anything_is_written(door: Any, tmp_path: Path, word: str) -> None:
    done = door("benchmark", "what=train", word)
    assert done.code == 2
    assert word.partition("=")[0] in done.err
    assert not list(tmp_path.iterdir())


def test_a_method_that_learns_nothing_has_no_training_to_time(door: Any) -> None:
    done = door("benchmark", "what=train", *QUICK, "model=otsu", "data.classes=[background,thing]")
    assert done.code == 2
    assert "learns nothing" in done.err


def test_another_runs_folder_is_left_alone(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    folder = checkpoint.parents[1]
    done = door("benchmark", "what=train", *QUICK, f"hydra.run.dir={folder}")
    assert done.code == 2
    assert not (folder / "benchmark.json").exists()


@pytest.mark.slow
def test_all_topics_in_one_run(door: Any, tmp_path: Path) -> None:
    done = door("benchmark", *QUICK, "profile=voc", "data.num_workers=0", "hydra.run.dir=out")
    assert done.code == 0, done.err
    whole, numbers = results(tmp_path / "out")
    topics = {key.partition("_")[0] for key in whole["tables"]}
    assert topics == {"data", "train", "eval", "losses", "start"}
    assert numbers["start/help/ms"] < numbers["start/imports/ms"]
    assert all(math.isfinite(value) for value in numbers.values())
