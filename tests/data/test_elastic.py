"""Deformed and cropped: image and target move together, and what lies beyond the image is its mirror and unlabelled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from albumentations.core.transforms_interface import DualTransform

from segtrain.data.elastic import ElasticGrid, IgnoreBorder, MirrorCrop
from segtrain.data.transforms import SegmentationTransform
from segtrain.errors import ConfigError
from segtrain.experiment import build_dataset, compose


def run(image: np.ndarray, target: np.ndarray, *steps: DualTransform, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return SegmentationTransform({f"step{i}": step for i, step in enumerate(steps)})(image, target, (0, 0, seed))


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A float image whose channels are y, x and 200, and a target of x // 4 + 16 (y // 4) up to 254."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.stack([y, x, np.full_like(y, 200)], 2), ((x // 4) + 16 * (y // 4)).astype(np.uint8)


def displacements(seed: int, side: int = 65, sigma: float = 2.0, grid: int = 3) -> np.ndarray:
    """(2, side, side): where each pixel was taken from, less where it is; only the inner part is free of mirroring."""
    image, target = coordinates(side, side)
    moved, _ = run(image, target, ElasticGrid(sigma=sigma, grid=grid), seed=seed)
    return np.moveaxis(moved[..., :2] - image[..., :2], -1, 0)


def test_image_and_target_move_together() -> None:
    image, target = coordinates(60, 60)
    for seed in range(20):
        moved, labels = run(image, target, ElasticGrid(sigma=6.0), seed=seed)
        assert moved.shape == image.shape
        inside = labels != 255
        assert 0.5 < inside.mean() <= 1
        found = labels[inside].astype(int)
        middle = np.stack([found // 16 * 4 + 1.5, found % 16 * 4 + 1.5], 1)
        # A label's block is 4 pixels wide, and its nearest pixel at most half a pixel from the point interpolated.
        assert np.abs(moved[inside][:, :2] - middle).max() <= 2.05
        assert np.abs(moved[..., :2] - image[..., :2]).max() > 3


def test_the_same_seed_is_the_same_deformation_and_another_is_another() -> None:
    assert np.array_equal(displacements(3), displacements(3))
    assert not np.array_equal(displacements(3), displacements(4))


def test_the_middle_node_moves_by_the_deviation_asked_for() -> None:
    middles = np.array([displacements(seed)[:, 32, 32] for seed in range(300)])
    assert np.abs(middles.mean(0)).max() < 3 * 2 / 300**0.5
    assert middles.std(0) == pytest.approx([2, 2], rel=0.15)
    assert abs(np.corrcoef(middles.T)[0, 1]) < 0.2


def test_the_way_between_nodes_is_smooth() -> None:
    for seed in range(5):
        field = displacements(seed, side=129)[:, 16:-16, 16:-16]
        steps = np.diff(field, axis=2)
        assert np.abs(steps).max() < 0.35  # displacement per pixel: no jumps
        assert np.abs(np.diff(steps, axis=2)).max() < 0.08  # and hardly a bend: bicubic, up to OpenCV's 1/32 pixel


def test_no_deviation_changes_nothing() -> None:
    image, target = coordinates(33, 40)
    moved, labels = run(image, target, ElasticGrid(sigma=0.0))
    assert np.allclose(moved, image, atol=1e-4)
    assert np.array_equal(labels, target)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 7, 1), (20, 31, 1), (20, 31, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_any_shape_and_type_is_kept(shape: tuple[int, int, int], dtype: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    target = np.zeros(shape[:2], np.uint8)
    for step in (ElasticGrid(), MirrorCrop(size=[9, 12])):
        moved, labels = run(image, target, step)
        size = shape[:2] if isinstance(step, ElasticGrid) else (9, 12)
        assert moved.shape == (*size, shape[2])
        assert moved.dtype == dtype
        assert labels.shape == size
        assert set(np.unique(labels)) <= {0, 255}


def test_what_comes_from_outside_is_mirrored_in_the_image_and_unlabelled_in_the_target() -> None:
    image = np.full((32, 32, 3), 120, np.uint8)
    uncovered = 0
    for seed in range(5):
        for step in (ElasticGrid(sigma=12.0), MirrorCrop(size=50)):
            moved, labels = run(image, np.full((32, 32), 3, np.uint8), step, seed=seed)
            assert (moved == 120).all()  # never black
            assert set(np.unique(labels)) == {3, 255}
            uncovered += int((labels == 255).sum())
    assert uncovered > 1000


def test_a_finer_grid_bends_more() -> None:
    def steepness(grid: int) -> float:
        return float(np.mean([np.abs(np.diff(displacements(s, grid=grid)[:, 8:-8, 8:-8], axis=1)) for s in range(10)]))

    assert steepness(2) < 0.7 * steepness(5) < 0.7 * 0.7 * steepness(9)


def test_rotation_turns_about_the_center_by_every_angle_within_the_limit() -> None:
    image, target = coordinates(41, 61)
    angles = []
    for seed in range(200):
        moved, labels = run(image, target, ElasticGrid(sigma=0.0, rotate_limit=30.0), seed=seed)
        assert moved[20, 30, :2] == pytest.approx([20, 30], abs=0.02)
        right = moved[20, 40, :2] - moved[20, 30, :2]
        down = moved[30, 30, :2] - moved[20, 30, :2]
        assert np.hypot(*right) == pytest.approx(10, abs=0.05)
        assert [down[0], down[1]] == pytest.approx([right[1], -right[0]], abs=0.05)
        assert labels[20, 30] == target[20, 30]
        angles.append(np.degrees(np.arctan2(right[0], right[1])))
    assert -30.3 < min(angles) < -27
    assert 27 < max(angles) < 30.3
    assert abs(np.mean(angles)) < 5


def start_of(crop: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """Where a crop of `coordinates` lies, from any pixel of the image itself."""
    y, x = np.argwhere(labels != 255)[0]
    return round(float(crop[y, x, 0])) - int(y), round(float(crop[y, x, 1])) - int(x)


@pytest.mark.parametrize(("height", "width", "size", "margin"), [(40, 50, 24, 0), (40, 50, 32, 6), (9, 50, 33, 4)])
def test_a_crop_is_the_mirrored_plane_at_every_place_it_may_lie(
    height: int, width: int, size: int, margin: int
) -> None:
    image, target = coordinates(height, width)
    padded = np.pad(image, [(200, 200), (200, 200), (0, 0)], mode="reflect")
    seen: set[tuple[int, int]] = set()
    for seed in range(300):
        crop, labels = run(image, target, MirrorCrop(size=size, margin=margin), seed=seed)
        y, x = start_of(crop, labels)
        seen.add((y, x))
        assert np.allclose(crop, padded[200 + y : 200 + y + size, 200 + x : 200 + x + size], atol=1e-3)
        rows, columns = np.arange(y, y + size), np.arange(x, x + size)
        inside = ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < width)
        assert np.array_equal(labels != 255, inside)
        assert np.array_equal(labels[inside], target[rows[:, None] % height, columns % width][inside])
    for axis, length in enumerate((height, width)):
        room = length - (size - 2 * margin)
        places = {start[axis] for start in seen}
        assert (min(places), max(places)) == (min(0, room) - margin, max(0, room) - margin)
        assert len(places) == abs(room) + 1


def test_with_a_margin_the_border_of_the_image_is_judged_too() -> None:
    image, target = coordinates(30, 30)
    judged = np.zeros((30, 30), int)
    for seed in range(300):
        crop, labels = run(image, target, MirrorCrop(size=32, margin=8), IgnoreBorder(margin=8), seed=seed)
        assert (labels == 255).sum() == 32**2 - 16**2
        y, x = start_of(crop, labels)
        judged[y + 8 : y + 24, x + 8 : x + 24] += 1
    assert judged.max(0).min() > 0
    assert judged.max(1).min() > 0


def test_the_border_is_unlabelled_and_the_image_is_kept() -> None:
    image, target = coordinates(12, 10)
    kept, labels = run(image, target, IgnoreBorder(margin=3))
    assert np.allclose(kept, image, atol=1e-4)
    assert np.array_equal(labels[3:9, 3:7], target[3:9, 3:7])
    assert (labels != 255).sum() == 6 * 4
    assert np.array_equal(run(image, target, IgnoreBorder(margin=0))[1], target)


def test_a_margin_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        MirrorCrop(size=[300, 184], margin=92)
    assert "a margin of 92 pixels on each side leaves nothing of a crop of 300x184" in str(caught.value)
    assert "augment.margin=0 with model.context=mirror" in str(caught.value)
    image, target = coordinates(10, 6)
    with pytest.raises(ConfigError, match="leaves nothing of a crop of 10x6"):
        run(image, target, IgnoreBorder(margin=3))


def test_the_recipe_gives_tiles_with_context() -> None:
    dataset = build_dataset(
        compose(["augment=elastic", "data.size=80", "data.limit=6", "augment.crop_size=[52,60]", "augment.margin=20"]),
        "train",
    )
    for index in range(6):
        image, target, _ = dataset[index]
        assert image.shape == (52, 60, 3)
        inner = np.zeros((52, 60), bool)
        inner[20:-20, 20:-20] = True
        assert (target[~inner] == 255).all()
        assert (target[inner] != 255).any()
        assert np.array_equal(dataset[index][0], image)
