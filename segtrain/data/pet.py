"""Oxford-IIIT Pet (Parkhi et al. 2012): cats and dogs of 37 breeds with trimaps."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from segtrain.data.dataset import SegmentationDataset
from segtrain.data.download import extract, fetch
from segtrain.errors import ConfigError, DataError
from segtrain.types import Record

# (url, md5) of the publisher's two archives.
ARCHIVES = (
    ("https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
    (
        "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
        "95a8c909bbe2e81eed6a22bccdf3f68f",
    ),
)
LISTS = {"train": "trainval.txt", "val": "test.txt"}
NUM_CLASSES = {"trimap": 3, "foreground": 2, "breed": 38}


class Pet(SegmentationDataset):
    """The official trainval (3,680 images) as train, the official test (3,669) as val.

    The files hold 1 = pet, 2 = background, 3 = border or unsure; `label_map` says what becomes of them:

    - `trimap`: three classes, value - 1.
    - `foreground`: background and pet, the border unlabelled.
    - `breed`: background and 37 breeds, the border unlabelled. `label_map` makes the pet class 1, and every
      image's own breed (the class id of the list file, 1 to 37) takes its place.

    `record.extra["breed"]` is that id for every target.

    Raises:
        ConfigError: the number of classes does not fit `target`.
    """

    layout: ClassVar[str] = (
        "oxford-iiit-pet/images/NAME.jpg\n"
        "oxford-iiit-pet/annotations/{trainval,test}.txt\n"
        "oxford-iiit-pet/annotations/trimaps/NAME.png"
    )
    get_it: ClassVar[str] = (
        "set data.download=true, or unpack images.tar.gz and annotations.tar.gz of "
        "https://www.robots.ox.ac.uk/~vgg/data/pets into oxford-iiit-pet"
    )

    def __init__(self, *, target: Literal["trimap", "foreground", "breed"] = "trimap", **shared: object) -> None:
        self.target = target
        super().__init__(**shared)  # type: ignore[arg-type]
        if len(self.classes) != NUM_CLASSES[target]:
            raise ConfigError(
                f"data.classes has {len(self.classes)} names, {target} needs {NUM_CLASSES[target]}",
                fix="leave data.classes, data.palette and data.label_map as data=pet has them",
            )

    def find_records(self) -> list[Record]:
        home = self.locate("oxford-iiit-pet", ".", holds="annotations")
        path = home / "annotations" / LISTS[self.split]
        lines = [line for line in self.read_list(path) if not line.startswith("#")]
        return self.require_files([_record(line, home, path) for line in lines])

    def read_target(self, record: Record) -> np.ndarray:
        target = super().read_target(record)
        if self.target == "breed":
            target[target == 1] = record.extra["breed"]
        return target

    def fetch(self) -> None:
        if self.is_complete():
            return
        folder = self.root / "oxford-iiit-pet"
        for url, md5 in ARCHIVES:
            extract(fetch(url, md5, folder, filename=url.rsplit("/", 1)[1]), folder)


def _record(line: str, home: Path, path: Path) -> Record:
    """One line of a list: `NAME CLASS-ID SPECIES BREED-ID`."""
    name, *numbers = line.split()
    if len(numbers) != 3 or not numbers[0].isdigit() or not 1 <= int(numbers[0]) <= 37:
        raise DataError(
            f"list has the line '{line}'",
            where=path,
            expected="NAME CLASS-ID SPECIES BREED-ID, ids from 1 to 37",
        )
    return Record(
        name,
        home / "images" / f"{name}.jpg",
        home / "annotations" / "trimaps" / f"{name}.png",
        {"breed": int(numbers[0])},
    )
