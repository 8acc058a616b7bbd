"""The scan counts what is there, decodes no image, and turns all faults that it finds into one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segtrain.data.dataset import SegmentationDataset
from segtrain.data.folder import Folder
from segtrain.data.scan import Scan, scan
from segtrain.data.shapes import Shapes
from segtrain.errors import DataError
from segtrain.types import Record


class Generated(SegmentationDataset):
    """Targets from memory; images do not exist."""

    def __init__(self, targets: list[np.ndarray], classes: int = 2, **shared: Any) -> None:
        self.targets = targets
        self.read: list[int] = []
        super().__init__(split="train", classes=[f"c{i}" for i in range(classes)], **shared)

    def find_records(self) -> list[Record]:
        return [Record(f"{i}", extra={"index": i}) for i in range(len(self.targets))]

    def load(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        raise AssertionError("the scan must not read images")

    def read_target(self, record: Record) -> np.ndarray:
        self.read.append(record.extra["index"])
        return self.targets[record.extra["index"]]


@pytest.fixture
def targets() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(3, 20, (30, 2))
    return [rng.choice([0, 1, 2, 4, 255], size, p=[0.5, 0.2, 0.1, 0.1, 0.1]).astype(np.uint8) for size in sizes]


def brute_force(targets: list[np.ndarray], classes: int) -> tuple[list[int], int, list[int]]:
    pixels = [sum(int((t == c).sum()) for t in targets) for c in range(classes)]
    ignored = sum(int((t == 255).sum()) for t in targets)
    present = [sum(t.size for t in targets if (t == c).any()) for c in range(classes)]
    return pixels, ignored, present


@pytest.mark.parametrize("threads", [1, 8])
def test_counts_equal_a_count_by_hand(targets: list[np.ndarray], threads: int) -> None:
    found = scan(Generated(targets, 5), None, threads)
    pixels, ignored, present = brute_force(targets, 5)
    assert (found.images, found.of) == (30, 30)
    assert found.pixels.tolist() == pixels
    assert found.ignored == ignored
    assert found.pixels_of_images_with_class.tolist() == present
    assert pixels[3] == 0
    assert found.pixels.dtype == found.pixels_of_images_with_class.dtype == np.int64


def test_shares_and_the_unlabelled_share_make_one() -> None:
    found = Scan(1, 1, np.array([6, 0, 2]), 2, np.array([10, 0, 10]))
    assert found.shares().tolist() == [0.6, 0.0, 0.2]
    assert found.ignored_share() == 0.2
    nothing = Scan(0, 0, np.array([0, 0]), 0, np.array([0, 0]))
    assert nothing.shares().tolist() == [0.0, 0.0]


def test_a_limit_takes_evenly_spaced_samples(targets: list[np.ndarray]) -> None:
    dataset = Generated(targets, 5)
    found = scan(dataset, 4, threads=1)
    assert dataset.read == [0, 7, 15, 22]
    assert (found.images, found.of) == (4, 30)
    assert found.pixels.tolist() == brute_force([targets[i] for i in dataset.read], 5)[0]
    for limit in (30, 1000):
        dataset.read.clear()
        assert scan(dataset, limit, threads=1).images == 30
        assert dataset.read == list(range(30))


def test_generated_datasets_are_scanned_too() -> None:
    names = ["background", "disc", "square", "triangle", "ring"]
    dataset = Shapes(split="val", classes=names, val_images=6, size=48)
    found = scan(dataset, None)
    assert int(found.pixels.sum()) + found.ignored == 6 * 48 * 48
    assert found.ignored > 0


# --- faults ---------------------------------------------------------------------------------------


def own_folder(root: Path, put: Any, count: int, values: Any, **arguments: Any) -> Folder:
    for i in range(count):
        mask = np.array(values(i), np.uint8)
        put(f"images/{i:02d}.png", np.zeros((*mask.shape, 3), np.uint8))
        put(f"masks/{i:02d}.png", mask)
    classes = arguments.pop("classes", ["background", "crack"])
    return Folder(split="train", root=str(root), classes=classes, val_fraction=0, **arguments)


def test_all_bad_masks_are_in_one_error(tmp_path: Path, put: Any) -> None:
    dataset = own_folder(tmp_path, put, 20, lambda i: [[0, 1], [1, 9 if i % 3 else 0]])
    (tmp_path / "masks/00.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        scan(dataset, None)
    error = caught.value
    lines = str(error.where).splitlines()
    assert error.found == "14 of 20 masks cannot be used"
    assert lines[0] == f"{tmp_path}/masks/00.png: file is empty (0 bytes)"
    assert lines[1] == (f"{tmp_path}/masks/01.png (2x2, values 0 1 9): mask has values outside the label set")
    assert len(lines) == 11
    assert lines[-1] == "and 4 more"
    assert error.fix == "for the first: replace the file, or take its name out of the split"


def test_one_bad_mask_keeps_its_own_error(tmp_path: Path, put: Any) -> None:
    dataset = own_folder(tmp_path, put, 3, lambda i: [[0, 1, 5 if i == 1 else 1]])
    with pytest.raises(DataError) as caught:
        scan(dataset, None)
    assert caught.value.found == "mask has values outside the label set"
    assert "data.label_map={0: 0, 1: 1, 5: 2}" not in str(caught.value.fix), "there are two classes"


def test_binary_masks_of_0_and_255_are_found_out(tmp_path: Path, put: Any) -> None:
    dataset = own_folder(tmp_path, put, 4, lambda i: [[0, 0, 0, 255]])
    with pytest.raises(DataError) as caught:
        scan(dataset, 2)
    error = caught.value
    assert error.found == "every labelled pixel is class 0 (background) and 255 covers 25.0%"
    assert "class 1 (crack)" in str(error.expected)
    assert "data.label_map={0: 0, 255: 1}" in str(error.fix)
    mended = Folder(
        split="train",
        root=str(tmp_path),
        classes=["background", "crack"],
        val_fraction=0,
        label_map={0: 0, 255: 1},
    )
    assert scan(mended, None).shares().tolist() == [0.75, 0.25]


@pytest.mark.parametrize(
    ("values", "arguments"),
    [
        ([[0, 0, 0, 0]], {}),  # no 255 at all
        ([[0, 0, 1, 255]], {}),  # class 1 is there
        ([[0, 0, 0, 255]], {"classes": ["a", "b", "c"]}),  # not binary
        ([[0, 0, 0, 3]], {"label_map": {0: 0, 1: 1, 3: 255}}),  # what is unlabelled was said in the config
        ([[0, 0, 0, 255]], {"label_map": {0: 0, 1: 1, 255: 255}}),
    ],
)
def test_other_datasets_are_not_accused(tmp_path: Path, put: Any, values: Any, arguments: Any) -> None:
    assert scan(own_folder(tmp_path, put, 3, lambda i: values, **arguments), None).images == 3


def test_a_rare_class_that_the_sample_missed_is_looked_for_in_every_mask() -> None:
    empty = np.array([[0, 255]], np.uint8)
    dataset = Generated([empty] * 9 + [np.array([[1, 255]], np.uint8)])
    found = scan(dataset, 3)
    assert found.images == 10
    assert found.pixels.tolist() == [9, 1]


# --- sizes of images ------------------------------------------------------------------------------


def turned(number: int) -> bytes:
    """An EXIF block with this orientation."""
    exif = Image.Exif()
    exif[0x0112] = number
    return exif.tobytes()


def pairs(root: Path, put: Any, sizes: dict[str, tuple[int, int]], **arguments: Any) -> Folder:
    """Masks of 4x6 (height x width) and images of the sizes given, by name."""
    for name, size in sizes.items():
        put(f"images/{name}", np.zeros((*size, 3), np.uint8))
        put(f"masks/{Path(name).stem}.png", np.zeros((4, 6), np.uint8))
    return Folder(split="train", root=str(root), classes=["a", "b"], val_fraction=0, **arguments)


def test_all_images_of_other_sizes_than_their_masks_are_in_one_error(tmp_path: Path, put: Any) -> None:
    dataset = pairs(
        tmp_path, put, {"a.png": (4, 6), "b.jpg": (5, 6), "c.png": (6, 4), "d.tif": (4, 7), "e.png": (4, 6)}
    )
    (tmp_path / "images/e.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        scan(dataset)
    error = caught.value
    assert error.found == "4 of 5 samples cannot be used"
    lines = str(error.where).splitlines()
    assert [line.split(",")[0] for line in lines[:3]] == [
        f"{tmp_path}/images/b.jpg is 6x5",
        f"{tmp_path}/images/c.png is 4x6",
        f"{tmp_path}/images/d.tif is 7x4",
    ]
    assert all(line.endswith("image and mask have different sizes (width x height)") for line in lines[:3])
    assert lines[3] == f"{tmp_path}/images/e.png: file is empty (0 bytes)"


def test_one_image_of_another_size_has_the_error_that_loading_it_has(tmp_path: Path, put: Any) -> None:
    dataset = pairs(tmp_path, put, {"a.png": (4, 6), "b.jpg": (5, 6)})
    with pytest.raises(DataError) as expected:
        dataset.load(dataset.records[1])
    with pytest.raises(DataError) as caught:
        scan(dataset)
    assert str(caught.value) == str(expected.value)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("exif", ["apply", "ignore"])
@pytest.mark.parametrize("number", [1, 3, 6, 8])
def test_sizes_are_compared_as_they_will_be_read(tmp_path: Path, put: Any, suffix: str, exif: Any, number: int) -> None:
    """The scan accepts what `load` accepts and refuses what it refuses, whatever way up the mask was drawn."""
    verdicts = set()
    for size in ((4, 6), (6, 4)):
        dataset = pairs(tmp_path, put, {f"a{suffix}": size}, exif=exif)
        put(f"images/a{suffix}", np.zeros((*size, 3), np.uint8), exif=turned(number))
        verdicts.add(refused(scan, dataset))
        assert refused(scan, dataset) == refused(dataset.load, dataset.records[0])
    assert verdicts == {True, False}


def refused(check: Any, what: Any) -> bool:
    try:
        check(what)
    except DataError as error:
        return error.found == "image and mask have different sizes (width x height)"
    return False


def test_no_image_is_decoded_where_the_headers_agree(tmp_path: Path, put: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = pairs(tmp_path, put, {"a.png": (4, 6), "b.jpg": (4, 6)})
    monkeypatch.setattr("segtrain.data.images.read_image", None)
    assert scan(dataset).images == 2


class Resizing(Folder):
    """Brings image and mask together in its own way, which the scan need not try."""

    def load(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        raise AssertionError("the scan must not read images")


def test_a_dataset_that_loads_in_its_own_way_is_not_accused(tmp_path: Path, put: Any) -> None:
    pairs(tmp_path, put, {"a.png": (9, 9)})
    dataset = Resizing(split="train", root=str(tmp_path), classes=["a", "b"], val_fraction=0)
    assert scan(dataset).images == 1


def test_through_the_door_nothing_is_trained_before_all_sizes_are_told(
    door: Any, tmp_path: Path, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val"):
        for i in range(4):
            put(f"data/images/{split}/{i}.png", np.zeros((20, 24 + (split == "train" and i > 1), 3), np.uint8))
            put(f"data/masks/{split}/{i}.png", np.zeros((20, 24), np.uint8))
    steps: list[int] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: steps.append(1))
    done = door("debug=fast", "data=folder", "data.root=data", "data.classes=[a,b]", "data.num_workers=0",
                "data.crop_size=16", "data.batch_size=2", "model.base_channels=4", "model.depth=2",
                "trainer.device=cpu")  # fmt: skip
    assert done.code == 3, done.out + done.err
    assert not steps
    for part in ("2 of 4 samples cannot be used", "train/2.png is 25x20", "train/3.png is 25x20", "is 24x20"):
        assert part in done.err
