"""From a COCO file and folders of images to records and packed annotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from segtrain.data.coco.annotations import Annotations
from segtrain.data.coco.faults import OnBad
from segtrain.data.coco.reading import ListedImage, read_coco
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
        DataError: of the file; or an image's name leads out of its folder.
    """
    content = read_coco(file)
    _refuse_outside(content.images, file)
    annotations = Annotations(content, file, classes, named=named, on_bad=on_bad)
    folder = folder_of([image.name for image in content.images])
    records = [
        Record(_stem(image.name), folder / image.name, file, {"id": image.id, "row": row})
        for row, image in enumerate(content.images)
    ]
    return records, annotations


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _refuse_outside(images: Sequence[ListedImage], file: Path) -> None:
    """A file that came with someone's archive must not reach other files of this machine."""
    outside = [image.name for image in images if _leads_out(image.name)]
    if outside:
        raise DataError(
            f"{len(outside)} images of the file lie outside its folder",
            where=f"{file}\n{listed(outside)}".replace(", ", "\n"),
            expected="file_name as a name or a path below the folder of images",
            fix="take the leading folders out of file_name",
        )


def _leads_out(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or parts[0] == "" or ":" in parts[0] or parts[-1] in ("", ".") or "\0" in name
