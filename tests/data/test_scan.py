"""The scan counts what is there, reads no image, and turns all label faults of a dataset into one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
        put(f"images/{i:02d}.png", np.zeros((4, 4, 3), np.uint8))
        put(f"masks/{i:02d}.png", np.array(values(i), np.uint8))
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
