"""Which class of the data a category of a COCO file is: the one of its name."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

from segtrain.data.coco.reading import Annotation, Category
from segtrain.errors import ConfigError, DataError, listed

BACKGROUND = "background"


def labels_of(
    path: Path,
    categories: Sequence[Category],
    annotations: Sequence[Annotation],
    classes: Sequence[str],
    named: Mapping[str, str] | None,
) -> dict[int, int]:
    """Category id -> class index, by name.

    Args:
        classes: names in index order, the background first.
        named: category name -> class name; categories without one are left out. None: categories are classes.

    Raises:
        DataError: categories are not among the classes.
        ConfigError: the classes do not begin with the background, or two are one.
    """
    if named is not None:
        _refuse_classes(classes, path, classes)
        return _renamed(path, categories, classes, named)
    used = {annotation.category for annotation in annotations if annotation.fault is None}
    groups = {category.group for category in categories}
    # A category without objects that is the group of others, as Roboflow writes one, or the background, which labelme
    # writes as _background_, is no class of its own.
    own = [category for category in categories if category.id in used or category.name not in groups]
    own = sorted(category for category in own if category.id in used or not _is_background(category.name))
    behind = next((category.name for category in own if _is_background(category.name)), None)
    if behind is not None:
        raise DataError(
            f"the file has objects of a category '{behind}'",
            where=path,
            expected="objects of things; what is no object is the background",
            fix="take that category and its annotations out of the file",
        )
    names = [category.name for category in own]
    _refuse_classes(classes, path, names)
    _refuse_unknown(classes, path, names)
    return {category.id: list(classes).index(category.name) for category in own}


def ids_of(labels: Mapping[int, int], categories: Sequence[Category], num_classes: int) -> dict[int, int]:
    """Class index -> category id, of all classes but the background.

    A class that this file has not, as another split's may, is numbered on from the greatest id of the file, so that
    results which name it are of no category that the file has.
    """
    known = {label: category for category, label in labels.items()}
    free = count(max([0, *(category.id for category in categories)]) + 1)
    return {label: known[label] if label in known else next(free) for label in range(1, num_classes)}


def _is_background(name: str) -> bool:
    return name.strip("_ ").lower() == BACKGROUND


def _refuse_unknown(classes: Sequence[str], path: Path, names: Sequence[str]) -> None:
    lacking = [name for name in names if name not in classes]
    if not lacking:
        return
    cased = {name.lower(): name for name in classes if name not in names}
    twins = [
        f"'{cased[name.lower()]}' in data.classes, '{name}' in the file" for name in lacking if name.lower() in cased
    ]
    raise DataError(
        f"{len(lacking)} of {len(names)} categories are not in data.classes: {listed(lacking)}"
        + (f"; only the case differs: {listed(twins)}" if twins else ""),
        where=path,
        expected="every category of the file to be a class of that name; the first class is the background",
        fix=classes_to_paste(names),
    )


def _renamed(
    path: Path, categories: Sequence[Category], classes: Sequence[str], named: Mapping[str, str]
) -> dict[int, int]:
    index = {name: number for number, name in enumerate(classes) if number}
    unknown = [name for name in named.values() if name not in index]
    if unknown:
        raise ConfigError(
            f"data.categories leads to {listed(unknown)}", expected=f"names of data.classes: {listed(index, 20)}"
        )
    if not any(category.name in named for category in categories):
        raise DataError(
            "no category of the file is in data.categories",
            where=path,
            expected=f"some of {listed(named)}",
            fix=f"the file has {listed(category.name for category in categories)}",
        )
    return {category.id: index[named[category.name]] for category in categories if category.name in named}


def _refuse_classes(classes: Sequence[str], path: Path, names: Sequence[str]) -> None:
    if not classes or classes[0] != BACKGROUND:
        raise ConfigError(
            f"data.classes begins with {classes[0]!r}" if classes else "data.classes is empty",
            where=path,
            expected="the background first, which no category of the file is",
            fix=classes_to_paste([name for name in names if name != BACKGROUND]),
        )
    twice = [name for name, times in Counter(classes).items() if times > 1]
    if twice:
        raise ConfigError(f"data.classes names {listed(twice)} twice", where=path, expected="each class once")


def classes_to_paste(names: Sequence[str]) -> str:
    """The override for a shell that sets data.classes to the background and these names."""
    quoted = [name if re.fullmatch(r"[\w][\w .-]*", name) else '"' + name.replace('"', '\\"') + '"' for name in names]
    return f"set {shlex.quote('data.classes=[' + ','.join([BACKGROUND, *quoted]) + ']')}"
