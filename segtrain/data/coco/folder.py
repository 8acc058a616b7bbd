"""`folder_instances`: your own images, with their objects in COCO's JSON as annotation tools export it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from segtrain.data.coco.dataset import AnnotatedInstances
from segtrain.errors import ConfigError

_OTHER_NAMES = {"val": ("val", "valid")}
"""What tools call a split."""
_FILES = ("{split}/_annotations.coco.json", "annotations/{split}.json", "annotations/instances_{split}.json")
_FOLDERS = ("images/{split}", "{split}", "images")


class FolderInstances(AnnotatedInstances):
    """Images and one JSON file per split. Where they are, the first that is there:

    1. `{split}/_annotations.coco.json` and the images beside it, as Roboflow exports (its `valid` is val);
    2. `annotations/{split}.json`;
    3. `annotations/instances_{split}.json`, as CVAT exports;

    with the images in `images/{split}`, `{split}` or `images`: the first that holds the first image of the file.

    Args:
        annotations: path of the file below root instead, `{split}` in it stands for the split.
        images: path of the folder below root instead, likewise.
        on_bad_annotation, shared: as in `AnnotatedInstances`.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    layout: ClassVar[str] = (
        "{train,val}/_annotations.coco.json and {train,val}/NAME.{jpg,png,…}, or\n"
        "annotations/{train,val}.json or annotations/instances_{train,val}.json\n"
        "and images/{train,val}/NAME, {train,val}/NAME or images/NAME"
    )
    get_it: ClassVar[str] = (
        "set data.root to your data, and data.annotations and data.images to your names, "
        "e.g. data.annotations='export/{split}.json' data.images='pictures'"
    )

    def __init__(self, *, annotations: str | None = None, images: str | None = None, **shared: Any) -> None:
        self.patterns = annotations, images
        for key, pattern in (("annotations", annotations), ("images", images)):
            if pattern is not None and (".." in Path(pattern).parts or Path(pattern).is_absolute()):
                raise ConfigError(f"data.{key}={pattern}", expected="a path below data.root")
        super().__init__(**shared)

    def annotation_file(self) -> Path:
        given = self.patterns[0]
        for path in self._paths(_FILES if given is None else (given,)):
            if path.is_file():
                return path
        raise self.missing(
            f"annotations of split '{self.split}'", self.root / (given or "").replace("{split}", self.split)
        )

    def image_folder(self, names: Sequence[str]) -> Path:
        given = self.patterns[1]
        file = self.annotation_file()
        beside = [file.parent] if given is None and file.name == "_annotations.coco.json" else []
        folders = [*beside, *(path for path in self._paths(_FOLDERS if given is None else (given,)) if path.is_dir())]
        for folder in folders:
            if names and (folder / names[0]).is_file():
                return folder
        if folders:
            return folders[0]  # what it lacks is told image by image
        raise self.missing(f"folder of images of split '{self.split}'", self.root / (given or "images"))

    def _paths(self, patterns: Sequence[str]) -> Iterator[Path]:
        for pattern in patterns:
            for split in _OTHER_NAMES.get(self.split, (self.split,)):
                yield self.root / pattern.replace("{split}", split)
