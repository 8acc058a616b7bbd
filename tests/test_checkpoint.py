"""A checkpoint is whole or it is refused by name: flipped bytes, cut files, killed writers, full disks."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from segtrain import checkpoint
from segtrain.errors import CheckpointError, ResourceError

ROOT = Path(__file__).parents[1]


def state() -> dict[str, Any]:
    """Every kind of value that a trainer puts in."""
    generator = torch.Generator().manual_seed(3)
    return {
        "model": {
            "weight": torch.randn(8, 3, 3, 3, generator=generator),
            "half": torch.randn(7, generator=generator).bfloat16(),
            "turned": torch.randn(4, 6, generator=generator).t(),
            "count": torch.tensor(5),
            "empty": torch.empty(0, 2),
            "mask": torch.tensor([True, False]),
        },
        "optimizer": {"state": {0: {"step": torch.tensor(2.0)}, 1: {}}, "param_groups": [{"lr": 0.1, "betas": (0, 1)}]},
        "ema": None,
        "config": {"data": {"classes": ["a", "ä"], "limit": None}, "lr": 1e-3, "on": True},
        "best": {"miou": 0.5, "iou": {"a": float("nan")}},
        "step": 7,
    }


def same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, torch.Tensor):
        return mine.dtype == theirs.dtype and mine.shape == theirs.shape and torch.equal(mine, theirs)
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, list | tuple):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    return type(mine) is type(theirs) and (mine == theirs or mine != mine)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.pt"
    checkpoint.save(path, state())
    return path


def test_what_was_saved_comes_back_with_its_types_and_bits(file: Path) -> None:
    loaded = checkpoint.load(file)
    assert loaded["sha256"] == checkpoint.digest({**state(), "format": checkpoint.FORMAT})
    del loaded["format"], loaded["sha256"]
    assert same(state(), loaded)
    assert sorted(path.name for path in file.parent.iterdir()) == ["last.pt"]


def test_one_flipped_bit_in_any_tensor_is_noticed(file: Path, tmp_path: Path) -> None:
    content, damaged = file.read_bytes(), tmp_path / "damaged.pt"
    with zipfile.ZipFile(file) as archive:
        stored = {entry: archive.read(entry) for entry in archive.infolist() if "/data/" in entry.filename}
    assert len([data for data in stored.values() if data]) == 6
    for entry, data in stored.items():
        start = content.index(data, entry.header_offset + 30 + len(entry.filename))
        for offset in {0, len(data) // 2, len(data) - 1} if data else ():
            flipped = bytearray(content)
            flipped[start + offset] ^= 1
            damaged.write_bytes(flipped)
            with pytest.raises(CheckpointError, match="damaged") as caught:
                checkpoint.load(damaged)
            assert caught.value.where == str(damaged)


def test_any_damaged_byte_is_refused_or_harmless(file: Path, tmp_path: Path) -> None:
    """Headers and pickled numbers too: the answer is one of our errors, or the very same state (padding, dates)."""
    content, damaged = file.read_bytes(), tmp_path / "damaged.pt"
    rng, refused = random.Random(0), 0
    for _ in range(250):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= rng.randrange(1, 256)
        damaged.write_bytes(flipped)
        try:
            loaded = checkpoint.load(damaged)
        except CheckpointError:
            refused += 1
        else:
            assert same(state(), {key: loaded[key] for key in state()})
    assert refused > 50


@pytest.mark.parametrize(
    ("found", "content"),
    [
        ("damaged", b""),
        ("", b"not a checkpoint at all" * 100),
        ("", pickle.dumps({"model": 1}, protocol=0)),
        ("", b"PK\x03\x04" + b"\0" * 200),
    ],
)
def test_files_that_are_no_checkpoints_are_refused_with_their_path(tmp_path: Path, found: str, content: bytes) -> None:
    path = tmp_path / "strange.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert caught.value.code == 4
    assert str(path) in str(caught.value)
    assert found in caught.value.found
    assert caught.value.fix


def test_a_file_cut_anywhere_is_refused(file: Path) -> None:
    content = file.read_bytes()
    for share in (0.01, 0.3, 0.6, 0.9, 0.999):
        file.write_bytes(content[: int(share * len(content))])
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load(file)
        assert caught.value.where == str(file)


class Payload:
    """Pickles to a call of `os.mkdir`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_inside_a_file_is_not_run(tmp_path: Path, zipped: bool) -> None:
    path, trap = tmp_path / "evil.pt", tmp_path / "trap"
    torch.save({"format": 1, "sha256": "", "model": Payload(trap)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert "cannot be read as plain weights" in caught.value.found
    assert str(path) in str(caught.value)
    assert not trap.exists()


def test_missing_foreign_and_newer_files_are_told_apart(tmp_path: Path) -> None:
    plain, newer, listed = tmp_path / "plain.pth", tmp_path / "newer.pt", tmp_path / "list.pt"
    torch.save({"weight": torch.ones(2)}, plain)
    torch.save({"format": 99, "sha256": "x"}, newer)
    torch.save([1, 2], listed)
    expected = {
        tmp_path / "gone.pt": "no such file",
        tmp_path: "no such file",
        plain: "not a segtrain checkpoint",
        newer: "format 99, written by a segtrain version that it does not name, is newer",
        listed: "holds a list",
    }
    for path, text in expected.items():
        with pytest.raises(CheckpointError, match=text) as caught:
            checkpoint.load(path)
        assert caught.value.where == str(path)
    assert torch.equal(checkpoint.read(plain)["weight"], torch.ones(2))


def python(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from segtrain import checkpoint
from segtrain.atomic import remove_leftovers

def write(path, number, pipe):
    while True:
        number += 1
        # Many tensors, each too small for torch's threads, which do not survive a fork.
        checkpoint.save(path, {"step": number, "model": [torch.full((20_000,), float(number)) for _ in range(25)]})
        os.write(pipe, f"{number}\\n".encode())

path, delays, step = Path(sys.argv[1]), random.Random(1), 0
for _ in range(5):
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        write(path, step, send)
    os.close(send)
    lines = os.fdopen(receive)
    lines.readline()
    time.sleep(delays.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    reported = max([step + 1, *map(int, lines.read().split())])
    loaded = checkpoint.load(path)
    step = loaded["step"]
    assert step in (reported, reported + 1), (step, reported)
    assert all((tensor == step).all() for tensor in loaded["model"])
remove_leftovers(path.parent)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked writers")
def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    killer = python(KILLED, tmp_path / "last.pt")
    _, errors = killer.communicate()
    assert (killer.returncode, errors) == (0, "")
    assert checkpoint.load(tmp_path / "last.pt")["step"] >= 5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from segtrain import checkpoint
from segtrain.errors import ResourceError
path = Path(sys.argv[1])
checkpoint.save(path, {"step": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    checkpoint.save(path, {"step": 2, "model": torch.zeros(2**20)})
except ResourceError as error:
    print(error)
    sys.exit(error.code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
def test_a_full_disk_keeps_the_old_file_and_says_what_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    writer = python(FULL, path)
    said, errors = writer.communicate()
    assert (writer.returncode, errors) == (6, "")
    assert "needs 4.0 MiB" in said
    assert "MiB are free" in said
    assert str(path) in said
    assert "hydra.run.dir" in said
    assert checkpoint.load(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_folder_that_cannot_be_made_on_a_full_disk_is_reported_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(self: Path, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", no_space)
    with pytest.raises(ResourceError, match="disk full"):
        checkpoint.save(tmp_path / "new" / "checkpoints" / "last.pt", {"step": 1})


def test_a_file_in_the_folders_place_is_reported(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(ResourceError, match="cannot be written") as caught:
        checkpoint.save(tmp_path / "checkpoints" / "last.pt", {"step": 1})
    assert caught.value.code == 6
    assert str(tmp_path / "checkpoints" / "last.pt") in str(caught.value)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_beside(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(file, {"step": 8})
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["last.pt"]


def test_the_content_reaches_the_disk_before_the_old_file_goes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fsync before the rename a power cut may leave an empty file under the final name."""
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (calls.append("replace"), replace(self, to))[1])
    checkpoint.save(file, {"step": 8})
    assert calls[:2] == ["fsync", "replace"]


def test_only_the_checkpoint_module_reads_or_writes_pickles() -> None:
    offenders = []
    for path in sorted((ROOT / "segtrain").rglob("*.py")):
        if path.name == "checkpoint.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            banned = {"torch.load", "torch.save", "torch.serialization", "pickle", "dill", "joblib", "shelve"}
            loading = {"torch.hub.load_state_dict_from_url", "torch.hub.load"}
            offenders += [f"{path}:{node.lineno} {name}" for name in names if name in banned | loading]
    assert offenders == []


def test_the_digest_of_plain_data_is_that_of_their_json() -> None:
    """Numbers have a shorter way into it: checkpoints of before must keep their digests."""
    values = [0.1, -0.0, 1e300, 5e-324, 1e16, 1.0, math.nan, -math.inf, 7, -(2**70), True, None, "é\n\ud800", ""]
    text = f"a\nlist {len(values)}\n" + "".join(f"{json.dumps(value)}\n" for value in values)
    text += "b\ndict 2\n'x'\n2.5\n'y'\nlist 0\n"
    numbers = torch.arange(3, dtype=torch.int16)
    whole = hashlib.sha256(text.encode() + b"c\ntensor torch.int16 (3,)\n" + numbers.numpy().tobytes() + b"d\n1\n")
    state = {"d": 1, "c": numbers, "b": {"y": (), "x": 2.5}, "a": values, "sha256": "left out"}
    assert checkpoint.digest(state) == whole.hexdigest()
