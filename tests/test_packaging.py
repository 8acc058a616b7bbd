"""The wheel: built, installed and run from an empty folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this source tree without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("segtrain-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in a folder of its own."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_holds_the_package_and_its_configs_and_no_more(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"segtrain"}
    assert not [name for name in names if name.endswith((".pyc", ".pt", ".png"))]
    packed = {name.removeprefix("segtrain/") for name in names if name.startswith("segtrain/configs/")}
    assert packed == {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    code = {name for name in names if name.startswith("segtrain/") and name.endswith(".py")}
    assert code == {path.relative_to(ROOT).as_posix() for path in (ROOT / "segtrain").rglob("*.py")}


def test_the_installed_package_trains_from_an_empty_folder(
    program: Any, installed: Path, fast: list[str], tmp_path: Path
) -> None:
    shown = program("--cfg", "job", cwd=tmp_path, PYTHONPATH=str(installed))
    assert shown.code == 0, shown.err
    assert "_target_: segtrain.models.unet.UNet" in shown.out
    where = "import segtrain, segtrain.composition as c; print(segtrain.__file__, c.config_dir())"
    found = program(cwd=tmp_path, python=("-c", where), PYTHONPATH=str(installed)).out.split()
    assert found == [str(installed / "segtrain" / "__init__.py"), str(installed / "segtrain" / "configs")]
    done = program(*fast, "hydra.run.dir=run", cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "checkpoints" / "best.pt").is_file()
