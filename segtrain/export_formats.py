"""Predictions as files in the form that the official judges of a data set read."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from segtrain import distributed
from segtrain.data.labels import voc_palette
from segtrain.errors import ConfigError, DataError, listed
from segtrain.metrics.base import Judged
from segtrain.metrics.cityscapes import label_ids

CITYSCAPES_NAME = re.compile(r"[^_/]+_\d{6}_\d{6}")
VOC_CLASSES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
"""The oldest date that a zip file can hold: equal predictions give equal bytes whenever they are made."""


class _Export:
    """What the two below keep: the number of files that were written."""

    written = 0

    def state(self) -> int:
        """How many files this process wrote."""
        return self.written

    def merge(self, state: int) -> None:
        """Adds those of another process."""
        self.written += state


class CityscapesExport(_Export):
    """An `ImageMetric` that writes each prediction as `folder/CITY_SEQUENCE_FRAME_labelIds.png`.

    The files are gray PNGs of the publisher's label ids (not class indices) at the size of the truth: what
    `csEvalPixelLevelSemanticLabeling` and the server at cityscapes-dataset.com read. Only the number of files is kept.

    Args:
        folder: made where it is not there; must be empty, because the judge takes whatever it finds.
        classes: names in index order, all 19 of them.

    Raises:
        ConfigError: other classes, or a folder with something in it.
    """

    def __init__(self, folder: Path, *, classes: list[str]) -> None:
        self.id_of = label_ids(classes)
        self.folder = _empty(folder)

    def update(self, judged: Judged) -> None:
        """Writes one image.

        Raises:
            DataError: the sample is not named as Cityscapes names its frames.
        """
        frame = judged.record.name.rsplit("/", 1)[-1]
        if not CITYSCAPES_NAME.fullmatch(frame):
            raise DataError(
                f"'{judged.record.name}' is no frame of Cityscapes",
                where=judged.record.source,
                expected="CITY_000000_000000: the judge finds a prediction by its city, sequence and frame",
                fix="export for Cityscapes with data=cityscapes only",
            )
        Image.fromarray(self.id_of[judged.prediction]).save(self.folder / f"{frame}_labelIds.png")
        self.written += 1

    def compute(self) -> dict[str, Any]:
        """Under `export`: the format, where the files are, and how many."""
        return {"export": {"format": "cityscapes", "path": str(self.folder), "files": self.written}}


class VocExport(_Export):
    """An `ImageMetric` that writes each prediction as a PNG with VOC's palette, and `results.zip` at the end.

    `folder/results/VOC2012/Segmentation/comp6_val_cls/ID.png` is the layout of VOC's development kit and server. All
    sizes are the images' own. The archive has the same bytes whenever it is made from the same predictions. Only the
    number of files is kept.

    Args:
        folder: made where it is not there; must hold neither `results` nor `results.zip`.
        classes: names in index order: VOC's 21, in VOC's order.
        split: what the server calls the images, `val` or `test`.
        competition: `comp5` if trained on VOC's own images only, else `comp6`.

    Raises:
        ConfigError: other classes, or an earlier export in the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        classes: list[str],
        split: str = "val",
        competition: Literal["comp5", "comp6"] = "comp6",
    ) -> None:
        if classes != VOC_CLASSES:
            raise ConfigError(
                f"an export for VOC of {len(classes)} classes: {listed(classes)}",
                where="data.classes",
                expected=f"VOC's 21 classes in VOC's order, since its files hold indices: {listed(VOC_CLASSES, 3)}",
                fix="use data=voc or data=voc_aug with their own data.classes",
            )
        self.folder = folder
        self.root = _empty(folder / "results")
        self.images = self.root / "VOC2012" / "Segmentation" / f"{competition}_{split}_cls"
        self.images.mkdir(parents=True, exist_ok=True)
        self.palette = np.array(voc_palette(256), np.uint8)

    def update(self, judged: Judged) -> None:
        """Writes one image."""
        picture = Image.fromarray(judged.prediction)
        picture.putpalette(self.palette.tobytes())  # the values stay class indices, shown in VOC's colors
        file = self.images / f"{judged.record.name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)  # a name may hold folders, where the data are no VOC
        picture.save(file)
        self.written += 1

    def compute(self) -> dict[str, Any]:
        """Packs the files of all processes. Under `export`: the format, where the archive is, and how many it holds."""
        archive = self.folder / "results.zip"
        if distributed.is_main():
            _zip(self.root, archive)
        return {"export": {"format": "voc", "path": str(archive), "files": self.written}}


def _empty(folder: Path) -> Path:
    """The folder, made and known to be empty before any process writes to it."""
    strangers: list[str] = []
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        strangers = sorted(path.name for path in folder.iterdir())
    strangers = distributed.from_main(strangers)
    if strangers:
        raise ConfigError(
            f"the folder of the export holds {len(strangers)} files or folders already: {listed(strangers, 3)}",
            where=folder,
            expected="an empty folder: a judge takes everything that it finds",
            fix="hydra.run.dir=DIR names another run folder, or empty this one",
        )
    return folder


def _zip(root: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:  # PNGs are compressed already
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(root.parent).as_posix(), ZIP_DATE)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # the same on every system
            file.writestr(entry, path.read_bytes())
