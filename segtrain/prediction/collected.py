"""Whose results one file of all images lists, and by which names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any


def image_ids(lines: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The images whose file's name is a number that no other image has, as COCO numbers its own; others keep names."""
    stems = {line["name"]: PurePosixPath(line["name"]).name for line in lines if "frames" not in line}
    numbers = {name: int(stem) for name, stem in stems.items() if stem.isascii() and stem.isdecimal()}
    times = Counter(numbers.values())
    return {name: number for name, number in numbers.items() if times[number] == 1}


def frames_of(lines: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The names of all images and of all frames of videos, sorted by those of their inputs, with the input's line."""
    for line in sorted(lines, key=lambda line: str(line["name"])):
        if "frames" in line:
            yield from ((f"{line['name']}/{number:06}", line) for number in range(1, line["frames"] + 1))
        else:
            yield line["name"], line
