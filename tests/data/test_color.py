"""One matrix does what ColorJitter does, up to clamping, rounding and the circle that hue turns on."""

from __future__ import annotations

import pickle
import random
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest

from segtrain.data.color import LUMA, ColorMatrix, chained, color_matrix, mean_color, painted
from segtrain.data.transforms import SegmentationTransform
from segtrain.errors import ConfigError
from segtrain.experiment import build_dataset, compose

RNG = np.random.default_rng(3)
# Far from black and white, so that ColorJitter's clamping after every operation changes nothing.
MILD = cv2.GaussianBlur(RNG.integers(60, 190, (40, 56, 3), dtype=np.uint8), (0, 0), 1)
TARGET = np.zeros((40, 56), np.uint8)
PLAIN = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}


def seeded(step: Any, seed: int) -> Any:
    step.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return step


def exact(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return np.clip(image.astype(float) @ matrix[:, :-1].T + matrix[:, -1], 0, 255)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.25])
def test_each_factor_does_what_color_jitter_does(name: str, factor: float) -> None:
    one = {key: (value, value) for key, value in {**PLAIN, name: factor}.items()}
    theirs = A.ColorJitter(**one, p=1.0)(image=MILD)["image"]
    mine = painted(MILD, color_matrix(mean_color(MILD), **{**PLAIN, name: factor}))
    assert np.abs(mine.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("turn", [0.03, -0.03])
def test_hue_turns_the_same_way_as_in_hsv_and_keeps_the_luma(turn: float) -> None:
    colors = np.uint8([[[200, 80, 80], [80, 200, 80], [80, 80, 200], [190, 190, 70], [70, 190, 190], [190, 70, 190]]])
    theirs = A.ColorJitter((1, 1), (1, 1), (1, 1), (turn, turn), p=1.0)(image=colors)["image"]
    mine = exact(colors, color_matrix(mean_color(colors), **{**PLAIN, "hue": turn}))
    moved, expected = (mine - colors).reshape(6, 3), (theirs.astype(float) - colors).reshape(6, 3)
    # Not the same way: one keeps the luma, the other the largest and the smallest channel.
    assert ((moved * expected).sum(1) > 0.25 * np.linalg.norm(moved, axis=1) * np.linalg.norm(expected, axis=1)).all()
    assert np.allclose(mine @ LUMA, colors @ LUMA, atol=0.1)


def test_a_whole_turn_and_no_change_are_the_identity() -> None:
    for hue in (0.0, 1.0):
        matrix = color_matrix(np.array([20.0, 90.0, 250.0]), **{**PLAIN, "hue": hue})
        assert np.allclose(matrix, np.eye(3, 4), atol=1e-12)


def test_contrast_keeps_the_mean_luma_and_brightness_scales_it() -> None:
    mean = mean_color(MILD)
    for seed in range(20):
        factors = seeded(ColorMatrix(brightness=0.0, contrast=0.5, saturation=0.5, hue=0.5, p=1.0), seed).get_params()
        matrix = color_matrix(mean, **factors)
        assert (matrix[:, :3] @ mean + matrix[:, 3]) @ LUMA == pytest.approx(mean @ LUMA)
        matrix = color_matrix(mean, **{**factors, "brightness": 0.8})
        assert (matrix[:, :3] @ mean + matrix[:, 3]) @ LUMA == pytest.approx(0.8 * mean @ LUMA)


def test_the_order_of_the_four_makes_no_difference() -> None:
    mean = mean_color(MILD)
    factors = {"brightness": 1.2, "contrast": 0.7, "saturation": 1.4, "hue": 0.08}
    for order in (list(factors), list(reversed(factors)), ["contrast", "hue", "brightness", "saturation"]):
        whole, now = None, mean
        for name in order:
            step = color_matrix(now, **{**PLAIN, name: factors[name]})
            now = step[:, :3] @ now + step[:, 3]
            whole = chained(whole, step)
        assert np.allclose(whole, color_matrix(mean, **factors), atol=1e-9)


@pytest.mark.parametrize(
    ("given", "low", "high"),
    [
        ({"brightness": 0.3}, 0.7, 1.3),
        ({"contrast": 1.5}, 0.0, 2.5),
        ({"saturation": [0.4, 0.5]}, 0.4, 0.5),
        ({"hue": 0.1}, -0.1, 0.1),
        ({"hue": [0.0, 0.2]}, 0.0, 0.2),
    ],
)
def test_ranges_mean_what_they_mean_in_color_jitter(given: dict[str, Any], low: float, high: float) -> None:
    (name,) = given
    mine = seeded(ColorMatrix(**given, p=1.0), 5)
    pair = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    jitter = seeded(A.ColorJitter(**pair, p=1.0), 5)
    drawn = np.array([mine.get_params()[name] for _ in range(500)])
    assert low <= drawn.min() < low + 0.02 * (high - low)
    assert high - 0.02 * (high - low) < drawn.max() <= high
    assert getattr(jitter, name) == pytest.approx((low, high))
    with pytest.raises(ConfigError, match=name):
        ColorMatrix(**{name: [0.3, 0.1]})


def test_p_is_the_share_of_changed_images() -> None:
    step = seeded(ColorMatrix(brightness=[0.5, 0.6], p=0.3), 0)
    changed = sum(not np.array_equal(step(image=MILD)["image"], MILD) for _ in range(300))
    assert 60 < changed < 120  # 90 expected, standard deviation 8


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 33)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_alone_in_a_compose_it_applies_its_matrix(shape: tuple[int, int], channels: int, dtype: type) -> None:
    image = RNG.integers(0, 256, (*shape, channels)).astype(dtype)
    given = image if dtype == np.uint8 else image / np.float32(255)
    step = ColorMatrix(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1, p=1.0)
    out = A.Compose([step], seed=1)(image=given, mask=np.zeros(shape, np.uint8))["image"]
    params = {name: step.params[name] for name in PLAIN}
    expected = exact(image, color_matrix(image.mean((0, 1), dtype=float), **params))
    assert out.shape == image.shape
    assert out.dtype == dtype
    assert np.abs(out.astype(float) * (1 if dtype == np.uint8 else 255) - expected).max() <= (
        1.0 if dtype == np.uint8 else 1e-3
    )


@pytest.mark.parametrize("shape", [(1, 5, 1), (100, 40, 3), (700, 300, 3)])
def test_the_mean_is_the_mean_of_the_pixels(shape: tuple[int, int, int]) -> None:
    image = cv2.resize(RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8), shape[1::-1])[..., : shape[2]]
    image[: shape[0] // 3] = (124, 116, 104)[: shape[2]]  # as padding
    mean, exactly = mean_color(np.ascontiguousarray(image)), image.mean((0, 1), dtype=float)
    assert np.abs(mean - exactly).max() < (1e-9 if shape[0] < 256 else 1.0)


def test_grey_images_ignore_saturation_and_hue() -> None:
    mean = np.array([80.0])
    assert np.allclose(color_matrix(mean, 1.2, 0.5, 3.0, 0.4), [[0.6, 1.2 * 0.5 * 80]])


# Deferred to the device ---------------------------------------------------------------------------------------------


def jitter(p: float = 1.0) -> ColorMatrix:
    return ColorMatrix(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=p)


def unfinished(image: np.ndarray, *steps: Any) -> tuple[np.ndarray, np.ndarray | None]:
    named = SegmentationTransform({f"s{i}": step for i, step in enumerate(steps)})
    out, _, color = named.unfinished(image, TARGET, (0, 0, 0))
    return out, color


@pytest.mark.parametrize(
    ("later", "deferred"),
    [
        ([], True),
        ([A.HorizontalFlip(p=1.0)], True),
        ([A.GaussianBlur(p=1.0), A.Rotate(p=1.0), jitter()], True),
        ([A.OneOf([A.HorizontalFlip(p=1.0), A.Blur(p=1.0)], p=1.0)], True),
        ([A.MedianBlur(p=1.0)], False),
        ([A.RandomGamma(p=1.0)], False),
        ([A.OneOf([A.HorizontalFlip(p=1.0), A.ToGray(p=1.0)], p=1.0)], False),
    ],
)
def test_it_is_deferred_only_before_steps_that_commute_with_it(later: list[Any], deferred: bool) -> None:
    _, color = unfinished(MILD, jitter(), *later)
    assert (color is not None) == deferred


def test_pixels_are_untouched_where_it_is_deferred() -> None:
    out, color = unfinished(MILD, A.HorizontalFlip(p=1.0), jitter())
    assert np.array_equal(out, MILD[:, ::-1])
    assert color is not None
    assert color.shape == (3, 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("blur", [[], [A.GaussianBlur(blur_limit=0, sigma_limit=(1.0, 1.0), p=1.0)]])
def test_deferred_or_in_its_place_gives_the_same_picture(dtype: type, blur: list[Any]) -> None:
    image = MILD.astype(dtype)
    for seed in range(5):
        steps = {
            "one": jitter(),
            "flip": A.HorizontalFlip(p=0.5),
            **dict(zip("b", blur, strict=False)),
            "two": jitter(),
        }
        late = SegmentationTransform(steps)
        early = SegmentationTransform(steps)
        early.deferred = frozenset()
        assert late.deferred == {"one", "two"}
        mine, theirs = late(image, TARGET, (0, 0, seed))[0], early(image, TARGET, (0, 0, seed))[0]
        inside = (theirs > 2) & (theirs < 253)  # in its place it clamps once more
        assert np.abs(mine.astype(float) - theirs)[inside].max() <= (4 if dtype == np.uint8 else 0.01)


def test_where_p_says_no_there_is_no_matrix() -> None:
    assert unfinished(MILD, jitter(p=0.0))[1] is None


def test_a_transform_with_a_matrix_survives_pickling() -> None:
    steps = SegmentationTransform({"color": jitter()})
    again = pickle.loads(pickle.dumps(steps))
    assert np.array_equal(steps(MILD, TARGET, (1, 2, 3))[0], again(MILD, TARGET, (1, 2, 3))[0])


@pytest.mark.parametrize("augment", ["basic", "strong"])
def test_recipes_defer_and_exact_hsv_is_one_override_away(augment: str) -> None:
    base = [f"augment={augment}", "augment.crop_size=32", "data.limit=2", "augment.transforms.color.p=1.0"]
    mine = build_dataset(compose(base), "train")
    assert mine.unfinished((0, 1))[3] is not None
    theirs = build_dataset(compose([*base, "augment.transforms.color._target_=albumentations.ColorJitter"]), "train")
    image, target, _, color, *_ = theirs.unfinished((0, 1))
    assert color is None
    assert image.shape == (32, 32, 3)
    # The same random numbers: the same geometry, and colors that are alike.
    assert np.array_equal(target, mine[(0, 1)][1])
    assert np.abs(image.astype(float) - mine[(0, 1)][0]).mean() < 12
