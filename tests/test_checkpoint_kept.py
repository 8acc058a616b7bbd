"""The last two checkpoints and the best: a new one is read back before an old one goes; no instant is without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from segtrain import checkpoint
from segtrain.errors import CheckpointError, ResourceError
from segtrain.experiment import build
from segtrain.resuming import bring_best, newest_whole

ROOT = Path(__file__).parents[1]
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX")


def python(code: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_state(step: int, best: int | None = None, epoch: int = 0) -> dict[str, Any]:
    """As much of a trainer's state as resuming looks at; the best epoch ended at step `best`."""
    return {
        "step": step,
        "samples_seen": step,
        "epoch_start": epoch,
        "epoch": epoch,
        "best": None if best is None else {"step": best, "epoch": best},
        "config": {"model": {}},
        "model": {"weight": torch.full((50,), float(step))},
    }


def steps(folder: Path) -> dict[str, int]:
    return {path.name: checkpoint.load(path)["step"] for path in sorted(folder.iterdir())}


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    checkpoint.save(last, run_state(1))
    assert steps(tmp_path) == {"last.pt": 1}
    checkpoint.save(last, run_state(2), best)
    checkpoint.save(last, run_state(3))
    assert steps(tmp_path) == {"best.pt": 2, "last.pt": 3, "previous.pt": 2}
    assert len({path.stat().st_ino for path in tmp_path.iterdir()}) == 3, "one damaged block must not reach two of them"


def test_a_disk_that_keeps_other_bytes_is_found_out_before_the_old_file_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = tmp_path / "last.pt"
    checkpoint.save(last, run_state(1))
    checkpoint.save(last, run_state(2))
    real = os.fsync

    def damaged(handle: int) -> None:
        os.pwrite(handle, b"\0", os.fstat(handle).st_size // 2 + harm.pop()) if harm else None
        real(handle)

    for harm in ([0], [500]):
        content = list(harm)
        monkeypatch.setattr(os, "fsync", damaged)
        with pytest.raises(ResourceError, match="reads back differently") as caught:
            checkpoint.save(last, {**run_state(3), "pad": "x" * 5000})
        monkeypatch.undo()
        assert caught.value.code == 6, content
        assert caught.value.where == str(last)
        assert steps(tmp_path) == {"last.pt": 2, "previous.pt": 1}


# Killed before its k-th file operation, for every k until one save comes through.
EVERYWHERE = """
import json, os, signal, sys
from pathlib import Path
import torch
from segtrain import checkpoint
from segtrain.atomic import remove_leftovers

WATCHED = ("open", "os.link", "os.rename", "os.remove", "os.posix_fadvise", "os.mkdir")

def strike(count):
    seen = 0
    def hook(name, args):
        nonlocal seen
        if name in WATCHED and (name != "open" or str(args[0]).endswith((".tmp", ".pt"))):
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

last, step, told = Path("last.pt"), 2, []
for number in (1, 2):
    checkpoint.save(last, {"step": number})
for count in range(1, 30):
    child = os.fork()
    if child == 0:
        strike(count)
        checkpoint.save(last, {"step": step + 1})
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    kept = {path.name: checkpoint.load(path)["step"] for path in Path().glob("*.pt")}
    told.append([code, step, kept])
    step = kept["last.pt"]
    if code == 0:
        break
remove_leftovers(Path())
print(json.dumps(told))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_killed_before_any_file_operation_the_last_checkpoint_is_there(tmp_path: Path) -> None:
    done = python(EVERYWHERE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told) >= 4, "open, link, rename, rename"
    assert [code for code, _, _ in told] == [-9] * (len(told) - 1) + [0]
    for _, step, kept in told:
        assert kept["last.pt"] in (step, step + 1)
        assert kept["previous.pt"] in (step - 1, step)
    assert told[-1][2]["last.pt"] == told[-1][1] + 1
    assert told[-1][2]["previous.pt"] == told[-1][1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def test_a_kill_between_the_two_renames_does_not_hold_up_the_next_save(tmp_path: Path) -> None:
    """It leaves both names on one file; renaming a file to itself would do nothing and leave its link behind."""
    last = tmp_path / "last.pt"
    checkpoint.save(last, run_state(1))
    os.link(last, tmp_path / "previous.pt")
    checkpoint.save(last, run_state(2))
    assert steps(tmp_path) == {"last.pt": 2, "previous.pt": 1}


def test_where_links_are_not_possible_the_old_file_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)  # as on FAT; no such file system is at hand
    for number in (1, 2, 3):
        checkpoint.save(tmp_path / "last.pt", run_state(number))
    assert steps(tmp_path) == {"last.pt": 3, "previous.pt": 2}


FULL = """
import resource, sys
from pathlib import Path
import torch
from segtrain import checkpoint
from segtrain.errors import ResourceError
last = Path("last.pt")
for step in (1, 2):
    checkpoint.save(last, {"step": step})
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
try:
    checkpoint.save(last, {"step": 3, "model": torch.zeros(2**18)}, Path("best.pt"))
except ResourceError as error:
    print(error)
    sys.exit(error.code)
"""


@posix
def test_a_full_disk_keeps_both_older_files(tmp_path: Path) -> None:
    done = python(FULL, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (6, "")
    assert "needs 1.0 MiB" in done.stdout
    assert "MiB are free" in done.stdout
    assert "last.pt" in done.stdout
    assert steps(tmp_path) == {"last.pt": 2, "previous.pt": 1}


# As nobody, because root may write and read everything.
UNPRIVILEGED = """
import os, sys
from pathlib import Path
import torch
from segtrain import checkpoint
from segtrain.errors import SegtrainError
checkpoint.save(Path("last.pt"), {"step": 1})
os.chmod(".", 0o755)
os.chmod(sys.argv[1], int(sys.argv[2], 8))
if os.geteuid() == 0:
    os.setuid(65534)
try:
    checkpoint.save(Path("last.pt"), {"step": 2}) if sys.argv[3] == "save" else checkpoint.load(Path("last.pt"))
except SegtrainError as error:
    print(error)
    sys.exit(error.code)
"""


@posix
@pytest.mark.parametrize(
    ("path", "mode", "action", "code", "text"),
    [
        (".", "555", "save", 6, "the file cannot be written: Permission denied"),
        ("last.pt", "000", "load", 4, "the file cannot be read: Permission denied"),
        (".", "000", "load", 4, "the file cannot be read: Permission denied"),
    ],
)
def test_what_this_user_may_not_do_is_said(
    tmp_path: Path, path: str, mode: str, action: str, code: int, text: str
) -> None:
    done = python(UNPRIVILEGED, path, mode, action, cwd=tmp_path)
    tmp_path.chmod(0o700)
    assert (done.returncode, done.stderr) == (code, "")
    assert text in done.stdout
    assert "where     last.pt" in done.stdout
    assert "fix  " in done.stdout
    (tmp_path / "last.pt").chmod(0o600)
    assert steps(tmp_path) == {"last.pt": 1}


# Which checkpoint `trainer.resume=auto` takes -----------------------------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Of a run that was killed in its third epoch: the best at step 2, then steps 4 and 5."""
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder / "best.pt", run_state(2, best=2, epoch=2))
    checkpoint.save(folder / "last.pt", run_state(4, best=2, epoch=2))
    checkpoint.save(folder / "last.pt", run_state(5, best=2, epoch=2))
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("damaged", "taken"),
    [
        ([], "last.pt"),
        (["last.pt"], "previous.pt"),
        (["previous.pt", "best.pt"], "last.pt"),
        (["last.pt", "previous.pt"], "best.pt"),
        (["last.pt", "previous.pt", "best.pt"], None),
    ],
)
def test_the_newest_whole_checkpoint_is_taken_and_the_damaged_are_named(
    checkpoints: Path, damaged: list[str], taken: str | None
) -> None:
    for name in damaged:
        cut(checkpoints / name)
    said: list[str] = []
    found = newest_whole(checkpoints.parent, said.append)
    assert found == (None if taken is None else checkpoints / taken)
    looked_at = [name for name in damaged if taken != "last.pt"]
    assert [line.split(" cannot be used ")[0] for line in said] == [f"warning: {checkpoints / n}" for n in looked_at]


def test_file_times_do_not_matter(checkpoints: Path) -> None:
    """A copied folder has them in the order of copying, a clock that was set back in any."""
    for number, name in enumerate(("last.pt", "best.pt", "previous.pt")):
        os.utime(checkpoints / name, (number, number))
    assert newest_whole(checkpoints.parent, print) == checkpoints / "last.pt"
    (checkpoints / "last.pt").unlink()
    os.utime(checkpoints / "best.pt", (9, 9))
    assert newest_whole(checkpoints.parent, print) == checkpoints / "previous.pt"


def test_the_best_that_came_further_is_better_than_the_previous(checkpoints: Path) -> None:
    checkpoint.save(checkpoints / "last.pt", run_state(6, best=6, epoch=6), checkpoints / "best.pt")
    cut(checkpoints / "last.pt")
    assert newest_whole(checkpoints.parent, print) == checkpoints / "best.pt"


def test_a_run_killed_before_it_wrote_its_best_has_the_best_in_its_last(checkpoints: Path) -> None:
    state = run_state(6, best=6, epoch=6)
    checkpoint.save(checkpoints / "last.pt", state)
    said: list[str] = []
    assert bring_best(checkpoints / "last.pt", state, checkpoints, said.append)["best"] == {"step": 6, "epoch": 6}
    assert steps(checkpoints) == {"best.pt": 6, "last.pt": 6, "previous.pt": 5}
    assert said == []


def test_a_damaged_best_does_not_stop_a_resume(checkpoints: Path) -> None:
    cut(checkpoints / "best.pt")
    said: list[str] = []
    state = bring_best(checkpoints / "last.pt", run_state(5, best=2, epoch=2), checkpoints, said.append)
    assert state["best"] is None
    assert "best.pt cannot be used" in said[0]
    assert "the best is chosen anew" in said[1]


# The format ---------------------------------------------------------------------------------------------------------

FIXTURE = Path(__file__).parent / "fixtures" / "checkpoint_format_1.pt"


@pytest.mark.parametrize(
    ("version", "text", "fix"),
    [
        (2, "format 2, written by segtrain 9.8.7, is newer than this version", "use segtrain 9.8.7 or a newer one"),
        (0, "format 0, written by segtrain 9.8.7, is unknown to this version", "use segtrain 9.8.7"),
        ("x", "format 'x', written by segtrain 9.8.7, is unknown to this version", "use segtrain 9.8.7"),
    ],
)
def test_another_format_is_refused_by_the_version_that_wrote_it(
    tmp_path: Path, version: Any, text: str, fix: str
) -> None:
    state = {"versions": {"segtrain": "9.8.7"}, "model": {}, "format": version}
    path = tmp_path / "other.pt"
    torch.save({**state, "sha256": checkpoint.digest(state)}, path)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert caught.value.found == f"checkpoint {text}"
    assert caught.value.fix == fix
    assert caught.value.expected == f"format {checkpoint.FORMAT}"
    assert caught.value.where == str(path)


def test_a_checkpoint_of_the_first_format_loads_and_scores_as_when_it_was_made(door: Any, tmp_path: Path) -> None:
    """Made by a real run, whose best.pt it is:

    python -m segtrain debug=fast model=unet_small augment=none model.base_channels=4 model.depth=1 data.size=32 \\
        data.crop_size=32 trainer.tensorboard=false trainer.samples=0 trainer.device=cpu trainer.ema=0.9 \\
        hydra.run.dir=run
    """
    assert FIXTURE.stat().st_size < 200_000
    state = checkpoint.load(FIXTURE)
    assert state["format"] == 1
    done = door("evaluate", f"checkpoint={FIXTURE}", "hydra.run.dir=scored")
    assert done.code == 0, done.err
    scores = json.loads((tmp_path / "scored" / "metrics.json").read_text())
    for name in ("miou", "pixel_accuracy", "mean_accuracy"):
        assert scores[name] == pytest.approx(state["best"][name], abs=2e-3), name
    assert scores["loss"] == pytest.approx(state["best"]["loss"], rel=1e-3)


def test_a_checkpoint_of_the_first_format_is_trained_on(tmp_path: Path) -> None:
    """By its own config, so that what later versions add to the shipped ones does not matter."""
    state = checkpoint.load(FIXTURE)
    trainer = {**state["config"]["trainer"], "max_steps": 6, "epochs": 2}
    runner = build(OmegaConf.create({**state["config"], "trainer": trainer}), folder=tmp_path, resume=state)
    assert (runner.course.step, runner.course.epoch, runner.course.best) == (3, 1, state["best"])
    runner.fit()
    last = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert (last["step"], last["samples_seen"], len(last["scores"])) == (6, 12, 2)
