"""The gallery keeps the same worst images in any order, on any number of ranks, with pictures that show them."""

from __future__ import annotations

import io
import math
import pickle
from itertools import permutations

import numpy as np
import torch
from PIL import Image

from segtrain.gallery import KIND_COLORS, Gallery
from segtrain.metrics.anatomy import error_kinds
from segtrain.metrics.base import Judged
from segtrain.metrics.confusion import ConfusionMatrix
from segtrain.pictures import VOID, colorize
from segtrain.types import Record

CLASSES = ["ground", "cat", "dog"]
PALETTE = [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


def judged(name: str, target: np.ndarray, prediction: np.ndarray, index: int = 0) -> Judged:
    image = np.random.default_rng(index).integers(0, 256, (*target.shape, 3), dtype=np.uint8)
    return Judged(torch.zeros(len(CLASSES), *target.shape), prediction, target, image, Record(name), index)


def drawn(seed: int, size: tuple[int, int] = (24, 32)) -> Judged:
    """A random image with some unlabelled pixels; its share of wrong ones grows with the seed."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 3, size, dtype=np.uint8)
    wrong = rng.random(size) < seed / 20
    prediction = np.where(wrong, rng.integers(0, 3, size), target).astype(np.uint8)
    target[rng.random(size) < 0.1] = 255
    return judged(f"image{seed:02d}", target, prediction, seed)


def filled(images: list[Judged], count: int = 4) -> Gallery:
    gallery = Gallery(CLASSES, PALETTE, count=count)
    for image in images:
        gallery.update(image)
    return gallery


def pixels(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)).convert("RGBA"))


def test_the_worst_are_those_of_a_plain_sort_by_per_image_miou() -> None:
    images = [drawn(seed) for seed in range(12)]
    scores = {}
    for image in images:
        matrix = ConfusionMatrix(3)
        matrix.update(image.prediction, image.target)
        scores[image.record.name] = matrix.compute().miou
    expected = sorted(scores, key=lambda name: (scores[name], name))[:4]
    worst = filled(images).worst()
    assert [image.name for image in worst] == expected
    assert [image.miou for image in worst] == [scores[name] for name in expected]


def test_no_order_of_images_and_no_split_over_ranks_shows() -> None:
    images = [drawn(seed) for seed in (3, 8, 1, 9)]
    reference = filled(images, 3)
    for order in permutations(images):
        assert filled(list(order), 3).kept == reference.kept
    first, second = filled(images[:2], 3), filled(images[2:], 3)
    first.merge(pickle.loads(pickle.dumps(second.state())))
    assert first.kept == reference.kept


def test_equal_scores_are_ordered_by_name() -> None:
    target = np.array([[0, 1], [1, 1]], np.uint8)
    prediction = np.zeros_like(target)
    for names in ("bac", "cab", "abc"):
        gallery = filled([judged(name, target, prediction) for name in names], 2)
        assert [image.name for image in gallery.worst()] == ["a", "b"]


def test_miou_is_over_the_classes_in_target_or_prediction_and_labelled_pixels() -> None:
    target = np.array([[0, 0, 0, 0], [1, 1, 255, 255]], np.uint8)
    prediction = np.array([[0, 0, 0, 1], [1, 1, 2, 2]], np.uint8)
    (image,) = filled([judged("one", target, prediction)]).worst()
    assert image.classes == [0, 1]  # the dogs lie where nobody labelled
    assert math.isclose(image.miou, (3 / 4 + 2 / 3) / 2)
    assert math.isclose(image.pixel_accuracy, 5 / 6)
    assert (image.height, image.width) == (2, 4)


def test_an_image_without_labels_has_no_score_and_no_place() -> None:
    void = np.full((4, 4), 255, np.uint8)
    assert filled([judged("void", void, np.zeros_like(void))]).worst() == []


def test_pictures_show_the_labels_in_their_colors() -> None:
    one = drawn(9)
    (image,) = filled([one]).worst()
    for content, indices in ((image.truth, one.target), (image.prediction, one.prediction)):
        shown = pixels(content)
        assert np.array_equal(shown[..., :3], colorize(indices, PALETTE))
        assert np.array_equal(shown[..., 3] == 0, indices == 0)  # black is clear
    kinds = error_kinds(one.target, one.prediction)
    colors = np.array([[0, 0, 0], *KIND_COLORS.values(), VOID], np.uint8)
    assert np.array_equal(pixels(image.error_kinds)[..., :3], colors[np.where(kinds == 255, 5, kinds)])
    assert list(image.errors.values()) == [int((kinds == value).sum()) for value in (1, 2, 3, 4)]
    assert sum(image.errors.values()) == int(((one.target != one.prediction) & (one.target != 255)).sum()) > 0


def test_wide_images_are_shown_at_480_columns_and_their_labels_stay_labels() -> None:
    target = np.zeros((100, 1000), np.uint8)
    target[:, 500:] = 1
    (image,) = filled([judged("wide", target, np.zeros_like(target))]).worst()
    for content in (image.input, image.truth, image.prediction, image.error_kinds):
        assert pixels(content).shape == (48, 480, 4)
    assert {tuple(color) for color in pixels(image.truth)[..., :3].reshape(-1, 3).tolist()} == {(0, 0, 0), (128, 0, 0)}
    assert (image.height, image.width) == (100, 1000)


def test_scores_are_plain_and_name_the_classes() -> None:
    gallery = filled([drawn(seed) for seed in range(3, 8)], 2)
    first, second = gallery.compute()["worst"]
    assert first["miou"] < second["miou"]
    assert first["classes"] == CLASSES
    assert set(first) == {"name", "miou", "pixel_accuracy", "height", "width", "classes", "errors"}
