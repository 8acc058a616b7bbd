"""The house keeps its floors: imports point down, `__init__.py` is empty, and some calls live in one place only."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "segtrain"
MODULES = sorted(PACKAGE.rglob("*.py"))
SAME_IMAGES = {
    "segtrain.data.instances.penn_fudan": "segtrain.data.penn_fudan",
    "segtrain.data.instances.shapes_instances": "segtrain.data.shapes",
}
"""Datasets whose images another one finds or draws, by that one."""
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc"}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the package in `folder`, by the contracts in its pyproject.toml."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def contracts() -> list[dict[str, Any]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return settings["tool"]["importlinter"]["contracts"]  # type: ignore[no-any-return]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its contracts, to break."""
    shutil.copytree(PACKAGE, tmp_path / "segtrain", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def append(file: Path, line: str) -> None:
    """Puts an import into a function at the end: a late import counts like one at the top."""
    with file.open("a") as source:
        source.write(f"\n\ndef _late() -> None:\n    {line}\n")


def test_imports_only_point_down() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("ema.py", "from segtrain.trainer import Trainer", "segtrain.ema -> segtrain.trainer"),
        (
            "losses/base.py",
            "from segtrain.metrics import confusion",
            "segtrain.losses.base -> segtrain.metrics.confusion",
        ),
        ("data/voc.py", "from segtrain.data.pet import Pet", "segtrain.data.voc -> segtrain.data.pet"),
        (
            "models/unet.py",
            "from segtrain.models.fcn import FCNTorchvision",
            "segtrain.models.unet -> segtrain.models.fcn",
        ),
        ("evaluator.py", "import omegaconf", "segtrain.evaluator -> omegaconf"),
        ("checkpoint.py", "from hydra import compose", "segtrain.checkpoint -> hydra"),
        (
            "commands/train.py",
            "from segtrain.commands import predict",
            "segtrain.commands.train -> segtrain.commands.predict",
        ),
    ],
)
def test_an_import_that_points_elsewhere_is_refused_by_name(copy: Path, file: str, line: str, broken: str) -> None:
    append(copy / "segtrain" / file, line)
    result = lint(copy)
    assert result.returncode == 1, result.stdout
    assert broken in result.stdout


def test_a_new_module_must_be_given_a_floor(copy: Path) -> None:
    (copy / "segtrain" / "attic.py").write_text('"""Nobody said where this belongs."""\n')
    result = lint(copy)
    assert result.returncode != 0
    assert "attic" in result.stdout + result.stderr


def test_every_floor_below_the_config_is_kept_from_hydra() -> None:
    layers = next(contract["layers"] for contract in contracts() if contract["type"] == "layers")
    below = [name for layer in layers[layers.index("composition") + 1 :] for name in layer.split(" | ")]
    kept = next(contract["source_modules"] for contract in contracts() if contract["type"] == "forbidden")
    assert sorted(kept) == sorted(f"segtrain.{name}" for name in below)


@pytest.mark.parametrize("group", ["data", "models"])
def test_every_dataset_and_model_file_that_a_config_names_is_independent(group: str) -> None:
    node = {"data": "data", "models": "model"}[group]
    named = set()
    for file in (ROOT / "configs" / node).glob("*.yaml"):
        target = yaml.safe_load(file.read_text()).get("_target_", "")
        if target.startswith("segtrain."):
            named.add(target.rsplit(".", 1)[0])
    declared = next(set(c["modules"]) for c in contracts() if f"segtrain.{group}." in "".join(c.get("modules", [])))
    assert named, f"no config of {node} names a target"
    assert declared == named - SAME_IMAGES.keys()


def test_a_dataset_that_knows_another_knows_the_one_of_the_same_images_alone() -> None:
    declared = next(set(c["modules"]) for c in contracts() if "segtrain.data.voc" in c.get("modules", []))
    for module, base in SAME_IMAGES.items():
        source = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        imported = {node.module for node in ast.walk(source) if isinstance(node, ast.ImportFrom)}
        assert imported & {*declared, *SAME_IMAGES} == {base}


def statements(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text()).body


@pytest.mark.parametrize("file", [f for f in MODULES if f.name == "__init__.py"], ids=lambda f: f.parent.name)
def test_init_files_hold_a_docstring_and_nothing_else(file: Path) -> None:
    first, *rest = statements(file)
    assert isinstance(first, ast.Expr)
    assert isinstance(ast.literal_eval(first.value), str)
    if file.parent == PACKAGE:
        assert [ast.unparse(node).split(" = ")[0] for node in rest] == ["__version__"]
    else:
        assert rest == []


def test_every_folder_of_modules_is_a_package() -> None:
    assert [file.parent for file in MODULES if not (file.parent / "__init__.py").is_file()] == []


def test_no_file_or_folder_has_a_name_that_says_nothing() -> None:
    places = [path.relative_to(ROOT) for top in ("segtrain", "scripts", "tests") for path in (ROOT / top).rglob("*")]
    assert [path for path in places if path.stem.lower().lstrip("_") in NAMELESS] == []


def calls(file: Path) -> list[str]:
    """Dotted names of everything that is called in a file."""
    nodes = ast.walk(ast.parse(file.read_text()))
    return [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]


def test_only_the_checkpoint_module_loads_and_saves() -> None:
    named = {
        "torch.load",
        "torch.save",
        "torch.jit.load",
        "torch.jit.save",
        "pickle.load",
        "pickle.loads",
        "pickle.dump",
    }
    found = {file.relative_to(PACKAGE).as_posix() for file in MODULES if named & set(calls(file))}
    assert found == {"checkpoint.py"}


def test_torch_loads_weights_only() -> None:
    tree = ast.parse((PACKAGE / "checkpoint.py").read_text())
    loads = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"]
    assert loads
    for load in loads:
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in load.keywords}
        assert options.get("weights_only") == "True", f"line {load.lineno} would run code from a file"


def test_nothing_prints_past_the_tracker() -> None:
    assert [file.relative_to(PACKAGE).as_posix() for file in MODULES if {"print", "pprint"} & set(calls(file))] == []


def test_no_error_is_passed_over_in_silence() -> None:
    found = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}"
        for file in MODULES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ExceptHandler) and [type(line) for line in node.body] == [ast.Pass]
    ]
    assert found == []


def test_experiments_are_short_and_say_what_they_are() -> None:
    files = sorted((ROOT / "configs" / "experiment").glob("*.yaml"))
    assert files
    for file in files:
        lines = file.read_text().splitlines()
        assert len(lines) <= 25, f"{file.name} has {len(lines)} lines"
        assert lines[0] == "# @package _global_", file.name
        assert lines[1].startswith("# "), f"{file.name} does not say what it is"


def test_the_top_level_holds_nothing_new() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    tops = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    known = {"configs", "segtrain", "scripts", "tests", "outputs", "pyproject.toml"}
    usual = {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "SECURITY.md"}
    assert {top for top in tops if not top.startswith(".")} - usual <= known
