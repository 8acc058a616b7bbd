"""Real files, where there are any: every sample decodes, and the label shares are as counted elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.data.camvid import CamVid
from segtrain.data.dataset import SegmentationDataset
from segtrain.data.pet import Pet
from segtrain.data.portrait import Portrait
from segtrain.data.scan import scan
from segtrain.data.voc import Voc

ROOT = Path(__file__).parents[2] / "../shared/data"


def real(kind: type[SegmentationDataset], folder: str, split: str, **arguments: Any) -> SegmentationDataset:
    if not (ROOT / folder).is_dir():
        pytest.skip(f"no real data at {ROOT.resolve() / folder}")
    root = ROOT / folder if kind is Portrait else ROOT
    return kind(split=split, root=str(root), **arguments)


CAMVID: dict[str, Any] = {
    "classes": [f"c{i}" for i in range(11)],
    "label_map": {**{i: i for i in range(11)}, 11: 255},
}
PET: dict[str, Any] = {"classes": ["pet", "background", "border"], "label_map": {1: 0, 2: 1, 3: 2}}
VOC: dict[str, Any] = {"classes": [f"c{i}" for i in range(21)]}
PORTRAIT: dict[str, Any] = {"classes": ["background", "person"]}


@pytest.mark.parametrize(
    ("kind", "folder", "split", "count", "arguments"),
    [
        (CamVid, "CamVid", "train", 367, CAMVID),
        (CamVid, "CamVid", "val", 101, CAMVID),
        (CamVid, "CamVid", "test", 233, CAMVID),
        (Pet, "oxford-iiit-pet", "train", 300, PET),
        (Pet, "oxford-iiit-pet", "val", 196, PET),
        (Voc, "VOCdevkit", "train", 300, VOC),
        (Voc, "VOCdevkit", "val", 220, VOC),
        (Portrait, "portrait360", "train", 250, PORTRAIT),
        (Portrait, "portrait360", "val", 60, PORTRAIT),
    ],
)
def test_every_sample_decodes_to_legal_labels(kind: Any, folder: str, split: str, count: int, arguments: Any) -> None:
    dataset = real(kind, folder, split, **arguments)
    assert len(dataset) == count
    legal = np.array([*range(len(dataset.classes)), 255])
    for image, target, record in (dataset[i] for i in range(count)):
        assert image.dtype == target.dtype == np.uint8, record
        assert image.shape == (*target.shape, 3), record
        assert np.isin(np.unique(target), legal).all(), record


def test_camvid_has_the_known_shares() -> None:
    found = scan(real(CamVid, "CamVid", "train", **CAMVID))
    shares = [0.169, 0.233, 0.010, 0.317, 0.045, 0.097, 0.012, 0.011, 0.059, 0.006, 0.003]
    assert np.abs(found.shares() - shares).max() < 0.0006
    assert abs(found.ignored_share() - 0.040) < 0.0006


def test_voc_has_the_known_shares() -> None:
    found = scan(real(Voc, "VOCdevkit", "train", **VOC))
    known = {0: 0.639, 8: 0.079, 12: 0.053, 13: 0.032, 15: 0.029, 10: 0.025, 18: 0.022, 17: 0.020, 9: 0.015}
    assert all(abs(found.shares()[index] - share) < 0.0006 for index, share in known.items())
    assert abs(found.ignored_share() - 0.071) < 0.0006


def test_pet_has_the_known_shares_and_breeds() -> None:
    splits = [scan(real(Pet, "oxford-iiit-pet", split, **PET)) for split in ("train", "val")]
    pixels = np.sum([found.pixels for found in splits], axis=0)
    assert np.abs(pixels / pixels.sum() - [0.275, 0.599, 0.125]).max() < 0.0006
    breeds = {"classes": [f"c{i}" for i in range(38)], "label_map": {1: 1, 2: 0, 3: 255}, "target": "breed"}
    by_breed = scan(real(Pet, "oxford-iiit-pet", "train", **breeds))
    assert np.flatnonzero(by_breed.pixels).tolist() == [0, 1, 2, 6]
    assert by_breed.pixels[1:].sum() == splits[0].pixels[0]


def test_portraits_have_the_known_share() -> None:
    splits = [scan(real(Portrait, "portrait360", split, **PORTRAIT)) for split in ("train", "val")]
    pixels = np.sum([found.pixels for found in splits], axis=0)
    assert abs(pixels[1] / pixels.sum() - 0.41) < 0.0051
