"""Whatever a file or a command line holds: an error block with a code, never a traceback, a bug's code or a hang.

The examples are the same in every run; `-m slow` tries many more.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segtrain import checkpoint
from segtrain.__main__ import run
from segtrain.checkpoint_content import refuse_misfitting_content
from segtrain.data.folder import Folder
from segtrain.data.labels import LabelMap
from segtrain.data.reading import read_alpha, read_image, read_mask
from segtrain.errors import CheckpointError, SegtrainError
from segtrain.resuming import flat

ALLOWED_CODES = (0, 2, 3, 4, 5, 6)


def few(count: int) -> settings:
    """The profile of every run: no two runs differ, and nothing is timed."""
    off = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=off)


def many(count: int) -> settings:
    """The profile of `-m slow`: more of the same. SEGTRAIN_FUZZ=20 tries twenty times as many, others in each run."""
    times = int(os.environ.get("SEGTRAIN_FUZZ", "1"))
    return settings(few(count * times), derandomize=times == 1)


def called(folder: Path, *argv: str) -> str:
    """Runs one command line in `folder`; what it wrote to standard error, once its code is known to be a user's."""
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(list(argv))
    finally:
        os.chdir(before)
    assert code in ALLOWED_CODES, f"{argv}: {code}\n{err.getvalue()}"
    assert "Traceback" not in err.getvalue(), argv
    assert code == 0 or "error[" in err.getvalue(), argv
    return err.getvalue()


# --- command lines -----------------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    [
        *("model", "data", "loss", "trainer", "augment", "optimizer", "scheduler", "inference", "task", "name"),
        *("allow_targets", "trainer.epochs", "trainer.device", "trainer.monitor", "trainer.seed", "optimizer.lr"),
        *("model.base_channels", "model._target_", "model.depth", "model.weights", "model.normalize"),
        *("data.classes", "data.palette", "data.label_map", "data.size", "data.batch_size", "data.num_workers"),
        *("data.crop_size", "data.scan", "loss.terms", "loss.terms.ce.weight", "augment.transforms.flip.p"),
        *("augment.crop_size", "augment.transforms", "inference._target_", "scheduler.power", "experiment", "debug"),
    ]
)
WORDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "null", "true", "nan", "inf", "-1", "0", "1e999", "9" * 30, "unet", "???", "${data}", "${", "}"]
    ),
    st.sampled_from(
        ["${oc.env:HOME}", "${oc.env:}", "${len:3}", "${trainer}", "${..epochs}", "${model.depth", "\\", "'", '"']
    ),
    st.sampled_from(
        ["[]", "{}", "[[1,2],[3]]", "{a:{b:{c:[]}}}", "{_target_:os.system}", "{255:0}", "[" * 30, "{" * 30]
    ),
    st.integers().map(str),
    st.floats().map(str),
)
OVERRIDE = st.builds(
    lambda sign, key, equals, value: f"{sign}{key}{equals}{value}",
    st.sampled_from(["", "", "", "+", "++", "~"]),
    st.one_of(KEYS, st.text(max_size=6)),
    st.sampled_from(["=", "=", "=", "=", "", "@x=", "=="]),
    WORDS,
)


def check_composition(folder: Path, overrides: list[str]) -> None:
    # Words that begin with a dash are Hydra's flags, whose help argparse ends with an exit of its own.
    overrides = [word for word in overrides if not word.startswith("-")]
    called(folder, "--cfg", "job", *overrides)


@few(120)
@given(overrides=st.lists(OVERRIDE, min_size=1, max_size=3))
def test_any_override_is_composed_or_refused(tmp_path_factory: Any, overrides: list[str]) -> None:
    check_composition(tmp_path_factory.getbasetemp(), overrides)


@pytest.mark.slow
@many(600)
@given(overrides=st.lists(OVERRIDE, min_size=1, max_size=3))
def test_any_override_is_composed_or_refused_long(tmp_path_factory: Any, overrides: list[str]) -> None:
    check_composition(tmp_path_factory.getbasetemp(), overrides)


TINY = ("debug=fast", "trainer.tensorboard=false", "trainer.samples=0", "trainer.device=cpu", "hydra.run.dir=run")
SMALL = ("model.base_channels=2", "model.depth=2", "data.size=16", "data.crop_size=16", "data.num_workers=0")
# Without values that a machine is not large enough for: no refusal is promised of them.
TRAINED = OVERRIDE.filter(lambda text: not any(number in text for number in ("999999999", "e+", "hydra")))


def check_training(folder: Path, override: str) -> None:
    if override.startswith("-") or not "".join(override.split()):
        return
    called(folder, *TINY, *SMALL, "trainer.max_steps=1", override)


@pytest.mark.slow
@many(250)
@given(override=TRAINED)
def test_any_override_trains_or_is_refused(tmp_path_factory: Any, override: str) -> None:
    check_training(tmp_path_factory.mktemp("run"), override)


@few(10)
@given(
    override=st.builds("{}={}".format, KEYS, st.sampled_from(["null", "[]", "{}", "-1", "0", "abc", "[1,[2]]", "1.5"]))
)
def test_a_wrong_value_at_any_key_is_refused_before_the_data(tmp_path_factory: Any, override: str) -> None:
    """Data that are nowhere: what gets that far ends there."""
    argv = ["data=voc", "data.root=/nowhere", override]
    called(tmp_path_factory.getbasetemp(), *TINY, *argv)


# --- image and mask files ----------------------------------------------------------------------------------------


def drawn(mode: str, width: int, height: int, seed: int, kind: str) -> bytes:
    rng = np.random.default_rng(seed)
    channels = {"RGB": 3, "RGBA": 4, "LA": 2, "CMYK": 4}.get(mode, 1)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    elif mode in ("1", "P"):
        image = Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)).convert(mode)
    else:
        shape = (height, width) if channels == 1 else (height, width, channels)
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


IMAGE = st.builds(
    drawn,
    st.sampled_from(["L", "P", "1", "RGB", "RGBA", "LA", "I;16"]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 9),
    st.sampled_from(["PNG", "TIFF"]),
)
DAMAGE = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4)


def damaged(content: bytes, flips: list[tuple[float, int]], keep: float) -> bytes:
    changed = bytearray(content)
    for place, bits in flips:
        changed[int(place * len(changed))] ^= bits
    return bytes(changed[: max(1, int(keep * len(changed)))])


def check_image(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    labels = LabelMap(["a", "b", "c"])
    with contextlib.suppress(SegtrainError, MemoryError):
        pixels = read_image(path, max_pixels=1_000_000)
        assert pixels.ndim == 3
        assert pixels.dtype in (np.uint8, np.float32)
        assert np.isfinite(pixels).all()
        assert pixels.min() >= 0
        assert pixels.max() <= 255
    with contextlib.suppress(SegtrainError, MemoryError):
        read_alpha(path, max_pixels=1_000_000)
    with contextlib.suppress(SegtrainError, MemoryError):
        target = labels.apply(read_mask(path, keep_channels=True, max_pixels=1_000_000), path)
        assert target.dtype == np.uint8
        assert set(np.unique(target)) <= {0, 1, 2, 255}


@pytest.mark.filterwarnings("ignore")
@few(300)
@given(content=IMAGE, flips=DAMAGE, keep=st.sampled_from([1.0, 1.0, 0.9, 0.5]))
def test_any_image_file_is_read_or_refused(
    tmp_path_factory: Any, content: bytes, flips: list[tuple[float, int]], keep: float
) -> None:
    check_image(tmp_path_factory.getbasetemp() / "fuzzed.png", damaged(content, flips, keep))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@many(6_000)
@given(content=st.one_of(IMAGE, st.binary(max_size=200)), flips=DAMAGE, keep=st.floats(0.01, 1))
def test_any_image_file_is_read_or_refused_long(
    tmp_path_factory: Any, content: bytes, flips: list[tuple[float, int]], keep: float
) -> None:
    check_image(tmp_path_factory.getbasetemp() / "fuzzed.png", damaged(content or b"x", flips, keep))


# --- lists -------------------------------------------------------------------------------------------------------

LINE = st.one_of(
    st.sampled_from(
        ["a", "images/a.png", "b.png", "../a", "/a", "..\\a", "C:\\a", "a\x00b", "con", "~", "a/../../b", "."]
    ),
    st.text(max_size=12),
)
LIST = st.one_of(
    st.binary(max_size=60), st.lists(LINE, max_size=5).map(lambda lines: "\n".join(lines).encode("utf-8", "replace"))
)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("listed")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
        for name in ("a", "b"):
            Image.new("L", (4, 4)).save(root / folder / f"{name}.png")
    (root.parent / "outside.png").write_bytes((root / "images/a.png").read_bytes())
    return root


@few(300)
@given(content=LIST)
def test_any_list_gives_files_below_the_root_or_is_refused(listed: Path, content: bytes) -> None:
    (listed / "train.txt").write_bytes(content)
    with contextlib.suppress(SegtrainError):
        for record in Folder(split="train", root=str(listed), classes=["a", "b"]).records:
            assert record.image is not None
            assert record.image.resolve().is_relative_to(listed.resolve())


# --- checkpoints -------------------------------------------------------------------------------------------------

LEAF: Any = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=6),
    st.builds(torch.zeros, st.integers(0, 3)),
)
TREE = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=6), st.integers(-3, 3)), inner, max_size=3),
    ),
    max_leaves=8,
)
PARTS = ("config", "model", "ema", "classes", "palette", "class_weights")


def harmless(action: Callable[[], object]) -> None:
    with contextlib.suppress(SegtrainError):
        action()


@few(150)
@given(
    tree=st.dictionaries(st.sampled_from([*PARTS, "format", "sha256", "step"]), TREE, max_size=6),
    whole=st.booleans(),
)
def test_any_plain_data_in_a_checkpoint_are_refused_in_words(
    tmp_path_factory: Any, tree: dict[str, Any], whole: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.pt"
    torch.save({**tree, "format": 1} if whole else tree, path)
    harmless(lambda: checkpoint.load(path))
    harmless(lambda: refuse_misfitting_content(tree, path))


def check_damaged(source: Path, path: Path, flips: list[tuple[float, int]], keep: float) -> None:
    path.write_bytes(damaged(source.read_bytes(), flips, keep))
    with contextlib.suppress(SegtrainError):
        # What loads has the digest that training wrote: a flipped bit may only lie where zip keeps no data.
        assert checkpoint.load(path)["sha256"] == checkpoint.load(source)["sha256"]


@few(150)
@given(flips=DAMAGE, keep=st.sampled_from([1.0, 1.0, 0.99, 0.5]))
def test_a_damaged_checkpoint_is_refused_or_unchanged(
    trained: Any, tmp_path_factory: Any, flips: list[tuple[float, int]], keep: float
) -> None:
    check_damaged(trained.best, tmp_path_factory.getbasetemp() / "damaged.pt", flips, keep)


@pytest.mark.slow
@many(1_500)
@given(flips=DAMAGE, keep=st.floats(0, 1))
def test_a_damaged_checkpoint_is_refused_or_unchanged_long(
    trained: Any, tmp_path_factory: Any, flips: list[tuple[float, int]], keep: float
) -> None:
    check_damaged(trained.best, tmp_path_factory.getbasetemp() / "damaged.pt", flips, keep)


@few(200)
@given(content=st.binary(max_size=60))
def test_random_bytes_are_no_checkpoint(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


CONFIG_VALUE = st.one_of(
    st.none(), st.integers(-3, 300), st.floats(-2, 2), st.text(max_size=8), st.just([]), st.just({}),
    st.sampled_from(["${data.classes}", "${len:${data}}", "${", "???", "${oc.env:HOME}", {"_target_": "os.system"}]),
)  # fmt: skip


@few(10)
@given(data=st.data())
def test_any_value_in_a_checkpoints_config_is_used_or_refused(trained: Any, tmp_path_factory: Any, data: Any) -> None:
    state = checkpoint.load(trained.best)
    key = data.draw(st.sampled_from(sorted(flat(state["config"]))))
    level: Any = state["config"]
    *parts, last = key.split(".")
    for part in parts:
        level = level[part]
    level[last] = data.draw(CONFIG_VALUE)
    folder = tmp_path_factory.mktemp("crafted")
    checkpoint.save(folder / "crafted.pt", state)
    called(folder, "evaluate", "checkpoint=crafted.pt", "trainer.device=cpu", "data.num_workers=0", "data.limit=1")


# --- found by the examples above ----------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["+=", "=", "+=3", "~=", "+@x=a", "++ =1"])
def test_an_override_without_a_key_is_refused(tmp_path: Path, override: str) -> None:
    assert "error[config]" in called(tmp_path, *TINY, override)


@pytest.mark.parametrize("override", ["model=[]", "model=[1,[2]]", "+loss=[ce]", "experiment=[1]", "~data=[a]"])
def test_a_list_where_one_option_belongs_is_refused(tmp_path: Path, override: str) -> None:
    assert "error[config]" in called(tmp_path, *TINY, override)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "foreign",
    [
        {"format": 1, "sha256": "", "model": b"x"},
        {"format": 1, "sha256": "", "model": {1, 2}},
        {"format": 1, "sha256": "", "model": torch.empty(2, device="meta")},
        {"format": 1, "sha256": "", "model": torch.zeros(2, dtype=torch.complex64).conj()},
        {"format": 1, "sha256": "", "model": torch.eye(2).to_sparse()},
        {"format": 1, "sha256": "", 1: 2},
        {"format": 1, "sha256": "", "\ud800": 2},
        {"format": torch.ones(2), "sha256": ""},
        {"format": 7, "sha256": "", "versions": {"segtrain": torch.ones(2)}},
    ],
    ids=["bytes", "set", "meta", "conjugate", "sparse", "key", "surrogate", "format", "version"],
)
def test_what_a_checkpoint_cannot_hold_is_refused(tmp_path: Path, foreign: dict[Any, Any]) -> None:
    torch.save(foreign, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(tmp_path / "a.pt")
    assert caught.value.where == str(tmp_path / "a.pt")


def test_lists_in_lists_without_end_are_refused(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    torch.save({"format": 1, "sha256": "", "model": deep}, tmp_path / "a.pt")
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 200)
    try:
        with pytest.raises(CheckpointError):
            checkpoint.load(tmp_path / "a.pt")
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize("content", [b"j", b"G", b"\x8a"])
def test_a_file_of_one_byte_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    assert "error[checkpoint]" in called(tmp_path, "evaluate", "checkpoint=a.pt")
