"""Every value is accounted for: a legal one becomes its class, any other is an error that says what to do."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.data.labels import LabelMap, voc_palette
from segtrain.errors import ConfigError, DataError

BLUE, GREEN, RED = [0, 0, 200], [0, 200, 0], [200, 0, 0]


def names(count: int) -> list[str]:
    return [f"class {i}" for i in range(count)]


def colored(*rows: list[list[int]]) -> np.ndarray:
    return np.array(rows, np.uint8)


def refusal(labels: LabelMap, values: Any, path: str = "masks/a.png") -> DataError:
    with pytest.raises(DataError) as caught:
        labels.apply(np.asarray(values), path)
    return caught.value


# --- values ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(-5, 70_000), st.sampled_from([0, 1, 2, 253, 255]), min_size=1, max_size=20),
    st.sampled_from([np.uint8, np.uint16, np.int32]),
    st.integers(0, 2**32 - 1),
)
def test_values_go_by_the_map_and_no_other_is_legal(mapping: dict[int, int], dtype: Any, seed: int) -> None:
    labels = LabelMap(names(254), None, mapping)
    info = np.iinfo(dtype)
    legal = sorted({value for value in mapping if info.min <= value <= info.max} | {255})
    rng = np.random.default_rng(seed)
    values = rng.choice(legal, (5, 7)).astype(dtype)
    expected = [[mapping.get(int(value), 255) for value in row] for row in values]
    target = labels.apply(values, "a.png")
    assert target.dtype == np.uint8
    assert target.tolist() == expected
    illegal = next(value for value in range(100) if value not in mapping)
    values[3, 4] = illegal
    assert str(illegal) in str(refusal(labels, values))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize("count", [1, 2, 21, 254])
def test_without_a_map_exactly_the_class_indices_and_255_are_legal(count: int, dtype: Any) -> None:
    labels = LabelMap(names(count))
    for value in range(256):
        values = np.array([[0, value]], dtype)
        if value < count or value == 255:
            assert labels.apply(values, "a.png").tolist() == [[0, value]]
        else:
            assert refusal(labels, values).where == f"masks/a.png (2x1, values 0 {value})"


def test_the_error_names_file_size_values_range_and_fix() -> None:
    error = refusal(LabelMap(names(21)), np.array([[0, 7, 37], [255, 7, 0]], np.uint8))
    assert str(error) == (
        "error[data] mask has values outside the label set\n"
        "  where     masks/a.png (3x2, values 0 7 37 255)\n"
        "  expected  0..20, or 255 for unlabelled (21 classes)\n"
        "  fix       say what each value means, e.g. data.label_map={0: 0, 7: 1, 37: 2}"
    )


def test_at_most_twelve_values_are_shown() -> None:
    error = refusal(LabelMap(names(2)), np.arange(0, 80, 2, dtype=np.uint8)[None])
    assert error.where == "masks/a.png (40x1, values 0 2 4 6 8 10 12 14 16 18 20 22 and 28 more)"
    assert "name every class in data.classes (now 2)" in str(error.fix)


def test_a_value_the_map_lacks_is_proposed_as_unlabelled() -> None:
    error = refusal(LabelMap(names(2), None, {1: 0, 2: 1}), np.array([[1, 3]], np.uint8))
    assert error.expected == "the values that data.label_map lists, 1 2, or 255 for unlabelled"
    assert "data.label_map={1: 0, 2: 1, 3: 255}" in str(error.fix)


def test_following_the_proposals_ends_with_a_mask_that_is_read() -> None:
    mask, mapping = np.array([range(40)], np.uint8), {0: 0}
    for _ in range(4):
        fix = str(refusal(LabelMap(names(2), None, mapping), mask).fix)
        mapping = yaml.safe_load(fix.split("data.label_map=")[1].split("}")[0] + "}")
    assert LabelMap(names(2), None, mapping).apply(mask, "").tolist() == [[0] + [255] * 39]


def test_the_map_that_settles_two_meanings_keeps_what_was_mapped() -> None:
    labels = LabelMap(names(2), [[128, 128, 128], RED], {7: 1, 0: 0}, [[0, 0, 0]])
    assert "data.label_map={7: 1, 0: 255};" in str(refusal(labels, grey(0, 0)).fix)


def test_a_jpeg_mask_is_told_apart() -> None:
    error = refusal(LabelMap(names(2)), np.array([[0, 3]], np.uint8), "masks/a.jpg")
    assert "JPEG alters labels" in str(error.fix)


def test_255_is_unlabelled_unless_the_map_lists_it() -> None:
    mask = np.array([[0, 255]], np.uint8)
    assert LabelMap(names(2)).apply(mask, "").tolist() == [[0, 255]]
    assert LabelMap(names(2), None, {0: 0}).apply(mask, "").tolist() == [[0, 255]]
    assert LabelMap(names(2), None, {0: 0, 255: 1}).apply(mask, "").tolist() == [[0, 1]]


def test_the_input_is_left_alone_and_any_memory_layout_will_do() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    labels = LabelMap(names(12), None, {i: 11 - i for i in range(12)})
    for view in (values, values.T, values[:, ::2], values[::-1]):
        before = view.copy()
        assert np.array_equal(labels.apply(view, ""), 11 - before)
        assert np.array_equal(view, before)


def test_a_copy_in_another_process_says_the_same() -> None:
    labels = pickle.loads(pickle.dumps(LabelMap(names(3), [BLUE, GREEN, RED], {9: 2}, [[1, 2, 3]])))
    assert labels.apply(np.array([[9, 255]], np.uint8), "").tolist() == [[2, 255]]
    assert labels.apply(colored([GREEN, [1, 2, 3]]), "").tolist() == [[1, 255]]


# --- colors ---------------------------------------------------------------------------------------


def test_the_palette_is_voc_formula(published: dict[str, Any]) -> None:
    assert LabelMap(names(21)).palette == published["voc12"]["palette_21"]
    whole = np.array(voc_palette(256), np.uint8)
    assert hashlib.sha256(whole.tobytes()).hexdigest() == published["voc12"]["palette_256_sha256"]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 254), st.integers(0, 2**32 - 1))
def test_colors_go_by_the_palette(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    packed = rng.choice(2**24, count + 2, replace=False)
    colors = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], 1).tolist()
    labels = LabelMap(names(count), colors[:count], None, colors[count:])
    index = rng.integers(0, count + 2, (6, 5))
    mask = np.array(colors, np.uint8)[index]
    assert labels.apply(mask, "").tolist() == np.where(index < count, index, 255).tolist()


def test_unknown_colors_are_listed_with_their_pixels_and_a_palette() -> None:
    labels = LabelMap(names(2), [[0, 0, 0], RED])
    error = refusal(labels, colored([[0, 0, 0], GREEN, BLUE], [GREEN, GREEN, RED]))
    assert error.found == "mask has 2 colors that are not in the palette"
    assert error.where == "masks/a.png (3x2)\n(0, 200, 0) x 3, (0, 0, 200) x 1 pixels"
    assert error.expected == "the 2 colors of data.palette"
    assert "data.palette=[[0,0,0],[200,0,0],[0,200,0],[0,0,200]]" in str(error.fix)


def test_hundreds_of_colors_are_called_what_they_are() -> None:
    smooth = np.zeros((16, 16, 3), np.uint8)
    smooth[..., 0] = np.arange(256).reshape(16, 16)
    error = refusal(LabelMap(names(2)), smooth)
    assert "and 242 more pixels" in str(error.where)
    assert "smooth resizing" in str(error.fix)


def test_two_classes_of_one_color_are_refused_where_a_mask_uses_it() -> None:
    labels = LabelMap(names(3), [RED, GREEN, GREEN])
    assert labels.apply(colored([RED, RED]), "").tolist() == [[0, 0]]
    with pytest.raises(ConfigError, match=r"\(0, 200, 0\) to classes 1, 2"):
        labels.apply(colored([RED, GREEN]), "a.png")


# --- grey RGB masks: index or color? --------------------------------------------------------------


def grey(*values: int) -> np.ndarray:
    return np.repeat(np.array([values], np.uint8)[..., None], 3, 2)


def test_grey_rgb_goes_by_the_one_legal_reading() -> None:
    by_value = LabelMap(names(3), [RED, GREEN, BLUE])
    assert by_value.apply(grey(0, 2, 255), "").tolist() == [[0, 2, 255]]
    by_color = LabelMap(names(2), [[64, 64, 64], [128, 128, 128]])
    assert by_color.apply(grey(128, 64), "").tolist() == [[1, 0]]


def test_grey_rgb_that_means_the_same_either_way_is_no_riddle() -> None:
    assert LabelMap(names(21)).apply(grey(0, 0), "").tolist() == [[0, 0]]


def test_grey_rgb_with_two_meanings_is_refused_and_the_proposed_map_settles_it() -> None:
    # All pixels are void in the colors of CamVid, and class 0 as an index.
    palette, void = [[128, 128, 128], RED], [[0, 0, 0]]
    error = refusal(LabelMap(names(2), palette, None, void), grey(0, 0))
    assert "two meanings" in error.found
    assert "data.label_map={0: 255}" in str(error.fix)
    settled = LabelMap(names(2), palette, {0: 255, 128: 0}, void)
    assert settled.apply(grey(0, 128), "").tolist() == [[255, 0]]


def test_grey_rgb_that_is_neither_is_refused_as_values() -> None:
    error = refusal(LabelMap(names(2), [RED, GREEN]), grey(0, 90))
    assert error.where == "masks/a.png (2x1, values 0 90)"


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"classes": []}, "data.classes has 0 names"),
        ({"classes": names(255)}, "data.classes has 255 names"),
        ({"classes": ["a", "b", "a"]}, "data.classes names a twice"),
        ({"classes": names(2), "palette": [RED]}, "data.palette has 1 colors, data.classes has 2 names"),
        ({"classes": names(1), "palette": [[0, 0]]}, "color [0, 0] is not an RGB triple"),
        ({"classes": names(1), "palette": [[0, 0, 256]]}, "color [0, 0, 256] is not an RGB triple"),
        ({"classes": names(1), "ignore_colors": [[-1, 0, 0]]}, "color [-1, 0, 0] is not an RGB triple"),
        (
            {"classes": names(1), "palette": [RED], "ignore_colors": [RED]},
            "color [200, 0, 0] is in data.palette and in data.ignore_colors",
        ),
        (
            {"classes": names(2), "label_map": {7: 2}},
            "data.label_map sends 7 to 2, data.classes has 2 names",
        ),
        ({"classes": names(2), "label_map": {7: -1}}, "data.label_map sends 7 to -1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LabelMap(**arguments)
    assert found in caught.value.found
    assert caught.value.expected
