"""However a portrait's mask is stored, it comes out as 0 and 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain.data.portrait import Portrait
from segtrain.errors import DataError

PERSON = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)
ORANGE = np.tile(np.array([230, 120, 60], np.uint8), (2, 3, 1))


def portrait(root: Path, **arguments: Any) -> Portrait:
    return Portrait(**{"split": "train", "root": str(root), "classes": ["background", "person"], **arguments})


@pytest.fixture
def one(tmp_path: Path, put: Any, texts: Any) -> Path:
    texts("train.txt", "p")
    put("images/p.jpg", np.zeros((2, 3, 3), np.uint8))
    return tmp_path


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        (PERSON, "0 and 1"),
        (PERSON > 0, "1 bit"),
        (PERSON * np.uint8(255), "0 and 255"),
        (np.repeat((PERSON * np.uint8(255))[..., None], 3, 2), "RGB of 0 and 255"),
        (np.where(PERSON, 128, 127).astype(np.uint8), "a matte around one half"),
        (np.where(PERSON, 32768, 32767).astype(np.uint16), "a matte of 16 bits"),
        (np.dstack([ORANGE, PERSON * np.uint8(255)]), "a cut-out with alpha"),
        (np.dstack([ORANGE, PERSON * np.uint8(200)]), "a cut-out with soft alpha"),
        (np.dstack([PERSON * np.uint8(255)] * 3 + [np.full_like(PERSON, 255)]), "opaque RGBA"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_of_mask_gives_the_same_person(one: Path, put: Any, mask: np.ndarray, kind: str) -> None:
    put("masks/p.png", mask)
    target = portrait(one)[0][1]
    assert target.dtype == np.uint8
    assert target.tolist() == PERSON.tolist(), kind


@pytest.mark.parametrize("mask", [np.zeros((2, 3), np.uint8), np.zeros((2, 3), bool)])
def test_an_empty_mask_has_no_person(one: Path, put: Any, mask: np.ndarray) -> None:
    put("masks/p.png", mask)
    assert portrait(one)[0][1].max() == 0


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 5), (0.2, 4), (0.4, 3), (0.8, 2), (1.0, 1)])
def test_the_threshold_is_a_share_of_full_opacity(one: Path, put: Any, threshold: float, count: int) -> None:
    put("images/p.png", np.zeros((1, 5, 3), np.uint8))
    (one / "images/p.jpg").unlink()
    put("masks/p.png", np.array([[0, 51, 102, 204, 255]], np.uint8))
    assert int(portrait(one, matte_threshold=threshold)[0][1].sum()) == count


def test_without_masks_the_alpha_of_the_image_is_the_person(one: Path, put: Any) -> None:
    put("images/p.png", np.dstack([ORANGE, PERSON * np.uint8(255)]))
    (one / "images/p.jpg").unlink()
    image, target, _ = portrait(one)[0]
    assert np.array_equal(image, ORANGE)
    assert target.tolist() == PERSON.tolist()


def test_the_alpha_of_a_turned_image_turns_with_it(one: Path, put: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise makes it upright
    put("images/p.png", np.dstack([ORANGE, PERSON * np.uint8(255)]), exif=exif.tobytes())
    (one / "images/p.jpg").unlink()
    image, target, _ = portrait(one)[0]
    assert image.shape == (3, 2, 3)
    assert np.array_equal(target, np.rot90(PERSON, -1))


def test_an_image_without_alpha_and_without_masks_is_named(one: Path) -> None:
    with pytest.raises(DataError, match="no alpha to take the person from") as caught:
        portrait(one)[0]
    assert caught.value.where == f"{one}/images/p.jpg"


def test_an_opaque_mask_of_colors_is_not_a_person_everywhere(one: Path, put: Any) -> None:
    put("masks/p.png", np.dstack([ORANGE, np.full_like(PERSON, 255)]))
    with pytest.raises(DataError, match="colors that are not in the palette"):
        portrait(one)[0]
    assert portrait(one, palette=[[0, 0, 0], [230, 120, 60]])[0][1].min() == 1


def test_a_label_map_overrules_the_guess(one: Path, put: Any) -> None:
    put("masks/p.png", PERSON * np.uint8(80))
    assert portrait(one)[0][1].max() == 0, "80 of 255 is below one half"
    assert portrait(one, label_map={0: 0, 80: 1})[0][1].tolist() == PERSON.tolist()


def test_ids_without_files_are_named(one: Path, put: Any, texts: Any) -> None:
    put("masks/p.png", PERSON)
    texts("train.txt", "p", "q")
    with pytest.raises(DataError, match="2 of 4 files of split 'train' are missing") as caught:
        portrait(one)
    assert "image q\nmask q" in str(caught.value.where)
    with pytest.raises(DataError, match="list of split 'val' not found"):
        portrait(one, split="val")
