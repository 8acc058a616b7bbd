"""What all datasets share: records in, samples out, and the publisher's files found or named as missing.

A dataset on disk is one subclass that says where the publisher put the files (`find_records`) and how to get them.
Reading images and the seeded transform happen here, once; what a target is, a kind of dataset says (`load`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from torch.utils.data import Dataset

from segtrain.data.inside import refuse_outside
from segtrain.data.labels import voc_palette
from segtrain.data.reading import read_image
from segtrain.errors import ConfigError, DataError, listed
from segtrain.types import PositiveInt, Record

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")

Target = TypeVar("Target")
Unfinished = tuple[np.ndarray, Any, Record, np.ndarray | None, float, float]
"""Image, target, record, color matrix yet to be applied, seconds of reading, seconds of transforming."""
Transform = Callable[[np.ndarray, Any, tuple[int, int, int]], tuple[np.ndarray, Any]]


class ImageDataset(Dataset[tuple[np.ndarray, Target, Record]], Generic[Target]):
    """Images, each with a target of one kind.

    `dataset[i]` or `dataset[(epoch, i)]` is `(image (H, W, C), target, record)`; a plain `i` is epoch 0. The transform
    is seeded from (seed, epoch, i), so a sample is the same whichever worker makes it.

    Args:
        split: one of `self.splits`.
        root: folder that holds the publisher's folder, or the publisher's folder itself.
        classes: names in index order.
        palette: one RGB triple per class for pictures. None: VOC's.
        download: fetch what is missing at `root` (datasets that allow it).
        limit: keep the first N samples.
        channels: 3 (RGB) or 1 (grey).
        exif: `apply` turns images upright by their EXIF orientation, `ignore` leaves them as stored; targets are never
            turned.
        max_pixels: the largest image or mask that is decoded; None: Pillow's limit.

    Raises:
        DataError: root, split or files are not as the publisher ships them.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    layout: ClassVar[str] = ""
    """The folder tree expected under `root`, as shown in errors."""
    get_it: ClassVar[str] = ""
    """Where the data come from, as shown in errors."""
    task: ClassVar[str] = ""
    """The kind of task that these targets are for, as `task=` names it."""

    def __init__(
        self,
        *,
        split: str,
        root: str = "./data",
        classes: list[str],
        palette: list[list[int]] | None = None,
        download: bool = False,
        limit: PositiveInt | None = None,
        channels: Literal[1, 3] = 3,
        exif: Literal["apply", "ignore"] = "apply",
        max_pixels: PositiveInt | None = None,
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        if split not in self.splits:
            raise ConfigError(f"{type(self).__name__} has no split '{split}'", expected=f"one of {listed(self.splits)}")
        self.split = split
        self.root = Path(root).expanduser()
        self.classes = list(classes)
        self.palette = voc_palette(len(classes)) if palette is None else [list(color) for color in palette]
        self.channels: Literal[1, 3] = channels
        self.exif: Literal["apply", "ignore"] = exif
        self.max_pixels = max_pixels
        self.transform = transform
        self.seed = seed
        if download:
            self.fetch()
        records = self.find_records()
        if not records:
            raise DataError(f"split '{split}' has no samples", where=self.root, expected=self.layout, fix=self.get_it)
        self.records = records[:limit]
        self.source: Callable[[int], tuple[np.ndarray, Target]] = self._from_files
        """Sample number -> its untransformed (image, target); a cache of decoded samples takes this place."""

    def find_records(self) -> list[Record]:
        """Every sample of `self.split`, in a fixed order; raises where the layout is not the publisher's."""
        raise NotImplementedError(f"{type(self).__name__} must say where its files are")

    def fetch(self) -> None:
        """Download what is missing at `self.root`."""
        raise ConfigError(
            f"{type(self).__name__} cannot be downloaded by segtrain",
            expected="data.download=false",
            fix=self.get_it,
        )

    def load(self, record: Record) -> tuple[np.ndarray, Target]:
        """The untransformed image (H, W, C) and target of one record."""
        raise NotImplementedError(f"{type(self).__name__} must say what its targets are")

    @staticmethod
    def collate(samples: Sequence[Any]) -> Any:
        """Samples on their way out of a worker (`segtrain.data.batches.Loaded`) as one batch, or a SegtrainError."""
        raise NotImplementedError("a kind of dataset says how its samples make a batch")

    @staticmethod
    def transform_of(steps: dict[str, Any]) -> Transform:
        """Named albumentations transforms as one, which moves image and target together."""
        raise NotImplementedError("a kind of dataset says how its samples are transformed")

    def read_image(self, record: Record) -> np.ndarray:
        """The image (H, W, C) of one record as it is stored: uint8, or float32 in [0, 255] above 8 bits."""
        assert record.image is not None
        return read_image(record.image, self.channels, exif=self.exif, max_pixels=self.max_pixels)

    def _from_files(self, index: int) -> tuple[np.ndarray, Target]:
        return self.load(self.records[index])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[np.ndarray, Target, Record]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.records[index]
        image, target = self.source(index)
        if self.transform is not None:
            image, target = self.transform(image, target, (self.seed, epoch, index))
        return image, target, record

    def unfinished(self, key: int | tuple[int, int]) -> Unfinished:
        """The sample as the loader takes it: with its colors still to be changed on the device, and timed.

        The matrix is (C, C + 1) for colors in [0, 255]; None where nothing is left to do.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.records[index]
        begun = perf_counter()
        image, target = self.source(index)
        loaded = perf_counter()
        color = None
        if self.transform is not None:
            seed = (self.seed, epoch, index)
            unfinished = getattr(self.transform, "unfinished", None)  # a plain function has nothing to hand on
            if unfinished is None:
                image, target = self.transform(image, target, seed)
            else:
                image, target, color = unfinished(image, target, seed)
        return image, target, record, color, loaded - begun, perf_counter() - loaded

    def missing(self, what: str, path: Path) -> DataError:
        """The error for a file or folder that the publisher's layout has and this root has not."""
        return DataError(
            f"{what} not found",
            where=path,
            expected=f"data.root={self.root} to hold\n{self.layout}",
            fix=self.get_it,
        )

    def is_complete(self, find_records: Callable[[], list[Record]] | None = None) -> bool:
        """Whether every file of this split is there, so that nothing need be downloaded."""
        try:
            return bool((find_records or self.find_records)())
        except DataError:
            return False

    def locate(self, *folders: str, holds: str) -> Path:
        """The first of `root/folder` that has `holds` in it."""
        for folder in folders:
            if (self.root / folder / holds).exists():
                return self.root / folder
        raise self.missing(f"the {type(self).__name__} data ({holds})", self.root)

    def read_list(self, path: Path, *, rooted: bool = False) -> list[str]:
        """The lines of a split file without blank ones; `rooted`: a leading `/` is the top of the data."""
        if not path.is_file():
            raise self.missing(f"list of split '{self.split}'", path)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"list is not UTF-8 text: {error}", where=path, fix="save it as UTF-8") from error
        entries = [line.strip() for line in lines if line.strip()]
        refuse_outside([entry.lstrip("/") for entry in entries] if rooted else entries, path)
        return entries

    def files_in(self, folder: Path) -> dict[str, Path]:
        """The image files right in a folder by their stems, sorted."""
        if not folder.is_dir():
            raise self.missing(f"folder for split '{self.split}'", folder)
        return files_by_stem(folder.iterdir(), folder)

    def pick(
        self, names: Iterable[str], images: Mapping[str, Path], targets: Mapping[str, Path], where: Path
    ) -> list[Record]:
        """Records of the names that the list `where` holds, in its order; one error for all missing."""
        names = list(names)
        absent = [f"image {name}" for name in names if name not in images]
        absent += [f"mask {name}" for name in names if name not in targets]
        if absent:
            raise self._absent(absent, 2 * len(names), f"{where}\n")
        return [Record(name, images[name], targets[name]) for name in names]

    def _absent(self, absent: list[str], total: int, where: str = "") -> DataError:
        return DataError(
            f"{len(absent)} of {total} files of split '{self.split}' are missing",
            where=where + listed(absent).replace(", ", "\n"),
            expected=f"data.root={self.root} to hold\n{self.layout}",
            fix=self.get_it,
        )

    def require_files(self, records: list[Record]) -> list[Record]:
        """The same records, once every file they name is known to exist; else one error for all missing."""
        paths = [path for record in records for path in (record.image, record.target) if path is not None]
        # One listing per folder: thousands of single look-ups are slow on network disks.
        present = {folder: _names(folder) for folder in {path.parent for path in paths}}
        absent = list(dict.fromkeys(path for path in paths if path.name not in present[path.parent]))
        if absent:
            raise self._absent([str(path) for path in absent], len(paths))
        return records

    def pair(self, images: Mapping[str, Path], targets: Mapping[str, Path], where: Path) -> list[Record]:
        """Records of images and masks that share a key, sorted as `images`; an error where one is alone."""
        unmasked = [key for key in images if key not in targets]
        orphans = [key for key in targets if key not in images]
        lines = [f"{len(unmasked)} images without a mask: {listed(unmasked)}"] * bool(unmasked)
        lines += [f"{len(orphans)} masks without an image: {listed(orphans)}"] * bool(orphans)
        if lines:
            raise DataError(
                "images and masks do not pair up",
                where=f"{where}\n" + "\n".join(lines),
                expected="one mask of the same name for every image",
                fix="add what is missing or take the lone files away",
            )
        return [Record(key, path, targets[key]) for key, path in images.items()]


def files_by_stem(paths: Iterable[Path], folder: Path, suffix: str = "") -> dict[str, Path]:
    """`{"a/0001": folder/a/0001.png}` for the image files among `paths`, sorted by key.

    Hidden files and files that are no images are passed over. `suffix` must end a stem and is cut off it.

    Raises:
        DataError: two files share a key.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith(".") or not path.stem.endswith(suffix):
            continue
        key = path.relative_to(folder).with_suffix("").as_posix().removesuffix(suffix)
        if key in found:
            raise DataError(
                f"two files share the name '{key}'",
                where=f"{min(found[key], path)}\n{max(found[key], path)}",
                expected="one file per name",
                fix="rename or remove one of them",
            )
        found[key] = path
    return dict(sorted(found.items()))


def refuse_unequal(
    image: np.ndarray, record: Record, size: tuple[int, ...], *, found: str, other: str, expected: str, fix: str
) -> None:
    """Refuses an image (H, W, C) whose target has another (height, width): `other` says what of the target has it.

    Raises:
        DataError: they differ.
    """
    if image.shape[:2] != size:
        raise DataError(
            f"{found} (width x height)",
            where=f"{record.image} is {image.shape[1]}x{image.shape[0]}, {other} {size[1]}x{size[0]}",
            expected=expected,
            fix=f"{fix}; an image with an EXIF rotation is read upright, data.exif=ignore reads it as it is stored",
        )


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
