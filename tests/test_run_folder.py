"""One folder per run, swept of what a killed run left, with the command that goes on with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from segtrain.composition import run_id
from segtrain.run_folder import RunFolder


def test_run_ids_of_one_second_differ() -> None:
    """Four hexadecimal digits: of twenty runs at once, as good as never fewer than nineteen different ones."""
    assert len({run_id() for _ in range(20)}) >= 19


def test_half_written_files_of_a_killed_run_are_swept_away_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    swept = [tmp_path / ".config.yaml.7.tmp", tmp_path / "checkpoints" / ".last.pt.7.tmp"]
    kept = [tmp_path / "notes.tmp", tmp_path / ".hidden", tmp_path / "checkpoints" / "last.pt"]
    for path in [*swept, *kept]:
        path.write_text("x")
    RunFolder("train", tmp_path, []).describe(OmegaConf.create({"a": 1}), {}, "cpu")
    assert not any(path.exists() for path in swept)
    assert all(path.read_text() == "x" for path in kept)


def test_the_lock_names_the_command_that_holds_it(tmp_path: Path) -> None:
    folder = RunFolder("train", tmp_path, ["data=pet", "name=my run"], ["--config-dir=conf"])
    with folder.held(print):
        content = (tmp_path / "run.lock").read_text()
    assert "python -m segtrain train --config-dir=conf data=pet 'name=my run'" in content


def test_the_lock_falls_when_the_run_fails(tmp_path: Path) -> None:
    folder = RunFolder("train", tmp_path, [])
    with pytest.raises(RuntimeError, match="of the run"), folder.held(print):
        raise RuntimeError("of the run")
    assert list(tmp_path.iterdir()) == []
    assert folder.path == tmp_path
