"""From a COCO file and folders of images to records and packed annotations."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from segtrain.data.coco.annotations import Annotations
from segtrain.data.coco.faults import OnBad
from segtrain.data.coco.reading import ListedImage, read_coco
from segtrain.data.images import ImageDataset
from segtrain.data.inside import leads_out
from segtrain.errors import DataError, listed
from segtrain.types import Record


def open_samples(
    file: Path,
    folder_of: Callable[[Sequence[str]], Path],
    classes: Sequence[str],
    *,
    on_bad: OnBad,
    named: Mapping[str, str] | None = None,
) -> tuple[list[Record], Annotations]:
    """Records of the images that a file lists, in its order, and their objects.

    A record's `extra` has `id`, the file's own for the image, and `row`, its place in the annotations.

    Args:
        folder_of: the names of the images -> the folder that they are in.
        classes, on_bad, named: as in `Annotations`.

    Raises:
        DataError: of the file; or an image's name leads out of its folder, or two are one file.
    """
    content = read_coco(file)
    _refuse_outside(content.images, file)
    _refuse_twice(content.images, file)
    annotations = Annotations(content, file, classes, named=named, on_bad=on_bad)
    folder = folder_of([image.name for image in content.images])
    names = record_names([image.name for image in content.images])
    records = [
        Record(name, folder / image.name, file, {"id": image.id, "row": row})
        for row, (name, image) in enumerate(zip(names, content.images, strict=True))
    ]
    return records, annotations


def record_names(files: Sequence[str]) -> list[str]:
    """A name of its own for each of these different files: its path without the suffix, where that is one.

    Files that differ in their suffixes alone, 1.jpg and 1.png, keep them.
    """
    paths = [PurePosixPath(file) for file in files]
    stems = [path.with_suffix("").as_posix() for path in paths]
    shared = {stem for stem, times in Counter(stems).items() if times > 1}
    names = [path.as_posix() if stem in shared else stem for path, stem in zip(paths, stems, strict=True)]
    return names if len(set(names)) == len(names) else [path.as_posix() for path in paths]  # 1.jpg.png beside them


def require_images(dataset: ImageDataset[Any], records: Sequence[Record]) -> None:
    """Raises unless every image is there; one error for all missing, which knows names that are only spelled apart.

    Raises:
        DataError: images are missing.
    """
    try:
        dataset.require_files([Record(record.name, record.image) for record in records])
    except DataError as error:
        folders: dict[Path, set[str]] = {}
        spelled = [pair for record in records if record.image and (pair := _respelled(record.image, folders))]
        if not spelled:
            raise
        pairs = listed((f"{listed_as!a} is there as {there!a}" for listed_as, there in spelled), 3)
        raise DataError(
            error.found,
            where=error.where,
            expected=error.expected,
            fix=f"write file_name as the files are named, with / between folders: {pairs}",
        ) from error


def _respelled(path: Path, folders: dict[Path, set[str]]) -> tuple[str, str] | None:
    """(name, name of a file that is there) where they differ in backslashes or Unicode's form alone."""
    there = path.parent / path.name.replace("\\", "/")
    if there.parent not in folders:
        folders[there.parent] = {file.name for file in there.parent.iterdir()} if there.parent.is_dir() else set()
    names = folders[there.parent]
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, there.name)  # type: ignore[arg-type]
        if path.name not in names and name in names:
            return path.name, (there.parent / name).relative_to(path.parent).as_posix()
    return None


def _refuse_twice(images: Sequence[ListedImage], file: Path) -> None:
    times = Counter(PurePosixPath(image.name) for image in images)
    twice = [str(name) for name, count in times.items() if count > 1]
    if twice:
        raise DataError(
            f"{len(twice)} image files are listed more than once",
            where=f"{file}\n{listed(twice)}".replace(", ", "\n"),
            expected="each file once, with all of its objects",
            fix="give the annotations of both entries one image_id, and remove the other entry",
        )


def _refuse_outside(images: Sequence[ListedImage], file: Path) -> None:
    """A file that came with someone's archive must not reach other files of this machine."""
    outside = [image.name for image in images if leads_out(image.name)]
    if outside:
        raise DataError(
            f"{len(outside)} images of the file lie outside its folder",
            where=f"{file}\n{listed(outside)}".replace(", ", "\n"),
            expected="file_name as a name or a path below the folder of images",
            fix="take the leading folders out of file_name",
        )
