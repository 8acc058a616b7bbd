"""VOC's objects: the class is the one under an object, borders belong to nobody, contradictions are named."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain.data.instances.voc_instances import VocInstances
from segtrain.errors import DataError
from segtrain.experiment import build_dataset, compose

CLASSES = ["background", *(f"class {i}" for i in range(1, 21))]
HOME = "VOCdevkit/VOC2012"
OBJECTS = np.array([[0, 255, 1, 1], [0, 255, 255, 255], [2, 2, 255, 4]], np.uint8)
UNDER = np.array([[0, 255, 15, 15], [0, 255, 255, 255], [7, 7, 255, 15]], np.uint8)


def indexed(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values, "P")
    image.putpalette([i * 7 % 256 for i in range(768)])
    return image


@pytest.fixture
def devkit(tmp_path: Path, put: Any, texts: Any) -> Path:
    for split, name in (("train", "2007_1"), ("val", "2008_1")):
        put(f"{HOME}/JPEGImages/{name}.jpg", np.zeros((3, 4, 3), np.uint8))
        put(f"{HOME}/SegmentationObject/{name}.png", indexed(OBJECTS))
        put(f"{HOME}/SegmentationClass/{name}.png", indexed(UNDER))
        texts(f"{HOME}/ImageSets/Segmentation/{split}.txt", name)
    return tmp_path


def voc(root: Path, split: str = "train", **options: Any) -> VocInstances:
    return VocInstances(split=split, root=str(root), classes=CLASSES, **options)


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_an_object_has_the_class_under_it_and_not_the_border(devkit: Path, below: str) -> None:
    image, found, record = voc(devkit / below)[0]
    assert (image.shape, record.name) == ((3, 4, 3), "2007_1")
    assert found.ids.tolist() == [1, 2, 4], "numbers may have gaps"
    assert found.labels.tolist() == [15, 7, 15]
    assert found.boxes.tolist() == [[2, 0, 4, 1], [0, 2, 2, 3], [3, 2, 4, 3]]
    assert found.masks.sum().item() == 5
    counts = voc(devkit, "val").count_objects(0)
    assert (len(counts), counts[15], counts[7], counts.sum()) == (21, 2, 1, 3)


def test_the_border_of_either_file_belongs_to_nobody(devkit: Path, put: Any) -> None:
    wider = UNDER.copy()
    wider[0, 2], wider[2, 3] = 255, 255
    put(f"{HOME}/SegmentationClass/2007_1.png", indexed(wider))
    found = voc(devkit)[0][1]
    assert found.ids.tolist() == [1, 2], "of object 4 nothing is left"
    assert found.boxes[0].tolist() == [3, 0, 4, 1]


@pytest.mark.parametrize(("label", "name"), [(9, "class 9"), (0, "background")])
def test_an_object_on_two_classes_is_named(devkit: Path, put: Any, label: int, name: str) -> None:
    under = UNDER.copy()
    under[2, 0] = label
    put(f"{HOME}/SegmentationClass/2007_1.png", indexed(under))
    with pytest.raises(DataError, match="object 2 lies on") as caught:
        voc(devkit)[0]
    assert f"{name} (1 pixels)" in caught.value.found
    assert "class 7 (1 pixels)" in caught.value.found
    assert str(caught.value.where).endswith("SegmentationObject/2007_1.png")


def test_an_object_on_the_background_alone_is_named(devkit: Path, put: Any) -> None:
    put(f"{HOME}/SegmentationClass/2007_1.png", indexed(UNDER * (OBJECTS != 1)))
    with pytest.raises(DataError, match=r"object 1 lies on background \(2 pixels\)"):
        voc(devkit)[0]


def test_an_image_without_objects_is_kept(devkit: Path, put: Any) -> None:
    for folder in ("SegmentationObject", "SegmentationClass"):
        put(f"{HOME}/{folder}/2007_1.png", indexed(np.zeros((3, 4), np.uint8)))
    assert len(voc(devkit)[0][1]) == 0
    assert voc(devkit).count_objects(0).tolist() == [0] * 21


def test_values_and_sizes_that_fit_nothing_are_named(devkit: Path, put: Any) -> None:
    put(f"{HOME}/SegmentationClass/2007_1.png", indexed(np.where(UNDER == 7, 21, UNDER).astype(np.uint8)))
    with pytest.raises(DataError, match="file has the values 21") as caught:
        voc(devkit)[0]
    assert str(caught.value.where).endswith("SegmentationClass/2007_1.png")
    assert str(caught.value.expected).startswith("0..20, or 255")
    put(f"{HOME}/SegmentationObject/2007_1.png", OBJECTS.astype(np.uint16) * 2)
    with pytest.raises(DataError, match="file has the values 510"):
        voc(devkit)[0]
    put(f"{HOME}/SegmentationObject/2007_1.png", indexed(OBJECTS[:2]))
    with pytest.raises(DataError, match="objects and of classes have different sizes") as caught:
        voc(devkit)[0]
    assert "2007_1.png is 4x2" in str(caught.value.where)
    put(f"{HOME}/SegmentationClass/2007_1.png", indexed(UNDER[:2]))
    with pytest.raises(DataError, match="image and objects have different sizes"):
        voc(devkit)[0]


@pytest.mark.parametrize("folder", ["SegmentationObject", "SegmentationClass"])
def test_missing_files_of_either_kind_are_named_before_the_first_step(devkit: Path, folder: str) -> None:
    (devkit / HOME / folder / "2008_1.png").unlink()
    with pytest.raises(DataError, match="files of split 'val' are missing") as caught:
        voc(devkit, "val")
    assert str(caught.value.where).endswith(f"{folder}/2008_1.png")
    assert "SegmentationObject/ID.png" in str(caught.value.expected)


def test_download_fetches_what_is_missing_and_no_more(
    devkit: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    archive, root = tmp_path_factory.mktemp("archives") / "voc.tar", tmp_path_factory.mktemp("root")
    with tarfile.open(archive, "w") as tar:
        tar.add(devkit / "VOCdevkit", "VOCdevkit")
    monkeypatch.setitem(DATASET_YEAR_DICT["2012"], "url", archive.as_uri())
    monkeypatch.setitem(DATASET_YEAR_DICT["2012"], "md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert len(voc(root, download=True)[0][1]) == 3
    (root / DATASET_YEAR_DICT["2012"]["filename"]).unlink()
    archive.unlink()  # all is there: nobody asks for it again
    assert len(voc(root, download=True)) == 1


def test_the_config_has_the_published_classes_and_builds(devkit: Path, published: dict[str, Any]) -> None:
    data = build_dataset(compose(["data=voc_instances", "augment=instances", f"data.root={devkit}"]), "train")
    assert isinstance(data, VocInstances)
    assert data.classes == published["voc12"]["classes"]
    assert data.palette == published["voc12"]["palette_21"]
    assert len(data[0][1]) == 3
