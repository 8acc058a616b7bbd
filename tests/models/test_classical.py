"""Segmentation without training: recorded figures, brute-force doubles, polarity, and the door."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from segtrain.errors import ConfigError
from segtrain.models.classical import baseline
from segtrain.models.classical.baseline import LOGIT, Baseline, disk, gray_of
from segtrain.models.classical.superpixels import (
    BOUNDARY,
    SlicKMeans,
    superpixel_picture,
    superpixels,
    two_means,
)
from segtrain.models.classical.thresholds import (
    DoublePeak,
    Morphology,
    Otsu,
    Watershed,
    basins,
    histogram,
    local_maxima,
    morphology,
    otsu_threshold,
    smoothed,
    valley_threshold,
)
from segtrain.models.summary import measure

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "goldens" / "classical.json").read_text())
PLAIN = (Otsu, DoublePeak, Morphology)


@pytest.fixture
def scikit() -> Any:
    return pytest.importorskip("skimage", reason="needs pip install -e '.[classical]'")


@pytest.fixture(scope="module")
def discs() -> np.ndarray:
    """The recorded image: two overlapping discs on a wavy ground (48, 64)."""
    y, x = np.mgrid[:48, :64]
    first, second = ((y - a) ** 2 + (x - b) ** 2 <= r * r for a, b, r in ((20, 20, 12), (26, 36, 9)))
    values = 40 + 120 * first + 90 * second + 8 * np.sin(0.7 * x) + 6 * np.cos(0.9 * y)
    image = np.clip(np.round(values), 0, 255).astype(np.uint8)
    assert hashlib.sha256(image.tobytes()).hexdigest() == GOLDEN["image_sha256"]
    return image


def rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=2)


def tensor(image: np.ndarray) -> torch.Tensor:
    """Image (H, W, C) uint8 as the task normalizes it with mean 0 and deviation 1."""
    return (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255).contiguous()


def variance_between(values: np.ndarray, t: int) -> float:
    low, high = values[values <= t], values[values > t]
    return len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else -1.0


def test_otsu_of_the_recorded_image(discs: np.ndarray) -> None:
    assert otsu_threshold(histogram(discs)) == GOLDEN["otsu_threshold"] == GOLDEN["otsu_brute_force"]
    mask = Otsu(num_classes=2, foreground="bright").foreground_of(rgb(discs))
    assert int(mask.sum()) == GOLDEN["foreground_pixels"]
    assert int(morphology(mask, cv2.MORPH_OPEN, 1).sum()) == GOLDEN["opened_disk1_pixels"]


@pytest.mark.parametrize("seed", range(8))
def test_otsu_is_the_best_of_all_thresholds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.clip(rng.choice([60, 120, 200], 400) + rng.normal(0, 5 + 5 * seed, 400), 0, 255).astype(np.uint8)
    best = max(range(256), key=lambda t: variance_between(values.astype(float), t))
    found = otsu_threshold(histogram(values))
    assert found is not None
    assert variance_between(values.astype(float), found) == pytest.approx(variance_between(values.astype(float), best))


def test_otsu_is_scikit_images(scikit: Any) -> None:
    theirs = importlib.import_module("skimage.filters").threshold_otsu
    for seed in range(20):
        values = np.random.default_rng(seed).normal(120, 10 + 3 * seed, (20, 20)).clip(0, 255).astype(np.uint8)
        assert otsu_threshold(histogram(values)) == theirs(values)


def test_otsu_of_an_image_of_any_size_is_that_of_a_small_one() -> None:
    values = np.random.default_rng(2).normal(120, 40, 500).clip(0, 255).astype(np.uint8)
    counts = histogram(values)
    assert otsu_threshold(counts * 10**8) == otsu_threshold(counts)  # products of such counts do not fit 64 bits
    assert otsu_threshold(histogram(np.full(9, 200))) is None


def brute_smooth(counts: np.ndarray, deviation: float) -> list[float]:
    reach = round(4 * deviation)
    weight = {d: math.exp(-0.5 * (d / deviation) ** 2) for d in range(-reach, reach + 1)}
    return [sum(w * counts[i + d] for d, w in weight.items() if 0 <= i + d < 256) for i in range(256)]


@pytest.mark.parametrize("seed", range(6))
def test_the_valley_lies_between_the_two_highest_peaks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(center, 9, count) for center, count in ((50, 900), (130, 300), (210, 700))]
    counts = histogram(np.clip(np.concatenate(parts), 0, 255).astype(np.uint8))
    values = brute_smooth(counts, 6.0)
    padded = [-1.0, *values, -1.0]
    peaks = [i for i in range(256) if padded[i] < values[i] > padded[i + 2]]
    first, second = sorted(sorted(peaks, key=lambda i: -values[i])[:2])
    expected = min(range(first, second + 1), key=lambda i: values[i])
    assert valley_threshold(counts, 6.0) == pytest.approx(expected, abs=1)
    assert 50 < expected < 210


def test_peaks_are_found_on_level_stretches_and_at_both_ends() -> None:
    assert local_maxima(np.array([3, 1, 2, 2, 1, 0, 4])) == [0, 2, 6]
    assert local_maxima(np.array([1, 2, 2, 3, 3, 1])) == [3]
    assert local_maxima(np.zeros(5)) == []


def test_a_level_histogram_has_one_peak_however_it_is_rounded() -> None:
    assert valley_threshold(np.full(256, 7), 3.0) is None
    assert len(local_maxima(smoothed(np.full(256, 7), 3.0))) == 1


@pytest.mark.parametrize("kind", PLAIN)
def test_an_image_of_one_gray_has_no_foreground(kind: type[Baseline]) -> None:
    for rule in ("center", "bright", "dark"):
        model = kind(num_classes=2, foreground=rule)  # type: ignore[call-arg]
        assert not model.foreground_of(np.full((9, 9, 3), 80, np.uint8)).any()


def test_the_foreground_is_what_touches_the_border_less() -> None:
    image = np.full((20, 20, 3), 200, np.uint8)
    image[5:15, 5:20] = 30  # a dark thing that reaches the right border
    inside = image[..., 0] == 30
    for turned in (image, 255 - image):
        assert (Otsu(num_classes=2).foreground_of(turned) == inside).all()
    assert (Otsu(num_classes=2, foreground="bright").foreground_of(image) == ~inside).all()
    assert (Otsu(num_classes=2, foreground="dark").foreground_of(image) == inside).all()


def test_each_border_pixel_counts_once() -> None:
    bright = np.zeros((3, 3), bool)
    bright[0] = bright[1, 0] = True  # 4 of 8: even, so the brighter side stays
    model = Otsu(num_classes=2)
    assert (model.choose(bright) == bright).all()
    bright[2, 2] = True
    assert (model.choose(bright) == ~bright).all()


def test_opening_takes_specks_and_closing_holes() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[10:30, 10:30] = 255
    image[20, 20] = 0
    image[3, 3] = 255
    mask = Morphology(num_classes=2, radius=2).foreground_of(image)
    assert mask[20, 20]
    assert not mask[3, 3]
    assert Otsu(num_classes=2).foreground_of(image)[3, 3]


def test_morphology_is_by_the_definition_and_the_border_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((25, 31)) < 0.8
    element = disk(2).astype(bool)
    offsets = np.argwhere(element) - 2

    def swept(values: np.ndarray, keep: Callable[[list[bool]], bool]) -> np.ndarray:
        def at(y: int, x: int) -> list[bool]:
            near = [(y + dy, x + dx) for dy, dx in offsets]
            return [bool(values[p]) for p in near if 0 <= p[0] < 25 and 0 <= p[1] < 31]

        return np.array([[keep(at(y, x)) for x in range(31)] for y in range(25)])

    assert (morphology(mask, cv2.MORPH_OPEN, 2) == swept(swept(mask, all), any)).all()
    assert (morphology(mask, cv2.MORPH_CLOSE, 2) == swept(swept(mask, any), all)).all()


def test_watershed_of_the_recorded_image(scikit: Any, discs: np.ndarray) -> None:
    mask = Otsu(num_classes=2, foreground="bright").foreground_of(rgb(discs))
    found = basins(mask, 0.7)
    assert found.max() == GOLDEN["watershed_labels"]
    assert np.bincount(found.ravel()).tolist() == GOLDEN["watershed_areas"]


def test_watershed_keeps_thick_parts_whole_and_drops_thin_ones(scikit: Any) -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    image[10:40, 10:40] = 255
    image[24:26, 40:50] = 255  # a thin arm of the thick part
    image[50:52, 5:55] = 255  # thin all over
    mask = Watershed(num_classes=2).foreground_of(image)
    thick = image[..., 0] == 255
    thick[50:52] = False
    assert (mask == thick).all()
    assert (Watershed(num_classes=2, marker_share=0.0).foreground_of(image) == (image[..., 0] == 255)).all()


def test_basins_of_a_full_and_of_an_empty_mask() -> None:
    assert basins(np.ones((4, 5), bool), 0.7).sum() == 20
    assert basins(np.zeros((4, 5), bool), 0.7).sum() == 0


def test_superpixels_of_the_recorded_image(scikit: Any, discs: np.ndarray) -> None:
    labels = superpixels(rgb(discs), 24)
    assert set(np.unique(labels)) == set(range(labels.max() + 1))
    if scikit.__version__ != GOLDEN["skimage"]:
        pytest.skip(f"the recorded partition is that of scikit-image {GOLDEN['skimage']}")
    assert labels.max() + 1 == GOLDEN["slic_requested_24_got"]
    assert hashlib.sha256(labels.tobytes()).hexdigest() == GOLDEN["slic_sha256_int64"]


def test_slic_finds_a_thing_by_its_color_alone(scikit: Any) -> None:
    rng = np.random.default_rng(0)
    image = np.empty((60, 60, 3), np.uint8)
    image[:] = (0, 130, 0)
    thing = np.zeros((60, 60), bool)
    thing[18:42, 20:45] = True
    image[thing] = (255, 0, 0)  # as gray the two are equal, so that no threshold parts them
    assert len(np.unique(gray_of(image))) == 1
    image = np.clip(image + rng.integers(0, 5, image.shape), 0, 255).astype(np.uint8)
    found = SlicKMeans(num_classes=2, segments=100).foreground_of(image)
    assert (found & thing).sum() / (found | thing).sum() > 0.95
    again = SlicKMeans(num_classes=2, segments=100).foreground_of(image)
    assert (found == again).all()


@pytest.mark.parametrize("seed", range(5))
def test_two_means_part_the_colors_as_the_best_of_all_partings(seed: int) -> None:
    rng = np.random.default_rng(seed)
    colors = np.concatenate([rng.normal(20, 5, (4, 3)), rng.normal(60, 5, (5, 3))])
    weights = rng.integers(1, 9, 9)

    def spread(side: np.ndarray) -> float:
        parts = [(colors[part], weights[part]) for part in (side, ~side)]
        return sum(float(w @ ((c - np.average(c, axis=0, weights=w)) ** 2).sum(1)) for c, w in parts)

    sides = [np.array([number >> bit & 1 for bit in range(9)], bool) for number in range(1, 2**9 - 1)]
    found = two_means(colors, weights)
    assert found is not None
    assert spread(found) == pytest.approx(min(spread(side) for side in sides))
    assert found.tolist() == [False] * 4 + [True] * 5


def test_one_color_makes_no_two_clusters(scikit: Any) -> None:
    assert two_means(np.full((3, 3), 40.0), np.array([1, 2, 3])) is None
    assert not SlicKMeans(num_classes=2).foreground_of(np.full((30, 30, 3), 90, np.uint8)).any()


def test_the_picture_of_superpixels_draws_their_borders_and_nothing_else() -> None:
    image = np.full((4, 6, 3), 10, np.uint8)
    labels = np.zeros((4, 6), int)
    labels[:, 3:] = 1
    picture = superpixel_picture(image, labels)
    assert (picture[:, 2] == BOUNDARY).all()
    assert (np.delete(picture, 2, axis=1) == 10).all()
    assert (image == 10).all()
    assert superpixel_picture(image[..., :1], labels).shape == (4, 6, 3)


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_becomes_logits_of_what_each_image_says(kind: type[Baseline], channels: int) -> None:
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (13, 17, channels)).astype(np.uint8) for _ in range(2)]
    model = kind(num_classes=2, in_channels=channels).eval()
    out = model(torch.cat([tensor(image) for image in images]))["out"]
    assert out.shape == (2, 2, 13, 17)
    assert out.dtype == torch.float32
    for logits, image in zip(out, images, strict=True):
        mask = model.foreground_of(image)
        assert (logits.argmax(0).numpy() == mask).all()
        assert set(logits.unique().tolist()) == {0.0, LOGIT}


def test_every_gray_value_comes_back_from_the_normalized_image() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    seen: list[np.ndarray] = []

    class Watching(Otsu):
        def foreground_of(self, image: np.ndarray) -> np.ndarray:
            seen.append(image)
            return super().foreground_of(image)

    Watching(num_classes=2)(tensor(image))
    assert (seen[0] == image).all()


def test_no_parameters_and_no_weights_to_save() -> None:
    model = Otsu(num_classes=2)
    assert list(model.parameters()) == []
    assert model.state_dict() == {}
    cost = measure(model, (64, 64), 3)
    assert (cost.parameters, cost.gmacs, cost.problem) == (0, 0.0, "")


def test_another_normalization_is_refused() -> None:
    image = (tensor(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)) - 0.45) / 0.22
    with pytest.raises(ConfigError, match=r"values from -2\.05 to") as found:
        Otsu(num_classes=2)(image)
    assert found.value.where == "model.normalize"


@pytest.mark.parametrize("kind", [*PLAIN, Watershed, SlicKMeans])
def test_more_classes_are_refused_with_a_command_that_works(kind: type[Baseline]) -> None:
    with pytest.raises(ConfigError, match="2 classes apart, the data have 5") as found:
        kind(num_classes=5)
    assert "segtrain evaluate model=otsu data=portrait" in str(found.value)


@pytest.mark.parametrize("kind", [Watershed, SlicKMeans])
def test_without_scikit_image_the_extra_is_named(kind: type[Baseline], monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}'", name="skimage")

    monkeypatch.setattr(baseline.importlib, "import_module", absent)
    with pytest.raises(ConfigError, match="needs scikit-image") as found:
        kind(num_classes=2)
    assert found.value.fix == "pip install -e '.[classical]'"


@pytest.mark.parametrize("name", ["otsu", "double_peak", "morphology", "watershed", "slic_kmeans"])
def test_the_file_builds_what_it_names(name: str) -> None:
    from segtrain.experiment import build_model, compose

    if name in ("watershed", "slic_kmeans"):
        pytest.importorskip("skimage")
    data = ["data=folder", "data.classes=[background,thing]"]
    model = build_model(compose([f"model={name}", *data]))
    assert isinstance(model, Baseline)
    assert type(model).__name__.lower() == name.replace("_", "")
    image = np.zeros((24, 24, 3), np.uint8)
    image[8:16, 8:16] = 220
    said = model.eval()(tensor(image))["out"].argmax(1)[0].numpy()
    assert (said == (image[..., 0] > 0)).mean() > 0.9


def test_training_one_ends_in_an_error_that_says_to_evaluate(door: Any, tmp_path: Path) -> None:
    done = door("model=otsu", "debug=fast", "trainer.device=cpu")
    assert done.code == 2
    assert "python -m segtrain evaluate model=otsu" in done.err
    for folder, channels in (("images", 3), ("masks", 1)):
        (tmp_path / folder).mkdir()
        for number in range(16):
            picture = np.zeros((32, 32, channels), np.uint8)
            picture[8:16, 8:16] = 1
            cv2.imwrite(str(tmp_path / folder / f"{number}.png"), picture)
    two = ["data=folder", "data.root=.", "data.classes=[background,thing]", "data.batch_size=2", "data.num_workers=0"]
    done = door("model=otsu", *two, "debug=fast", "trainer.device=cpu")
    assert done.code == 2
    assert "Otsu has no trainable parameter" in done.err
    assert "needs no training: python -m segtrain evaluate" in done.err


def test_the_script_draws_the_superpixels(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (4, 6, 3), np.uint8).repeat(10, axis=0).repeat(10, axis=1)
    Image.fromarray(patches).save(tmp_path / "a.png")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, root / "scripts" / "superpixels.py", "a.png", "--segments", "24", "--output", "drawn"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "drawn" / "a_superpixels.png") as picture:
        drawn = np.asarray(picture)
    assert drawn.shape == (40, 60, 3)
    assert 0 < (drawn == BOUNDARY).all(-1).mean() < 0.6
    assert "superpixels" in done.stdout
