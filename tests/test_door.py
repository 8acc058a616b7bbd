"""The program as a whole: exit codes, error blocks, help and the run folder."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shlex
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from segtrain.composition import COMMANDS, groups

# --- as its own process ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "block"),
    [
        ("epoch=3", 2, ["error[config] there is no config key 'epoch'", "did you mean trainer.epochs?"]),
        ("data=voc data.root=/nowhere", 3, ["error[data]", "where     /nowhere", "VOCdevkit/VOC2012", "fix"]),
        ("evaluate checkpoint=/nowhere/best.pt", 4, ["error[checkpoint] no such file", "/nowhere/best.pt", "fix"]),
    ],
)
def test_faults_of_the_user_end_in_one_block_and_a_code(
    program: Any, tmp_path: Path, argv: str, code: int, block: list[str]
) -> None:
    done = program(*argv.split(), cwd=tmp_path)
    assert done.code == code, done.err
    assert done.err.startswith("error["), "nothing comes before the block"
    assert "Traceback" not in done.err
    for part in block:
        assert part in done.err


def test_a_run_of_its_own_prints_every_file_it_wrote(trained: Any) -> None:
    lines = dict(
        line.split(": ", 1) for line in trained.done.out.splitlines() if re.match(r"^(best|last|metrics): ", line)
    )
    relative = trained.folder.relative_to(trained.cwd)
    assert lines["metrics"] == str(relative / "metrics.json")
    assert lines["last"] == str(relative / "checkpoints" / "last.pt")
    assert lines["best"].split()[0] == str(relative / "checkpoints" / "best.pt")
    assert trained.done.err == ""


def test_the_run_folder_has_what_is_needed_to_repeat_the_run(trained: Any, fast: list[str]) -> None:
    folder = trained.folder
    assert re.fullmatch(
        r"outputs/train/shapes_unet_small/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-[0-9a-f]{4}",
        folder.relative_to(trained.cwd).as_posix(),
    )
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "overrides.txt",
        "env.json",
        "metrics.jsonl",
        "metrics.json",
        "train.log",
        "tb",
        "checkpoints",
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.pt", "last.pt"}
    assert list((folder / "tb").glob("events.out.tfevents.*"))
    overrides = (folder / "overrides.txt").read_text().splitlines()
    assert overrides == [*fast, "trainer.tensorboard=true", "trainer.samples=1"]
    assert json.loads((folder / "env.json").read_text())["versions"]["torch"] == version("torch")
    log = iter((folder / "train.log").read_text().splitlines())
    assert all(line in log for line in trained.done.out.splitlines()), "every console line, in order"
    assert [path.name for path in trained.cwd.iterdir()] == ["outputs"], "nothing is written beside outputs/"


IMPORTED = """
import sys
from segtrain.__main__ import run
code = run(sys.argv[1:])
loaded = {name.split(".")[0] for name in sys.modules}
heavy = sorted(loaded & {"torch", "torchvision", "cv2", "albumentations", "numpy"})
print("HEAVY", code, heavy)
"""


@pytest.mark.parametrize(
    "argv", ["--help", "train --help", "--version", "--cfg job", "evaluate --cfg job", "modle=unet"]
)
def test_nothing_heavy_is_imported_before_a_run(program: Any, tmp_path: Path, argv: str) -> None:
    done = program(*argv.split(), cwd=tmp_path, python=("-c", IMPORTED))
    assert done.out.splitlines()[-1] == f"HEAVY {2 if '=' in argv else 0} []", done.err
    assert list(tmp_path.iterdir()) == []


# --- in this process ---------------------------------------------------------------------------------------------

REFUSED = [
    # argv, code, what the block must say
    ("trian", 2, "error[config] there is no command 'trian'|did you mean train?"),
    ("optimizer.lr=-1", 2, "error[config] optimizer.lr=-1|greater than 0"),
    ("modle=unet", 2, "there is no config key 'modle'|did you mean model?"),
    ("model=unett", 2, "there is no 'unett' in the group 'model'|did you mean model=unet?|lraspp"),
    ("experiment=unet_pett", 2, "did you mean experiment=unet_pet?"),
    ("+trainer.epohcs=3", 2, "trainer.epohcs is not a key|did you mean trainer.epochs?"),
    ("+optimizr.lr=3", 2, "there is no config key optimizr|did you mean optimizer?"),
    ("+augment.crop_sise=3", 2, "'augment.crop_sise'|did you mean augment.crop_size?"),
    ("trainer.epochs=abc", 2, "trainer.epochs=abc|integer"),
    ("trainer.epochs=true", 2, "trainer.epochs=true|integer"),
    ("trainer.epochs=1.5", 2, "trainer.epochs=1.5|integer"),
    ("trainer.epochs=0", 2, "trainer.epochs=0|greater than 0"),
    ("optimizer.lr='1e-3'", 2, "optimizer.lr=1e-3|number"),
    ("optimizer.lr=inf", 2, "optimizer.lr=Infinity|finite"),
    ("optimizer.lr=nan", 2, "optimizer.lr=NaN"),
    ("optimizer.backbone_lr_mult=-0.1", 2, "optimizer.backbone_lr_mult=-0.1|greater than or equal to 0"),
    ("data.batch_size=null", 2, "data.batch_size=null|integer"),
    ("trainer.amp=of", 2, "'off'|did you mean trainer.amp=off?"),
    ("trainer.on_nonfinite=skp", 2, "did you mean trainer.on_nonfinite=skip?"),
    ("trainer.monitor=mio", 2, "pixel_accuracy|did you mean trainer.monitor=miou?"),
    ("loss.class_weights=atuo", 2, "did you mean loss.class_weights=auto?"),
    ("trainer.device=gpu", 2, "trainer.device=gpu|cuda:N"),
    ("data=folder", 2, "data.classes is not set|set data.classes=…"),
    ("model.num_classes=7", 2, "model.num_classes=7, but the data have 5 classes|background, disc"),
    ("data.num_classes=4", 2, "data.num_classes=4|5, the length of data.classes"),
    ("model.in_channels=1", 2, "model.in_channels=1, but images have 3 channels"),
    ("model=deeplabv3plus data.batch_size=1", 2, "data.batch_size=1|data.batch_size=2"),
    ("model._target_=os.system", 2, "os.system is not a class or function of an allowed package|allow_targets"),
    ("model._target_=torch.os.system", 2, "torch.os.system is not a class or function of an allowed package"),
    ("model._target_=segtrain.data.images.Path", 2, "images.Path is not a class or function of an allowed package"),
    ("model._target_=segtrain.models.unet.UNett", 2, "has no 'UNett'|did you mean UNet?"),
    ("+loss.terms.ce.gama=2", 2, "loss.terms.ce.gama is not a key of|label_smoothing"),
    ("+augment.transforms.x=[{_target_:os.system,command:ls}]", 2, "augment.transforms.x[0]._target_=os.system is not"),
    ("augment.transforms.flip.p=3", 2, "augment.transforms.flip cannot be built|p: less than or equal to 1"),
    ("loss=null", 2, "loss=null|loss=border|dice"),
    ("~loss", 2, "the config has no 'loss'|choose one with loss=…"),
    ("~trainer", 2, "the config has no 'trainer'"),
    ("~augment.transforms", 2, "augment.transforms|augment=none"),
    ("data=camvid data.label_map={0:0,99:1}", 2, "data.label_map has no key '99'|~data.label_map"),
    ("allow_targets=mypkg", 2, "allow_targets=mypkg|array"),
    ("name=../elsewhere", 2, "name=../elsewhere|hydra.run.dir=DIR"),
    ("trainer.epochs=${trainer.epoch}", 2, "trainer.epochs refers to a key that does not exist"),
    ("trainer.seed=${oc.env:NOT_SET_ANYWHERE}", 2, "trainer.seed cannot be resolved|NOT_SET_ANYWHERE"),
    ("optimizer.lr=1e-3,1e-4", 2, "Ambiguous value|--multirun"),
    ("--multirun model=unet,unett", 2, "did you mean model=unet?"),
    ("--config-dir=/nowhere", 2, "/nowhere"),
    ("trainer.epochs", 2, "there is no command 'trainer.epochs'|trainer.epochs=…"),
    ("data.classes", 2, "there is no command 'data.classes'"),
    ("input=(1).jpg", 2, "cannot read the override 'input=(1).jpg'|\"input='(1).jpg'\""),
    ("train epochs", 2, "cannot read the override 'epochs'|epochs=VALUE"),
    ("trainer.resume=/nowhere/last.pt", 4, "no such file|/nowhere/last.pt"),
    ("model.weights=imagnet", 4, "no such weights file|did you mean model.weights=imagenet?"),
    ("evaluate", 2, "checkpoint is not set|model=otsu|checkpoint=outputs"),
    ("evaluate checkpoint=x splt=val", 2, "there is no config key 'splt'|did you mean split?"),
    ("evaluate checkpoint=x optimzer.lr=3", 2, "there is no config key 'optimzer.lr'|did you mean optimizer.lr?"),
    ("evaluate checkpoint=x ~data.limit", 2, "'~data.limit'|cannot be removed"),
    ("predict", 2, "input is not set|set input=…"),
    ("predict input=. opacity=2", 2, "opacity=2|less than or equal to 1"),
]


@pytest.mark.parametrize(("argv", "code", "block"), REFUSED, ids=[case[0] for case in REFUSED])
def test_refusals(door: Any, tmp_path: Path, argv: str, code: int, block: str) -> None:
    done = door(*argv.split())
    assert done.code == code, done.err
    assert done.err.startswith("error["), done.err
    assert "Traceback" not in done.err
    for part in block.split("|"):
        assert part in done.err
    assert not list(tmp_path.rglob("*.pt")), "nothing was trained"


EARLY = (
    "+trainer.epohcs=3",
    "trainer.epochs=abc",
    "trainer.monitor=mio",
    "model.num_classes=7",
    "model._target_=os.system",
    "+loss.terms.ce.gama=2",
    "augment.transforms.flip.p=3",
    "trainer.device=gpu",
    "model.weights=/nowhere.pt",
)


@pytest.mark.parametrize("fault", EARLY)
def test_a_fault_is_found_before_the_data_are_looked_for(door: Any, fault: str) -> None:
    assert door("data=voc", "data.root=/nowhere").code == 3
    done = door("data=voc", "data.root=/nowhere", fault)
    assert done.code in (2, 4), done.err
    assert "/nowhere\n" not in done.err.replace("/nowhere.pt", "")


def test_full_error_shows_the_traceback_too(door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    done = door("trainer.epochs=abc")
    assert done.code == 2
    assert "Traceback" in done.err
    assert "error[config] trainer.epochs=abc" in done.err
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_a_call_leaves_the_process_as_it_was(door: Any) -> None:
    before = list(sys.argv)
    for _ in range(2):
        done = door("trainer.epochs=abc")
        assert (done.code, "Traceback" in done.err) == (2, False)
        assert "HYDRA_FULL_ERROR" not in os.environ
        assert sys.argv == before


@pytest.mark.parametrize("argv", ["--info searchpath", "hydra.verbose=true trainer.epochs=abc"])
def test_a_call_leaves_the_log_of_the_process_as_it_was(door: Any, argv: str) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    door(*argv.split())
    assert (root.handlers, root.level) == before


def test_help_names_every_option_and_six_examples(door: Any) -> None:
    done = door("--help")
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.out.splitlines() if line.startswith("  ")}
    assert set(COMMANDS) <= set(lines)
    folder = Path(__file__).parents[1] / "configs"
    for group in (path for path in folder.iterdir() if path.is_dir()):
        options = sorted(path.stem for path in group.glob("*.yaml") if not path.stem.startswith("_"))
        assert lines[group.name].split(maxsplit=1)[1] == ", ".join(options)
        assert groups()[group.name] == options
    assert sum(line.startswith("  python -m segtrain") for line in done.out.splitlines()) == 6


@pytest.mark.parametrize("form", ["two words", "one word"])
def test_help_names_the_users_own_options(door: Any, tmp_path: Path, form: str) -> None:
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text("{}")
    flag = ["--config-dir", "own"] if form == "two words" else ["--config-dir=own"]
    assert "mine" not in door("--help").out
    assert ", maskrcnn_v2, mine, " in door(*flag, "--help").out


@pytest.mark.parametrize(
    ("error", "code", "block"),
    [
        (RuntimeError("broken"), 1, "this is a bug of segtrain"),
        (MemoryError(), 6, "error[resources] memory ran out: MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 6, "error[resources] memory ran out: CUDA"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), 6, "error[resources] memory ran out: CUDA error"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 6, "error[resources] memory ran out"),
        (OSError(errno.ENOSPC, "No space left on device", "masks/a.png"), 6, "error[resources] disk full"),
        (KeyboardInterrupt(), 130, "stopped at once"),
    ],
)
def test_what_escapes_a_command_becomes_a_code(
    door: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, code: int, block: str
) -> None:
    def broken(cfg: Any, folder: Any) -> float:
        raise error

    monkeypatch.setattr("segtrain.commands.train.run", broken)
    done = door("hydra.run.dir=run")
    assert done.code == code
    assert block in done.err
    assert ("Traceback" in done.err) == (code == 1)
    if code != 130:
        assert block.removeprefix("this is a bug of segtrain") in (tmp_path / "run" / "error.txt").read_text()


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_run_folder_that_cannot_be_made(door: Any, tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("in the way")
    done = door(f"hydra.run.dir={folder}")
    assert done.code == 6
    assert done.err.startswith("error[resources] the run folder cannot be made")
    assert f"where     {folder}\n" in done.err


def test_an_outputs_folder_that_cannot_be_written(door: Any, tmp_path: Path, fast: list[str]) -> None:
    (tmp_path / "outputs").write_text("in the way")
    done = door(*fast)
    assert done.code == 6
    assert "error[resources] the file cannot be written: Not a directory" in done.err


def test_an_error_file_that_cannot_be_written_does_not_hide_the_error(door: Any, tmp_path: Path) -> None:
    (tmp_path / "run" / "error.txt").mkdir(parents=True)
    done = door("hydra.run.dir=run", "trainer.epochs=abc")
    assert done.code == 2
    assert done.err.startswith("error[config] trainer.epochs=abc")
    assert "error.txt cannot be written: Is a directory" in done.err


def test_a_given_run_folder_is_taken_as_it_is(door: Any, tmp_path: Path, fast: list[str]) -> None:
    assert door(*fast, "hydra.run.dir=a/b").code == 0
    assert (tmp_path / "a/b/checkpoints/best.pt").is_file()
    assert (tmp_path / "a/b/metrics.json").is_file()
    assert not (tmp_path / "outputs").exists()
    assert "hydra.run.dir" not in (tmp_path / "a/b/overrides.txt").read_text()


def test_values_from_the_environment_are_not_written_down(
    door: Any, tmp_path: Path, fast: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hunter2-and-some-more"
    monkeypatch.setenv("SEGTRAIN_TEST_SECRET", secret)
    argv = [*fast, "trainer.tensorboard=true", "trainer.samples=1", "+data.root=${oc.env:SEGTRAIN_TEST_SECRET}"]
    done = door(*argv, "hydra.run.dir=run")
    assert done.code == 0, done.err
    done = door("evaluate", "checkpoint=run/checkpoints/best.pt", "hydra.run.dir=scored")
    assert done.code == 0, done.err
    files = [path for folder in ("run", "scored") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert len(files) >= 12
    assert [str(path) for path in files if secret.encode() in path.read_bytes()] == []
    reference = "${oc.env:SEGTRAIN_TEST_SECRET}"
    for name in ("run/config.yaml", "run/overrides.txt", "scored/config.yaml"):
        assert reference in (tmp_path / name).read_text()
    assert reference.encode() in (tmp_path / "run/checkpoints/best.pt").read_bytes()


# --- a user's own package ----------------------------------------------------------------------------------------

OWN = {
    "mypkg_of_the_door_test/__init__.py": "",
    "mypkg_of_the_door_test/net.py": (
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes: int, width: int = 4) -> None:\n"
        "        super().__init__()\n"
        "        self.head = nn.Conv2d(3, num_classes, 3, padding=1)\n"
        "    def forward(self, image):\n"
        "        return {'out': self.head(image)}\n"
    ),
    "own/model/mine.yaml": (
        "_target_: mypkg_of_the_door_test.net.Net\n"
        "num_classes: ${data.num_classes}\n"
        "weights: none\n"
        "normalize: {mean: [0.5], std: [0.25]}\n"
    ),
}
OWN_FAST = ("debug=fast", "data.size=32", "data.crop_size=32", "trainer.tensorboard=false", "trainer.samples=0")


def test_a_model_of_the_users_own_package(door: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in OWN.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    train = ("--config-dir", "own", "model=mine", *OWN_FAST, "hydra.run.dir=run")
    allow = "allow_targets=[mypkg_of_the_door_test]"

    done = door(*train)
    assert done.code == 2
    assert "mypkg_of_the_door_test.net.Net is not a class or function of an allowed package" in done.err
    done = door(*train, allow, "+model.widht=3")
    assert done.code == 2
    assert "did you mean model.width?" in done.err
    done = door(*train, allow)
    assert done.code == 0, done.err

    # The checkpoint's own config allows the package, and that does not count.
    checkpoint = "checkpoint=run/checkpoints/best.pt"
    assert torch.load(tmp_path / "run/checkpoints/best.pt", weights_only=True)["config"]["allow_targets"]
    done = door("evaluate", checkpoint, "hydra.run.dir=scored")
    assert done.code == 2
    assert "is not a class or function of an allowed package" in done.err
    assert door("evaluate", checkpoint, "hydra.run.dir=scored", allow).code == 0


def test_the_printed_lines_run(door: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stops = "\nimport pathlib, signal\nclass Net(Net):\n    def forward(self, image):\n"
    stops += "        if self.training and not pathlib.Path('stopped').exists():\n"
    stops += "            pathlib.Path('stopped').touch()\n            signal.raise_signal(signal.SIGTERM)\n"
    stops += "        return super().forward(image)\n"
    package = "mypkg_of_the_printed_lines"
    for name, text in OWN.items():
        file = tmp_path / name.replace("own/", "my own/").replace("mypkg_of_the_door_test", package)
        file.parent.mkdir(parents=True, exist_ok=True)
        text = text.replace("mypkg_of_the_door_test", package)
        file.write_text(text + (stops if name.endswith("net.py") else ""))
    monkeypatch.syspath_prepend(str(tmp_path))
    Image.new("RGB", (32, 24)).save(tmp_path / "photo.jpg")

    allow = f"allow_targets=[{package}]"
    done = door("--config-dir", "my own", "model=mine", *OWN_FAST, allow, "hydra.run.dir='o d=r (1)'")
    assert done.code == 143, done.err
    (line,) = re.findall(r"python -m segtrain .*", done.err)
    done = door(*shlex.split(line)[3:])
    assert done.code == 0, done.err + line
    assert "resumed  step 1" in done.out
    lines = re.findall(r"^next: python -m segtrain (.*)$", done.out, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["evaluate", "predict"]
    for line in lines:
        done = door(*shlex.split(line))
        assert done.code == 0, done.err + line


def test_a_second_run_does_not_mix_with_the_first(door: Any, trained: Any, tmp_path: Path, fast: list[str]) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    done = door(*fast, "hydra.run.dir=run")
    assert done.code == 2
    assert "error[config] the run folder holds another run\n" in done.err
    assert f"where     {tmp_path / 'run'}\n" in done.err
    assert "a folder without checkpoints/last.pt" in done.err
    assert "trainer.resume=auto" in done.err
    assert "hydra.run.dir=DIR" in done.err
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    done = door(*fast, "hydra.run.dir=run", "trainer.resume=auto")
    assert (done.code, "is finished" in done.out) == (0, True), done.err


def test_what_is_printed_about_curves_and_classes_is_so(
    door: Any, trained: Any, tmp_path: Path, fast: list[str]
) -> None:
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / "own" / kind).mkdir(parents=True, exist_ok=True)
            Image.new("RGB" if kind == "images" else "L", (32, 32)).save(tmp_path / "own" / kind / f"{split}.png")
        (tmp_path / "own" / f"{split}.txt").write_text(split)
    own = [word for word in fast if not word.startswith("data.size")]
    own += ["data=folder", "data.root=own", "data.classes=[road,never,seen]", "data.batch_size=1"]
    done = door(*own, "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert "warning: no training pixel is never, seen: the model cannot learn it" in done.out
    assert f"curves: {tmp_path / 'run' / 'metrics.jsonl'}" in done.out.splitlines()
    assert "tensorboard" not in done.out
    relative = trained.folder.relative_to(trained.cwd)
    assert f"curves: tensorboard --logdir {relative}" in trained.done.out.splitlines()
    assert "no training pixel" not in trained.done.out
