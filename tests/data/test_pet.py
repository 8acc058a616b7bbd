"""Oxford-IIIT Pet: one set of files, three targets."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.data import pet
from segtrain.data.pet import Pet
from segtrain.errors import ConfigError, DataError

TARGETS: dict[str, dict[str, Any]] = {
    "trimap": {"classes": ["pet", "background", "border"], "label_map": {1: 0, 2: 1, 3: 2}},
    "foreground": {"classes": ["background", "pet"], "label_map": {1: 1, 2: 0, 3: 255}},
    "breed": {"classes": [f"c{i}" for i in range(38)], "label_map": {1: 1, 2: 0, 3: 255}},
}


@pytest.fixture
def pets(tmp_path: Path, put: Any, texts: Any) -> Path:
    home = "oxford-iiit-pet"
    for name in ("Bengal_1", "pug_2", "Sphynx_3"):
        put(f"{home}/images/{name}.jpg", np.zeros((1, 3, 3), np.uint8))
        put(f"{home}/annotations/trimaps/{name}.png", np.array([[1, 2, 3]], np.uint8))
    texts(f"{home}/annotations/trainval.txt", "# name id species breed", "Bengal_1 6 1 3", "pug_2 26 2 18")
    texts(f"{home}/annotations/test.txt", "Sphynx_3 34 1 12")
    return tmp_path


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("trimap", [[0, 1, 2], [0, 1, 2]]),
        ("foreground", [[1, 0, 255], [1, 0, 255]]),
        ("breed", [[6, 0, 255], [26, 0, 255]]),
    ],
)
@pytest.mark.parametrize("below", ["", "oxford-iiit-pet"])
def test_the_three_targets(pets: Path, below: str, target: Any, expected: list[list[int]]) -> None:
    dataset = Pet(split="train", root=str(pets / below), target=target, **TARGETS[target])
    assert [dataset[i][1][0].tolist() for i in range(2)] == expected
    assert [record.extra["breed"] for record in dataset.records] == [6, 26]


def test_val_is_the_official_test(pets: Path) -> None:
    dataset = Pet(split="val", root=str(pets), **TARGETS["trimap"])
    assert [record.name for record in dataset.records] == ["Sphynx_3"]


def test_classes_that_do_not_fit_the_target(pets: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.classes has 3 names, breed needs 38"):
        Pet(split="train", root=str(pets), target="breed", **TARGETS["trimap"])


@pytest.mark.parametrize("line", ["Bengal_1", "Bengal_1 six 1 3", "Bengal_1 0 1 3", "Bengal_1 38 1 3"])
def test_a_line_that_is_no_line_is_named(pets: Path, texts: Any, line: str) -> None:
    path = texts("oxford-iiit-pet/annotations/trainval.txt", line)
    with pytest.raises(DataError) as caught:
        Pet(split="train", root=str(pets), **TARGETS["trimap"])
    assert f"'{line}'" in caught.value.found
    assert caught.value.where == str(path)


def test_download_brings_both_archives(
    pets: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives, root = tmp_path_factory.mktemp("archives"), tmp_path_factory.mktemp("root")
    table = []
    for name in ("images", "annotations"):
        path = archives / f"{name}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(pets / "oxford-iiit-pet" / name, name)
        table.append((path.as_uri(), hashlib.md5(path.read_bytes()).hexdigest()))
    monkeypatch.setattr(pet, "ARCHIVES", table)
    dataset = Pet(split="train", root=str(root), download=True, **TARGETS["trimap"])
    assert dataset[1][1].tolist() == [[0, 1, 2]]
    monkeypatch.setattr(pet, "ARCHIVES", [("file:///nowhere", "0")])
    assert len(Pet(split="val", root=str(root), download=True, **TARGETS["trimap"])) == 1, "nothing is missing"


def test_the_archives_are_the_ones_torchvision_knows() -> None:
    from torchvision.datasets import OxfordIIITPet

    assert pet.ARCHIVES == OxfordIIITPet._RESOURCES
