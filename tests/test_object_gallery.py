"""The gallery of objects keeps the same worst images in any order, on any number of ranks, with pictures of them."""

from __future__ import annotations

import io
import json
import pickle
from itertools import permutations

import numpy as np
import torch
from PIL import Image

from segtrain.instances import Detections, Instances, boxes_around
from segtrain.metrics.matching import match
from segtrain.metrics.objects import JudgedObjects
from segtrain.object_gallery import OUTCOME_COLORS, ObjectGallery, WorstObjects
from segtrain.types import Record

CLASSES = ["background", "cat", "dog"]
PALETTE = [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


def masks_of(*corners: tuple[int, int, int, int], size: tuple[int, int] = (60, 80)) -> torch.Tensor:
    """Masks (N, H, W) of `top, left, bottom, right`."""
    masks = torch.zeros(len(corners), *size, dtype=torch.uint8)
    for mask, (top, left, bottom, right) in zip(masks, corners, strict=True):
        mask[top:bottom, left:right] = 1
    return masks


def found(masks: torch.Tensor, labels: list[int], scores: list[float]) -> Detections:
    return Detections(boxes_around(masks), torch.tensor(labels, dtype=torch.int64), torch.tensor(scores), masks)


def judged(name: str, detections: Detections, truth: Instances, index: int = 0) -> JudgedObjects:
    image = np.random.default_rng(index).integers(0, 256, (*truth.size, 3), dtype=np.uint8)
    return JudgedObjects(torch.from_numpy(image), detections, truth, Record(name), index)


def drawn(seed: int) -> JudgedObjects:
    """Three objects, the detections of which are shifted the more the higher the seed, and one of nothing."""
    truth = masks_of((2, 2, 22, 22), (2, 30, 22, 60), (30, 5, 55, 40))
    shifted = torch.roll(truth, seed, 2)
    invented = masks_of((40, 60, 40 + seed, 60 + seed))
    detections = found(torch.cat([shifted, invented]), [1, 2, 1, 2], [0.9, 0.8, 0.7, 0.6])
    return judged(f"image{seed:02d}", detections, Instances.of(truth, torch.tensor([1, 2, 1])), seed)


def filled(images: list[JudgedObjects], count: int = 4, classes: list[str] = CLASSES) -> ObjectGallery:
    gallery = ObjectGallery(classes, PALETTE, count=count)
    for image in images:
        gallery.update(image)
    return gallery


def pixels(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)).convert("RGBA"))


def test_the_worst_are_those_of_a_plain_sort_by_quality() -> None:
    images = [drawn(seed) for seed in range(1, 12)]
    quality = {image.record.name: match(image.detections, image.truth).quality for image in images}
    assert len(set(quality.values())) > 6
    worst = filled(images).worst()
    assert [image.name for image in worst] == sorted(quality, key=lambda name: (quality[name], name))[:4]
    assert [image.quality for image in worst] == [quality[image.name] for image in worst]


def test_no_order_of_images_and_no_split_over_ranks_shows() -> None:
    images = [drawn(seed) for seed in (3, 8, 1, 9)]
    reference = filled(images, 3)
    for order in permutations(images):
        assert filled(list(order), 3).kept == reference.kept
    first, second = filled(images[:2], 3), filled(images[2:], 3)
    first.merge(pickle.loads(pickle.dumps(second.state())))
    assert first.kept == reference.kept


def test_equal_qualities_are_ordered_by_name() -> None:
    truth = Instances.of(masks_of((5, 5, 20, 20)), torch.tensor([1]))
    nothing = found(truth.masks[:0], [], [])
    for names in ("bac", "cab", "abc"):
        gallery = filled([judged(name, nothing, truth) for name in names], 2)
        assert [image.name for image in gallery.worst()] == ["a", "b"]


def test_images_without_objects_are_passed_over_and_unsure_detections_are_none() -> None:
    truth, masks = Instances.none(60, 80), masks_of((5, 5, 20, 20))
    crowd = Instances.of(masks, torch.tensor([1]), crowd=torch.tensor([True]))
    gallery = filled(
        [
            judged("empty", found(masks[:0], [], []), truth),
            judged("unsure", found(masks, [1], [0.49]), truth),
            judged("on a crowd", found(masks, [1], [0.9]), crowd),
            judged("invented", found(masks, [1], [0.5]), truth),
        ]
    )
    assert [image.name for image in gallery.worst()] == ["invented"]


def test_the_scores_are_plain_and_count_what_happened() -> None:
    masks = masks_of((2, 2, 22, 22), (2, 30, 22, 60), (30, 5, 55, 40))
    truth = Instances.of(masks, torch.tensor([1, 2, 2]))
    gallery = filled([judged("one", found(masks[[0, 1]], [1, 1], [0.9, 0.8]), truth)])
    (told,) = json.loads(json.dumps(gallery.compute()))["worst"]
    assert told == {
        "name": "one",
        "quality": 1 / (1 + 1 / 2 + 2 / 2),
        "found": 1,
        "missed": 2,
        "invented": 1,
        "height": 60,
        "width": 80,
        "classes": ["cat", "dog"],
    }
    (kept,) = gallery.worst()
    assert (kept.missed, kept.invented) == ([2, 2], [1])


def alone(detections: Detections, truth: Instances) -> WorstObjects:
    (image,) = filled([judged("one", detections, truth)]).worst()
    return image


def test_each_outcome_has_its_color_and_lies_where_the_object_is() -> None:
    masks = masks_of((2, 2, 26, 30), (2, 45, 26, 75), (32, 2, 56, 30), (32, 45, 56, 75))
    truth = Instances.of(masks[[0, 1, 3]], torch.tensor([1, 1, 1]), crowd=torch.tensor([False, False, True]))
    image = alone(found(masks[[0, 2, 3]], [1, 1, 1], [0.9, 0.8, 0.7]), truth)
    assert image.counts == {"found": 1, "missed": 1, "invented": 1}
    shown = pixels(image.outcomes)
    scale = shown.shape[1] // 80
    for kind, (top, left) in {"found": (2, 2), "missed": (2, 45), "invented": (32, 2), "crowd": (32, 45)}.items():
        part = shown[scale * top : scale * (top + 24), scale * left : scale * (left + 28)].reshape(-1, 4)
        drawn_colors = {tuple(color[:3]) for color in part.tolist() if color[3]} - {(255, 255, 255)}
        assert drawn_colors == {OUTCOME_COLORS[kind]}
    share = [
        (pixels(image.outcomes)[scale * t : scale * (t + 24), scale * x : scale * (x + 28), 3] > 0).mean()
        for t, x in ((2, 2), (2, 45), (32, 2), (32, 45))
    ]
    assert share[0] == 1 > share[1]  # plain, and striped for eyes that see no colors
    assert share[3] < 0.1  # a crowd is outlined
    assert pixels(image.truth)[44 * scale, 60 * scale, 3] == 0
    assert not shown[:, scale * 76 :, 3].any()


def test_truth_and_prediction_are_drawn_in_shades_and_clear_elsewhere() -> None:
    masks = masks_of((2, 2, 26, 30), (2, 45, 26, 75))
    truth = Instances.of(masks, torch.tensor([1, 1]))
    image = alone(found(masks[[1]], [1], [0.9]), truth)
    true, shown = pixels(image.truth), pixels(image.prediction)
    scale = true.shape[1] // 80
    first, second = true[12 * scale, 12 * scale], true[12 * scale, 60 * scale]
    assert (first != second).any()
    np.testing.assert_array_equal(shown[12 * scale, 60 * scale], second)  # the same object, the same color
    assert shown[12 * scale, 12 * scale, 3] == 0
    assert true[58 * scale, 40 * scale, 3] == 0


def test_a_small_object_stays_visible_on_a_large_one() -> None:
    masks = masks_of((2, 2, 58, 78), (20, 30, 40, 50))
    for order in ([0, 1], [1, 0]):
        truth = Instances.of(masks[order], torch.tensor([1, 2])[order])
        shown = pixels(alone(found(masks[:0], [], []), truth).truth)
        scale = shown.shape[1] // 80
        assert shown[30 * scale, 40 * scale, 1] > shown[30 * scale, 40 * scale, 0]  # a green dog, not a red cat


def test_pictures_of_large_images_are_small_and_lose_no_thin_object() -> None:
    masks = masks_of((100, 0, 101, 1500), size=(1000, 1500))
    image = alone(found(masks[:0], [], []), Instances.of(masks, torch.tensor([1])))
    sizes = {Image.open(io.BytesIO(one)).size for one in (image.input, image.truth, image.prediction, image.outcomes)}
    assert sizes == {(480, 320)}
    assert pixels(image.truth)[32, :, 3].all()
    assert (image.height, image.width) == (1000, 1500)


def test_tags_lie_on_their_objects_and_not_upon_another() -> None:
    masks = masks_of((2, 2, 26, 38), (2, 42, 26, 78), (4, 4, 24, 36), (50, 60, 51, 61))
    image = alone(found(masks[[1, 2]], [2, 1], [0.9, 0.75]), Instances.of(masks, torch.tensor([1, 2, 2, 1])))
    assert [tag.words for tag in image.truth_tags] == [
        "cat",
        "dog",
    ]  # the third would cover the first, the last is tiny
    assert {tag.words for tag in image.prediction_tags} == {"dog 0.90", "cat 0.75"}
    for tag, mask in zip(image.truth_tags, masks, strict=False):
        assert mask[int(tag.y * 60), int(tag.x * 80)] == 1


def test_unsure_detections_are_in_no_picture() -> None:
    masks = masks_of((2, 2, 26, 38), (2, 42, 26, 78))
    image = alone(found(masks, [1, 2], [0.9, 0.49]), Instances.of(masks[:1], torch.tensor([1])))
    assert image.classes == [1]
    assert [tag.words for tag in image.prediction_tags] == ["cat 0.90"]
    shown = pixels(image.prediction)
    assert not shown[:, shown.shape[1] // 2 :, 3].any()


def test_where_there_is_one_class_its_name_is_not_repeated() -> None:
    masks = masks_of((2, 2, 26, 38))
    truth = Instances.of(masks, torch.tensor([1]))
    (image,) = filled([judged("one", found(masks, [1], [0.9]), truth)], classes=CLASSES[:2]).worst()
    assert [tag.words for tag in image.truth_tags] == []
    assert [tag.words for tag in image.prediction_tags] == ["0.90"]


def test_float_images_of_one_channel_have_pictures() -> None:
    masks = masks_of((2, 2, 26, 38))
    truth = Instances.of(masks, torch.tensor([1]))
    one = JudgedObjects(torch.full((60, 80, 1), 300.0), found(masks[:0], [], []), truth, Record("gray"), 0)
    (image,) = filled([one]).worst()
    assert (np.array(Image.open(io.BytesIO(image.input))) == 255).all()


def test_more_objects_than_a_picture_has_colors_are_all_drawn() -> None:
    corners = [(3 * row, 3 * column, 3 * row + 2, 3 * column + 2) for row in range(20) for column in range(20)]
    masks = masks_of(*corners, size=(60, 60))
    image = alone(found(masks[:0], [], []), Instances.of(masks, torch.ones(400, dtype=torch.int64)))
    assert image.counts["missed"] == 400
    shown = pixels(image.truth)
    scale = shown.shape[1] // 60
    assert not shown[5 * scale // 2, :, 3].any()  # between two rows of them
    assert all(
        shown[scale * top : scale * (top + 2), scale * left : scale * (left + 2), 3].all() for top, left, *_ in corners
    )
