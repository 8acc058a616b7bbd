"""VOC is found wherever it lies, and the augmented training set never holds an image of val."""

from __future__ import annotations

import hashlib
import importlib.util
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain.data import voc
from segtrain.data.voc import Voc, VocAug
from segtrain.errors import ConfigError, DataError

CLASSES = [f"class {i}" for i in range(21)]
TRAIN, VAL = ["2007_1", "2007_2"], ["2008_1", "2008_2"]
SBD_TRAIN, SBD_VAL = (
    ["2007_1", "2010_1", "2008_1"],
    ["2010_2", "2008_2"],
)  # they overlap train and val, as SBD's do
AUG = ["2007_1", "2007_2", "2010_1", "2010_2"]


def palette_png(value: int) -> Image.Image:
    image = Image.fromarray(np.array([[value, 0, 255]], np.uint8), "P")
    image.putpalette([0] * 768)
    return image


@pytest.fixture
def devkit(tmp_path: Path, put: Any, texts: Any) -> Path:
    home = "VOCdevkit/VOC2012"
    for name in {*TRAIN, *VAL, *SBD_TRAIN, *SBD_VAL}:
        put(f"{home}/JPEGImages/{name}.jpg", np.zeros((1, 3, 3), np.uint8))
    for name in TRAIN + VAL:
        put(f"{home}/SegmentationClass/{name}.png", palette_png(20))
    texts(f"{home}/ImageSets/Segmentation/train.txt", *TRAIN)
    texts(f"{home}/ImageSets/Segmentation/val.txt", *VAL)
    return tmp_path


@pytest.fixture
def augmented(devkit: Path, put: Any) -> Path:
    """With the folder of PNGs that most people have: train and val, and other values than VOC's own."""
    for name in AUG + VAL:
        put(f"VOCdevkit/VOC2012/SegmentationClassAug/{name}.png", palette_png(5))
    return devkit


def sbd(root: Path, texts: Any, folder: str = "benchmark_RELEASE/dataset") -> None:
    from scipy.io import savemat

    texts(f"{folder}/train.txt", *SBD_TRAIN)
    texts(f"{folder}/val.txt", *SBD_VAL)
    (root / folder / "cls").mkdir()
    for name in {*SBD_TRAIN, *SBD_VAL}:
        labels = np.array([[7, 0, 0]], np.uint8)
        savemat(root / folder / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": labels, "Boundaries": 0}})


def names(dataset: Voc) -> list[str]:
    return [record.name for record in dataset.records]


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_root_may_be_any_of_three_folders(devkit: Path, below: str) -> None:
    dataset = Voc(split="train", root=str(devkit / below), classes=CLASSES)
    assert names(dataset) == TRAIN
    assert dataset[0][1].tolist() == [[20, 0, 255]]
    assert names(Voc(split="val", root=str(devkit / below), classes=CLASSES)) == VAL


def test_a_root_without_voc_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        Voc(split="train", root=str(tmp_path), classes=CLASSES)
    text = str(caught.value)
    assert str(tmp_path) in text
    assert "VOCdevkit/VOC2012/SegmentationClass/ID.png" in text
    assert "data.download=true" in text


def test_masks_that_are_missing_are_named(devkit: Path) -> None:
    (devkit / "VOCdevkit/VOC2012/SegmentationClass/2007_2.png").unlink()
    with pytest.raises(DataError, match="1 of 4 files of split 'train' are missing") as caught:
        Voc(split="train", root=str(devkit), classes=CLASSES)
    assert str(caught.value.where).endswith("SegmentationClass/2007_2.png")


def test_a_folder_of_pngs_is_enough_and_val_is_left_out(augmented: Path) -> None:
    dataset = VocAug(split="train", root=str(augmented), classes=CLASSES)
    assert names(dataset) == AUG
    # VOC's own masks where there are any: they have the void border
    assert [int(dataset.read_target(record)[0, 0]) for record in dataset.records] == [20, 20, 5, 5]
    assert names(VocAug(split="val", root=str(augmented), classes=CLASSES)) == VAL


@pytest.mark.parametrize("folder", ["benchmark_RELEASE/dataset", "sbd"])
def test_sbd_lists_are_one_pool_without_val(devkit: Path, texts: Any, folder: str) -> None:
    pytest.importorskip("scipy")
    sbd(devkit, texts, folder)
    dataset = VocAug(split="train", root=str(devkit), classes=CLASSES)
    assert names(dataset) == AUG
    assert [int(dataset.read_target(record)[0, 0]) for record in dataset.records] == [20, 20, 7, 7]
    image, target, _ = dataset[2]
    assert target.dtype == np.uint8
    assert image.shape[:2] == target.shape


@pytest.mark.parametrize("line", ["{}", "/JPEGImages/{}.jpg /SegmentationClassAug/{}.png"])
def test_a_training_list_is_taken_and_guarded(augmented: Path, texts: Any, line: str) -> None:
    path = "VOCdevkit/VOC2012/ImageSets/Segmentation/train_aug.txt"
    texts(path, *[line.format(name, name) for name in ("2010_2", "2007_1")])
    assert names(VocAug(split="train", root=str(augmented), classes=CLASSES)) == ["2010_2", "2007_1"]
    texts(path, *[line.format(name, name) for name in (*AUG, *VAL)])
    with pytest.raises(DataError, match="2 images of VOC's val are in the training list: 2008_1, 2008_2"):
        VocAug(split="train", root=str(augmented), classes=CLASSES)


def test_complete_lists_must_make_the_published_number(
    devkit: Path, texts: Any, monkeypatch: pytest.MonkeyPatch, published: dict[str, Any]
) -> None:
    pytest.importorskip("scipy")
    counts = published["voc12"]["counts"]
    assert {"train": counts["train"], "val": counts["val"]} == voc.VOC_COUNTS
    assert {"train": counts["sbd_train"], "val": counts["sbd_val"]} == voc.SBD_COUNTS
    assert counts["train_aug"] == voc.AUG_COUNT
    sbd(devkit, texts)
    monkeypatch.setattr(voc, "VOC_COUNTS", {"train": 2, "val": 2})
    monkeypatch.setattr(voc, "SBD_COUNTS", {"train": 3, "val": 2})
    with pytest.raises(DataError, match="make 4 images") as caught:
        VocAug(split="train", root=str(devkit), classes=CLASSES)
    assert "10,582" in str(caught.value.expected)
    monkeypatch.setattr(voc, "AUG_COUNT", 4)
    assert names(VocAug(split="train", root=str(devkit), classes=CLASSES)) == AUG


def test_mat_files_need_scipy_and_say_so(devkit: Path, texts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    sbd(devkit, texts)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="2 masks of SBD are MATLAB files") as caught:
        VocAug(split="train", root=str(devkit), classes=CLASSES)
    assert caught.value.fix == "pip install 'segtrain[sbd]'"


def test_a_damaged_mat_file_is_named(devkit: Path, texts: Any) -> None:
    pytest.importorskip("scipy")
    sbd(devkit, texts)
    path = devkit / "benchmark_RELEASE/dataset/cls/2010_1.mat"
    dataset = VocAug(split="train", root=str(devkit), classes=CLASSES)
    for content in (b"", b"MATLAB? no", path.read_bytes()[:150]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="MATLAB file is damaged") as caught:
            dataset.read_target(dataset.records[2])
        assert caught.value.where == str(path)


def test_no_source_of_the_augmented_masks(devkit: Path) -> None:
    with pytest.raises(DataError, match="SegmentationClassAug or SBD not found"):
        VocAug(split="train", root=str(devkit), classes=CLASSES)


def archived(folder: Path, name: str, to: Path) -> tuple[str, str]:
    with tarfile.open(to, "w") as archive:
        archive.add(folder / name, name)
    return to.as_uri(), hashlib.md5(to.read_bytes()).hexdigest()


def test_download_fetches_what_is_missing_and_no_more(
    devkit: Path, texts: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("scipy")
    from torchvision.datasets import SBDataset
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    sbd(devkit, texts)
    archives, root = tmp_path_factory.mktemp("archives"), tmp_path_factory.mktemp("root")
    source = DATASET_YEAR_DICT["2012"]
    url, md5 = archived(devkit, "VOCdevkit", archives / "voc.tar")
    monkeypatch.setitem(source, "url", url)
    monkeypatch.setitem(source, "md5", md5)
    url, md5 = archived(devkit, "benchmark_RELEASE", archives / "sbd.tgz")
    monkeypatch.setattr(SBDataset, "url", url)
    monkeypatch.setattr(SBDataset, "md5", md5)

    assert names(Voc(split="train", root=str(root), classes=CLASSES, download=True)) == TRAIN
    assert not (root / "benchmark_RELEASE").exists()
    (root / source["filename"]).unlink()
    (archives / "voc.tar").unlink()  # VOC is complete: nobody asks for it again
    assert names(VocAug(split="train", root=str(root), classes=CLASSES, download=True)) == AUG
    (archives / "sbd.tgz").unlink()
    (root / "benchmark_RELEASE/dataset/cls/2010_1.mat").unlink()  # torn: mended from the archive at hand
    assert names(VocAug(split="train", root=str(root), classes=CLASSES, download=True)) == AUG
