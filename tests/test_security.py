"""What a file from someone else can do: nothing but be read. What a secret in the environment leaves behind: nothing.

See SECURITY.md for the promise. Code and packages that a user names are the user's own.
"""

from __future__ import annotations

import ast
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from segtrain import signatures, targets
from segtrain.checkpoint import digest, load, save
from segtrain.composition import compose
from segtrain.errors import ConfigError
from segtrain.experiment import from_checkpoint
from segtrain.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
SECRET = "hunter2-and-some-more"

# --- the source --------------------------------------------------------------------------------------------------

BANNED = {
    "torch.load": "checkpoint.py",
    "torch.save": "checkpoint.py",
    "eval": None,
    "exec": None,
    "compile": None,
    "__import__": None,
    "os.system": None,
    "os.popen": None,
    "subprocess.run": "benchmark/hardware.py benchmark/start.py",
    "subprocess.Popen": None,
    "subprocess.check_output": None,
    "pickle.load": None,
    "pickle.loads": None,
    "marshal.loads": None,
    "shelve.open": None,
    "yaml.load": None,
    "yaml.unsafe_load": None,
    "torch.hub.load": None,
    "torch.hub.load_state_dict_from_url": None,
    "joblib.load": None,
    "tempfile.mktemp": None,
    "sys.exit": "__main__.py",
    "exit": None,
    "quit": None,
}
"""Calls that may run what a file says or end a sweep, and the one module that may make them."""


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted((ROOT / "segtrain").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(ROOT / "segtrain").as_posix(), node


def given(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(word.value) for word in call.keywords if word.arg == name), None)


def test_no_call_that_runs_what_a_file_says() -> None:
    found = [
        f"{file}:{call.lineno} {ast.unparse(call.func)}"
        for file, call in calls()
        if file not in (BANNED.get(ast.unparse(call.func), file) or "").split(" ")
    ]
    assert found == []


def test_files_are_opened_the_guarded_way() -> None:
    wrong = []
    for file, call in calls():
        name = ast.unparse(call.func)
        if name == "torch.load" and given(call, "weights_only") != "True":
            wrong.append(f"{file}:{call.lineno} torch.load without weights_only")
        if given(call, "allow_pickle") not in (None, "False"):
            wrong.append(f"{file}:{call.lineno} pickles inside arrays")
        if name in ("tar.extractall", "tarfile.extractall") and given(call, "filter") != "'data'":
            wrong.append(f"{file}:{call.lineno} extractall without filter")
        if name in ("np.load", "numpy.load") and given(call, "allow_pickle") != "False":
            wrong.append(f"{file}:{call.lineno} np.load without allow_pickle=False")
        if name == "Image.open" and file.startswith("data/") and given(call, "formats") is None:
            wrong.append(f"{file}:{call.lineno} Image.open of any format: PostScript runs a program")
        if given(call, "shell") not in (None, "False"):
            wrong.append(f"{file}:{call.lineno} a shell")
    assert wrong == []


def test_the_two_checks_above_find_what_they_look_for() -> None:
    assert {"torch.load", "sys.exit", "tar.extractall", "Image.open"} <= {ast.unparse(call.func) for _, call in calls()}


# --- names in a config -------------------------------------------------------------------------------------------

HOLES = [
    # imports a module by its name, and so runs it
    {"_target_": "torch.nn.attention._fa3._fa3_import_module", "module_path": "TRAP"},
    {"_target_": "torch.nn.attention._fa3.register_flash_attention_fa3", "module_path": "TRAP"},
    {"_target_": "torch.nn.utils._deprecation_utils.lazy_deprecated_import", "all": [], "old_module": "TRAP"},
    {"_target_": "segtrain.models.classical.baseline.scikit", "module": "TRAP"},
    # reads or fetches a file
    {"_target_": "segtrain.models.pretrained.load_weights", "weights": "TRAP"},
    {"_target_": "torchvision.models.get_weight", "name": "TRAP"},
    {"_target_": "albumentations.augmentations.utils.read_rgb_image", "path": "TRAP"},
    {"_target_": "albumentations.TextImage", "font_path": "TRAP"},
    {"_target_": "albumentations.FDA", "reference_images": ["TRAP"]},
    {"_target_": "albumentations.HistogramMatching", "reference_images": ["TRAP"]},
    # changes the program for all that comes after
    {"_target_": "torch.optim.optimizer.register_optimizer_step_post_hook", "hook": 1},
    {"_target_": "torch.nn.modules.module.register_module_forward_hook", "hook": 1},
    {"_target_": "torch.nn.parallel.DistributedDataParallel", "module": 1},
    # aliases, and the ways around a call
    {"_target_": "os.system", "command": "TRAP"},
    {"_target_": "torch.nn.modules.container.operator.attrgetter", "x": 1},
    {"_target_": "segtrain.models.unet.nn.functional.torch.os.system", "command": "TRAP"},
    {"_target_": "torch.nn.modules.activation.warnings.sys.modules", "x": 1},
    {"_target_": "functools.partial", "func": "os.system"},
    {"_target_": "builtins.__import__", "name": "TRAP"},
    {"_target_": "hydra.utils.instantiate", "config": {"_target_": "os.system"}},
    {"_target_": "torch.nn.Module.__class__", "x": 1},
    {"_target_": "segtrain.models.unet.UNet.__subclasses__"},
    {"_target_": "segtrain.data.download._Limits", "archive": "TRAP"},
    {"_target_": "segtrain.__main__.run", "argv": []},
    {"_target_": "torch.nn.Conv2d\x00.os"},
    {"_target_": "torch..nn.Conv2d"},
    {"_target_": ""},
]


@pytest.mark.parametrize("node", HOLES, ids=[str(node["_target_"]).replace("\x00", "0") for node in HOLES])
@pytest.mark.parametrize("shape", ["plain", "list", "nested"])
def test_no_name_leads_out_of_the_parts_of_a_network(node: dict[str, Any], shape: str) -> None:
    wrapped: Any = {
        "plain": node,
        "list": [1, [node]],
        "nested": {"_target_": "torch.nn.Sequential", "a": {"deep": [{"er": node}]}},
    }[shape]
    with pytest.raises(ConfigError):
        signatures.check_targets(wrapped, "model")
    with pytest.raises(ConfigError):
        signatures.instantiate(wrapped, "model")


@pytest.mark.parametrize("key", ["_partial_", "_args_", "_recursive_", "_convert_", "_mode_"])
def test_hydras_special_keys_mean_nothing(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        signatures.check_targets({"_target_": "torch.nn.ReLU", key: True}, "model")


def test_a_name_is_not_imported_to_find_out_that_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap_of_the_import.py").write_text("import os; os.mkdir('sprung')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("trap_of_the_import.Net", "torch.utils.trap_of_the_import", "torch.utils.bottleneck.__main__.main"):
        with pytest.raises(ConfigError):
            targets.resolve(path, "model")
    assert not (tmp_path / "sprung").exists()
    assert "torch.utils.bottleneck.__main__" not in sys.modules


def test_every_function_that_a_name_reaches_builds_a_network_or_an_optimizer() -> None:
    import albumentations  # noqa: F401 - looked through below
    import torchvision

    import segtrain.experiment  # noqa: F401 - and all that it imports

    builders = {torchvision.models.get_model_builder(name) for name in torchvision.models.list_models()}
    reached = set()
    for name, module in list(sys.modules.items()):
        if any(name == allowed or name.startswith(allowed + ".") for allowed in targets.ALLOWED):
            for attribute, found in list(vars(module).items()):
                if callable(found) and not isinstance(found, type):
                    try:
                        reached.add(targets.resolve(f"{name}.{attribute}", "x"))
                    except ConfigError:
                        continue
    own = {found for found in reached if found.__module__.startswith("segtrain.optim")}
    assert {found.__name__ for found in own} >= {"sgd", "adamw", "rmsprop"}
    assert [found for found in reached - own if found not in builders] == []


# --- a checkpoint from someone else ------------------------------------------------------------------------------


def crafted(checkpoint: Path, path: Path, **changes: Any) -> None:
    """The checkpoint with other values in its config, whole and with the right digest."""
    state = load(checkpoint)
    for key, value in changes.items():
        level = state["config"]
        *parts, last = key.split("__")
        for part in parts:
            level = level[part]
        level[last] = value
    save(path, state)


TOUCH = {"_target_": "os.system", "command": "touch sprung"}
HOSTILE: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("target", {"model": TOUCH}, (2,)),
    ("nested", {"model__backbone": TOUCH}, (2,)),
    ("listed", {"data__extra": [TOUCH]}, (2,)),
    ("own allow list", {"allow_targets": ["os", "posix"], "model": TOUCH}, (2,)),
    ("partial", {"loss__terms__ce__x": {**TOUCH, "_partial_": True}}, (2,)),
    ("inference", {"inference": {"_target_": "subprocess.call", "args": "touch sprung"}}, (2,)),
    ("task", {"task": {"_target_": "segtrain.data.download.extract"}}, (2,)),
    ("hydra", {"hydra": {"searchpath": ["file:///"], "run": {"dir": "../sprung"}}}, (2,)),
    ("defaults", {"defaults": [{"data": "voc"}]}, (2,)),
    ("name above", {"name": "../../sprung"}, (2,)),
    ("absolute name", {"name": "/sprung"}, (2,)),
    ("secret as name", {"name": "${oc.env:SEGTRAIN_TEST_SECRET}"}, (2,)),
    ("secret as class", {"data__classes": ["${oc.env:SEGTRAIN_TEST_SECRET}", "b", "c", "d", "e"]}, (2,)),
    ("secret in an error", {"loss__class_weights": "${oc.env:SEGTRAIN_TEST_SECRET}"}, (2,)),
    ("secret by another name", {"name": "${oc.env:${data.root}}", "data__root": "SEGTRAIN_TEST_SECRET"}, (2,)),
    ("secret decoded", {"trainer__seed": "${oc.decode:${oc.env:SEGTRAIN_TEST_SECRET}}"}, (2,)),
    ("resolver", {"name": "${eval:'1'}"}, (2, 4)),
]


@pytest.mark.parametrize(("changes", "codes"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_a_hostile_config_in_a_checkpoint_does_nothing(
    door: Any,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    codes: tuple[int, ...],
) -> None:
    monkeypatch.setenv("SEGTRAIN_TEST_SECRET", SECRET)
    crafted(checkpoint, tmp_path / "evil.pt", **changes)
    outside = set(tmp_path.parent.iterdir())
    for argv in (["evaluate", "checkpoint=evil.pt"], ["predict", "checkpoint=evil.pt", "input=photo.png"]):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photo.png")
        done = door(*argv)
        assert done.code in codes, done.err
        assert done.err.startswith("error["), done.err
        assert SECRET not in done.out + done.err
    assert set(tmp_path.parent.iterdir()) == outside
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pt", "photo.png"]


class Payload:
    """Pickles to a call."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("sprung",)


def test_a_pickle_that_calls_is_refused_by_every_command(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "classes": Payload()}, tmp_path / "evil.pt")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photo.png")
    for argv in (
        ["evaluate", "checkpoint=evil.pt"],
        ["predict", "checkpoint=evil.pt", "input=photo.png"],
        ["debug=fast", "model.weights=evil.pt"],
        ["debug=fast", "trainer.resume=evil.pt"],
    ):
        done = door(*argv)
        assert done.code == 4, done.err
    assert not (tmp_path / "sprung").exists()


def test_a_tensor_that_claims_to_be_huge_ends_in_one_block(door: Any, checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    name = next(iter(state["model"]))
    state["model"][name] = torch.zeros(1).expand(2**50)  # one number in the file
    state["sha256"] = digest({"a": 1})
    torch.save(state, tmp_path / "evil.pt")
    assert (tmp_path / "evil.pt").stat().st_size < 10 * checkpoint.stat().st_size
    done = door("evaluate", "checkpoint=evil.pt")
    assert done.code in (4, 6), done.err
    assert "Traceback" not in done.err


def test_a_package_is_allowed_by_the_user_and_never_by_the_file(
    door: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = "package_of_the_security_test"
    (tmp_path / f"{package}.py").write_text(
        "from segtrain.models.unet import UNet\nopen('imported', 'w').close()\nclass Net(UNet):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    target = f"{package}.Net"
    crafted(checkpoint, tmp_path / "own.pt", model___target_=target, allow_targets=[package])
    done = door("evaluate", "checkpoint=own.pt")
    assert done.code == 2
    assert f"_target_={target} is not a class or function of an allowed package" in done.err
    assert not (tmp_path / "imported").exists(), "it was not even imported"
    done = door("evaluate", "checkpoint=own.pt", f"allow_targets=[{package}]")
    assert done.code == 0, done.err
    assert (tmp_path / "imported").exists()


# --- secrets in the environment ----------------------------------------------------------------------------------


def files_with(folder: Path, secret: str) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_a_secret_that_is_used_is_in_no_file_of_any_command(
    door: Any, tmp_path: Path, fast: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a path, as a number and as a folder's name within another value, with every file that a run can write."""
    monkeypatch.setenv("SEGTRAIN_TEST_SECRET", SECRET)
    monkeypatch.setenv("SEGTRAIN_TEST_NUMBER", "8675309123")
    argv = [
        *fast,
        "trainer.tensorboard=true",
        "trainer.samples=1",
        "+data.root=${oc.env:SEGTRAIN_TEST_SECRET}/more",
        "trainer.save_every=1",
        "hydra.run.dir=run",
    ]
    done = door(*argv)
    assert done.code == 0, done.err
    source = "checkpoint=run/checkpoints/best.pt"
    done = door("evaluate", source, "report=true", "scores=full", "hydra.run.dir=scored")
    assert done.code == 0, done.err
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "photo.png")
    done = door("predict", source, "input=photo.png", "hydra.run.dir=predicted")
    assert done.code == 0, done.err
    for folder in ("run", "scored", "predicted"):
        assert len([path for path in (tmp_path / folder).rglob("*") if path.is_file()]) >= 3
        assert files_with(tmp_path / folder, SECRET) == []
    assert "${oc.env:SEGTRAIN_TEST_SECRET}/more" in (tmp_path / "run/config.yaml").read_text()


@pytest.mark.parametrize(
    "override",
    [
        "name=${oc.env:SEGTRAIN_TEST_SECRET}",
        "name=run_${oc.env:SEGTRAIN_TEST_SECRET}",
        "name=${data.root}",
        "trainer.device=${oc.env:SEGTRAIN_TEST_SECRET}",
        "trainer.monitor=${oc.env:SEGTRAIN_TEST_SECRET}",
        "data.classes=[background,disc,square,triangle,'${oc.env:SEGTRAIN_TEST_SECRET}']",
        "allow_targets=['${oc.env:SEGTRAIN_TEST_SECRET}']",
        "optimizer.lr=${oc.env:SEGTRAIN_TEST_SECRET}",
        "trainer.epochs=${oc.decode:${oc.env:SEGTRAIN_TEST_SECRET}}",
        "loss.class_weights=${oc.env:'SEGTRAIN_TEST_SECRET'}",
        "model._target_=${oc.env:SEGTRAIN_TEST_SECRET}",
    ],
)
def test_text_that_a_run_writes_down_is_no_secret_and_no_error_tells_one(
    door: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    monkeypatch.setenv("SEGTRAIN_TEST_SECRET", SECRET)
    done = door("debug=fast", "+data.root=${oc.env:SEGTRAIN_TEST_SECRET}", override)
    assert done.code == 2, done.out + done.err
    assert SECRET not in done.out + done.err
    assert "SEGTRAIN_TEST_SECRET" in done.err or "data.root" in done.err
    assert not (tmp_path / "outputs").exists()


def test_a_value_of_the_environment_that_is_no_text_may_be_used_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGTRAIN_TEST_EPOCHS", "12345")
    cfg = compose([])
    cfg.trainer.epochs = "${oc.decode:${oc.env:SEGTRAIN_TEST_EPOCHS}}"
    settings = Settings(cfg)
    assert settings.options.epochs == 12345
    assert "12345" not in str(settings.tree)


# --- names that are markup ---------------------------------------------------------------------------------------


def test_hostile_names_of_classes_and_files_are_text_in_the_report(door: Any, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    for split in ("train", "val"):
        for i in range(2):
            for folder, end, mode in (("images", "jpg", "RGB"), ("masks", "png", "L")):
                path = tmp_path / f"data/{folder}/{split}/{evil}&\"'{i}.{end}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new(mode, (32, 32), 1 if mode == "L" else 90).save(path)
    classes = f"data.classes=['{evil}','</script><script>alert(2)</script>']"
    model = ["model.base_channels=4", "model.depth=2", "data.crop_size=32", "data.batch_size=2", "data.num_workers=0"]
    argv = ["debug=fast", "data=folder", "data.root=data", classes, *model, "trainer.device=cpu"]
    done = door(*argv, "trainer.tensorboard=false", "trainer.samples=0", "hydra.run.dir=run")
    assert done.code == 0, done.err
    done = door("evaluate", "checkpoint=run/checkpoints/best.pt", "report=true", "hydra.run.dir=scored")
    assert done.code == 0, done.err
    page = (tmp_path / "scored/report.html").read_text(encoding="utf-8")
    assert evil not in page
    assert "<script>alert(2)" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


# --- a checkpoint fetches nothing --------------------------------------------------------------------------------


class Cut(Exception):
    """Somebody wanted to speak to the network."""


@pytest.fixture
def cut_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise Cut

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "weights"))  # nothing is there already


BUILDER = "torchvision.models.segmentation.lraspp_mobilenet_v3_large"
FETCHING: list[dict[str, Any]] = [
    {},  # this builder's own default fetches a backbone
    {"weights_backbone": "DEFAULT"},
    {"weights_backbone": "${name}"},
    {"pretrained_backbone": True},
    {"pretrained": True},
    {"_target_": "torchvision.models.segmentation.lraspp.lraspp_mobilenet_v3_large"},
    {"_target_": "${data.root}"},
]


def fetching(checkpoint: Path, path: Path, **keys: Any) -> Path:
    """A checkpoint of a small network of torchvision, whose config would have weights fetched."""
    state = load(checkpoint)
    state["config"]["name"], state["config"]["data"]["root"] = "DEFAULT", BUILDER
    rider = {key: state["config"]["model"][key] for key in ("normalize", "freeze_bn")}
    state["config"]["model"] = {"_target_": BUILDER, "num_classes": 5, "weights": "imagenet", **rider, **keys}
    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    state["model"], state["ema"] = network.state_dict(), None
    save(path, state)
    return path


@pytest.mark.parametrize("keys", FETCHING, ids=str)
def test_no_config_in_a_checkpoint_fetches_weights(
    checkpoint: Path, tmp_path: Path, cut_network: None, keys: dict[str, Any]
) -> None:
    found = from_checkpoint(fetching(checkpoint, tmp_path / "evil.pt", **keys), over={"trainer": {"device": "cpu"}})
    assert found.predict(np.zeros((32, 32, 3), np.uint8)).shape == (32, 32)
    assert not (tmp_path / "weights").exists()


def test_weights_that_the_user_asks_for_are_fetched(checkpoint: Path, tmp_path: Path, cut_network: None) -> None:
    """So the test above sees a network where there is one."""
    path = fetching(checkpoint, tmp_path / "own.pt", weights_backbone=None)
    with pytest.raises(Cut):
        from_checkpoint(path, over={"model": {"weights_backbone": "DEFAULT"}})


@pytest.mark.parametrize("target", ["segtrain.data.voc.Voc", "segtrain.data.pet.Pet", "segtrain.data.voc.VocAug"])
def test_no_config_in_a_checkpoint_fetches_data(
    door: Any, checkpoint: Path, tmp_path: Path, cut_network: None, target: str
) -> None:
    kept = ("classes", "palette", "num_classes", "crop_size", "channels")
    node = {key: load(checkpoint)["config"]["data"][key] for key in kept}
    crafted(checkpoint, tmp_path / "evil.pt", data={"_target_": target, "root": "mine", "download": True, **node})
    done = door("evaluate", "checkpoint=evil.pt", "hydra.run.dir=run")
    assert (done.code, done.err.splitlines()[0].startswith("error[data]")) == (3, True), done.err
    assert not (tmp_path / "mine").exists()
    done = door("evaluate", "checkpoint=evil.pt", "data.download=true")
    assert (done.code, "Cut" in done.err) == (1, True), done.err
