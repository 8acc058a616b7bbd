"""Run lengths and polygons, pixel by pixel as pycocotools' own reader draws them."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from pycocotools.coco import COCO

from segtrain.errors import ConfigError, DataError
from segtrain.rle import _runs, decode, encode, parse

SIZE = (37, 52)


def drawn_by_coco(segmentation: Any, size: tuple[int, int] = SIZE) -> np.ndarray:
    dataset = COCO()
    dataset.imgs = {1: {"height": size[0], "width": size[1]}}
    return dataset.annToMask({"image_id": 1, "segmentation": segmentation})


def random_masks(count: int, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """Noise of any density, from nothing to everything."""
    generator = torch.Generator().manual_seed(count)
    return (torch.rand(count, *size, generator=generator) < torch.linspace(0, 1, count)[:, None, None]).to(torch.uint8)


def runs_of(mask: torch.Tensor) -> list[int]:
    """Column by column, zeros first."""
    runs, last = [0], 0
    for value in mask.T.flatten().tolist():
        if value != last:
            runs.append(0)
        runs[-1], last = runs[-1] + 1, value
    return runs


@pytest.mark.parametrize("count", [0, 1, 7])
def test_masks_come_back(count: int) -> None:
    masks = random_masks(count)
    written = json.loads(json.dumps(encode(masks)))
    assert torch.equal(decode(written, *SIZE), masks)
    assert decode(written, *SIZE).dtype == torch.uint8
    assert decode(written, *SIZE).is_contiguous()


def test_encoding_is_cocos() -> None:
    masks = random_masks(5)
    wanted = [coco.encode(np.asfortranarray(mask.numpy())) for mask in masks]
    assert encode(masks) == [{"size": [37, 52], "counts": rle["counts"].decode()} for rle in wanted]


@pytest.mark.parametrize("seed", range(20))
def test_polygons_are_drawn_as_coco_draws_them(seed: int) -> None:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 9, int(generator.integers(1, 4)))
    polygons = [generator.uniform(-8, 60, 2 * length).round(2).tolist() for length in lengths]
    mask = decode([parse(polygons, *SIZE, where="one")], *SIZE)[0].numpy()
    np.testing.assert_array_equal(mask, drawn_by_coco(polygons))
    assert mask.any()


def test_run_lengths_of_every_kind_are_read() -> None:
    for mask in random_masks(9):
        text = encode(mask[None])[0]["counts"]
        assert _runs(text) == _runs(text.encode()) == runs_of(mask)
        for counts in (text, text.encode(), runs_of(mask)):
            rle = parse({"size": list(SIZE), "counts": counts}, *SIZE, where="one")
            assert rle == {"size": list(SIZE), "counts": text}
            assert torch.equal(decode([rle], *SIZE)[0], mask)


def test_long_runs_are_read() -> None:
    size = (3000, 4000)
    mask = torch.zeros(1, *size, dtype=torch.uint8)
    mask[0, 100:2000, 50] = 1
    rle = encode(mask)[0]
    assert _runs(rle["counts"]) == [50 * 3000 + 100, 1900, 3949 * 3000 + 1000]
    assert parse(rle, *size, where="one") == rle


@pytest.mark.parametrize(
    ("segmentation", "found"),
    [
        ([], "no polygon"),
        ([[]], "0 numbers"),
        ([[1, 1, 5, 5]], "4 numbers"),
        ([[1, 1, 5, 5, 9, 1, 3]], "7 numbers"),
        ([[1, 1, 9, 1, 5, 9], [1, 1, 5, 5]], "polygon 1 has 4 numbers"),
        ([[1, 1, 9, "a", 5, 9]], "no list of numbers"),
        ([1, 1, 9, 1, 5, 9], "no list of numbers"),
        ([[1, 1, 9, float("nan"), 5, 9]], "not finite"),
        (None, "neither"),
        ({"counts": [0]}, "neither"),
        ({"size": [52, 37], "counts": [37 * 52]}, r"of an image \[52, 37\]"),
        ({"size": [37, 52], "counts": [50, 20]}, "add up to 70 pixels"),
        ({"size": [37, 52], "counts": [50, 20000]}, "add up to 20050 pixels"),
        ({"size": [37, 52], "counts": [-5, 37 * 52 + 5]}, "no whole numbers"),
        ({"size": [37, 52], "counts": [1.5]}, "no whole numbers"),
        ({"size": [37, 52], "counts": 7}, "no whole numbers"),
        ({"size": [37, 52], "counts": "a b"}, "no whole numbers"),
        ({"size": [37, 52], "counts": "b1d0"}, "add up to 70 pixels"),
        ({"size": [37, 52], "counts": "b1X"}, "no whole numbers"),
    ],
)
def test_what_is_no_segmentation_is_refused(segmentation: Any, found: str) -> None:
    with pytest.raises(DataError, match=found) as caught:
        parse(segmentation, *SIZE, where="a.json, annotation 7")
    assert caught.value.where == "a.json, annotation 7"
    assert caught.value.expected
    assert caught.value.fix


def test_the_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ConfigError, match=r"segtrain\[instances\]"):
        encode(random_masks(1))
