"""The confusion matrix against a worked example, a pixel-by-pixel count, and values that are no class."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.metrics.confusion import ConfusionMatrix, Labels

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "metrics.json").read_text(encoding="utf-8"))

AS: dict[str, Any] = {
    "array_uint8": lambda labels: labels.astype(np.uint8),
    "array_int64": lambda labels: labels.astype(np.int64),
    "array_uint16": lambda labels: labels.astype(np.uint16),
    "tensor_uint8": lambda labels: torch.from_numpy(labels.astype(np.uint8)),
    "tensor_int64": lambda labels: torch.from_numpy(labels.astype(np.int64)),
    "tensor_int32": lambda labels: torch.from_numpy(labels.astype(np.int32)),
}
each_kind = pytest.mark.parametrize("kind", AS.values(), ids=AS.keys())


def count_pixels(prediction: np.ndarray, target: np.ndarray, num_classes: int) -> list[list[int]]:
    counts = [[0] * num_classes for _ in range(num_classes)]
    for found, true in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
        if true != 255:
            counts[true][found] += 1
    return counts


def nan_for_none(values: list[float | None]) -> Any:
    """Golden values to compare with; JSON has no NaN."""
    return pytest.approx([math.nan if value is None else value for value in values], rel=1e-15, nan_ok=True)


def golden_matrix() -> ConfusionMatrix:
    matrix = ConfusionMatrix(GOLDEN["n_classes"])
    matrix.update(np.array(GOLDEN["pred"], dtype=np.uint8), np.array(GOLDEN["gt"], dtype=np.uint8))
    return matrix


def test_the_worked_example() -> None:
    matrix = golden_matrix()
    assert matrix.counts.tolist() == GOLDEN["confusion_rows_gt"]
    assert matrix.counts.dtype == torch.int64
    scores = matrix.compute()
    assert scores.pixel_accuracy == pytest.approx(GOLDEN["pixel_accuracy"], rel=1e-15)
    assert scores.mean_accuracy == pytest.approx(GOLDEN["mean_class_accuracy_nanmean"], rel=1e-15)
    assert scores.miou == pytest.approx(GOLDEN["miou"]["ignore"], rel=1e-15)
    assert scores.iou == nan_for_none(GOLDEN["iou"])
    assert scores.accuracy == nan_for_none(GOLDEN["class_accuracy"])
    assert scores.classes_counted == 4
    assert scores.pixels == [18 / 32, 8 / 32, 0.0, 0.0, 6 / 32]
    assert scores.fw_iou == pytest.approx(GOLDEN["fw_iou"], rel=1e-15)
    assert scores.mean_dice == pytest.approx(GOLDEN["mean_dice"], rel=1e-15)
    assert scores.dice == nan_for_none(GOLDEN["dice"])
    # By hand from the columns: class 2 was predicted twice and never right, class 3 never.
    assert scores.precision == nan_for_none([14 / 16, 7 / 8, 0.0, None, 5 / 6])
    assert scores.mean_precision == pytest.approx((14 / 16 + 7 / 8 + 0 + 5 / 6) / 4, rel=1e-15)
    assert (scores.recall, scores.mean_recall) == (nan_for_none(scores.accuracy), scores.mean_accuracy)


@given(seed=st.integers(0, 1000), num_classes=st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_overlap_scores_are_those_of_sets_of_pixels(seed: int, num_classes: int) -> None:
    generator = np.random.default_rng(seed)
    prediction, target = generator.integers(0, num_classes, (2, 5, 6)).astype(np.uint8)
    target[generator.random(target.shape) < 0.2] = 255
    matrix = ConfusionMatrix(num_classes)
    matrix.update(prediction, target)
    scores = matrix.compute()
    labelled = target != 255
    for index in range(num_classes):
        true = set(np.flatnonzero(target == index).tolist())
        found = set(np.flatnonzero((prediction == index) & labelled).tolist())
        shared, size = len(true & found), len(true) + len(found)
        assert scores.dice[index] == pytest.approx(2 * shared / size if size else math.nan, nan_ok=True)
        assert scores.precision[index] == pytest.approx(shared / len(found) if found else math.nan, nan_ok=True)
        assert scores.recall[index] == pytest.approx(shared / len(true) if true else math.nan, nan_ok=True)
    weighed = [np.count_nonzero(target == index) * scores.iou[index] for index in range(num_classes)]
    expected = np.nansum(weighed) / np.count_nonzero(labelled)
    assert scores.fw_iou == pytest.approx(expected)


@pytest.mark.parametrize("absent", ["ignore", "target_only", "zero"])
def test_the_conventions_for_absent_classes(absent: str) -> None:
    assert golden_matrix().miou(absent) == pytest.approx(GOLDEN["miou"][absent], rel=1e-15)


@given(data=st.data(), num_classes=st.sampled_from([2, 3, 19, 150, 254]))
@settings(max_examples=60, deadline=None)
def test_every_kind_of_labels_is_counted_exactly(data: st.DataObject, num_classes: int) -> None:
    seed, size = data.draw(st.integers(0, 10_000)), data.draw(st.integers(0, 40))
    generator = np.random.default_rng(seed)
    prediction = generator.integers(0, num_classes, (2, size, 5))
    target = generator.integers(0, num_classes, (2, size, 5))
    target[generator.random(target.shape) < data.draw(st.floats(0, 1))] = 255
    expected = count_pixels(prediction, target, num_classes)
    for as_prediction in AS.values():
        for as_target in AS.values():
            matrix = ConfusionMatrix(num_classes)
            matrix.update(as_prediction(prediction), as_target(target))
            assert matrix.counts.tolist() == expected
    for dtype in (torch.uint8, torch.int64):
        labels = (torch.tensor(one, dtype=dtype) for one in (prediction, target))
        matrix = counted_on_device(num_classes, *labels)
        matrix.merge(counted_on_device(num_classes, torch.zeros(1, dtype=dtype), torch.full((1,), 255, dtype=dtype)))
        assert matrix.counts.tolist() == expected


def counted_on_device(num_classes: int, prediction: torch.Tensor, target: torch.Tensor) -> ConfusionMatrix:
    """What an accelerator does, done on the CPU: two batches are counted there before the counts are read."""
    matrix = ConfusionMatrix(num_classes)
    nobody = torch.full_like(target[:0], 255)
    matrix._on_device = matrix._count_on_device(prediction, target)
    matrix._on_device = matrix._on_device + matrix._count_on_device(nobody.clone(), nobody)
    return matrix


@pytest.mark.parametrize(("prediction", "target"), [(3, 0), (255, 0), (3, 255), (0, 3), (0, 254)])
def test_a_byte_that_is_no_class_is_found_when_an_accelerators_counts_are_read(prediction: int, target: int) -> None:
    labels = torch.zeros(2, 20, 20, dtype=torch.uint8)
    predictions, targets = labels.clone(), labels.clone()
    predictions[1, 3, 4], targets[1, 3, 4] = prediction, target
    with pytest.raises(ValueError, match="no class: 0 to 2"):
        _ = counted_on_device(3, predictions, targets).counts


def test_labels_may_be_strided_and_read_only() -> None:
    generator = np.random.default_rng(0)
    prediction, target = generator.integers(0, 4, (2, 8, 10)).astype(np.uint8)
    target.flags.writeable = False
    matrix = ConfusionMatrix(4)
    matrix.update(prediction[::-1, ::2], target[::-1, ::2])
    assert matrix.counts.tolist() == count_pixels(prediction[:, ::2], target[:, ::2], 4)


@each_kind
@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (3, 0, r"prediction holds 3: classes are 0 to 2$"),
        (255, 0, r"prediction holds 255: classes are 0 to 2$"),
        (3, 255, r"prediction holds 3: classes are 0 to 2$"),
        (0, 3, r"target holds 3: classes are 0 to 2, and 255 is ignored"),
        (0, 254, r"target holds 254: classes are 0 to 2, and 255 is ignored"),
    ],
)
def test_a_value_that_is_no_class_is_refused(kind: Any, prediction: int, target: int, message: str) -> None:
    matrix = ConfusionMatrix(3)
    labels = np.zeros((2, 20, 20), dtype=np.int64)
    predictions, targets = labels.copy(), labels.copy()
    predictions[1, 3, 4], targets[1, 3, 4] = prediction, target
    with pytest.raises(ValueError, match=message):
        matrix.update(kind(predictions), kind(targets))
    with pytest.raises(ValueError, match=message):
        matrix._count_on_device(torch.from_numpy(predictions), torch.from_numpy(targets))
    assert not matrix.counts.any()


@pytest.mark.parametrize("value", [-1, 256, 257, 511, -255])
@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_values_that_a_byte_cannot_hold_are_refused(value: int, make: Any) -> None:
    fine, wrong = make([[0, 1]]), make([[0, value]])
    with pytest.raises(ValueError, match=f"target holds {value}:"):
        ConfusionMatrix(3).update(fine, wrong)
    with pytest.raises(ValueError, match=f"prediction holds {value}:"):
        ConfusionMatrix(3).update(wrong, fine)
    with pytest.raises(ValueError, match=f"target holds {value}:"):
        ConfusionMatrix(3).update(torch.zeros(1, 2, dtype=torch.uint8), wrong)


@pytest.mark.parametrize(
    "labels", [np.zeros(3), np.zeros(3, dtype=bool), torch.zeros(3), torch.zeros(3, dtype=torch.bool)]
)
def test_labels_that_are_not_integers_are_refused(labels: Labels) -> None:
    fine = torch.zeros(3, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"prediction is (float|bool).*class indices are integers"):
        ConfusionMatrix(3).update(labels, fine)
    with pytest.raises(TypeError, match=r"target is (float|bool).*class indices are integers"):
        ConfusionMatrix(3).update(fine, labels)


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prediction \(1, 6\) and target \(2, 3\) differ in shape"):
        ConfusionMatrix(3).update(np.zeros((1, 6), np.uint8), np.zeros((2, 3), np.uint8))


def test_counts_are_exact_where_float32_is_not() -> None:
    size = 2**24 + 3
    matrix = ConfusionMatrix(2)
    matrix.update(np.ones(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8))
    assert matrix.counts.tolist() == [[0, size], [0, 0]]
    matrix.counts += 2**40
    matrix.update(np.ones(1, dtype=np.uint8), np.zeros(1, dtype=np.uint8))
    assert matrix.counts[0, 1] == 2**40 + size + 1


def test_parts_add_up_to_the_whole() -> None:
    generator = np.random.default_rng(0)
    prediction, target = generator.integers(0, 4, (2, 10, 8)).astype(np.uint8)
    whole, first, second = ConfusionMatrix(4), ConfusionMatrix(4), ConfusionMatrix(4)
    whole.update(prediction, target)
    first.update(prediction[:3], target[:3])
    second.update(prediction[3:], target[3:])
    before = first.counts.clone()
    assert torch.equal((first + second).counts, whole.counts)
    assert torch.equal(first.counts, before)
    first.merge(second)
    assert torch.equal(first.counts, whole.counts)
    assert first.compute() == whole.compute()


def test_matrices_of_other_classes_are_not_added() -> None:
    with pytest.raises(ValueError, match="a matrix of 4 classes cannot be added to one of 3"):
        ConfusionMatrix(3).merge(ConfusionMatrix(4))
    with pytest.raises(ValueError, match="a matrix of 4 classes cannot be added to one of 3"):
        ConfusionMatrix(3) + ConfusionMatrix(4)


def test_nothing_counted_is_nan_and_not_zero() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8))
    scores = matrix.compute()
    assert scores.classes_counted == 0
    values = [scores.miou, scores.mean_accuracy, scores.pixel_accuracy, *scores.iou, *scores.pixels]
    values += [scores.fw_iou, scores.mean_dice, scores.mean_precision, *scores.dice, *scores.precision]
    assert all(math.isnan(value) for value in values)


def test_a_class_is_scored_over_the_dataset_and_not_per_image() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([1], np.uint8), np.array([1], np.uint8))
    matrix.update(np.array([0, 0, 0, 0], np.uint8), np.array([0, 0, 0, 1], np.uint8))
    assert matrix.compute().iou == [3 / 4, 1 / 2]


@pytest.mark.gpu
def test_a_gpu_counts_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    generator = np.random.default_rng(0)
    prediction, target = generator.integers(0, 4, (2, 10, 8)).astype(np.uint8)
    target[2] = 255
    matrix = ConfusionMatrix(4)
    matrix.update(torch.from_numpy(prediction).cuda(), torch.from_numpy(target))
    assert matrix.counts.tolist() == count_pixels(prediction, target, 4)
