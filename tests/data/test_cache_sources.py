"""A cache knows every source file that has a part in its samples, and none that has not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.data.caching.cache import SampleCache, open_cache
from segtrain.data.caching.sources import sources_of
from segtrain.data.coco.semantic import CocoSemantic
from segtrain.data.shapes import Shapes

FILES = {
    "__init__.py": "",
    "data.py": """
from typing import TYPE_CHECKING
import numpy as np
from segtrain.data.dataset import SegmentationDataset
from segtrain.types import Record
from .reading import image
if TYPE_CHECKING:
    from mine import hints

class Mine(SegmentationDataset):
    def find_records(self):
        return [Record(str(i)) for i in range(3)]

    def load(self, record):
        return image(), np.zeros((4, 4), np.uint8)

    def show(self):
        from mine import pictures
""",
    "reading.py": """
import numpy as np
from mine.codecs import simple
try:
    import mine.faster
except ImportError:
    pass

def image():
    return np.full((4, 4, 3), simple.VALUE, np.uint8)
""",
    "codecs/simple.py": "from mine import reading\nVALUE = 1\n",
    "faster.py": "",
    "pictures.py": "",
    "hints.py": "",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `mine` of the user's own, forgotten at the end."""
    for name, content in FILES.items():
        file = tmp_path / "mine" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "mine"
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def mine(package: Path) -> Any:
    """The class as a new process has it."""
    forget()
    importlib.invalidate_caches()
    for folder in package.rglob("__pycache__"):
        for file in folder.iterdir():
            file.unlink()
    return importlib.import_module("mine.data").Mine


def opened(kind: Any, folder: Path) -> SampleCache:
    class NoBar:
        def __init__(self, total: int, name: str) -> None: ...

        def update(self, n: int) -> None: ...

        def close(self) -> None: ...

    dataset = kind(split="train", classes=["a", "b"])
    return open_cache(dataset, kind="disk", folder=folder, settings={}, say=lambda _: None, bar=NoBar, threads=1)


def own(kind: type) -> set[str]:
    return {name for name in sources_of(kind) if name.partition(".")[0] == "mine"}


def test_an_edit_of_what_the_class_imports_makes_another_cache(package: Path, tmp_path: Path) -> None:
    first = opened(mine(package), tmp_path / "cache")
    assert np.unique(first.load(0)[0]).tolist() == [1]
    assert opened(mine(package), tmp_path / "cache").folder == first.folder
    (package / "codecs/simple.py").write_text("VALUE = 2\n")
    second = opened(mine(package), tmp_path / "cache")
    assert np.unique(second.load(0)[0]).tolist() == [2]
    assert second.folder != first.folder


def test_imports_are_followed_within_the_package_and_in_circles(package: Path) -> None:
    assert own(mine(package)) == {"mine", "mine.data", "mine.reading", "mine.codecs.simple", "mine.faster"}


def test_what_others_have_loaded_changes_nothing(package: Path) -> None:
    """The next process may not load it, and shall find the same cache."""
    kind = mine(package)
    before = sources_of(kind)
    importlib.import_module("mine.hints")
    importlib.import_module("mine.pictures")
    assert sources_of(kind) == before


def test_whatever_reads_the_objects_of_coco_is_seen() -> None:
    found = {name.removeprefix("segtrain.") for name in sources_of(CocoSemantic) if name.startswith("segtrain.")}
    parts = {"annotations", "boxes", "categories", "faults", "outlines", "reading", "samples", "semantic"}
    assert found >= {f"data.coco.{part}" for part in parts} | {"rle", "instances", "data.reading", "data.labels"}


def test_what_only_a_training_needs_is_not_seen() -> None:
    found = sources_of(Shapes)
    assert found.keys() >= {"segtrain.data.reading", "segtrain.data.labels", "segtrain.data.generated"}
    assert not [name for name in found if name.endswith((".transforms", ".loader", ".color", ".trainer"))]
    assert {name.partition(".")[0] for name in found} == {"segtrain"}
