"""Which class of the data a category of a COCO file is: the one of its name."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from segtrain.data.coco.reading import Annotation, Category
from segtrain.errors import ConfigError, DataError, listed


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
    _refuse_classes(classes)
    index = {name: number for number, name in enumerate(classes) if number}
    if named is not None:
        return _renamed(path, categories, index, named)
    used = {annotation.category for annotation in annotations if annotation.fault is None}
    groups = {category.group for category in categories}
    # A category without objects that is the group of others, as Roboflow writes one, is no class of its own.
    own = [category for category in categories if category.id in used or category.name not in groups]
    own = [category for category in own if category.id in used or category.name != classes[0]]
    if any(category.name == classes[0] for category in own):
        raise DataError(
            f"the file has objects of a category '{classes[0]}'",
            where=path,
            expected="objects of things; what is no object is the background",
            fix="take that category and its annotations out of the file",
        )
    lacking = [category.name for category in sorted(own) if category.name not in index]
    if lacking:
        theirs = [category.name for category in sorted(own)]
        kept = list(classes[1:]) if set(classes[1:]) & set(theirs) else []
        raise DataError(
            f"{len(lacking)} of {len(own)} categories are not in data.classes: {listed(lacking)}",
            where=path,
            expected="every category of the file to be a class of that name; the first class is the background",
            fix=classes_to_paste([*kept, *lacking]),
        )
    return {category.id: index[category.name] for category in own}


def _renamed(
    path: Path, categories: Sequence[Category], index: Mapping[str, int], named: Mapping[str, str]
) -> dict[int, int]:
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


def _refuse_classes(classes: Sequence[str]) -> None:
    if not classes or classes[0] != "background":
        raise ConfigError(
            f"data.classes begins with {classes[0]!r}" if classes else "data.classes is empty",
            expected="the background first, which no category of the file is",
            fix=classes_to_paste(classes),
        )
    twice = [name for name, times in Counter(classes).items() if times > 1]
    if twice:
        raise ConfigError(f"data.classes names {listed(twice)} twice", expected="each class once")


def classes_to_paste(names: Sequence[str]) -> str:
    """The override for a shell that sets data.classes to the background and these names."""
    quoted = [name if re.fullmatch(r"[\w][\w .-]*", name) else '"' + name.replace('"', '\\"') + '"' for name in names]
    return f"set {shlex.quote('data.classes=[' + ','.join(['background', *quoted]) + ']')}"
