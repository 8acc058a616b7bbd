"""From what a mask file holds to class indices, in one place and checked.

Every value must be accounted for: a label that is out of range is found here, by file, and not as a
device-side assert in the loss or as a class that silently never learns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from segtrain.data.reading import is_grey
from segtrain.errors import ConfigError, DataError, listed
from segtrain.types import IGNORE_INDEX

# Marks an illegal value inside the lookup tables, which is why there can be 254 classes (0 to 253) at most.
_ILLEGAL = 254
_SHOWN = 12


class LabelMap:
    """Turns file values or colors into class indices (uint8), 255 where unlabelled.

    A one-channel mask goes by `label_map`; a mask of colors by `palette`. An RGB mask that is grey all over
    may be either: it goes by whichever reading is legal, and is refused where both are and disagree.

    Args:
        classes: names in index order, at most 254.
        palette: one RGB triple per class; None takes PASCAL VOC's formula.
        label_map: file value -> class index or 255. The values it lists, and 255, are legal, and no other.
            None: file values are class indices already, and 255.
        ignore_colors: RGB triples that mean unlabelled in masks of colors.

    Raises:
        ConfigError: the arguments do not fit each other.
    """

    def __init__(
        self,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]] | None = None,
        label_map: Mapping[int, int] | None = None,
        ignore_colors: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.num_classes = _class_count(classes)
        self.palette = voc_palette(self.num_classes) if palette is None else [list(color) for color in palette]
        self.ignore_colors = [list(color) for color in ignore_colors or []]
        self.label_map = None if label_map is None else dict(label_map)
        self._check_colors()
        self._check_label_map()
        legal = dict.fromkeys(range(self.num_classes)) if label_map is None else dict(label_map)
        index_of = {value: value if index is None else index for value, index in legal.items()}
        self._values = _Table({IGNORE_INDEX: IGNORE_INDEX, **index_of}, 2**16)
        pairs = [(_packed(color), index) for index, color in enumerate(self.palette)]
        ignored = dict.fromkeys((_packed(color) for color in self.ignore_colors), IGNORE_INDEX)
        # Of two classes with one color the first is kept; a mask that uses the color is refused in `apply`.
        self._colors = _Table({**dict(reversed(pairs)), **ignored}, 2**24)
        self._twice = sorted({color for color, _ in pairs if sum(color == other for other, _ in pairs) > 1})

    def apply(self, values: np.ndarray, path: Path | str) -> np.ndarray:
        """Class indices (H, W) uint8 of file values (H, W) or colors (H, W, 3); `path` is named in errors.

        Raises:
            DataError: a value or color is not accounted for.
        """
        if values.ndim == 2:
            if self._are_indices(values):
                return values
            target = self._values.lookup(values)
            if _legal(target):
                return target
            raise self._illegal_values(values, target, path)
        packed = _pack(values)
        target = self._colors.lookup(packed)
        if is_grey(values):
            return self._grey(values[..., 0], target, path)
        if not _legal(target):
            raise self._unknown_colors(packed, target, path)
        self._refuse_shared_colors(packed, path)
        return target

    @property
    def leaves_255_unlabelled(self) -> bool:
        """Whether 255 in a file means unlabelled by default, not by `label_map`, and nothing else does."""
        mapped = self.label_map or {}
        return not self.ignore_colors and IGNORE_INDEX not in mapped and IGNORE_INDEX not in mapped.values()

    def _are_indices(self, values: np.ndarray) -> bool:
        """Whether file values are legal class indices as they are: a look at them is faster than a table."""
        # One up, 255 is 0, and what is legal is nothing above the number of classes.
        return (
            self.label_map is None
            and values.dtype == np.uint8
            and int((values + np.uint8(1)).max()) <= self.num_classes
        )

    def _grey(self, values: np.ndarray, by_color: np.ndarray, path: Path | str) -> np.ndarray:
        by_value = self._values.lookup(np.ascontiguousarray(values))
        if not _legal(by_color):
            if _legal(by_value):
                return by_value
            raise self._illegal_values(values, by_value, path)
        if not _legal(by_value) or np.array_equal(by_value, by_color):
            return by_color
        greys = {v: int(self._colors.lookup(np.array([[_packed([v] * 3)]]))[0, 0]) for v in _distinct(values)}
        raise DataError(
            "grey RGB mask has two meanings: its values are class indices and also colors of the palette",
            where=f"{path} ({_size(values)}, RGB, values {_show(greys)})",
            expected="one meaning",
            fix=f"if they are colors: data.label_map={_override({**(self.label_map or {}), **greys})}; "
            "if they are class indices: save the masks with one channel",
        )

    def _illegal_values(self, values: np.ndarray, target: np.ndarray, path: Path | str) -> DataError:
        found = _distinct(values)
        return DataError(
            "mask has values outside the label set",
            where=f"{path} ({_size(values)}, values {_show(found)})",
            expected=self._expected(),
            fix=self._label_map_fix(found, _distinct(values[target == _ILLEGAL]), path),
        )

    def _expected(self) -> str:
        if self.label_map is None:
            return f"0..{self.num_classes - 1}, or 255 for unlabelled ({self.num_classes} classes)"
        return f"the values that data.label_map lists, {_show(sorted(self.label_map))}, or 255 for unlabelled"

    def _label_map_fix(self, found: list[int], illegal: list[int], path: Path | str) -> str:
        if Path(path).suffix.lower() in (".jpg", ".jpeg"):
            return "JPEG alters labels when it saves them: export the masks as PNG"
        labelled = [value for value in found if value != IGNORE_INDEX]
        if self.label_map is None and len(labelled) <= self.num_classes:
            meaning = _override({value: index for index, value in enumerate(labelled)})
            return f"say what each value means, e.g. data.label_map={meaning}"
        if self.label_map is None:
            return f"name every class in data.classes (now {self.num_classes}), or map values by data.label_map"
        # With what the map has already: a map on the command line takes the place of the one before.
        whole = {**self.label_map, **dict.fromkeys(illegal[:_SHOWN], IGNORE_INDEX)}
        return f"add what is missing, e.g. data.label_map={_override(whole)} to leave it unlabelled"

    def _unknown_colors(self, packed: np.ndarray, target: np.ndarray, path: Path | str) -> DataError:
        unknown = _by_count(packed[target == _ILLEGAL])
        known = _by_count(packed[target != _ILLEGAL])
        shown = [f"{_rgb(color)} x {count}" for color, count in unknown]
        proposal = [list(_rgb(color)) for color, _ in (known + unknown)[:_SHOWN]]
        many = len(unknown) > _SHOWN
        return DataError(
            f"mask has {len(unknown)} colors that are not in the palette",
            where=f"{path} ({_size(packed)})\n{listed(shown, _SHOWN)} pixels",
            expected=f"the {self.num_classes} colors of data.palette"
            + (" or data.ignore_colors" * bool(self.ignore_colors)),
            fix=f"list every class's color in the order of data.classes: data.palette={_compact(proposal)}"
            + ("\nso many colors come from JPEG or from smooth resizing: export the mask as PNG, unresized" * many),
        )

    def _refuse_shared_colors(self, packed: np.ndarray, path: Path | str) -> None:
        if self._twice and np.isin(packed, self._twice).any():
            color = next(color for color in self._twice if (packed == color).any())
            names = [index for index, own in enumerate(self.palette) if _packed(own) == color]
            raise ConfigError(
                f"data.palette gives the color {_rgb(color)} to classes {listed(names)}, and a mask uses it",
                where=path,
                expected="one color per class where masks are made of colors",
                fix="change data.palette",
            )

    def _check_colors(self) -> None:
        if len(self.palette) != self.num_classes:
            raise ConfigError(
                f"data.palette has {len(self.palette)} colors, data.classes has {self.num_classes} names",
                expected="one color per class, or data.palette=null for PASCAL VOC's colors",
            )
        for color in (*self.palette, *self.ignore_colors):
            if len(color) != 3 or not all(0 <= channel <= 255 for channel in color):
                raise ConfigError(f"color {color} is not an RGB triple", expected="three integers in [0, 255]")
        both = [color for color in self.ignore_colors if color in self.palette]
        if both:
            raise ConfigError(
                f"color {both[0]} is in data.palette and in data.ignore_colors",
                expected="one meaning per color",
            )

    def _check_label_map(self) -> None:
        for value, index in (self.label_map or {}).items():
            if not 0 <= index < self.num_classes and index != IGNORE_INDEX:
                raise ConfigError(
                    f"data.label_map sends {value} to {index}, data.classes has {self.num_classes} names",
                    expected=f"0..{self.num_classes - 1}, or 255 for unlabelled",
                )


class _Table:
    """Integer -> class index, `_ILLEGAL` for integers it does not hold."""

    def __init__(self, index_of: Mapping[int, int], span: int) -> None:
        self.span = span
        keys = sorted(index_of)
        self.keys = np.array(keys, np.int64)
        self.indices = np.array([index_of[key] for key in keys], np.uint8)
        self.bytes = self._search(np.arange(256))

    def lookup(self, values: np.ndarray) -> np.ndarray:
        """Indices uint8 of an integer array of any shape; unsigned ones must lie below `span`."""
        if values.dtype == np.uint8:
            return cv2.LUT(values, self.bytes)
        return self._search(values) if values.dtype.kind == "i" else self._all[values]

    @cached_property
    def _all(self) -> np.ndarray:
        """The index of every integer below `span`: ten times faster than a search; 16 MB for colors."""
        table = np.full(self.span, _ILLEGAL, np.uint8)
        inside = (self.keys >= 0) & (self.keys < self.span)
        table[self.keys[inside]] = self.indices[inside]
        return table

    def _search(self, values: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(self.keys, values), len(self.keys) - 1)
        return np.where(self.keys[place] == values, self.indices[place], np.uint8(_ILLEGAL))


def voc_palette(count: int) -> list[list[int]]:
    """PASCAL VOC's colors: bit 7-b of channel ch (R, G, B = 0, 1, 2) is bit 3b+ch of the index, b = 0..7."""
    return [
        [sum((index >> (3 * b + ch) & 1) << (7 - b) for b in range(8)) for ch in range(3)] for index in range(count)
    ]


def _class_count(classes: Sequence[str]) -> int:
    if not 1 <= len(classes) <= _ILLEGAL or len(set(classes)) < len(classes):
        twice = sorted({name for name in classes if list(classes).count(name) > 1})
        found = f"data.classes names {listed(twice)} twice" if twice else f"data.classes has {len(classes)} names"
        raise ConfigError(found, expected=f"1 to {_ILLEGAL} different names")
    return len(classes)


def _legal(target: np.ndarray) -> bool:
    return not (target == _ILLEGAL).any()


def _pack(colors: np.ndarray) -> np.ndarray:
    wide = colors.astype(np.uint32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _packed(color: Sequence[int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _rgb(packed: int) -> tuple[int, int, int]:
    return packed >> 16, packed >> 8 & 255, packed & 255


def _distinct(values: np.ndarray) -> list[int]:
    return [int(value) for value in np.unique(values)]


def _by_count(packed: np.ndarray) -> list[tuple[int, int]]:
    """Distinct values with their counts, the most frequent first."""
    values, counts = np.unique(packed, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(values[i]), int(counts[i])) for i in order]


def _size(values: np.ndarray) -> str:
    return f"{values.shape[1]}x{values.shape[0]}"


def _show(values: Iterable[int]) -> str:
    """`0 1 7`; a run of three and more as `0..20`."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    words = [f"{run[0]}..{run[-1]}" if len(run) > 2 else " ".join(map(str, run)) for run in runs]
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return " ".join(words[:_SHOWN]) + more


def _override(mapping: Mapping[int, int]) -> str:
    return "{" + ", ".join(f"{value}: {index}" for value, index in mapping.items()) + "}"


def _compact(colors: Sequence[Sequence[int]]) -> str:
    return str([list(color) for color in colors]).replace(" ", "")
