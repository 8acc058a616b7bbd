"""What all datasets promise: samples that fit together, files that exist, lists that stay below the root."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.data.dataset import SegmentationDataset
from segtrain.data.images import files_by_stem
from segtrain.errors import ConfigError, DataError
from segtrain.types import Record


class Listed(SegmentationDataset):
    """Names from `{split}.txt`, files in `i` and `m`."""

    layout = "THE LAYOUT"
    get_it = "GET IT HERE"

    def find_records(self) -> list[Record]:
        names = self.read_list(self.root / f"{self.split}.txt")
        return self.require_files(
            [Record(name, self.root / "i" / f"{name}.png", self.root / "m" / f"{name}.png") for name in names]
        )


def listed(root: Path, **arguments: Any) -> Listed:
    return Listed(**{"split": "train", "root": str(root), "classes": ["a", "b"], **arguments})


@pytest.fixture
def three(tmp_path: Path, put: Any, texts: Any, picture: np.ndarray) -> Path:
    for i, name in enumerate(("c", "a", "b")):
        put(f"i/{name}.png", picture + np.uint8(i))
        put(f"m/{name}.png", np.full((6, 9), i % 2, np.uint8))
    texts("train.txt", "c", "a", "", "  b  ")
    texts("val.txt", "")
    return tmp_path


def test_samples_come_in_the_order_of_the_list(three: Path, picture: np.ndarray) -> None:
    dataset = listed(three)
    assert [record.name for record in dataset.records] == ["c", "a", "b"]
    image, target, record = dataset[1]
    assert np.array_equal(image, picture + np.uint8(1))
    assert target.dtype == np.uint8
    assert (target == 1).all()
    assert record.source == str(three / "i/a.png")
    assert len(listed(three, limit=2)) == 2
    assert listed(three, channels=1)[0][0].shape == (6, 9, 1)


def test_the_transform_is_told_seed_epoch_and_index(three: Path) -> None:
    calls = []

    def transform(image: np.ndarray, target: np.ndarray, seed: tuple[int, int, int]) -> Any:
        calls.append(seed)
        return image[:2], target[:2]

    dataset = listed(three, transform=transform, seed=7)
    assert dataset[2][0].shape == (2, 9, 3)
    assert dataset[(5, 1)][1].shape == (2, 9)
    assert calls == [(7, 0, 2), (7, 5, 1)]


def test_an_image_and_a_mask_of_two_sizes_are_named_with_both(three: Path, put: Any) -> None:
    put("m/a.png", np.zeros((9, 6), np.uint8))
    with pytest.raises(DataError) as caught:
        listed(three)[1]
    text = str(caught.value)
    assert f"{three}/i/a.png is 9x6" in text
    assert f"{three}/m/a.png is 6x9" in text
    assert "EXIF" in text


def test_all_missing_files_are_in_one_error(three: Path, texts: Any) -> None:
    texts("train.txt", *[f"x{i:02d}" for i in range(8)], "a")
    (three / "m/a.png").unlink()
    with pytest.raises(DataError) as caught:
        listed(three)
    error = caught.value
    assert error.found == "17 of 18 files of split 'train' are missing"
    assert str(error.where).count("\n") == 9
    assert f"{three}/i/x00.png" in str(error.where)
    assert str(error.where).endswith("and 7 more")
    assert "THE LAYOUT" in str(error.expected)
    assert error.fix == "GET IT HERE"


def test_a_missing_list_an_empty_one_and_one_that_is_no_text(three: Path) -> None:
    with pytest.raises(DataError, match="split 'val' has no samples"):
        listed(three, split="val")
    (three / "val.txt").unlink()
    with pytest.raises(DataError, match="list of split 'val' not found") as caught:
        listed(three, split="val")
    assert caught.value.where == str(three / "val.txt")
    (three / "val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        listed(three, split="val")


@pytest.mark.parametrize("entry", ["../a", "x/../../a", "/etc/passwd", "..\\a", "a/.."])
def test_a_list_cannot_reach_outside_the_data(three: Path, texts: Any, entry: str) -> None:
    texts("train.txt", "a", entry)
    with pytest.raises(DataError, match="outside its folder") as caught:
        listed(three)
    assert entry in str(caught.value)


def test_dots_in_a_name_are_no_way_out(three: Path, texts: Any, put: Any, picture: np.ndarray) -> None:
    put("i/a..b.png", picture)
    put("m/a..b.png", np.zeros((6, 9), np.uint8))
    texts("train.txt", "a..b")
    assert len(listed(three)) == 1


def test_a_byte_order_mark_is_not_part_of_the_first_name(three: Path) -> None:
    (three / "train.txt").write_bytes("\ufeffa\r\nb\r\n".encode())
    assert [record.name for record in listed(three).records] == ["a", "b"]


def test_an_unknown_split_and_a_download_that_is_not_offered(three: Path) -> None:
    with pytest.raises(ConfigError, match="Listed has no split 'test'") as caught:
        listed(three, split="test")
    assert caught.value.expected == "one of train, val"
    with pytest.raises(ConfigError, match="cannot be downloaded") as caught:
        listed(three, download=True)
    assert caught.value.fix == "GET IT HERE"


def test_files_by_stem_takes_images_alone(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", ".hidden.png", "._a.jpg", "Thumbs.db", "notes.txt", "c_mask.png"):
        (tmp_path / name).touch()
    assert list(files_by_stem(tmp_path.iterdir(), tmp_path)) == ["a", "b", "c_mask"]
    assert list(files_by_stem(tmp_path.iterdir(), tmp_path, "_mask")) == ["c"]
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="two files share the name 'a'") as caught:
        files_by_stem(tmp_path.iterdir(), tmp_path)
    assert caught.value.where == f"{tmp_path}/a.jpg\n{tmp_path}/a.png"


# What a cache may take the place of, and what the loader takes --------------------------------------------------------


class Deferring:
    """Hands a matrix on; finished, it is applied."""

    def __call__(self, image: np.ndarray, target: np.ndarray, seed: tuple[int, int, int]) -> Any:
        return image // 2, target

    def unfinished(self, image: np.ndarray, target: np.ndarray, seed: tuple[int, int, int]) -> Any:
        return image, target, np.eye(3, 4) * 0.5 + seed[1]


def test_a_source_of_decoded_samples_takes_the_place_of_the_files(three: Path) -> None:
    dataset = listed(three)
    image, target = np.full((2, 3, 3), 7, np.uint8), np.ones((2, 3), np.uint8)
    dataset.source = lambda index: (image + np.uint8(index), target)
    assert (dataset[2][0] == 9).all()
    assert (dataset.unfinished((4, 1))[0] == 8).all()
    assert dataset[2][2].name == "b"


def test_labels_are_counted_from_the_masks_or_by_whoever_knows_them(three: Path) -> None:
    dataset = listed(three)
    assert [dataset.count_labels(i)[:2].tolist() for i in range(3)] == [[54, 0], [0, 54], [54, 0]]
    assert dataset.count_labels(0).shape == (256,)
    assert dataset.count_labels(0).dtype == np.int64
    dataset.label_counts = lambda index: np.full(256, index)
    assert dataset.count_labels(2).sum() == 512


def test_a_dataset_survives_pickling_with_its_source(three: Path) -> None:
    again = pickle.loads(pickle.dumps(listed(three)))
    assert again.source.__self__ is again
    assert np.array_equal(again[1][0], listed(three)[1][0])
    assert again.count_labels(1)[1] == 54


def test_the_loader_gets_samples_unfinished_and_people_get_them_finished(three: Path, picture: np.ndarray) -> None:
    dataset = listed(three, transform=Deferring())
    image, target, record, color, load_seconds, augment_seconds = dataset.unfinished((5, 0))
    assert np.array_equal(image, picture)
    assert (target.shape, record.name) == ((6, 9), "c")
    assert color is not None
    assert color[0].tolist() == [5.5, 5.0, 5.0, 5.0]
    assert load_seconds > 0
    assert augment_seconds >= 0
    assert np.array_equal(dataset[(5, 0)][0], picture // 2)


def test_a_plain_function_or_no_transform_leaves_no_color_to_change(three: Path) -> None:
    assert listed(three).unfinished(0)[3] is None
    doubled = listed(three, transform=lambda image, target, seed: (image[:2], target[:2])).unfinished(0)
    assert doubled[0].shape == (2, 9, 3)
    assert doubled[3] is None
