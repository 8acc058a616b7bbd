"""What a run writes is plain and whole, and monitoring that fails stops nothing."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segtrain.tasks.semantic import SemanticTask
from segtrain.tracking import RunTracker, clock, percent, plain, write_json

ROOT = Path(__file__).parents[1]
SCORES = {
    "miou": 0.5,
    "mean_accuracy": 0.6,
    "pixel_accuracy": 0.7,
    "loss": 1.0,
    "iou": {"sky": 0.5, "road": math.nan},
    "accuracy": {"sky": 0.6, "road": math.nan},
    "pixels": {"sky": 1.0, "road": 0.0},
    "classes_counted": 1,
    "confusion": [[5, 1], [0, 0]],
}


def record(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "step": 10 * epoch, "train": {"loss": 2.0}, "val": SCORES, "lr": 0.1}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def use(tracker: RunTracker) -> None:
    """Everything a training does with a tracker."""
    tracker.text("config", "x")
    for step in range(1, 4):
        tracker.scalars(step, {"train/loss": 1 / step})
    tracker.epoch(record(1))
    tracker.flush()
    tracker.epoch(record(2))
    tracker.finish({**SCORES, "miou": 0.5}, {"lr": 0.1, "name": "n", "nothing": None}, "miou")


def test_a_file_in_tensorboards_place_costs_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tb").write_text("in the way")
    use(RunTracker(tmp_path, tensorboard=True))
    said = capsys.readouterr().out
    assert said.count("warning: TensorBoard stopped") == 1
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 2]
    assert json.loads((tmp_path / "metrics.json").read_text())["miou"] == 0.5
    assert (tmp_path / "tb").read_text() == "in the way"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_tensorboard_folder_deleted_in_the_middle_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = RunTracker(tmp_path, tensorboard=True)
    tracker.epoch(record(1))
    shutil.rmtree(tmp_path / "tb")
    use(tracker)
    assert capsys.readouterr().out.count("warning: TensorBoard stopped") == 1
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 1, 2]
    assert (tmp_path / "metrics.json").is_file()


def test_a_writer_that_fails_is_given_up_after_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Full:
        def __getattr__(self, name: str) -> Any:
            def fail(*args: Any, **options: Any) -> None:
                raise OSError(28, "No space left on device")

            return fail

    tracker = RunTracker(tmp_path)
    tracker.writer = Full()
    use(tracker)
    said = capsys.readouterr().out
    assert said.count("TensorBoard stopped") == 1
    assert "No space left on device" in said


LIMITED = """
import resource, sys
from pathlib import Path
from segtrain.tasks.semantic import SemanticTask
from segtrain.tracking import RunTracker
tracker = RunTracker(Path("run"), tensorboard=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for step in range(1, 2000):
    tracker.scalars(step, {"train/loss": 1 / step})
    if step % 100 == 0:
        tracker.flush()
tracker.finish({"miou": 0.5}, {"lr": 0.1}, "miou")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
def test_a_disk_full_of_curves_costs_one_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("warning: TensorBoard stopped") == 1
    assert (tmp_path / "run" / "metrics.json").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_on_a_full_disk_costs_one_warning_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train.log", "metrics.jsonl"):
        (tmp_path / name).symlink_to("/dev/full")
    tracker = RunTracker(tmp_path)
    for text in ("one", "two"):
        tracker.say(text)
    use(tracker)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "one"
    assert said[2] == "two"
    for name in ("train.log", "metrics.jsonl"):
        full = f"warning: {tmp_path / name} cannot be written (No space left on device)"
        assert len([line for line in said if line.startswith(full)]) == 1
    assert json.loads((tmp_path / "metrics.json").read_text())["miou"] == 0.5


def run_limited(folder: Path, bytes_per_file: int) -> subprocess.CompletedProcess[str]:
    """A whole run that may not make any file longer."""
    code = (
        "import resource, sys; from segtrain.__main__ import run; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_per_file}, {bytes_per_file})); sys.exit(run(sys.argv[1:]))"
    )
    small = ["debug=fast", "model.base_channels=4", "model.depth=2", "data.size=32", "data.crop_size=32"]
    options = ["trainer.device=cpu", "trainer.tensorboard=false", "trainer.samples=0", "hydra.run.dir=run"]
    return subprocess.run(
        [sys.executable, "-c", code, *small, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
def test_a_run_ends_well_with_full_logs_and_exits_6_without_room_for_a_checkpoint(tmp_path: Path) -> None:
    for number, (size, code) in enumerate([(2**20, 0), (30_000, 6)]):
        folder = tmp_path / str(number)
        (folder / "run").mkdir(parents=True)
        for name in ("train.log", "metrics.jsonl"):
            (folder / "run" / name).write_text("x" * (size - 1) + "\n")
        done = run_limited(folder, size)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout.count("train.log cannot be written (File too large)") == 1
        assert [path.name for path in (folder / "run").rglob("*.pt")] == ([] if code else ["best.pt", "last.pt"])
    assert "disk full: the file needs" in done.stderr
    assert "last.pt" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_standard_output_on_a_full_disk_stops_nothing(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        process = subprocess.run(
            [sys.executable, "-c", SPEAK, "stay"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert process.returncode == 0
    assert process.stderr == "warning: standard output cannot be written (No space left on device); the run goes on\n"
    assert (tmp_path / "run/train.log").read_text(encoding="utf-8").splitlines()[-1] == "last"


def test_durations_do_not_follow_a_clock_that_is_set_back(
    door: Any, tmp_path: Path, fast: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(2_000_000_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    done = door(*fast, "trainer.tensorboard=true", "trainer.epochs=2", "trainer.max_steps=null", "hydra.run.dir=run")
    monkeypatch.undo()
    assert done.code == 0, done.err
    for line in lines(tmp_path / "run"):
        assert 0 < line["seconds"] < 600
        assert line["train_images_per_second"] > 0
    assert "-1:" not in done.out


def test_a_whole_run_outlives_whoever_reads_it(tmp_path: Path) -> None:
    """As `2>&1 | head -1`: nobody reads standard output or standard error."""
    small = ["debug=fast", "model.base_channels=4", "model.depth=2", "data.size=32", "data.crop_size=32"]
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "segtrain", *small, "trainer.device=cpu", "trainer.samples=0", "hydra.run.dir=run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=writing,
        stderr=writing,
    )
    os.close(writing)
    os.read(reading, 10)
    os.close(reading)
    assert process.wait(120) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 3


def test_curves_are_hidden_after_the_step_that_is_resumed_from(tmp_path: Path) -> None:
    first = RunTracker(tmp_path, tensorboard=True)
    for step in range(1, 8):
        first.scalars(step, {"train/loss": float(step)})
    first.flush()
    began = int(time.time())
    while (
        int(time.time()) == began
    ):  # files are read by name, and of one second's files the tenth comes before the ninth
        time.sleep(0.05)
    second = RunTracker(tmp_path, tensorboard=True, purge_after=4)
    for step in range(5, 8):
        second.scalars(step, {"train/loss": 10.0 * step})
    second.flush()
    points = EventAccumulator(str(tmp_path / "tb")).Reload().Scalars("train/loss")
    assert [(point.step, point.value) for point in points] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 4.0),
        (5, 50.0),
        (6, 60.0),
        (7, 70.0),
    ]


def test_what_is_not_a_number_is_null_in_files_and_absent_from_curves(tmp_path: Path) -> None:
    write_json(tmp_path / "m.json", {"a": math.nan, "b": [math.inf, 1.0], "c": {"d": -math.inf}, "e": (1, 2)})
    assert json.loads((tmp_path / "m.json").read_text()) == {"a": None, "b": [None, 1.0], "c": {"d": None}, "e": [1, 2]}
    assert plain({1: math.nan}) == {"1": None}
    tracker = RunTracker(tmp_path, tensorboard=True)
    tracker.epoch(record(1), ["iou"])
    assert lines(tmp_path)[0]["val"]["iou"] == {"sky": 0.5, "road": None}
    tags = EventAccumulator(str(tmp_path / "tb")).Reload().Tags()["scalars"]
    assert "val/iou/sky" in tags
    assert "val/iou/road" not in tags


def test_a_rewound_history_has_the_same_lines_as_one_written_epoch_by_epoch(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    for epoch in (1, 2, 3):
        tracker.epoch(record(epoch))
    written = (tmp_path / "metrics.jsonl").read_text().splitlines()
    history = [{**record(epoch), "val": {k: v for k, v in SCORES.items() if k != "confusion"}} for epoch in (1, 2)]
    tracker.rewind(history)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == written[:2]


def test_tables_and_clocks_are_as_people_read_them() -> None:
    assert percent(0.1234) == "12.3"
    assert percent(math.nan) == percent(None) == "-"
    assert [clock(seconds) for seconds in (0, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]
    table = SemanticTask.table(Mock(), SCORES)
    assert table[1].split() == ["sky", "50.0", "60.0", "100.0%"]
    assert table[2].split() == ["road", "-", "-", "0.0%"]
    assert "mIoU 50.0 over 1 of 2 classes" in table[3]


SPEAK = """
import os, sys
from pathlib import Path
from segtrain.tasks.semantic import SemanticTask
from segtrain.tracking import RunTracker, say_early
tracker = RunTracker(Path("run"))
tracker.say("first")
if sys.argv[1] == "leave":
    sys.stdin.readline()  # until nobody reads what is said
say_early("early")
tracker.say(os.fsdecode(b"caf\\xe9.jpg") + " \\u2713")
tracker.note(os.fsdecode(b"\\xff"))
print("printed by a model of the user's own")
tracker.say("last")
"""


def speaker(tmp_path: Path, how: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SPEAK, how],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_reader_that_leaves_stops_nothing(tmp_path: Path) -> None:
    process = speaker(tmp_path, "leave")
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()  # as `| head -1` does
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.stderr
    assert process.stderr.read() == b""
    assert process.wait(60) == 0
    assert (tmp_path / "run/train.log").read_text(encoding="utf-8").splitlines()[-1] == "last"


@pytest.mark.parametrize(("encoding", "said"), [("utf-8", r"caf\udce9.jpg ✓"), ("ascii", r"caf\udce9.jpg \u2713")])
def test_what_an_encoding_lacks_is_said_in_its_letters(tmp_path: Path, encoding: str, said: str) -> None:
    out, err = speaker(tmp_path, "stay", PYTHONIOENCODING=f"{encoding}:strict").communicate(timeout=60)
    assert err == b""
    assert out.decode(encoding).splitlines() == ["first", "early", said, "printed by a model of the user's own", "last"]
    log = (tmp_path / "run/train.log").read_text(encoding="utf-8").splitlines()
    assert log == ["first", r"caf\udce9.jpg ✓", r"\udcff", "last"]


@pytest.fixture(scope="module")
def piped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[bytes]]:
    """A whole run with a pipe for its output and a file where TensorBoard wants its folder."""
    folder = tmp_path_factory.mktemp("piped")
    (folder / "run").mkdir()
    (folder / "run" / "tb").write_text("")
    small = ["debug=fast", "model.base_channels=4", "model.depth=2", "data.size=32", "data.crop_size=32"]
    command = [sys.executable, "-m", "segtrain", *small, "trainer.device=cpu", "hydra.run.dir=run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return folder, subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=60)


def test_a_piped_run_prints_plain_lines(piped: tuple[Path, subprocess.CompletedProcess[bytes]]) -> None:
    folder, done = piped
    assert done.returncode == 0, done.stderr
    assert b"\r" not in done.stdout + done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    log = (folder / "run" / "train.log").read_text(encoding="utf-8").splitlines()
    told = done.stdout.decode().splitlines()
    assert any(line.startswith("best: ") for line in log)
    assert [line for line in told if line not in log] == []


def test_a_run_without_a_place_for_tensorboard_ends_well(
    piped: tuple[Path, subprocess.CompletedProcess[bytes]],
) -> None:
    folder, done = piped
    assert done.stdout.count(b"warning: TensorBoard stopped") == 1
    assert json.loads((folder / "run" / "metrics.json").read_text())["steps"] == 3
    assert len(lines(folder / "run")) == 1
