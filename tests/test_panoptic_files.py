"""COCO's panoptic files: what is written is read again, scores as other programs' do, and faults are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain.data.panoptic.files import Annotated, Index, read_index, read_panoptic
from segtrain.errors import DataError
from segtrain.metrics.panoptic import PanopticQuality
from segtrain.panoptic import Panoptic, Segment
from segtrain.panoptic_files import PanopticWriter

CLASSES = ["tree", "bus", "cat"]
THINGS = {"bus", "cat"}
# What hotcoco 1.3.0 (`panoptic.pq_compute`) and the counting of panopticapi's evaluation.py say of the files that
# `written` makes of `scenes`: tp, fp, fn, sum of IoU.
COUNTED = {
    "tree": (24, 13, 12, 19.526798391065096),
    "bus": (19, 8, 7, 15.794080086580086),
    "cat": (18, 9, 7, 15.261882226385351),
}
PQ, PQ_THINGS, PQ_STUFF = 0.5726597567393626, 0.591499246190344, 0.5349807778374


def scenes() -> Iterator[tuple[int, Panoptic, Panoptic]]:
    """Twelve times image id, prediction and truth, by arithmetic alone: the same on every machine and version."""
    state = 1

    def draw(end: int) -> int:
        nonlocal state
        state = (state * 1103515245 + 12345) % 2**31
        return (state >> 8) % end

    for image_id in range(1, 13):
        ids = np.zeros((24, 30), np.int32)
        segments = {}
        for number in range(1, 10):
            y, x, height, width, category = draw(20), draw(26), 4 + draw(8), 4 + draw(8), draw(3)
            ids[y : y + height, x : x + width] = number * 70001
            crowd = category > 0 and draw(10) < 3
            segments[number * 70001] = Segment(number * 70001, category, thing=category > 0, crowd=crowd)
        truth = Panoptic(ids, [one for number, one in segments.items() if (ids == number).any()])
        found = np.roll(ids, (draw(3) - 1, draw(3) - 1), (0, 1))
        found[:3, :3] = 999
        kept = [Segment(999, 1, thing=True, score=0.75)]
        for one in truth.segments:
            category = one.category if draw(10) < 8 else draw(3)
            if (found == one.id).any():
                kept.append(Segment(one.id, category, thing=category > 0))
        yield image_id, Panoptic(found, kept), truth


def written(folder: Path) -> tuple[Path, Path]:
    """The lists of truth and predictions, as files."""
    truths = PanopticWriter(folder / "truth", classes=CLASSES, things=THINGS)
    finds = PanopticWriter(folder / "found", classes=CLASSES, things=THINGS)
    for image_id, found, truth in scenes():
        truths.add(truth, image_id=image_id, image=f"{image_id}.jpg")
        finds.add(found, image_id=image_id, image=f"{image_id}.jpg")
    return truths.finish(), finds.finish()


def loaded(index: Index, image: Annotated, folder: Path, classes: list[str] = CLASSES) -> Panoptic:
    class_of = {n: classes.index(c.name) for n, c in index.categories.items() if c.name in classes}
    return read_panoptic(folder / image.png, image, class_of, {n for n, c in index.categories.items() if c.thing})


def test_what_is_written_is_read_again(kept: Path) -> None:
    for path, place in ((kept / "truth.json", 2), (kept / "found.json", 1)):
        index = read_index(path)
        assert [category.name for category in index.categories.values()] == CLASSES
        assert {category.name for category in index.categories.values() if category.thing} == THINGS
        for image, made in zip(index.images, scenes(), strict=True):
            again = loaded(index, image, path.with_suffix(""))
            assert image.image_id == made[0]
            assert np.array_equal(again.ids, made[place].ids)
            assert again.ids.dtype == np.int32
            assert again.segments == made[place].segments


def test_the_files_score_as_other_programs_say(kept: Path) -> None:
    truths, finds = read_index(kept / "truth.json"), read_index(kept / "found.json")
    quality = PanopticQuality(CLASSES, THINGS)
    for truth, found in zip(truths.images, finds.images, strict=True):
        quality.update(loaded(finds, found, kept / "found"), loaded(truths, truth, kept / "truth"))
    scores = quality.compute()
    for name, (tp, fp, fn, iou) in COUNTED.items():
        assert [scores[f"{count}_per_class"][name] for count in ("tp", "fp", "fn")] == [tp, fp, fn]
        assert scores["sq_per_class"][name] * tp == pytest.approx(iou, abs=1e-10)
    expected = {"pq": PQ, "pq_things": PQ_THINGS, "pq_stuff": PQ_STUFF}
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_the_format_is_cocos_to_the_key(tmp_path: Path) -> None:
    writer = PanopticWriter(
        tmp_path / "run" / "val",
        classes=["sky", "cat"],
        things=["cat"],
        palette=[[1, 2, 3], [4, 5, 6]],
        category_ids={"sky": 187, "cat": 17},
    )
    ids = np.array([[0, 66051, 66051], [4, 66051, 4]], np.int32)  # 66051 = 3 + 256 * 2 + 65536 * 1
    panoptic = Panoptic(ids, [Segment(66051, 1, thing=True, score=0.5), Segment(4, 0, thing=False)])
    png = writer.add(panoptic, image_id=139, image="city/0139.jpg")
    assert png == tmp_path / "run/val/city/0139.png"
    with Image.open(png) as picture:
        assert picture.mode == "RGB"
        assert picture.getpixel((1, 0)) == (3, 2, 1)
        assert picture.getpixel((0, 0)) == (0, 0, 0)
    assert writer.finish() == tmp_path / "run/val.json"
    assert json.loads((tmp_path / "run/val.json").read_text()) == {
        "images": [{"id": 139, "file_name": "city/0139.jpg", "height": 2, "width": 3}],
        "annotations": [
            {
                "image_id": 139,
                "file_name": "city/0139.png",
                "segments_info": [
                    {"id": 66051, "category_id": 17, "area": 3, "bbox": [1, 0, 2, 2], "iscrowd": 0, "score": 0.5},
                    {"id": 4, "category_id": 187, "area": 2, "bbox": [0, 1, 3, 1], "iscrowd": 0},
                ],
            }
        ],
        "categories": [
            {"id": 187, "name": "sky", "isthing": 0, "supercategory": "sky", "color": [1, 2, 3]},
            {"id": 17, "name": "cat", "isthing": 1, "supercategory": "cat", "color": [4, 5, 6]},
        ],
    }


def test_what_ranks_wrote_becomes_one_list_whatever_the_split(kept: Path, tmp_path: Path) -> None:
    ranks = [PanopticWriter(tmp_path / "ranks" / "found", classes=CLASSES, things=THINGS) for _ in range(2)]
    for image_id, found, _ in scenes():
        ranks[image_id % 2].add(found, image_id=image_id, image=f"{image_id}.jpg")
    ranks[0].merge(ranks[1].state())
    assert ranks[0].finish().read_bytes() == (kept / "found.json").read_bytes()


def test_a_writer_refuses_what_no_reader_could_tell_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of its own"):
        PanopticWriter(tmp_path / "a", classes=CLASSES, things=THINGS, category_ids={"tree": 1, "bus": 2, "cat": 1})
    with pytest.raises(ValueError, match="one of its own"):
        PanopticWriter(tmp_path / "a", classes=CLASSES, things=THINGS, category_ids={"tree": 1})
    writer = PanopticWriter(tmp_path / "a", classes=CLASSES, things=THINGS)
    nothing = Panoptic(np.zeros((2, 2), np.int32), [])
    writer.add(nothing, image_id=1, image="1.jpg")
    with pytest.raises(ValueError, match="written twice"):
        writer.add(nothing, image_id=1, image="1.jpg")
    broken = Panoptic(np.ones((2, 2), np.int32), [])
    with pytest.raises(DataError, match="the list of segments has not: 1") as caught:
        writer.add(broken, image_id=2, image="2.jpg")
    assert str(caught.value.where).endswith("2.png")
    assert not (tmp_path / "a" / "2.png").exists()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the lists and pictures, written once."""
    folder = tmp_path_factory.mktemp("panoptic")
    written(folder)
    return folder


@pytest.fixture
def truth(kept: Path, tmp_path: Path) -> Path:
    """The truth's list, in a copy that a test may spoil."""
    return Path(shutil.copytree(kept, tmp_path / "copy")) / "truth.json"


def test_categories_left_out_are_void_and_the_rest_stays(truth: Path) -> None:
    index = read_index(truth)
    for image, (_, _, whole) in zip(index.images, scenes(), strict=True):
        only = loaded(index, image, truth.with_suffix(""), ["cat"])
        assert {segment.category for segment in only.segments} <= {0}
        cats = [segment.id for segment in whole.segments if segment.category == 2]
        assert np.array_equal(only.ids, np.where(np.isin(whole.ids, cats), whole.ids, 0))
        only.positions()


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda j: j.pop("categories"), "the file has no categories"),
        (lambda j: j["annotations"][2].pop("file_name"), "an entry has no 'file_name'"),
        (lambda j: j["annotations"][2]["segments_info"][0].pop("id"), "an entry has no 'id'"),
        (lambda j: j["categories"][0].pop("isthing"), "an entry has no 'isthing'"),
        (lambda j: j["annotations"][2].update(segments_info=3), "an entry is of another kind"),
        (
            lambda j: j["annotations"][2]["segments_info"][0].update(category_id=77),
            r"image 3 has segments of unknown category ids: segment \d+: 77",
        ),
        (lambda j: j["images"].pop(4), "an annotation is of image 5, which `images` has not"),
        (lambda j: j["annotations"].pop(4), "1 images have no annotation: 5"),
        (lambda j: j["annotations"].append(j["annotations"][0]), "images have several annotations: 1"),
        (lambda j: j["annotations"][0].update(file_name="../1.png"), "names a file outside its folder: '../1.png'"),
        (lambda j: j["images"][0].update(file_name="/1.jpg"), "names a file outside its folder: '/1.jpg'"),
    ],
)
def test_a_list_with_a_fault_is_refused_and_the_fault_named(truth: Path, change: Change, message: str) -> None:
    content = json.loads(truth.read_text())
    change(content)
    truth.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        read_index(truth)
    assert str(truth) in str(caught.value.where)
    assert caught.value.fix


def test_no_list_and_no_json_are_told_apart(truth: Path) -> None:
    with pytest.raises(DataError, match="list of segments is missing"):
        read_index(truth.with_name("other.json"))
    truth.write_text("[1, 2")
    with pytest.raises(DataError, match="cannot be read"):
        read_index(truth)
    truth.write_text("[1, 2]")
    with pytest.raises(DataError, match="has no images, annotations, categories"):
        read_index(truth)


def test_ids_of_list_and_pixels_must_be_the_same(truth: Path) -> None:
    index = read_index(truth)
    image, png = index.images[0], truth.with_suffix("") / index.images[0].png
    fewer = Annotated(image.image_id, image.image, image.png, image.segments[1:])
    with pytest.raises(DataError, match=f"that the list of segments has not: {image.segments[0].id}") as caught:
        loaded(index, fewer, png.parent)
    assert caught.value.where == f"{png} (image 1)"
    more = Annotated(image.image_id, image.image, image.png, (*image.segments, image.segments[0]._replace(id=5)))
    with pytest.raises(DataError, match="listed that no pixel has: 5"):
        loaded(index, more, png.parent)
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(png)
    with pytest.raises(DataError, match="one channel"):
        loaded(index, image, png.parent)
    png.unlink()
    with pytest.raises(DataError, match="file not found"):
        loaded(index, image, png.parent)
