"""A cached sample is the sample from the files, to the byte, for whoever reads it; and nothing can alter it."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import pickle
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pytest
import torch
from PIL import Image

from segtrain.data.caching import key as key_module
from segtrain.data.caching.cache import DiskCache, SampleCache, open_cache
from segtrain.data.dataset import SegmentationDataset
from segtrain.data.folder import Folder
from segtrain.data.loader import EvalLoader, TrainLoader
from segtrain.data.scan import scan
from segtrain.data.shapes import Shapes
from segtrain.data.transforms import RandomScaleCrop, SegmentationTransform
from segtrain.errors import ConfigError, DataError
from segtrain.types import Record

SHAPES = ["background", "disc", "square", "triangle", "ring"]


class NoBar:
    """Counts what it is told."""

    def __init__(self, total: int, name: str) -> None:
        self.left = total

    def update(self, n: int) -> None:
        self.left -= n

    def close(self) -> None:
        pass


class Opener:
    """Opens caches below one folder and keeps what was said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []

    def __call__(self, dataset: SegmentationDataset, kind: Any = "disk", **changed: Any) -> SampleCache:
        self.said.clear()
        arguments = {"folder": self.folder, "settings": {}, "say": self.said.append, "bar": NoBar, "threads": 2}
        return open_cache(dataset, kind=kind, **{**arguments, **changed})

    @property
    def text(self) -> str:
        return "\n".join(self.said)

    def homes(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    return Opener(tmp_path / "cache")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven images of different sizes and kinds with their masks: RGB, grey, 16 bits, turned by EXIF."""
    rng = np.random.default_rng(0)
    images, masks = tmp_path / "own/images", tmp_path / "own/masks"
    images.mkdir(parents=True)
    masks.mkdir()
    for i in range(7):
        height, width = 5 + i, 11 + 2 * i
        pixels: Any = rng.integers(0, 256, (height, width, 3), np.uint8)
        exif = Image.Exif()
        if i == 2:
            pixels = rng.integers(0, 2**16, (height, width)).astype(np.uint16)
        if i == 3:
            pixels = pixels[..., 0]
        if i == 4:
            exif[0x0112] = 6  # a quarter turn: the mask lies as the picture is seen
            height, width = width, height
        Image.fromarray(pixels).save(images / f"{i}.png", exif=exif)
        Image.fromarray(rng.choice([0, 1, 2, 255], (height, width)).astype(np.uint8)).save(masks / f"{i}.png")
    return tmp_path / "own"


def own(root: Path, **arguments: Any) -> Folder:
    return Folder(**{"split": "train", "root": str(root), "classes": ["a", "b", "c"], "val_fraction": 0.0, **arguments})


def augmented() -> SegmentationTransform:
    return SegmentationTransform(
        {
            "crop": RandomScaleCrop(size=16, scale_range=[0.5, 2.0]),
            "flip": albumentations.HorizontalFlip(p=0.5),
            "light": albumentations.RandomBrightnessContrast(p=0.5),
        }
    )


def same(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


class Made(SegmentationDataset):
    """Records without files, and a `load` of its own."""

    def find_records(self) -> list[Record]:
        return [Record(f"n{i}", extra={"value": i}) for i in range(9)]

    def load(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        value = record.extra["value"]
        return np.full((4 + value, 6, 3), value, np.float32), np.full((4 + value, 6), value % 3, np.uint8)

    def read_target(self, record: Record) -> np.ndarray:
        return self.load(record)[1]


DATASETS = {
    "folder": lambda root: own(root),
    "grey": lambda root: own(root, channels=1),
    "limited": lambda root: own(root, limit=3),
    "shapes": lambda root: Shapes(split="val", classes=SHAPES, val_images=5, size=32),
    "own class": lambda root: Made(split="train", classes=["a", "b", "c"]),
}


@pytest.mark.parametrize("kind", ["disk", "ram"])
@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_gives_the_same_samples_and_counts(root: Path, opener: Opener, name: str, kind: str) -> None:
    dataset, plain = DATASETS[name](root), DATASETS[name](root)
    cache = opener(dataset, kind)
    for index in range(len(plain)):
        same(cache.load(index), plain.load(plain.records[index]))
        same([cache.counts(index)], [plain.count_labels(index)])
    assert cache.nbytes == sum(array.nbytes for i in range(len(plain)) for array in cache.load(i))
    cache.attach(dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that cannot be written to
        for (image, target, record), expected in zip(dataset, plain, strict=False):
            same((image, target), expected[:2])
            assert record == expected[2]
            torch.from_numpy(image)
            torch.from_numpy(target)
    if name == "limited":
        assert len(cache.entries) == 3
    if kind == "disk":
        again = opener(DATASETS[name](root))
        assert opener.said == [f"cache    {len(plain)} samples, {cache.nbytes / 2**20:.1f} MiB, from {cache.folder}"]
        same(again.load(0), plain.load(plain.records[0]))


@pytest.mark.parametrize("kind", ["disk", "ram"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_training_are_the_same(root: Path, opener: Opener, kind: str, workers: int) -> None:
    def batches(dataset: SegmentationDataset, workers: int) -> list[Any]:
        loader = TrainLoader(dataset, batch_size=2, num_workers=workers, seed=3)
        return [batch for epoch in (0, 1, 2) for step in loader.steps(epoch) for batch in step]

    dataset = own(root, transform=augmented(), seed=1)
    opener(dataset, kind).attach(dataset)
    expected = batches(own(root, transform=augmented(), seed=1), 0)
    found = batches(dataset, workers)
    assert len(found) == len(expected) == 9
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.target, theirs.target)
        assert [r.name for r in ours.records] == [r.name for r in theirs.records]
    plain = own(root)
    opener(plain, kind).attach(plain)
    for batch, expected_batch in zip(EvalLoader(plain, num_workers=workers), EvalLoader(own(root)), strict=True):
        assert torch.equal(batch.image, expected_batch.image)
        assert batch.image.dtype == expected_batch.image.dtype


@pytest.mark.parametrize("kind", ["disk", "ram"])
def test_nothing_can_write_into_a_cache(root: Path, opener: Opener, kind: str) -> None:
    def vandal(image: np.ndarray, target: np.ndarray, seed: Any) -> Any:
        image[:] = 0
        return image, target

    dataset = own(root, transform=vandal)
    cache = opener(dataset, kind)
    cache.attach(dataset)
    with pytest.raises(ValueError, match="read-only"):
        dataset[0]
    for array in cache.load(0):
        with pytest.raises(ValueError, match="read-only"):
            array += 1
    dataset.transform = None
    cache.attach(dataset)
    image, target, _ = dataset[0]
    image[:], target[:] = 0, 0  # one's own copy
    same(cache.load(0), own(root).load(dataset.records[0]))


def test_a_cache_refuses_another_dataset(root: Path, opener: Opener) -> None:
    with pytest.raises(ValueError, match="7 samples does not fit a dataset of 2"):
        opener(own(root)).attach(own(root, limit=2))


# --- other processes ------------------------------------------------------------------------------


def test_a_process_that_opens_the_same_cache_reads_the_same(root: Path, opener: Opener) -> None:
    expected = [opener(own(root)).load(i)[0].tobytes() for i in range(7)]

    def read(queue: Any) -> None:
        cache = Opener(opener.folder)(own(root))
        queue.put([cache.load(i)[0].tobytes() for i in range(7)])

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=read, args=(queue,))
    process.start()
    assert queue.get(timeout=60) == expected
    process.join()


def test_spawned_workers_map_the_disk_again_and_cannot_have_memory(root: Path, opener: Opener) -> None:
    dataset = own(root)
    cache = opener(dataset)
    cache.attach(dataset)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 20_000
    same(pickle.loads(pickled)[3][:2], cache.load(3))
    opener(dataset, "ram").attach(dataset)
    with pytest.raises(ConfigError, match="cannot be handed to a worker that is spawned") as caught:
        pickle.dumps(dataset)
    assert "data.cache=disk" in str(caught.value.fix)
    cache = opener(dataset)
    shutil.rmtree(opener.folder)
    with pytest.raises(DataError, match="cannot be opened"):
        pickle.loads(pickle.dumps(cache))


# --- which cache is the right one -----------------------------------------------------------------


def test_whatever_changes_a_sample_makes_another_cache(root: Path, opener: Opener) -> None:
    seen = {opener(own(root)).folder}

    def is_new(dataset: SegmentationDataset, **changed: Any) -> bool:
        folder = opener(dataset, **changed).folder
        before = len(seen)
        seen.add(folder)
        return len(seen) > before

    assert not is_new(own(root))
    assert is_new(own(root, channels=1))
    assert is_new(own(root, limit=6))
    assert is_new(own(root, label_map={0: 0, 1: 1, 2: 1}))
    assert is_new(own(root, palette=[[1, 1, 1], [2, 2, 2], [3, 3, 3]]))
    assert is_new(own(root, ignore_colors=[[9, 9, 9]]))
    assert is_new(own(root, classes=["a", "b", "other"]))
    assert is_new(own(root, classes=["a", "b", "c", "d"]))
    assert is_new(own(root), settings={"x": {1: "y"}})
    assert is_new(own(root, limit=4))
    assert is_new(own(root, limit=4, exif="ignore"))
    assert is_new(own(root), settings={"x": {1: "z"}})
    assert not is_new(own(root), settings={"x": {1: "z"}})
    assert is_new(own(root, split="val", val_fraction=1.0))
    assert any(path.name.startswith("Folder-val-") for path in seen if path)
    (root / "images/8.png").write_bytes((root / "images/0.png").read_bytes())
    (root / "masks/8.png").write_bytes((root / "masks/0.png").read_bytes())
    assert is_new(own(root))
    for kind in ("images", "masks"):
        os.utime(root / kind / "0.png", ns=(0, 7))
        assert is_new(own(root))
        with (root / kind / "0.png").open("ab") as file:
            file.write(b"x")
        os.utime(root / kind / "0.png", ns=(0, 7))
        assert is_new(own(root))


def test_data_that_moved_keep_their_cache(root: Path, opener: Opener) -> None:
    opener(own(root), settings={"root": str(root), "mask_dir": "masks"})
    root.rename(root.with_name("moved"))
    opener(own(root.with_name("moved")), settings={"root": str(root.with_name("moved")), "mask_dir": "masks"})
    assert "from" in opener.text
    assert len(opener.homes()) == 1


def test_a_new_version_of_segtrain_or_its_decoder_makes_another_cache(
    root: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    opener(own(root))
    monkeypatch.setattr(key_module, "__version__", "99.0")
    opener(own(root))
    monkeypatch.setattr(key_module.PIL, "__version__", "99.0")
    opener(own(root))
    assert len(opener.homes()) == 3


OWN_CLASS = """
import numpy as np
from segtrain.data.dataset import SegmentationDataset
from segtrain.types import Record

class Mine(SegmentationDataset):
    def find_records(self):
        return [Record(str(i)) for i in range(3)]

    def load(self, record):
        return np.full((4, 4, 3), {value}, np.uint8), np.zeros((4, 4), np.uint8)
"""


def test_an_edited_dataset_class_makes_another_cache(
    tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mine(value: int) -> SegmentationDataset:
        file = tmp_path / f"v{value}/mine.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(OWN_CLASS.format(value=value))
        spec = importlib.util.spec_from_file_location("mine", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "mine", module)
        spec.loader.exec_module(module)
        return module.Mine(split="train", classes=["a", "b"])  # type: ignore[no-any-return]

    assert opener(mine(1)).load(0)[0].max() == 1
    assert opener(mine(2)).load(0)[0].max() == 2
    assert opener(mine(1)).load(0)[0].max() == 1
    assert "from" in opener.text


def test_a_class_without_a_file_can_only_be_cached_in_memory(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "in_a_notebook"}
    exec(OWN_CLASS.format(value=5), names)
    dataset = names["Mine"](split="train", classes=["a", "b"])
    with pytest.raises(ConfigError, match=r"source file of in_a_notebook\.Mine cannot be read"):
        opener(dataset)
    assert opener(dataset, "ram").load(0)[0].max() == 5


def test_older_caches_are_named_and_kept(root: Path, opener: Opener) -> None:
    first = opener(own(root)).folder
    assert "older data" not in opener.text
    opener(own(root, split="val", val_fraction=1.0))
    assert "older data" not in opener.text, "of another split"
    os.utime(root / "images/0.png", ns=(0, 7))
    opener(own(root))
    assert f"MiB in caches of other or older data, kept: {first}" in opener.text
    assert first is not None
    assert (first / "samples.bin").is_file()
    opener(own(root))
    assert "older data" not in opener.text, "nothing was built"


# --- damage ---------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_is_found_when_its_sample_is_read(root: Path, opener: Opener) -> None:
    cache = opener(own(root))
    assert cache.folder is not None
    place = cache.entries[4].offset + cache.entries[4].nbytes - 1  # the last pixel of the target
    flip(cache.folder / "samples.bin", place)
    damaged = opener(own(root))
    damaged.load(3)
    damaged.load(5)
    with pytest.raises(DataError, match="sample 4 was changed") as caught:
        damaged.load(4)
    assert caught.value.where == str(cache.folder)
    assert f"delete {cache.folder}" in str(caught.value.fix)


def test_a_sample_is_checked_once(root: Path, opener: Opener) -> None:
    cache = opener(own(root))
    assert isinstance(cache, DiskCache)
    assert not cache.checked.any()
    cache.load(2)
    cache.load(2)
    assert cache.checked.tolist() == [False, False, True, False, False, False, False]


def cut_samples(home: Path) -> None:
    os.truncate(home / "samples.bin", (home / "samples.bin").stat().st_size - 1)


def cut_index(home: Path) -> None:
    os.truncate(home / "index.json", 300)


def alter_index(home: Path) -> None:
    text = (home / "index.json").read_text()
    (home / "index.json").write_text(text.replace('"labels":{"0":', '"labels":{"0":1', 1))


DAMAGE = {
    "samples.bin has 5,171 bytes, not 5,172": cut_samples,
    "index.json is damaged": cut_index,
    "index.json was changed after it was written": alter_index,
    "index.json is missing": lambda home: (home / "index.json").unlink(),
    "samples.bin is missing": lambda home: (home / "samples.bin").unlink(),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_a_cache_that_cannot_be_used_is_built_anew_and_that_is_said(root: Path, opener: Opener, words: str) -> None:
    home = opener(own(root)).folder
    assert home is not None
    DAMAGE[words](home)
    cache = opener(own(root))
    assert f"{home} cannot be used ({words}" in opener.said[0]
    assert "removed, and built anew" in opener.said[0]
    assert "to be written to" in opener.said[1]
    same(cache.load(6), own(root).load(own(root).records[6]))
    assert json.loads((home / "index.json").read_text())["index"]["format"] == 1


def test_a_cache_that_may_not_be_read_is_not_taken_for_a_damaged_one(
    root: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = opener(own(root)).folder

    def refuse(path: Path, **options: Any) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied") as caught:
        opener(own(root))
    assert caught.value.where == str(home)


# --- scan -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["disk", "ram"])
def test_with_a_cache_the_scan_counts_every_mask_and_reads_none(root: Path, opener: Opener, kind: str) -> None:
    dataset = own(root)
    expected = scan(own(root))
    opener(dataset, kind).attach(dataset)
    shutil.rmtree(root)
    found = scan(dataset, 2)
    assert (found.images, found.of) == (7, 7)
    assert found.pixels.tolist() == expected.pixels.tolist()
    assert found.ignored == expected.ignored
    assert found.pixels_of_images_with_class.tolist() == expected.pixels_of_images_with_class.tolist()
