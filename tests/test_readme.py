"""The README does what it says: commands compose, names exist, errors are real, and CI runs the same commands."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

import segtrain
from segtrain import errors
from segtrain.__main__ import split_command
from segtrain.clashes import refuse_clashes
from segtrain.composition import COMMANDS, compose, groups, leaf_keys
from segtrain.data.scan import scan
from segtrain.errors import ConfigError, DataError, SegtrainError
from segtrain.experiment import build_dataset, build_model
from segtrain.models.backbones.build import BACKBONES
from segtrain.models.summary import measure
from segtrain.overlay import lay_over, split_overrides
from segtrain.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INSTALL_AND_TEST = "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/pytest -n 2"
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROSE = FENCED.sub("", README)
FLAGS = {"--multirun", "-m", "--help", "--cfg", "job"}


def blocks(language: str) -> list[str]:
    return [content for kind, content in FENCED.findall(README) if kind == language]


def program_lines() -> list[str]:
    """What follows `-m segtrain` in shell blocks, in inline code and in the examples of `--help`."""
    shell = [command for block in blocks("bash") for line in block.splitlines() for command in line.split(" && ")]
    candidates = [*shell, *re.findall(r"`([^`\n]+)`", PROSE)]
    return [line.split("-m segtrain", 1)[1].strip() for line in candidates if "-m segtrain" in line]


def section(heading: str) -> str:
    return re.split(r"^## ", PROSE.split(f"\n## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def table(heading: str) -> list[list[str]]:
    """Cells of the section's tables, without their head rows."""
    rows = [line for line in section(heading).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    rules = [i for i, row in enumerate(cells) if set("".join(row)) <= set("-:")]
    return [row for i, row in enumerate(cells) if i not in rules and i + 1 not in rules]


def model_rows() -> list[list[str]]:
    """The table of models, without that of the several scales."""
    return [row for row in table("Models") if len(row) == 7]


def quoted(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def jobs(words: list[str]) -> Iterator[list[str]]:
    """Each combination of `a,b` values, as --multirun makes them."""
    parser = OverridesParser.create()
    choices = []
    for word in words:
        override = parser.parse_override(word) if "=" in word else None
        swept = override is not None and override.is_sweep_override()
        choices.append([f"{override.key_or_group}={v}" for v in override.sweep_string_iterator()] if swept else [word])
    return (list(job) for job in itertools.product(*choices))


def check_line(line: str) -> None:
    """Composes a command line and checks it against the signatures, as the program does before it reads data."""
    words = [word for word in shlex.split(line) if word not in FLAGS]
    command, rest = split_command(words)
    for job in jobs(rest):
        if command == "train":
            refuse_clashes(Settings(compose(job)))
            continue
        cfg: Any = OmegaConf.to_container(compose(split_overrides(command, job), command))
        if command == "compare":
            assert len(cfg["runs"]) >= 2
            continue
        base = compose([] if cfg["checkpoint"] else ["data=voc"])
        plain: Any = OmegaConf.to_container(base, resolve=False)
        Settings(lay_over(plain, cfg.get("over") or {}, cfg.get("choices") or {}))


def test_the_words_for_a_grey_network_are_all_that_it_needs() -> None:
    (words,) = (text for text in re.findall(r"`([^`\n]+)`", section("Your own data")) if "data.channels=1" in text)
    check_line(words)
    for word in shlex.split(words)[1:]:
        with pytest.raises(ConfigError):
            check_line(words.replace(f"'{word}'", ""))


LINES = sorted({line for line in program_lines() if "--config-dir" not in line})


def test_the_readme_has_command_lines_for_every_command() -> None:
    assert {split_command([w for w in shlex.split(line) if w not in FLAGS])[0] for line in LINES} == set(COMMANDS)
    assert "" in LINES, "the first run has no arguments"


@pytest.mark.parametrize("line", LINES)
def test_every_command_line_composes_and_passes_the_checks(line: str) -> None:
    check_line(line)


@pytest.mark.parametrize(
    "line",
    [
        "modle=unet",
        "experiment=unet_pets",
        "optimizer.lr=-1",
        "--multirun loss=ce,cee",
        "evaluate checkpoint=x infrence.flip=true",
        "predict input=a.jpg model=unett",
    ],
)
def test_a_wrong_command_line_would_be_found(line: str) -> None:
    with pytest.raises(ConfigError):
        check_line(line)


@pytest.mark.parametrize(("heading", "group"), [("Datasets", "data"), ("Models", "model"), ("Losses", "loss")])
def test_a_table_names_every_option_of_its_group_and_no_other(heading: str, group: str) -> None:
    rows = [*model_rows(), *table("Numbers you can cite")[7:]] if heading == "Models" else table(heading)
    named = [name for row in rows for name in sorted(quoted(row[0]))]
    assert sorted(named) == groups()[group]


def test_the_config_map_names_every_group_and_option() -> None:
    rows = {row[0].strip("`"): row[1] for row in table("The config map")}
    assert sorted(rows) == sorted(groups())
    for group, options in groups().items():
        if "see [" not in rows[group]:
            assert sorted(quoted(rows[group])) == options, group


def all_keys() -> set[str]:
    """Every dotted key that some file of a group has."""
    files = [file for group in groups() for file in (ROOT / "configs" / group).glob("*.yaml")]
    return {f"{file.parent.name}.{key}" for file in files for key in leaf_keys(yaml.safe_load(file.read_text()))}


def test_every_config_key_that_is_named_exists() -> None:
    tops = "|".join(groups())
    named = set(re.findall(rf"`((?:{tops})\.[a-z_]+(?:\.[a-z_]+)*)(?==|`)", PROSE))
    files = {name for name in named if name.rsplit(".", 1)[-1] in ("py", "yaml", "pt")}
    assert len(named) > 30
    assert named - files - all_keys() == set()


def test_every_backbone_is_named() -> None:
    sentence = next(line for line in section("Models").splitlines() if line.startswith("`model.backbone` is"))
    assert quoted(sentence) - {"model.backbone", "pip install -e '.[timm]'", "timm/NAME"} == set(BACKBONES)


@pytest.mark.parametrize("row", model_rows(), ids=lambda row: row[0].strip("`"))
def test_parameters_multiplications_and_strides_are_right(row: list[str]) -> None:
    with torch.device("meta"):
        model = build_model(compose(["data=voc", f"model={row[0].strip('`')}"]))
    cost = measure(model, (512, 512), 3)
    # torchvision's FCN does not say its own; a detector has several.
    stride = getattr(model, "output_stride", "" if hasattr(model, "roi_heads") else 8)
    assert row[2:5] == [f"{cost.parameters / 1e6:.1f} M", f"{cost.gmacs:.1f}", str(stride)]


def test_the_map_of_the_code_names_every_file_and_folder_once() -> None:
    package = ROOT / "segtrain"
    named = [name for row in table("Map of the code") for name in re.findall(r"`([^`]+)`", row[0])]
    there = [path.name for path in package.glob("*.py") if path.name != "__init__.py"]
    there += [f"{path.parent.name}/" for path in package.glob("*/__init__.py")]
    assert sorted(named) == sorted(there)


def test_the_exit_codes_are_those_of_the_errors() -> None:
    named = {int(code) for row in table("Exit codes") for code in row[0].split(",")}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SegtrainError)]
    signals = {errors.Interrupted("", signal=number).code for number in (2, 15)}
    assert named == {0} | {kind.code for kind in kinds} | signals


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_inside_the_repository_lead_somewhere(name: str) -> None:
    text = FENCED.sub("", (ROOT / name).read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if link not in anchors and not (ROOT / link.split("#")[0]).is_file()] == []


@pytest.fixture
def cracks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data of "Your own data": `cracks/images`, and `cracks/masks` of 0 and 255."""
    monkeypatch.chdir(tmp_path)
    mask = np.zeros((48, 64), np.uint8)
    mask[10:30, 20:40] = 255
    for folder in ("images", "masks"):
        (tmp_path / "cracks" / folder).mkdir(parents=True)
    for number in range(12):
        Image.fromarray(np.full((48, 64, 3), 20 * number, np.uint8)).save(f"cracks/images/{number:02}.jpg")
        Image.fromarray(mask).save(f"cracks/masks/{number:02}.png")
    return tmp_path / "cracks"


def own_data(*without: str) -> list[str]:
    line = next(line for line in LINES if line.startswith("data=folder"))
    return [word for word in shlex.split(line) if not word.startswith(without or ("-",))]


def test_the_own_data_command_reads_such_data(cracks: Path) -> None:
    counted = [scan(build_dataset(compose(own_data()), split)) for split in ("train", "val")]
    assert [found.images for found in counted] == [10, 2]
    assert [round(100 * share, 1) for share in counted[0].shares()] == [87.0, 13.0]


@pytest.mark.parametrize("fault", ["no label map", "a lone image"])
def test_the_errors_shown_are_what_is_said(cracks: Path, fault: str) -> None:
    if fault == "a lone image":
        (cracks / "masks" / "03.png").unlink()
    with pytest.raises(DataError) as raised:
        scan(build_dataset(compose(own_data("data.label_map")), "train"))
    assert f"{raised.value}\n" in blocks("text")


def run(words: list[str], folder: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(place) for place in (ROOT, *paths))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_python_example_runs_as_printed(tmp_path: Path) -> None:
    (example,) = blocks("python")
    result = run(["-c", example], tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"0\.\d+ \{.*\}", result.stdout.splitlines()[-1])


OWN = {
    "mypkg/__init__.py": "",
    "mypkg/net.py": """
from torch import nn
from segtrain.models.segmentation import SegmentationModel

class MyNet(SegmentationModel):
    def __init__(self, *, num_classes: int, in_channels: int = 3, width: int = 16) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.layers = nn.Sequential(nn.Conv2d(in_channels, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, num_classes, 1))

    def logits(self, image):
        return {"out": self.layers(image)}
""",
    "mypkg/loss.py": """
import torch
from segtrain.losses.pixel import PixelLoss

class Poly(PixelLoss):
    def __init__(self, *, epsilon: float = 1.0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def total(self, logits, target):
        entropies = self.cross_entropies(logits, target)
        return ((entropies + self.epsilon * (1 - torch.exp(-entropies))) * self.pixel_weights(target)).sum()
""",
    "mypkg/data.py": """
from segtrain.data.dataset import SegmentationDataset
from segtrain.types import Record

class MyData(SegmentationDataset):
    def find_records(self):
        images = sorted((self.root / self.split).glob("*.jpg"))
        return [Record(image.stem, image, image.with_suffix(".png")) for image in images]
""",
    "mypkg/task.py": """
from segtrain.tasks.semantic import SemanticMeter, SemanticTask

class MyMeter(SemanticMeter):
    def scores(self):
        scores = super().scores()
        return {**scores, "worst_iou": min(scores["iou"].values())}

class MyTask(SemanticTask):
    monitors = {**SemanticTask.monitors, "worst_iou": True}

    def meter(self):
        return MyMeter(self)
""",
    "myconf/model/mynet.yaml": "defaults: [_model, _self_]\n_target_: mypkg.net.MyNet\nwidth: 8\n",
    "myconf/data/mydata.yaml": "defaults: [_files, _self_]\n_target_: mypkg.data.MyData\nclasses: [dark, light]\n",
    "myconf/task/mytask.yaml": "_target_: mypkg.task.MyTask\n",
}


def test_the_four_recipes_for_parts_of_your_own_work_together(tmp_path: Path) -> None:
    loss = (ROOT / "configs" / "loss" / "ce.yaml").read_text()
    term = "_target_: segtrain.losses.pixel.CrossEntropy, weight: 1.0, label_smoothing: 0.0"
    assert term in loss
    files = {**OWN, "myconf/loss/myloss.yaml": loss.replace(term, "_target_: mypkg.loss.Poly, weight: 1.0")}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    mask = (np.arange(40) // 8 % 2).astype(np.uint8)[None].repeat(40, 0)
    for split in ("train", "val"):
        (tmp_path / "stripes" / split).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(mask * 200).convert("RGB").save(tmp_path / "stripes" / split / f"{number}.jpg")
            Image.fromarray(mask).save(tmp_path / "stripes" / split / f"{number}.png")
    (line,) = (line for line in program_lines() if "--config-dir" in line)
    more = ["data.root=stripes", "data.crop_size=32", "trainer.monitor=worst_iou", "debug=fast", "hydra.run.dir=run"]
    result = run(["-m", "segtrain", *shlex.split(line), *more], tmp_path, tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^model +MyNet", result.stdout, re.MULTILINE)
    assert re.search(r"^data +MyData +2 classes", result.stdout, re.MULTILINE)
    scores = yaml.safe_load((tmp_path / "run" / "metrics.json").read_text())
    assert scores["monitor"] == "worst_iou"
    assert scores["worst_iou"] == min(scores["iou"].values())
    record = yaml.safe_load((tmp_path / "run" / "metrics.jsonl").read_text())
    assert set(record["train"]) == {"ce", "loss", "unlabelled"}


def test_the_install_and_test_line_is_the_same_everywhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        assert INSTALL_AND_TEST in (ROOT / name).read_text(encoding="utf-8"), name


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """`.ci/run` beside an environment whose programs write down how they were called; `FAIL` in a name's file fails."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text())
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "pip", "ruff", "mypy", "lint-imports", "pytest"):
        stub = programs / name
        stub.write_text(
            '#!/bin/sh\ncd "$(dirname "$0")/../.."\necho "$(basename "$0") $* in $OLDPWD" >> calls\n'
            f'case "{name} $*" in "$FAIL") exit "$CODE";; esac\n'
        )
        stub.chmod(0o755)
    return tmp_path


def run_ci(clone: Path, fail: str = "", code: int = 1) -> tuple[int, list[str], str]:
    """Exit code, calls and output of `.ci/run`, started from another folder."""
    environment = {**os.environ, "FAIL": fail, "CODE": str(code)}
    result = subprocess.run(
        ["bash", str(clone / ".ci" / "run")], cwd="/", env=environment, capture_output=True, text=True
    )
    calls = (clone / "calls").read_text().splitlines() if (clone / "calls").exists() else []
    return result.returncode, calls, result.stdout


CI_STEPS = [
    "pip install -e .[dev]",
    "ruff check .",
    "ruff format --check .",
    "mypy ",
    "lint-imports --no-cache",
    "pytest -n 2",
    "pytest -n 2 -m slow and not gpu",
]


def test_ci_runs_the_readme_commands_and_every_check_from_any_folder(clone: Path) -> None:
    code, calls, output = run_ci(clone)
    assert code == 0
    assert calls == [f"{step} in {clone}" for step in CI_STEPS]
    for command in INSTALL_AND_TEST.split(" && ")[1:]:
        assert f"+ {command.replace(chr(39), '')}" in output


@pytest.mark.parametrize("step", CI_STEPS)
def test_ci_stops_at_the_first_failure(clone: Path, step: str) -> None:
    code, calls, output = run_ci(clone, fail=step)
    assert code == 1
    assert len(calls) == CI_STEPS.index(step) + 1
    assert "all checks passed" not in output


def test_ci_passes_where_no_test_is_slow_but_not_where_no_test_is_found_at_all(clone: Path) -> None:
    assert run_ci(clone, fail="pytest -n 2 -m slow and not gpu", code=5)[0] == 0
    assert run_ci(clone, fail="pytest -n 2", code=5)[0] == 5


def test_the_workflow_calls_the_script_on_the_oldest_and_newest_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert job["timeout-minutes"] <= 90


def test_version_and_license_are_the_same_in_every_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    releases = re.findall(r"^## \[(\d\S*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation["version"] == releases[0][0] == segtrain.__version__
    assert citation["date-released"] == releases[0][1]
    assert citation["license"] == "Apache-2.0"
    # The digest of https://www.apache.org/licenses/LICENSE-2.0.txt: the license, word for word.
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
