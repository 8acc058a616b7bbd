"""Image and target stay together, uncovered pixels become 255, and no label is ever invented."""

from __future__ import annotations

import inspect
import math
import random
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
from albumentations.core.transforms_interface import DualTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from segtrain.data.color import ColorMatrix
from segtrain.data.crops import Span
from segtrain.data.seeding import streams
from segtrain.data.transforms import FILL, Fit, RandomScaleCrop, SegmentationTransform
from segtrain.errors import ConfigError, DataError
from segtrain.experiment import build_dataset, compose

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
BLOCKS = np.kron(RNG.choice([1, 7, 200], (6, 8)), np.ones((4, 4))).astype(np.uint8)

# Arguments that some transforms need, or need in order to uncover pixels.
SPECIAL: dict[str, dict[str, Any]] = {
    "RandomCrop": {"height": 40, "width": 48, "pad_if_needed": True},
    "CenterCrop": {"height": 40, "width": 48, "pad_if_needed": True},
    "Crop": {"x_min": 0, "y_min": 0, "x_max": 40, "y_max": 40, "pad_if_needed": True},
    "CropAndPad": {"px": 6},
    "Pad": {"padding": 5},
    "PadIfNeeded": {"min_height": 40, "min_width": 48},
    "Rotate": {"limit": (30, 40)},
    "SafeRotate": {"limit": (30, 40)},
    "ShiftScaleRotate": {"rotate_limit": (30, 40)},
    "Affine": {"rotate": (30, 40), "translate_percent": 0.2},
    "Perspective": {"scale": (0.2, 0.3), "fit_output": True},
    "RandomScale": {"scale_limit": 0.3},
    "ElasticTransform": {"alpha": 200, "sigma": 6},
    "GridDistortion": {"distort_limit": 0.8},
    "OpticalDistortion": {"distort_limit": 0.9},
    "ThinPlateSpline": {"scale_range": (0.3, 0.4)},
}


def filling() -> list[str]:
    """Every albumentations transform of image and mask that has a fill value for masks which is not off."""
    names = []
    for name, kind in vars(A).items():
        if name == "Mosaic" or name.endswith("3D"):  # of several images, and of volumes
            continue
        if inspect.isclass(kind) and issubclass(kind, DualTransform):
            parameter = inspect.signature(kind).parameters.get("fill_mask")
            if parameter is not None and parameter.default is not None:
                names.append(name)
    return sorted(names)


def transform(*steps: Any) -> SegmentationTransform:
    return SegmentationTransform({f"step{i}": step for i, step in enumerate(steps)})


def test_all_common_geometric_transforms_are_among_those_tested() -> None:
    expected = {"Rotate", "Affine", "ShiftScaleRotate", "Perspective", "ElasticTransform", "PadIfNeeded", "RandomCrop"}
    assert expected <= set(filling())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", filling())
def test_what_a_geometric_transform_uncovers_is_unlabelled(name: str, nested: bool) -> None:
    step = getattr(A, name)(**SPECIAL.get(name, {}), p=1.0)
    if nested:
        step = A.OneOf([A.Sequential([step], p=1.0)], p=1.0)
    uncovered = 0
    for index in range(6):
        _, target = transform(step)(IMAGE, BLOCKS, (0, 0, index))
        assert set(np.unique(target)) <= {1, 7, 200, 255}
        uncovered += int((target == 255).sum())
    if name in SPECIAL:
        assert uncovered > 0


@pytest.mark.parametrize("interpolation", [cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA])
def test_a_mask_interpolation_set_by_the_user_is_overruled(interpolation: int) -> None:
    step = A.Rotate(limit=(20, 30), mask_interpolation=interpolation, fill_mask=3, p=1.0)
    _, target = transform(step)(IMAGE, BLOCKS, (0, 0, 0))
    assert set(np.unique(target)) == {1, 7, 200, 255}


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 254), min_size=2, max_size=4, unique=True),
    height=st.integers(3, 40),
    width=st.integers(3, 40),
    low=st.floats(0.2, 1.0),
    high=st.floats(1.0, 3.0),
    seed=st.tuples(st.integers(0, 2**40), st.integers(0, 99), st.integers(0, 9999)),
)
def test_every_size_scale_and_seed_gives_old_labels_and_the_right_size(
    labels: list[int], height: int, width: int, low: float, high: float, seed: tuple[int, int, int]
) -> None:
    target = np.random.default_rng(1).choice(labels, (height, width)).astype(np.uint8)
    image = np.full((height, width, 3), 9, np.uint8)
    step = RandomScaleCrop(size=[17, 23], scale_range=[low, high])
    image, out = transform(step, A.HorizontalFlip(p=0.5), A.Rotate(limit=15, p=0.5))(image, target, seed)
    assert image.shape == (17, 23, 3)
    assert out.shape == (17, 23)
    assert out.dtype == image.dtype == np.uint8
    assert set(np.unique(out)) <= {*labels, 255}
    assert image.flags.c_contiguous
    assert out.flags.c_contiguous


class Inventing(DualTransform):
    """Adds one to each label."""

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        return img

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        return mask + np.uint8(1)


class Floating(Inventing):
    """Makes the mask float."""

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        return mask.astype(np.float32)


def test_a_transform_that_invents_labels_is_named() -> None:
    guarded = SegmentationTransform({"flip": A.HorizontalFlip(p=1.0), "odd": Inventing(p=1.0)})
    with pytest.raises(DataError) as caught:
        guarded(IMAGE, BLOCKS, (0, 0, 0))
    assert "augment.transforms.odd invented the labels 2, 8, 201" in caught.value.found
    assert "~augment.transforms.odd" in (caught.value.fix or "")
    with pytest.raises(DataError, match=r"transforms\.odd turned the target into float32"):
        SegmentationTransform({"odd": Floating(p=1.0)})(IMAGE, BLOCKS, (0, 0, 0))


def test_the_fault_is_named_whatever_comes_after_it_and_however_rare() -> None:
    """Labels are compared once per sample, and a sixteenth of the pixels first."""
    target = np.zeros((24, 32), np.uint8)
    target[5, 6] = 9  # one pixel that is not in the sixteenth
    steps = SegmentationTransform({"flip": A.HorizontalFlip(p=1.0), "odd": Inventing(p=1.0), "late": A.D4(p=1.0)})
    with pytest.raises(DataError, match=r"transforms\.odd invented the labels 1, 10"):
        steps(IMAGE, target, (0, 0, 0))
    assert 9 in SegmentationTransform({"late": A.D4(p=1.0)})(IMAGE, target, (0, 0, 0))[1]


class Moody(Inventing):
    """Invents a label the first time alone."""

    calls = 0

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        self.calls += 1
        return mask + np.uint8(self.calls == 1)


def test_a_fault_that_does_not_come_again_is_still_a_fault() -> None:
    with pytest.raises(DataError, match=r"invented labels: one of flip, moody"):
        SegmentationTransform({"flip": A.HorizontalFlip(p=1.0), "moody": Moody(p=1.0)})(IMAGE, BLOCKS, (0, 0, 0))


def test_what_is_no_transform_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"augment\.transforms\.crop is a dict"):
        SegmentationTransform({"crop": {"size": 3}})
    with pytest.raises(ConfigError, match="scale_range"):
        RandomScaleCrop(size=8, scale_range=[2.0, 0.5])


# Geometry: the image carries its own coordinates -------------------------------------------------------------------


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A float image whose channels are y, x and 200 (to tell padding), and a target of x // 3."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.stack([y, x, np.full_like(y, 200)], 2), (x // 3).astype(np.uint8)


def affine(values: np.ndarray) -> tuple[float, float]:
    """Slope and value at 0 of a line through the inner values."""
    inner = np.arange(len(values))[2:-2]
    slope, start = np.polyfit(inner, values[2:-2], 1)
    return float(slope), float(start)


def measured(seed: int, size: int = 40, side: int = 60, scales: tuple[float, float] = (0.4, 2.0)) -> dict[str, float]:
    """Scale and offset of one RandomScaleCrop, read off the image; checks that the target went along."""
    image, target = coordinates(side, side)
    cropped, labels = transform(RandomScaleCrop(size=size, scale_range=list(scales)))(image, target, (5, 0, seed))
    inside = labels != 255
    assert np.array_equal(inside, np.abs(cropped[..., 2] - 200) < 1)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert inside.sum() == len(rows) * len(columns)
    slope_x, _ = affine(cropped[rows[0], columns, 1])
    slope_y, start_y = affine(cropped[rows, columns[0], 0])
    assert slope_x == pytest.approx(slope_y, abs=0.02)
    # The nearest source pixel is at most half a pixel from the point that is interpolated, and each label has three.
    error = labels[inside].astype(float) * 3 + 1 - cropped[inside][:, 1]
    assert np.abs(error).max() <= 1.6
    assert abs(error.mean()) < 0.55  # halved, both neighbors are as near
    return {
        "scale": 1 / slope_x,
        "top": float(rows[0]),
        "room": float(size - len(rows)),
        "cut": start_y / slope_y if len(rows) == size else math.nan,
    }


@pytest.fixture(scope="module")
def draws() -> list[dict[str, float]]:
    return [measured(seed) for seed in range(500)]


def test_scales_are_uniform_over_their_range(draws: list[dict[str, float]]) -> None:
    scales = np.array([draw["scale"] for draw in draws])
    assert scales.min() == pytest.approx(0.4, abs=0.03)
    assert scales.max() == pytest.approx(2.0, abs=0.03)
    counts, _ = np.histogram(scales, bins=8, range=(0.38, 2.02))
    assert ((counts - 500 / 8) ** 2 / (500 / 8)).sum() < 24.3  # chi-square, 7 degrees of freedom, p = 0.001


def test_padding_and_cuts_lie_anywhere(draws: list[dict[str, float]]) -> None:
    padded = np.array([(draw["top"] + 0.5) / (draw["room"] + 1) for draw in draws if draw["room"] > 3])
    cut = np.array([draw["cut"] / (60 * draw["scale"] - 40) for draw in draws if 60 * draw["scale"] > 60])
    for shares in (padded, cut):
        assert len(shares) >= 50
        counts, _ = np.histogram(np.clip(shares, 0, 0.999), bins=4, range=(0, 1))
        assert ((counts - len(shares) / 4) ** 2 / (len(shares) / 4)).sum() < 16.3  # 3 degrees of freedom, p = 0.001


# Cropped first, scaled after: against scaling the whole image ---------------------------------------------------------


def plainly(image: np.ndarray, target: np.ndarray, size: tuple[int, int], scales: list[float], seed: int) -> Any:
    """Scale, pad, crop, in this order, with the same random numbers: (image, target, where it is not padding)."""
    rng = drawing(seed)
    scale = rng.uniform(*scales)
    scaled = [max(1, round(length * scale)) for length in target.shape]
    offset = [
        rng.randint(min(0, side - length), max(0, side - length)) for side, length in zip(size, scaled, strict=True)
    ]
    out = np.empty((*size, image.shape[2]), image.dtype)
    out[:] = FILL[: image.shape[2]]
    labels, inside = np.full(size, 255, np.uint8), np.zeros(size, bool)
    whole = cv2.resize(image, scaled[::-1], interpolation=cv2.INTER_LINEAR).reshape(*scaled, -1)
    whole_labels = cv2.resize(target, scaled[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    place = tuple(slice(max(0, at), min(side, at + n)) for at, side, n in zip(offset, size, scaled, strict=True))
    source = tuple(slice(p.start - at, p.stop - at) for p, at in zip(place, offset, strict=True))
    out[place], labels[place], inside[place] = whole[source], whole_labels[source], True
    return out, labels, inside


def drawing(seed: int) -> random.Random:
    return streams((0, 0, seed))[1]


def smooth(height: int, width: int, channels: int, dtype: type) -> np.ndarray:
    noise = np.random.default_rng(height).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2).reshape(noise.shape).astype(dtype)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_it_shows_what_scaling_the_whole_image_shows(channels: int, dtype: type) -> None:
    # Sides of prime length: the center of a pixel hardly ever falls on a border, where both sides are as near.
    image = smooth(79, 101, channels, dtype)
    blocks = np.random.default_rng(2).integers(0, 9, (15, 20), dtype=np.uint8)
    target = cv2.resize(blocks, (101, 79), interpolation=cv2.INTER_NEAREST)
    step = transform(RandomScaleCrop(size=[61, 64], scale_range=[0.4, 3.0]))
    differing, distances = [], []
    for seed in range(150):
        out, labels = step(image, target, (0, 0, seed))
        expected, expected_labels, inside = plainly(image, target, (61, 64), [0.4, 3.0], seed)
        assert np.array_equal(out[~inside], expected[~inside])
        assert np.array_equal(labels == 255, ~inside)
        differing.append(np.mean(labels != expected_labels))
        assert within_one_pixel(labels, expected_labels)
        distances.append(np.abs(out.astype(float) - expected)[inside].mean())
    assert max(differing) < 0.005
    # A twentieth of a pixel at the very most; the image's steps from pixel to pixel are about 10.
    assert np.mean(distances) < 0.4
    assert max(distances) < 1.5


def within_one_pixel(labels: np.ndarray, expected: np.ndarray) -> bool:
    """Whether each label inside the outer ring is that of a neighbor, or of the pixel itself."""
    height, width = expected.shape
    near = [expected[y : y + height - 2, x : x + width - 2] for y in range(3) for x in range(3)]
    return bool(np.any([labels[1:-1, 1:-1] == one for one in near], axis=0).all())


@settings(max_examples=300, deadline=None)
@given(
    length=st.integers(1, 3000),
    scale=st.one_of(st.floats(0.01, 8.0), st.sampled_from([0.5, 1.0, 1.001, 0.999, 1.5, 2.0, 1 / 3])),
    side=st.integers(1, 1000),
    where=st.floats(0, 1),
)
def test_a_span_covers_its_crop_and_is_hardly_shifted(length: int, scale: float, side: int, where: float) -> None:
    scaled = max(1, round(length * scale))
    count = min(side, scaled)
    start = round(where * (scaled - count))
    span = Span.of(length, scaled, start, count)
    assert 0 <= span.first < span.last <= length
    assert span.skip >= 0
    assert round((span.last - span.first) * span.scale) >= span.skip + count
    if scaled == length:
        assert (span.first, span.last, span.skip) == (start, start + count, 0)
        return
    # Where the first and the last point kept lie in the source: from the window, and from the whole.
    mine = span.first + (span.skip + np.array([0, count - 1]) + 0.5) / span.scale - 0.5
    whole = (start + np.array([0, count - 1]) + 0.5) / span.scale - 0.5
    assert np.abs(mine - whole).max() * span.scale <= 0.05 + 1e-6
    # Both neighbors of every point are in the window, or beyond the image itself.
    assert span.first <= max(0, math.floor(mine[0]))
    assert span.last - 1 >= min(length - 1, math.ceil(mine[1]))
    nearest = span.nearest()
    assert nearest.min() >= 0
    assert nearest.max() < length
    assert np.abs(nearest - (start + np.arange(count) + 0.5) / span.scale + 0.5).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (13, 1), (2, 3), (37, 5)])
@pytest.mark.parametrize("scales", [[0.01, 0.02], [0.3, 1.0], [1.0, 1.0], [7.0, 30.0]])
def test_tiny_images_and_extreme_scales_give_the_plain_result(
    channels: int, dtype: type, shape: tuple[int, int], scales: list[float]
) -> None:
    image = np.full((*shape, channels), 77, dtype)
    target = np.full(shape, 3, np.uint8)
    for seed in range(8):
        out, labels = transform(RandomScaleCrop(size=[8, 11], scale_range=scales))(image, target, (0, 0, seed))
        expected, expected_labels, _ = plainly(image, target, (8, 11), scales, seed)
        assert np.array_equal(labels, expected_labels)
        assert np.allclose(out, expected, atol=1e-3)


def test_windows_and_class_shares_are_distributed_as_plainly() -> None:
    """The same laws from other random numbers, so that the two could not agree sample by sample."""
    image, target = smooth(50, 70, 3, np.uint8), np.zeros((50, 70), np.uint8)
    target[:, 20:], target[30:, 40:] = 1, 2
    step = transform(RandomScaleCrop(size=48, scale_range=[0.5, 2.0]))
    mine = [shares(step(image, target, (0, 0, seed))[1]) for seed in range(500)]
    theirs = [shares(plainly(image, target, (48, 48), [0.5, 2.0], seed)[1]) for seed in range(1000, 1500)]
    for one, other in zip(np.transpose(mine), np.transpose(theirs), strict=True):
        assert ks_2samp(one, other).pvalue > 0.001


def shares(labels: np.ndarray) -> list[float]:
    """Shares of classes 0, 1, 2 and padding, and the row and column of the first labelled pixel."""
    inside = np.argwhere(labels != 255)[0]
    return [*(float(np.mean(labels == value)) for value in (0, 1, 2, 255)), *map(float, inside)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(("crop_p", "flip_p"), [(1.0, 0.5), (0.5, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_a_crop_and_the_flip_after_it_are_the_two_of_them(
    channels: int, dtype: type, crop_p: float, flip_p: float
) -> None:
    """Done in one go, against one after the other as albumentations calls them; what follows draws the same."""
    image = smooth(37, 53, channels, dtype)
    target = np.random.default_rng(3).integers(0, 9, (37, 53), dtype=np.uint8)
    crop, flip = RandomScaleCrop(size=[41, 46], scale_range=[0.4, 2.5], p=crop_p), A.HorizontalFlip(p=flip_p)
    one, two = Drawing(), Drawing()
    together = SegmentationTransform({"crop": crop, "flip": flip, "after": one})
    steps = SegmentationTransform({"crop": crop, "between": A.NoOp(p=1.0), "flip": flip, "after": two})
    for seed in range(80):
        mine, theirs = (pair(image, target, (0, 0, seed)) for pair in (together, steps))
        assert np.array_equal(mine[0], theirs[0])
        assert np.array_equal(mine[1], theirs[1])
        assert mine[0].dtype == theirs[0].dtype
        assert mine[0].flags.c_contiguous
        assert mine[1].flags.c_contiguous
    assert one.drawn == two.drawn


def test_every_flip_after_a_crop_is_done() -> None:
    crop, flip = RandomScaleCrop(size=[24, 32], scale_range=[1.0, 1.0]), A.HorizontalFlip(p=1.0)
    for count in range(4):
        image, target = transform(crop, *[flip] * count)(IMAGE, BLOCKS, (0, 0, 0))
        assert np.array_equal(image, IMAGE[:, ::-1] if count % 2 else IMAGE)
        assert np.array_equal(target, BLOCKS[:, ::-1] if count % 2 else BLOCKS)


class InventingFlip(A.HorizontalFlip):
    """No longer what its parent is trusted for."""

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        return mask + np.uint8(1)


class InventingCrop(RandomScaleCrop):
    """The same."""

    def apply_to_mask(self, mask: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        return super().apply_to_mask(mask, *args, **params) + np.uint8(1)


@pytest.mark.parametrize("odd", [InventingFlip(p=1.0), InventingCrop(size=8, scale_range=[1.0, 1.0])])
@pytest.mark.parametrize("after", [[], [A.HorizontalFlip(p=1.0)]])
def test_what_is_made_of_a_trusted_step_is_not_trusted(odd: Any, after: list[Any]) -> None:
    with pytest.raises(DataError, match=r"step1 invented the labels"):
        transform(RandomScaleCrop(size=24, scale_range=[1.0, 1.0]), odd, *after)(IMAGE, BLOCKS, (0, 0, 0))


def test_scale_one_and_own_size_change_nothing() -> None:
    image, target = transform(RandomScaleCrop(size=[24, 32], scale_range=[1.0, 1.0]))(IMAGE, BLOCKS, (0, 0, 0))
    assert np.array_equal(image, IMAGE)
    assert np.array_equal(target, BLOCKS)


def test_fit_resizes_or_pads_around_the_center() -> None:
    resized, labels = transform(Fit(size=[48, 64]))(IMAGE, BLOCKS, (0, 0, 0))
    assert resized.shape == (48, 64, 3)
    assert np.array_equal(labels, np.kron(BLOCKS, np.ones((2, 2), np.uint8)))
    padded, labels = transform(Fit(size=[30, 20], mode="pad"))(IMAGE, BLOCKS, (0, 0, 0))
    assert np.array_equal(padded[3:27], IMAGE[:, 6:26])
    assert np.array_equal(labels[3:27], BLOCKS[:, 6:26])
    assert (padded[:3] == FILL).all()
    assert (labels[27:] == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("augment", ["none", "basic", "strong"])
def test_grey_and_deep_images_keep_their_form_and_range(channels: int, dtype: type, augment: str) -> None:
    steps = build_dataset(compose([f"augment={augment}", "augment.crop_size=16"]), "train").transform
    assert steps is not None
    image = RNG.integers(0, 256, (20, 30, channels)).astype(dtype)
    image[:4], image[-4:] = 0, 255
    spread = []
    for index in range(12):
        out, target = steps(image, np.ones((20, 30), np.uint8), (0, 0, index))
        assert out.shape == (16, 16, channels)
        assert target.shape == (16, 16)
        assert out.dtype == dtype
        assert out.min() >= 0
        assert out.max() <= 255
        spread.append(float(out.max()) - float(out.min()))
    assert max(spread) > 100  # not squeezed into [0, 1]


def test_padding_looks_the_same_in_bytes_and_floats() -> None:
    step = RandomScaleCrop(size=40, scale_range=[0.5, 0.5])
    for image in (IMAGE, IMAGE.astype(np.float32)):
        out, target = transform(step)(image, BLOCKS, (0, 0, 1))
        assert np.allclose(out[target == 255], FILL, atol=1e-3)


# Random numbers -----------------------------------------------------------------------------------------------------


def test_steps_draw_the_numbers_of_their_key() -> None:
    one = Drawing()
    for seed in [(0, 0, 0), (7, 3, 12345), (2**40, 5, 1)]:
        transform(one)(IMAGE, BLOCKS, seed)
        numpy_random, python_random = streams(seed)
        assert one.drawn.pop() == (python_random.random(), float(numpy_random.random()))


def test_a_sample_depends_on_its_seed_and_on_nothing_before() -> None:
    dataset = build_dataset(compose(["augment=strong", "augment.crop_size=32", "data.limit=4"]), "train")
    first = dataset[(3, 1)]
    np.random.default_rng(0)
    for key in [(0, 0), (3, 2), (9, 1)]:
        dataset[key]
    again = build_dataset(compose(["augment=strong", "augment.crop_size=32"]), "train")[(3, 1)]
    assert np.array_equal(first[0], dataset[(3, 1)][0])
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    others = [dataset[key] for key in [(4, 1), (3, 0)]]
    seeded = build_dataset(compose(["augment=strong", "augment.crop_size=32", "trainer.seed=1"]), "train")[(3, 1)]
    assert not any(np.array_equal(first[0], other[0]) for other in [*others, seeded])


class Drawing(DualTransform):
    """Writes down what it draws."""

    def __init__(self) -> None:
        super().__init__(p=1.0)
        self.drawn: list[tuple[float, float]] = []

    def get_params(self) -> dict[str, Any]:
        self.drawn.append((self.py_random.random(), float(self.random_generator.random())))
        return {}

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        return img

    apply_to_mask = apply


def test_transforms_draw_independently_of_each_other() -> None:
    """With albumentations' own seeding each transform gets the same numbers, and a flip decides the rotation."""
    one, two = Drawing(), Drawing()
    steps = transform(A.HorizontalFlip(p=0.5), one, A.Rotate(limit=30, p=0.5), A.Sequential([two], p=1.0))
    flips = []
    for index in range(400):
        image = np.zeros((9, 9, 3), np.uint8)
        image[:, :3] = 255
        flips.append(float(steps(image, image[..., 0], (0, 0, index))[0][4, 0, 0] < 128))
    columns = np.array([flips, *zip(*one.drawn, strict=True), *zip(*two.drawn, strict=True)])
    assert 150 < sum(flips) < 250
    correlations = np.corrcoef(columns) - np.eye(5)
    assert np.abs(correlations).max() < 0.2  # four standard errors of 400 independent draws
    assert np.allclose(columns[1:].mean(1), 0.5, atol=0.06)


def test_nested_transforms_draw_from_the_same_stream() -> None:
    steps = transform(A.OneOf([A.HorizontalFlip(p=1.0), A.VerticalFlip(p=1.0)], p=1.0))
    results = [steps(IMAGE, BLOCKS, (0, 0, index))[0] for index in range(30)]
    flips = [np.array_equal(out, IMAGE[:, ::-1]) for out in results]
    assert 5 < sum(flips) < 25
    again = [steps(IMAGE, BLOCKS, (0, 0, index))[0] for index in reversed(range(30))]
    assert all(np.array_equal(one, two) for one, two in zip(results, reversed(again), strict=True))


def test_a_step_that_looks_at_colors_sees_them_changed() -> None:
    def inverted(image: np.ndarray, **options: object) -> np.ndarray:
        return 255 - image

    image = np.random.default_rng(0).integers(0, 120, (20, 20, 3), dtype=np.uint8)
    target = np.zeros((20, 20), np.uint8)
    color = ColorMatrix(brightness=[1.5, 1.5], contrast=[1, 1], saturation=[1, 1], hue=[0, 0], p=1.0)
    after = A.Lambda(image=inverted, p=1.0)
    found, _ = SegmentationTransform({"color": color, "after": after})(image, target, (0, 0, 0))
    assert np.abs(found.astype(int) - (255 - np.minimum(255, 1.5 * image))).max() <= 1
    assert SegmentationTransform({"color": color, "after": after}).unfinished(image, target, (0, 0, 0))[2] is None


@pytest.mark.parametrize(("length", "scaled"), [(300, 299), (500, 499), (500, 501), (64, 63)])
def test_a_scale_near_one_shifts_no_part_of_the_image(length: int, scaled: int) -> None:
    row = np.linspace(0, 255, length, dtype=np.float32)
    image = np.repeat(np.repeat(row[None], length, 0)[..., None], 3, 2)
    crop = RandomScaleCrop(size=length // 2, scale_range=[scaled / length, scaled / length])
    step = 255 / (length - 1)  # of a pixel
    for seed in range(60):
        crop.set_random_state(np.random.default_rng(seed), random.Random(seed))
        place = crop.draw(image.shape)
        found = crop.apply(image, place)[..., 0]
        centers = (place.columns.start + np.arange(length // 2) + 0.5) * length / scaled - 0.5
        assert np.abs(found[0] / step - centers.clip(0, length - 1)).max() < 0.12
