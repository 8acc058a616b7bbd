"""PASCAL VOC 2012 and its augmented training set (Everingham et al. 2010; Hariharan et al. 2011).

SBD's own lists overlap VOC's val, so its images are taken as one pool from which val is removed: (SBD train
and val and VOC train) minus VOC val is the 10,582 images that papers call `trainaug`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np

from segtrain.data.dataset import SegmentationDataset
from segtrain.data.download import extract, fetch
from segtrain.data.images import files_by_stem
from segtrain.errors import ConfigError, DataError, listed
from segtrain.types import Record

VOC_COUNTS = {"train": 1464, "val": 1449}
SBD_COUNTS = {"train": 8498, "val": 2857}
AUG_COUNT = 10_582


class Voc(SegmentationDataset):
    """VOC 2012 segmentation: 1,464 train, 1,449 val; 20 classes and background, 255 on the borders."""

    layout: ClassVar[str] = (
        "VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt\n"
        "VOCdevkit/VOC2012/JPEGImages/ID.jpg\n"
        "VOCdevkit/VOC2012/SegmentationClass/ID.png"
    )
    get_it: ClassVar[str] = (
        "set data.download=true, or unpack VOCtrainval_11-May-2012.tar of "
        "https://host.robots.ox.ac.uk/pascal/VOC/voc2012 and set data.root to its folder"
    )

    def find_records(self) -> list[Record]:
        home = self.home()
        names = self.read_list(home / "ImageSets" / "Segmentation" / f"{self.split}.txt")
        records = [
            Record(name, home / "JPEGImages" / f"{name}.jpg", home / "SegmentationClass" / f"{name}.png")
            for name in names
        ]
        return self.require_files(records)

    def home(self) -> Path:
        """The folder VOC2012."""
        return self.locate("VOCdevkit/VOC2012", "VOC2012", ".", holds="ImageSets/Segmentation")

    def fetch(self) -> None:
        from torchvision.datasets.voc import DATASET_YEAR_DICT

        if not self.is_complete(lambda: Voc.find_records(self)):
            source = DATASET_YEAR_DICT["2012"]
            archive = fetch(source["url"], source["md5"], self.root, filename=source["filename"])
            extract(archive, self.root)


class VocAug(Voc):
    """VOC 2012 with SBD's annotations: 10,582 train images, VOC's own 1,449 for val.

    Names of train: `ImageSets/Segmentation/{trainaug,train_aug}.txt` where there is one; else SBD's lists and
    VOC's train without VOC's val; else whatever `SegmentationClassAug` holds, without VOC's val. Masks: VOC's
    own PNG where it has one, since SBD draws no void border; else `SegmentationClassAug/ID.png`; else SBD's
    `cls/ID.mat`, which needs scipy.

    Raises:
        DataError: also where an image of val is listed for train, or where complete lists do not make 10,582.
        ConfigError: masks are .mat files and scipy is not installed.
    """

    layout: ClassVar[str] = (
        Voc.layout + "\nand for train one of\n"
        "VOCdevkit/VOC2012/SegmentationClassAug/ID.png\n"
        "benchmark_RELEASE/dataset/{cls/ID.mat,train.txt,val.txt} (or the same in sbd/)"
    )
    get_it: ClassVar[str] = (
        "set data.download=true (VOC 2012 and SBD's benchmark.tgz), or put SegmentationClassAug beside "
        "SegmentationClass"
    )

    def find_records(self) -> list[Record]:
        if self.split == "val":
            return super().find_records()
        home = self.home()
        validation = set(self.read_list(home / "ImageSets" / "Segmentation" / "val.txt"))
        names = self._train_names(home, validation)
        leaked = [name for name in names if name in validation]
        if leaked:
            raise DataError(
                f"{len(leaked)} images of VOC's val are in the training list: {listed(leaked)}",
                where=home / "ImageSets" / "Segmentation",
                expected="no image in both: SBD's own lists overlap VOC's val",
                fix="remove the list, so that SBD's lists minus val are used, or take these names out",
            )
        masks = self._masks(home)
        records = [Record(name, home / "JPEGImages" / f"{name}.jpg", masks(name)) for name in names]
        self._require_scipy(records)
        return self.require_files(records)

    def read_target(self, record: Record) -> np.ndarray:
        if record.target is None or record.target.suffix != ".mat":
            return super().read_target(record)
        return self.labels.apply(_read_mat(record.target), record.target)

    def fetch(self) -> None:
        from torchvision.datasets import SBDataset

        super().fetch()
        if self.split == "train" and not self.is_complete():
            archive = fetch(SBDataset.url, SBDataset.md5, self.root, filename=SBDataset.filename)
            extract(archive, self.root)

    def _train_names(self, home: Path, validation: set[str]) -> list[str]:
        lists = home / "ImageSets" / "Segmentation"
        for name in ("trainaug.txt", "train_aug.txt"):
            if (lists / name).is_file():
                # Some lists have names, others `/JPEGImages/ID.jpg /SegmentationClassAug/ID.png`.
                return [Path(line.split()[0]).stem for line in self.read_list(lists / name, rooted=True)]
        own = set(self.read_list(lists / "train.txt"))
        sbd = self._sbd()
        if sbd is None:
            folder = home / "SegmentationClassAug"
            if not folder.is_dir():
                raise self.missing("SegmentationClassAug or SBD", self.root)
            return sorted((set(files_by_stem(folder.iterdir(), folder)) | own) - validation)
        pools = {split: set(self.read_list(sbd / f"{split}.txt")) for split in ("train", "val")}
        names = sorted((pools["train"] | pools["val"] | own) - validation)
        counts = {split: len(pool) for split, pool in pools.items()}
        official = counts == SBD_COUNTS and {"train": len(own), "val": len(validation)} == VOC_COUNTS
        if official and len(names) != AUG_COUNT:
            raise DataError(
                f"SBD and VOC train without VOC val make {len(names):,} images",
                where=sbd,
                expected=f"{AUG_COUNT:,}, as the lists have their published lengths",
                fix="get the lists of VOC 2012 and SBD again",
            )
        return names

    def _masks(self, home: Path) -> Callable[[str], Path]:
        own, augmented, sbd = home / "SegmentationClass", home / "SegmentationClassAug", self._sbd()
        present = {folder: set(files_by_stem(folder.glob("*.png"), folder)) for folder in (own, augmented)}

        def mask(name: str) -> Path:
            for folder in (own, augmented):
                if name in present[folder]:
                    return folder / f"{name}.png"
            return sbd / "cls" / f"{name}.mat" if sbd else augmented / f"{name}.png"

        return mask

    def _sbd(self) -> Path | None:
        """SBD's folder, as its archive or as torchvision lays it out."""
        homes = [self.root / "benchmark_RELEASE" / "dataset", self.root / "sbd"]
        return next((home for home in homes if (home / "train.txt").is_file()), None)

    def _require_scipy(self, records: list[Record]) -> None:
        mats = sum(record.target is not None and record.target.suffix == ".mat" for record in records)
        if mats and importlib.util.find_spec("scipy") is None:
            raise ConfigError(
                f"{mats:,} masks of SBD are MATLAB files, and scipy is not installed",
                where=self.root,
                expected="scipy, or the same masks as PNG in VOC2012/SegmentationClassAug",
                fix="pip install 'segtrain[sbd]'",
            )


def _read_mat(path: Path) -> np.ndarray:
    """SBD's class indices (H, W) uint8: `GTcls.Segmentation` of a MATLAB 5 file, data without code."""
    from scipy.io import loadmat

    if not path.is_file():
        raise DataError("file not found", where=path, fix="get SBD again")
    try:
        return np.ascontiguousarray(loadmat(path)["GTcls"][0]["Segmentation"][0], np.uint8)
    except Exception as error:  # scipy raises TypeError, ValueError, KeyError, zlib.error, … on damaged files
        raise DataError(f"MATLAB file is damaged: {error}", where=path, fix="get SBD again") from error
