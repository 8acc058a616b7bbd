"""A cache appears whole or not at all: whoever dies, waits, runs out of room or brings a bad file."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import resource
import signal
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain import file_lock
from segtrain.data.caching import room, stores
from segtrain.data.caching.cache import SampleCache, open_cache
from segtrain.data.caching.room import available_memory, measure
from segtrain.data.dataset import SegmentationDataset
from segtrain.data.folder import Folder
from segtrain.errors import ConfigError, DataError, ResourceError
from segtrain.types import Record

Usage = namedtuple("Usage", "total used free")
Context = multiprocessing.get_context("fork")


class Steps(SegmentationDataset):
    """Twelve samples of 64 x 64; `at[i]` is called when sample i is loaded."""

    def __init__(self, at: dict[int, Any] | None = None) -> None:
        self.at = at or {}
        super().__init__(split="train", classes=["a", "b"])

    def find_records(self) -> list[Record]:
        return [Record(str(i)) for i in range(12)]

    def load(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        number = int(record.name)
        self.at.get(number, lambda: None)()
        return np.full((64, 64, 3), number, np.uint8), np.full((64, 64), number % 2, np.uint8)


class Bars:
    """Progress bars that remember."""

    def __init__(self) -> None:
        self.made: list[tuple[int, str]] = []
        self.done = 0
        self.closed = 0

    def __call__(self, total: int, name: str) -> Bars:
        self.made.append((total, name))
        return self

    def update(self, n: int) -> None:
        self.done += n

    def close(self) -> None:
        self.closed += 1


def opened(
    dataset: SegmentationDataset, folder: Path, kind: Any = "disk", bar: Any = None, say: Any = lambda text: None
) -> SampleCache:
    return open_cache(dataset, kind=kind, folder=folder, settings={}, say=say, bar=bar or Bars(), threads=3)


def visible(folder: Path) -> list[str]:
    """What lies in a folder, lock files apart."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def own_folder(root: Path, put: Any, count: int = 12, bad: dict[int, Any] | None = None) -> Folder:
    rng = np.random.default_rng(0)
    for i in range(count):
        put(f"own/images/{i:02d}.png", rng.integers(0, 256, (40, 50, 3), np.uint8))
        put(f"own/masks/{i:02d}.png", (bad or {}).get(i, rng.integers(0, 2, (40, 50)).astype(np.uint8)))
    return Folder(split="train", root=str(root / "own"), classes=["a", "b"], val_fraction=0)


@pytest.mark.parametrize("kind", ["disk", "ram"])
def test_progress_goes_to_the_end_and_the_bar_away(tmp_path: Path, kind: str) -> None:
    bars = Bars()
    opened(Steps(), tmp_path, kind, bars)
    assert (bars.made, bars.done, bars.closed) == ([(12, "cache")], 12, 1)
    if kind == "disk":
        opened(Steps(), tmp_path, kind, bars)
        assert len(bars.made) == 1, "what is there is not built"


def test_the_bytes_do_not_depend_on_the_number_of_threads(tmp_path: Path, put: Any) -> None:
    dataset = own_folder(tmp_path, put)
    written = []
    for threads in (1, 5):
        folder = tmp_path / f"{threads}"
        cache = open_cache(
            dataset, kind="disk", folder=folder, settings={}, say=lambda text: None, bar=Bars(), threads=threads
        )
        assert cache.folder is not None
        written.append([(cache.folder / name).read_bytes() for name in ("samples.bin", "index.json")])
    assert written[0] == written[1]


def test_memory_grows_by_blocks_when_a_guess_was_too_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stores, "_BLOCK", 40_000)
    cache = opened(Steps(), tmp_path, "ram")
    assert len(cache.blocks) == 6
    assert [int(cache.load(i)[0].max()) for i in range(12)] == list(range(12))
    assert [int(cache.load(i)[1].min()) for i in range(12)] == [0, 1] * 6


# --- bad samples ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["disk", "ram"])
def test_all_bad_samples_are_in_one_error_and_nothing_stays(tmp_path: Path, put: Any, kind: str) -> None:
    illegal = np.full((40, 50), 7, np.uint8)
    dataset = own_folder(tmp_path, put, bad={3: illegal, 8: illegal, 9: np.zeros((4, 4), np.uint8)})
    (tmp_path / "own/images/05.png").write_bytes(b"no image")
    bars = Bars()
    with pytest.raises(DataError) as caught:
        opened(dataset, tmp_path / "cache", kind, bars)
    assert caught.value.found == "4 of 12 samples cannot be used"
    lines = str(caught.value.where).splitlines()
    for line, name, words in zip(
        lines,
        ("masks/03", "images/05", "masks/08", "images/09"),
        ("outside the label set", "not an image", "outside the label set", "different sizes"),
        strict=True,
    ):
        assert name in line
        assert words in line
    assert (bars.done, bars.closed) == (12, 1)
    if kind == "disk":
        assert visible(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("image", "target"),
    [
        (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.int64)),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8)),
    ],
)
def test_a_class_that_loads_something_else_is_told_so(tmp_path: Path, image: np.ndarray, target: np.ndarray) -> None:
    dataset = Steps()
    dataset.load = lambda record: (image, target)  # type: ignore[method-assign]
    with pytest.raises(DataError, match="12 of 12 samples cannot be used") as caught:
        opened(dataset, tmp_path)
    assert "an image (H, W, C) uint8" in str(caught.value.expected)


def test_any_other_failure_leaves_nothing_either(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(Steps({7: interrupt}), tmp_path)
    assert visible(tmp_path) == []
    opened(Steps(), tmp_path)  # and no lock is held


# --- room -----------------------------------------------------------------------------------------


def test_the_size_is_known_to_the_byte_from_the_headers(tmp_path: Path, put: Any) -> None:
    dataset = own_folder(tmp_path, put)
    put("own/images/00.png", np.zeros((40, 50), np.uint16))  # float32 once decoded
    dataset.load = lambda record: pytest.fail("decoded")  # type: ignore[method-assign]
    need = measure(dataset, 2)
    del dataset.load
    cache = opened(dataset, tmp_path / "cache")
    assert cache.folder is not None
    assert need.exact
    assert 0 <= need.nbytes - (cache.folder / "samples.bin").stat().st_size < 64


def test_images_beyond_pillows_limit_are_measured_where_they_are_allowed(
    tmp_path: Path, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = own_folder(tmp_path, put)
    whole = measure(dataset, 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 50 // 3)
    assert measure(dataset, 2).nbytes == 0
    dataset.max_pixels = 40 * 50
    assert measure(dataset, 2) == whole


def test_a_disk_that_is_too_small_is_refused_before_anything_is_decoded(
    tmp_path: Path, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = own_folder(tmp_path, put)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: Usage(2**40, 2**40, 3 * 2**20))
    dataset.load = lambda record: pytest.fail("decoded")  # type: ignore[method-assign]
    said: list[str] = []
    with pytest.raises(ResourceError) as caught:
        opened(dataset, tmp_path / "cache", say=said.append)
    assert caught.value.found == "the cache of decoded samples needs 0.1 MiB, 3.0 MiB are free"
    for fix in ("data.cache_dir=", "data.limit=", "data.cache=none"):
        assert fix in str(caught.value.fix)
    assert said[0].startswith("cache    12 samples, 0.1 MiB, to be written to ")
    assert visible(tmp_path / "cache") == []


def test_memory_that_is_too_small_is_refused_before_anything_is_decoded(
    tmp_path: Path, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "available_memory", lambda: 2**20)
    dataset = own_folder(tmp_path, put)
    dataset.load = lambda record: pytest.fail("decoded")  # type: ignore[method-assign]
    with pytest.raises(ResourceError, match=r"needs 0\.1 MiB of memory, 1\.0 MiB are free") as caught:
        opened(dataset, tmp_path, "ram")
    assert "data.cache=disk" in str(caught.value.fix)
    monkeypatch.setattr(room, "available_memory", lambda: 2**31)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "20000")
    with pytest.raises(ResourceError, match="in each of 20000 processes"):
        opened(dataset, tmp_path, "ram")


def test_memory_that_others_fill_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_BLOCK", 40_000)
    left = iter([2**40, 2**40, 2**40, 0])
    monkeypatch.setattr(room, "available_memory", lambda: next(left))
    with pytest.raises(ResourceError, match=r"0\.0 MiB are free"):
        opened(Steps(), tmp_path, "ram")


def test_that_each_process_of_torchrun_has_a_copy_in_memory_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said: list[str] = []
    opened(Steps(), tmp_path, "ram", say=said.append)
    assert said[0] == "cache    12 samples, about 0.2 MiB, to be held in memory, a copy in each of 2 processes"


def test_a_disk_that_fills_while_writing_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    def build(queue: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            opened(Steps(), tmp_path)
        except ResourceError as error:
            queue.put(error)

    queue = Context.Queue()
    process = Context.Process(target=build, args=(queue,))
    process.start()
    error = queue.get(timeout=60)
    process.join()
    assert "disk full" in error.found
    assert "data.cache_dir=" in error.fix
    assert visible(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot be written") as caught:
        opened(Steps(), tmp_path / "file")
    assert "data.cache_dir" in str(caught.value.fix)


def test_a_disk_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Any, kind: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ResourceError, match="does not lock files"):
        opened(Steps(), tmp_path)
    monkeypatch.setattr(file_lock, "CAN_WAIT", False)
    with pytest.raises(ConfigError, match="this system has not"):
        opened(Steps(), tmp_path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_least_of_machine_and_control_groups_is_available(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None, "a system that does not say"
    write(tmp_path / "proc/meminfo", "MemTotal: 900 kB\nMemAvailable:     800 kB\n")
    assert available_memory(tmp_path) == 800 * 1024
    write(tmp_path / "proc/self/cgroup", "0::/job/step\n")
    group = tmp_path / "sys/fs/cgroup"
    write(group / "job/step/memory.max", "max\n")
    write(group / "job/step/memory.current", "5\n")
    assert available_memory(tmp_path) == 800 * 1024
    write(group / "job/memory.max", "100000\n")  # the limit of the job holds for its steps
    write(group / "job/memory.current", "70000\n")
    write(group / "job/memory.stat", "anon 9\ninactive_file 20000\n")
    assert available_memory(tmp_path) == 50_000
    write(tmp_path / "proc/self/cgroup", "4:cpu:/x\n3:memory:/job\n")
    write(group / "memory/job/memory.limit_in_bytes", "9000\n")
    write(group / "memory/job/memory.usage_in_bytes", "9500\n")
    assert available_memory(tmp_path) == 0


def test_this_machine_says_how_much_memory_it_has() -> None:
    if not Path("/proc/meminfo").is_file():
        pytest.skip("not Linux")
    found = available_memory()
    assert found is not None
    assert 0 < found < 2**50


# --- other processes ------------------------------------------------------------------------------


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.01)


def test_a_build_that_was_killed_is_swept_and_done_anew(tmp_path: Path) -> None:
    folder = tmp_path / "cache"

    def stall() -> None:
        (tmp_path / "reached").touch()
        time.sleep(60)

    process = Context.Process(target=lambda: opened(Steps({11: stall}), folder))
    process.start()
    wait_for(tmp_path / "reached")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [name.startswith(".building-Steps-train-") for name in visible(folder)] == [True]
    said: list[str] = []
    cache = opened(Steps(), folder, say=said.append)
    assert cache.load(11)[0].max() == 11
    assert "that a build left when it was killed" in said[1]
    assert cache.folder is not None
    assert visible(folder) == [cache.folder.name]


def test_what_a_living_build_has_written_is_left_alone(tmp_path: Path, put: Any) -> None:
    """A second dataset is built below the same folder while the first is not done."""
    during: list[str] = []

    def build_other() -> None:
        if not during:
            opened(own_folder(tmp_path, put), tmp_path / "cache")
            during.extend(visible(tmp_path / "cache"))

    cache = opened(Steps({11: build_other}), tmp_path / "cache")
    assert [name.rpartition("-")[0] for name in during] == [".building-Steps-train", "Folder-train"]
    assert cache.load(11)[0].max() == 11


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    folder, loads = tmp_path / "cache", tmp_path / "loads"
    loads.mkdir()

    def build(name: str, queue: Any) -> None:
        def hold() -> None:
            (loads / name).touch()
            if name == "first":
                wait_for(tmp_path / "go")

        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            if "waiting" in text:
                (tmp_path / "go").touch()

        cache = opened(Steps({11: hold}), folder, say=say)
        queue.put((name, said, [int(cache.load(i)[0].max()) for i in range(12)]))

    queue = Context.Queue()
    first = Context.Process(target=build, args=("first", queue))
    first.start()
    wait_for(loads / "first")
    second = Context.Process(target=build, args=("second", queue))
    second.start()
    results = {name: (said, values) for name, said, values in (queue.get(timeout=60), queue.get(timeout=60))}
    first.join()
    second.join()
    assert results["first"][1] == results["second"][1] == list(range(12))
    assert "waiting for another process that builds the cache" in results["second"][0][0]
    assert ", from " in results["second"][0][1]
    assert not (loads / "second").exists()
