"""A cache knows every source file that has a part in its samples, and none that has not."""

from __future__ import annotations

import importlib
import py_compile
import subprocess
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
from segtrain.errors import ConfigError

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

    def choose(self):
        from mine.rare.formats import old
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
    "rare/formats/old.py": "from . import tables\n",
    "rare/formats/tables.py": "",
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
    loaded = {"mine", "mine.data", "mine.reading", "mine.codecs.simple", "mine.faster"}
    assert own(mine(package)) == loaded | {"mine.rare.formats.old", "mine.rare.formats.tables"}


def test_what_a_function_may_import_is_not_imported_to_see_it(package: Path) -> None:
    kind = mine(package)
    before = set(sys.modules)
    sources_of(kind)
    assert set(sys.modules) == before


def test_what_others_have_loaded_changes_nothing(package: Path) -> None:
    """The next process may not load it, and shall find the same cache."""
    kind = mine(package)
    before = sources_of(kind)
    importlib.import_module("mine.hints")
    importlib.import_module("mine.rare.formats.old")
    assert sources_of(kind) == before


@pytest.mark.parametrize(
    ("lines", "seen"),
    [
        ("from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n    import mine.hints", True),
        ("import typing\nif typing.TYPE_CHECKING:\n    pass\nelse:\n    import mine.hints", True),
        ("class our:\n    TYPE_CHECKING = True\nif our.TYPE_CHECKING:\n    import mine.hints", True),
        ("import typing\nif typing.TYPE_CHECKING:\n    import mine.hints", False),
        ("class Reader:\n    async def read(self):\n        from . import hints", True),
    ],
)
def test_only_what_types_alone_need_is_left_out(package: Path, lines: str, seen: bool) -> None:
    (package / "faster.py").write_text(lines)
    assert ("mine.hints" in own(mine(package))) is seen


def test_the_packages_around_a_module_are_seen_and_what_they_import(package: Path) -> None:
    (package / "rare/__init__.py").write_text("from mine import hints\n")
    (package / "faster.py").write_text("import mine.rare.formats.old\n")
    assert own(mine(package)) >= {"mine", "mine.rare", "mine.hints"}


@pytest.mark.parametrize("lines", ["from ..lib import faster", "from ... import faster"])
def test_an_import_that_leaves_the_package_has_failed_and_is_passed_over(package: Path, lines: str) -> None:
    (package / "faster.py").write_text(f"try:\n    {lines}\nexcept ImportError:\n    from mine import hints\n")
    assert "mine.hints" in own(mine(package))


def test_a_module_without_its_source_is_known_by_its_bytecode(package: Path) -> None:
    bytecode = package / "reading.pyc"
    py_compile.compile(str(package / "reading.py"), cfile=str(bytecode))
    source = (package / "reading.py").read_text()
    (package / "reading.py").unlink()
    kind = mine(package)
    before = sources_of(kind)
    assert sources_of(kind) == before
    bytecode.write_bytes(bytecode.read_bytes() + b"0")
    changed = sources_of(kind)
    assert changed.pop("mine.reading") != before["mine.reading"]
    (package / "reading.py").write_text(source)
    found = sources_of(kind)
    assert found["mine.reading"] not in (changed, before["mine.reading"])
    assert "mine.codecs.simple" in found, "the source says what is imported"


@pytest.mark.parametrize("name", ["data.py", "reading.py"])
def test_a_loaded_file_that_is_gone_is_named(package: Path, name: str) -> None:
    kind = mine(package)
    (package / name).unlink()
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        sources_of(kind)
    assert caught.value.where == str(package / name)


@pytest.mark.parametrize("content", [b"def (", b"x = '\xff'", b"x = 1\0"])
def test_a_loaded_file_that_is_no_longer_python_is_named(package: Path, content: bytes) -> None:
    kind = mine(package)
    (package / "reading.py").write_bytes(content)
    with pytest.raises(ConfigError, match=r"mine\.reading is not Python") as caught:
        sources_of(kind)
    assert caught.value.where == str(package / "reading.py")


def test_a_file_for_another_python_that_is_not_loaded_is_no_fault(package: Path) -> None:
    (package / "rare/formats/tables.py").write_text("print 'old'\n")
    assert "mine.rare.formats.tables" in own(mine(package))


ALONE = """
try:
    from . import beside
except ImportError:
    import beside
import string
import numpy
from segtrain.data.dataset import SegmentationDataset

class Mine(SegmentationDataset, string.Formatter):
    def load(self, record):
        import parts.reading
"""


@pytest.mark.parametrize(("folder", "seen"), [("mine_alone", True), ("site-packages", False)])
def test_a_module_without_a_package_brings_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, seen: bool
) -> None:
    """Not where packages are installed, nor beside a base from Python's own library."""
    files = {"alone.py": ALONE, "beside.py": "", "parts/__init__.py": "", "parts/reading.py": ""}
    for name, content in files.items():
        (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path / folder))
    try:
        found = sources_of(importlib.import_module("alone").Mine)
    finally:
        for name in ("alone", "beside"):
            sys.modules.pop(name, None)
    others = {name for name in found if name.partition(".")[0] != "segtrain"}
    assert others == {"alone", "string"} | ({"beside", "parts", "parts.reading"} if seen else set())


KEY = """
from segtrain.data.caching.key import cache_key, stamps_of
from segtrain.data.shapes import Shapes
dataset = Shapes(split="val", classes=["background", "disc", "square", "triangle", "ring"], val_images=2)
print(cache_key(dataset, {}, stamps_of(dataset)))
"""


def test_every_process_finds_the_same_key_for_the_same_data() -> None:
    more = "import segtrain.experiment, segtrain.data.transforms, segtrain.data.loader\n"
    done = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for code in (KEY, more + KEY)
    ]
    assert len(done[0].strip()) == 64
    assert done[0] == done[1]


def test_whatever_reads_the_objects_of_coco_is_seen() -> None:
    found = {name.removeprefix("segtrain.") for name in sources_of(CocoSemantic) if name.startswith("segtrain.")}
    parts = {"annotations", "boxes", "categories", "faults", "outlines", "reading", "samples", "semantic"}
    assert found >= {f"data.coco.{part}" for part in parts} | {"rle", "instances", "data.reading", "data.labels"}


def test_what_only_a_training_needs_is_not_seen() -> None:
    found = sources_of(Shapes)
    assert found.keys() >= {"segtrain.data.reading", "segtrain.data.labels", "segtrain.data.generated"}
    assert not [name for name in found if name.endswith((".transforms", ".loader", ".color", ".trainer"))]
    assert {name.partition(".")[0] for name in found} == {"segtrain"}
