"""`folder`: your own images and masks, paired by name."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import ClassVar

from segtrain.data.dataset import SegmentationDataset
from segtrain.data.images import IMAGE_SUFFIXES, files_by_stem
from segtrain.errors import ConfigError, DataError, listed
from segtrain.types import Fraction, Record


class Folder(SegmentationDataset):
    """Images and masks of one name, e.g. `images/a/01.jpg` and `masks/a/01.png`, sorted by name or by list.

    How the splits are told apart, the first that fits:

    1. lists `train.txt`, `val.txt` (and `test.txt`) at the root: names, with or without folder and ending;
    2. `images/train` and `masks/train`, …;
    3. `train/images` and `train/masks`, …;
    4. neither: the images are split by a hash of their names. A name keeps its split when files are added.

    A mask holds class indices (grey or palette), or the colors of `palette`. See `LabelMap`.

    Args:
        image_dir, mask_dir: names of the two folders; may be one folder where masks have a suffix.
        mask_suffix: what mask names have more, e.g. `_mask` for `01_mask.png`.
        val_fraction: share of the images, in [0, 1], that a split by hash gives to val.
        split_seed: another seed is another split by hash.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    layout: ClassVar[str] = (
        "images/NAME.{jpg,png,…} and masks/NAME.png, and splits by one of\n"
        "train.txt and val.txt with one NAME per line\n"
        "folders images/{train,val} and masks/{train,val}\n"
        "folders {train,val}/images and {train,val}/masks\n"
        "nothing: data.val_fraction of the images is val"
    )
    get_it: ClassVar[str] = (
        "set data.root to your data, and data.image_dir, data.mask_dir and data.mask_suffix to your names"
    )

    def __init__(
        self,
        *,
        image_dir: str = "images",
        mask_dir: str = "masks",
        mask_suffix: str = "",
        val_fraction: Fraction = 0.2,
        split_seed: int = 0,
        **shared: object,
    ) -> None:
        if image_dir == mask_dir and not mask_suffix:
            raise ConfigError(
                f"images and masks are both in '{image_dir}'",
                expected="two folders, or names that differ",
                fix="set data.mask_dir, or data.mask_suffix (e.g. _mask)",
            )
        self.image_dir = image_dir
        self.mask_dir = mask_dir
        self.mask_suffix = mask_suffix
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        super().__init__(**shared)  # type: ignore[arg-type]

    def find_records(self) -> list[Record]:
        if self._any_split("{split}.txt"):
            return self._from_list(self.root / f"{self.split}.txt")
        for images, masks in (
            (f"{self.image_dir}/{{split}}", f"{self.mask_dir}/{{split}}"),
            (f"{{split}}/{self.image_dir}", f"{{split}}/{self.mask_dir}"),
        ):
            if self._any_split(images):
                folders = (self.root / name.format(split=self.split) for name in (images, masks))
                return self._in_folders(*folders)
        return self._by_hash(self._in_folders(self.root / self.image_dir, self.root / self.mask_dir))

    def _any_split(self, pattern: str) -> bool:
        return any((self.root / pattern.format(split=split)).exists() for split in self.splits)

    def _in_folders(self, images: Path, masks: Path) -> list[Record]:
        return self.pair(*self._index(images, masks), self.root)

    def _index(self, images: Path, masks: Path) -> tuple[dict[str, Path], dict[str, Path]]:
        """Images and masks by their names below the two folders."""
        for what, folder in (("image", images), ("mask", masks)):
            if not folder.is_dir():
                raise self.missing(f"{what} folder", folder)
        image_files = [path for path in images.rglob("*") if images != masks or not self._is_mask(path)]
        return files_by_stem(image_files, images), files_by_stem(masks.rglob("*"), masks, self.mask_suffix)

    def _is_mask(self, path: Path) -> bool:
        return path.stem.endswith(self.mask_suffix)

    def _from_list(self, path: Path) -> list[Record]:
        names = self._names(path)
        self._refuse_repeated(names, path)
        images, targets = self._index(self.root / self.image_dir, self.root / self.mask_dir)
        return self.pick(names, images, targets, path)

    def _names(self, path: Path) -> list[str]:
        return [self._name(entry) for entry in self.read_list(path)]

    def _refuse_repeated(self, names: list[str], path: Path) -> None:
        """A name is in one list and once: a score on images that were trained on says nothing."""
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            raise DataError(
                f"{len(twice)} names are in {path.name} more than once",
                where=f"{path}\n{listed(twice)}",
                expected="each name once, with or without folder and ending",
                fix="take the repeated lines out",
            )
        for other in (self.root / f"{split}.txt" for split in self.splits if split != self.split):
            others = set(self._names(other)) if other.is_file() else set()
            shared = [name for name in names if name in others]
            if shared:
                raise DataError(
                    f"{len(shared)} names of {path.name} are in {other.name} too",
                    where=f"{path}\n{other}\n{listed(shared)}",
                    expected="each name in one split: scores on images that were trained on say nothing",
                    fix="take these lines out of one of the two lists",
                )

    def _name(self, entry: str) -> str:
        """`images/a/01.jpg`, `a/01.jpg` and `a/01` all mean `a/01`."""
        inside = PurePosixPath(entry.replace("\\", "/"))
        if inside.suffix.lower() in IMAGE_SUFFIXES:
            inside = inside.with_suffix("")
        return inside.as_posix().removeprefix(f"{self.image_dir}/")

    def _by_hash(self, records: list[Record]) -> list[Record]:
        if self.split == "test":
            raise DataError(
                "split 'test' does not exist: one folder of images is split into train and val",
                where=self.root,
                expected="a list test.txt or folders for each split",
                fix="set split=val",
            )
        chosen = [record for record in records if self._is_val(record.name) == (self.split == "val")]
        if records and not chosen:
            raise DataError(
                f"split '{self.split}' is empty: none of {len(records)} images falls into it",
                where=self.root,
                expected=f"data.val_fraction={self.val_fraction} to leave images for both splits",
                fix="set another data.val_fraction or data.split_seed, or write train.txt and val.txt",
            )
        return chosen

    def _is_val(self, name: str) -> bool:
        digest = hashlib.sha256(f"{self.split_seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.val_fraction * 2**64
