"""`--multirun`: one bad job does not take the others down."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segtrain.types import Score


@pytest.fixture
def swept(door: Any, fast: list[str], tmp_path: Path) -> Any:
    """A bad job, then two good ones."""
    return door("--multirun", *fast, "optimizer.lr=-1,1e-3,1e-2")


def test_the_other_jobs_run_and_the_bad_ones_code_is_the_programs(swept: Any, tmp_path: Path) -> None:
    assert swept.code == 2
    assert "Traceback" not in swept.err
    assert swept.err.count("error[config] optimizer.lr=-1") == 1
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-[0-9a-f]{4}", sweep.name)
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["0", "1", "2"]
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["sweeps"]
    for job in ("1", "2"):
        assert (sweep / job / "checkpoints" / "best.pt").is_file()
        assert (sweep / job / "metrics.json").is_file()
    assert "optimizer.lr=0.001\n" in (sweep / "1" / "overrides.txt").read_text()
    assert (sweep / "0" / "error.txt").read_text().startswith("error[config] optimizer.lr=-1")
    assert not (sweep / "0" / "checkpoints").exists()

    table = swept.out.splitlines()[-5:]
    assert table[0].split() == ["job", "overrides", "score", "status"]
    assert table[1].split()[0] in "12"
    assert table[1].endswith("ok  * best")
    assert table[2].endswith("ok")
    assert float(re.findall(r" (0\.\d{4})  ", table[1])[0]) >= float(re.findall(r" (0\.\d{4})  ", table[2])[0])
    assert table[3].split()[0] == "0"
    assert "failed: optimizer.lr=-1" in table[3]
    assert table[4] == "2 ok, 1 failed"


def test_a_bug_is_worse_than_a_fault_and_a_fault_worse_than_none(
    door: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from segtrain.errors import ConfigError, DataError

    outcomes: list[Any] = []

    def job(cfg: Any, folder: Any) -> Score:
        outcome = outcomes[int(cfg.trainer.seed)]
        if isinstance(outcome, BaseException):
            raise outcome
        return Score(float(outcome), "miou")

    monkeypatch.setattr("segtrain.commands.train.run", job)
    for given, code in (
        ([0.5, 0.7], 0),
        ([ConfigError("a"), 0.7], 2),
        ([DataError("b"), ConfigError("a"), 0.1], 3),
        ([DataError("b"), ZeroDivisionError("c")], 1),
        ([SystemExit(0), 0.7, SystemExit("d")], 1),
        ([0.5, float("nan")], 0),
    ):
        outcomes[:] = given
        done = door("-m", "trainer.seed=" + ",".join(str(i) for i in range(len(given))))
        assert done.code == code
        failed = sum(isinstance(outcome, BaseException) for outcome in given)
        assert done.out.splitlines()[-1] == f"{len(given) - failed} ok, {failed} failed"


def test_an_interrupt_ends_the_sweep(door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from segtrain.errors import Interrupted

    started = []

    def job(cfg: Any, folder: Any) -> Score:
        started.append(int(cfg.trainer.seed))
        raise Interrupted("stopped by signal 15; saved step 3", signal=15)

    monkeypatch.setattr("segtrain.commands.train.run", job)
    done = door("--multirun", "trainer.seed=0,1,2")
    assert done.code == 143
    assert started == [0]
    assert done.out.count("not started: the sweep was interrupted") == 2


def test_a_sweep_over_the_environment_keeps_references(
    door: Any, monkeypatch: pytest.MonkeyPatch, fast: list[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("SEGTRAIN_TEST_ROOT", "/secret/place")
    argv = [*fast, "+data.root=${oc.env:SEGTRAIN_TEST_ROOT}", "trainer.monitor=miou,mio"]
    done = door("--multirun", *argv, "hydra.sweep.dir=sweep")
    assert done.code == 2, done.err
    assert "${oc.env:SEGTRAIN_TEST_ROOT}" in (tmp_path / "sweep/0/config.yaml").read_text()
    assert "SEGTRAIN_TEST_ROOT" in (tmp_path / "sweep/0/overrides.txt").read_text()
    files = [path for path in (tmp_path / "sweep").rglob("*") if path.is_file()]
    assert [path for path in files if b"/secret/place" in path.read_bytes()] == []
    assert "1 ok, 1 failed" in done.out
    assert "/secret/place" not in done.out + done.err


def test_a_checkpoint_under_several_protocols(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    done = door("evaluate", "-m", f"checkpoint={checkpoint}", "inference.flip=true,false", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    assert (tmp_path / "sweep/0/metrics.json").is_file()
    assert (tmp_path / "sweep/1/metrics.json").is_file()
    assert "inference.flip=True" in done.out
    assert "++over" not in done.out


def monitored(cfg: Any, value: float) -> Score:
    """What a training returns for the score that it watches."""
    name = cfg.trainer.monitor or "miou"
    return Score(value, name, name != "loss")


def job_lines(done: Any) -> list[str]:
    lines: list[str] = done.out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("job  overrides"))
    return lines[start + 1 : -1]


@pytest.mark.parametrize(("monitor", "best"), [("loss", "1"), ("miou", "2")])
def test_the_best_is_the_lowest_loss_or_the_highest_score(
    door: Any, monkeypatch: pytest.MonkeyPatch, monitor: str, best: str
) -> None:
    scores = [0.5, 0.2, 0.9, float("nan")]
    monkeypatch.setattr(
        "segtrain.commands.train.run", lambda cfg, folder: monitored(cfg, scores[int(cfg.trainer.seed)])
    )
    lines = job_lines(door("-m", f"trainer.monitor={monitor}", "trainer.seed=0,1,2,3"))
    order = {"1": ["1", "0", "2", "3"], "2": ["2", "0", "1", "3"]}[best]
    assert [line.split()[0] for line in lines] == order
    assert [line.endswith("* best") for line in lines] == [True, False, False, False]


def test_scores_of_several_monitors_have_no_best(door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segtrain.commands.train.run", lambda cfg, folder: monitored(cfg, 0.5))
    lines = job_lines(door("-m", "trainer.monitor=miou,loss"))
    assert [line.split() for line in lines] == [
        ["0", "trainer.monitor=miou", "0.5000", "ok"],
        ["1", "trainer.monitor=loss", "0.5000", "ok"],
    ]


def test_predictions_have_no_best(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 24)).save(tmp_path / "a.png")
    done = door("predict", "-m", f"checkpoint={checkpoint}", "input=a.png", "opacity=0.1,0.9", "hydra.sweep.dir=s")
    assert done.code == 0, done.err
    assert [line.split() for line in job_lines(done)] == [
        ["0", "opacity=0.1", "-", "ok"],
        ["1", "opacity=0.9", "-", "ok"],
    ]


def test_the_table_shows_what_differs(door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segtrain.commands.train.run", lambda cfg, folder: monitored(cfg, float(cfg.optimizer.lr)))
    lines = job_lines(door("-m", "name=the_same_for_all", "optimizer.lr=0.1,0.2", "trainer.seed=1"))
    assert [line.split()[:2] for line in lines] == [["1", "optimizer.lr=0.2"], ["0", "optimizer.lr=0.1"]]
    assert not any("the_same_for_all" in line or "trainer.seed" in line for line in lines)


@pytest.mark.parametrize("argv", ["-m hydra.run.dir=r", "--multirun hydra.run.dir=r", "hydra.run.dir=r -m"])
def test_the_folder_of_one_run_is_refused_for_a_sweep(door: Any, tmp_path: Path, argv: str) -> None:
    done = door(*argv.split(), "trainer.seed=1,2")
    assert done.code == 2
    assert "error[config] hydra.run.dir=r with --multirun" in done.err
    assert "fix       hydra.sweep.dir=r" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv",
    [
        "trainer.epochs=3 --multirun trainer.seed=1,2",
        "--multirun train trainer.seed=1,2",
        "trainer.epochs=3 trainer.seed=1,2 --config-dir own -m",
        "train trainer.epochs=3 --config-dir=own -m trainer.seed=1,2",
    ],
)
def test_flags_may_stand_anywhere(door: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argv: str) -> None:
    (tmp_path / "own").mkdir()
    monkeypatch.setattr("segtrain.commands.train.run", lambda cfg, folder: monitored(cfg, 0.5))
    done = door(*argv.split(), "hydra.sweep.dir=s")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "2 ok, 0 failed"


def test_another_command_behind_a_flag(door: Any) -> None:
    done = door("--multirun", "evaluate", "checkpoint=/nowhere.pt", "split=val,train")
    assert (done.code, done.err.count("error[checkpoint] no such file")) == (4, 2)
    assert "input: ???" in door("--cfg", "job", "predict").out
    assert "split: val" in door("evaluate", "--cfg", "job").out
    assert door("--multirun", "evaluat", "split=val,train").err.startswith(
        "error[config] there is no command 'evaluat'"
    )
    assert door("--info", "searchpath").code == 0
