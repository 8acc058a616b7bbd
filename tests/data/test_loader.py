"""Which samples a step has depends on the seed alone, and what happens in a worker is told whole."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from segtrain.data.loader import EvalLoader, TrainLoader
from segtrain.data.shapes import Shapes
from segtrain.data.workers import _say_unless_hung_up
from segtrain.errors import DataError
from segtrain.types import Record

ROOT = Path(__file__).parents[2]
SHAPES = ["background", "disc", "square", "triangle", "ring"]


class Numbered(Dataset[Any]):
    """Sample i is an image full of i, and of i + 100 in odd epochs; sizes and dtypes as given."""

    def __init__(
        self, length: int, sizes: dict[int, tuple[int, int]] | None = None, deep: tuple[int, ...] = ()
    ) -> None:
        self.length, self.sizes, self.deep = length, sizes or {}, deep

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: Any) -> Any:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        size = self.sizes.get(index, (4, 6))
        image = np.full((*size, 3), index + 100 * (epoch % 2), np.float32 if index in self.deep else np.uint8)
        return image, np.full(size, index, np.uint8), Record(f"n{index}")


class Failing(Numbered):
    """Sample 5 raises what it is told to."""

    def __init__(self, error: Exception) -> None:
        super().__init__(8)
        self.error = error

    def __getitem__(self, key: Any) -> Any:
        index = key[1] if isinstance(key, tuple) else key
        if index == 5:
            raise self.error
        return super().__getitem__(key)


def indices(loader: TrainLoader, epoch: int, first: int = 0) -> list[list[int]]:
    return [[int(i) for batch in step for i in batch.index] for step in loader.steps(epoch, first)]


@pytest.mark.parametrize("workers", [0, 2])
def test_order_depends_on_seed_and_epoch_alone(workers: int) -> None:
    loader = TrainLoader(Numbered(11), batch_size=2, num_workers=workers, accumulate=2, seed=7)
    assert loader.steps_per_epoch == 2
    first, second = indices(loader, 0), indices(loader, 1)
    assert [len(step) for step in first] == [4, 4]
    assert len({index for step in first for index in step}) == 8
    assert first != second
    assert indices(loader, 0) == first  # whatever epoch came before
    assert indices(TrainLoader(Numbered(11), batch_size=2, num_workers=0, accumulate=2, seed=7), 1) == second
    assert indices(TrainLoader(Numbered(11), batch_size=4, num_workers=0, seed=7), 1) == second
    assert indices(TrainLoader(Numbered(11), batch_size=2, num_workers=0, accumulate=2, seed=8), 0) != first
    assert indices(loader, 1, first=1) == second[1:]
    assert indices(loader, 1, first=2) == []


def test_every_sample_is_dropped_as_often_as_any_other() -> None:
    """The incomplete last step is dropped, not the same samples each time."""
    loader = TrainLoader(Numbered(7), batch_size=3, num_workers=0, seed=1)
    seen = Counter(index for epoch in range(200) for step in indices(loader, epoch) for index in step)
    assert len(seen) == 7
    assert sum(seen.values()) == 200 * 6
    assert min(seen.values()) > 150


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_that_outlive_an_epoch_know_the_epoch(workers: int) -> None:
    loader = TrainLoader(Numbered(4), batch_size=2, num_workers=workers, seed=0)
    for epoch in (0, 1, 0):
        for step in loader.steps(epoch):
            for batch in step:
                assert batch.image[:, 0, 0, 0].tolist() == [int(i) + 100 * epoch for i in batch.index]
                assert [record.name for record in batch.records] == [f"n{int(i)}" for i in batch.index]


def test_iterating_draws_nothing_from_the_global_generators() -> None:
    loader = TrainLoader(Numbered(4), batch_size=2, num_workers=0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    indices(loader, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_ranks_share_the_steps_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = indices(TrainLoader(Numbered(25), batch_size=6, num_workers=0, seed=3), 2)
    steps: list[list[int]] = [[] for _ in alone]
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        loader = TrainLoader(Numbered(25), batch_size=2, num_workers=0, seed=3)
        assert loader.samples_per_step == 6
        for step, mine in zip(steps, indices(loader, 2), strict=True):
            step += mine
    assert steps == alone


@pytest.mark.parametrize(("length", "accumulate"), [(3, 1), (3, 2), (3, 4)])
def test_more_per_step_than_images_is_refused_and_the_advice_works(length: int, accumulate: int) -> None:
    with pytest.raises(DataError) as caught:
        TrainLoader(Numbered(length), batch_size=4, num_workers=0, accumulate=accumulate)
    assert f"has {length} images, one step needs {4 * accumulate}" in caught.value.found
    advice = re.search(r"data.batch_size=(\d+)", caught.value.fix or "")
    if accumulate > length:
        assert advice is None
        assert "trainer.accumulate" in (caught.value.fix or "")
    else:
        assert advice is not None
        TrainLoader(Numbered(length), batch_size=int(advice[1]), num_workers=0, accumulate=accumulate)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_ours_arrives_whole_from_a_worker(workers: int) -> None:
    error = DataError("bad mask", where="m/5.png", expected="classes", fix="mend it")
    loader = TrainLoader(Failing(error), batch_size=2, num_workers=workers)
    with pytest.raises(DataError) as caught:
        indices(loader, 0)
    assert str(caught.value) == str(error)
    with pytest.raises(DataError, match="bad mask"):
        list(EvalLoader(Failing(error), batch_size=2, num_workers=workers))  # type: ignore[arg-type]


def test_a_bug_in_a_worker_is_no_lack_of_memory() -> None:
    loader = TrainLoader(Failing(RuntimeError("shapes do not fit")), batch_size=2, num_workers=1)
    with pytest.raises(RuntimeError, match="shapes do not fit") as caught:
        indices(loader, 0)
    assert "__getitem__" in str(caught.value)  # the worker's own traceback


OWN_PARTS = """
import os, signal
from segtrain.data.shapes import Shapes
from segtrain.errors import DataError


class FailingShapes(Shapes):
    def __getitem__(self, key):
        if key == (0, 3) and os.environ["FAULT"] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if key == (0, 3):
            raise DataError("bad mask", where="m/3.png", expected="classes", fix="mend it")
        return super().__getitem__(key)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize(
    ("fault", "code", "texts"),
    [
        ("killed", 6, ["error[resources] a data worker died", "data.num_workers=0"]),
        ("error", 3, ["error[data] bad mask", "m/3.png", "classes", "mend it"]),
    ],
)
def test_faults_in_a_worker_end_the_program_with_their_block(
    tmp_path: Path, fault: str, code: int, texts: list[str]
) -> None:
    (tmp_path / "ownfaults.py").write_text(OWN_PARTS)
    own = ["debug=fast", "data._target_=ownfaults.FailingShapes", "allow_targets=[ownfaults]", "data.size=32"]
    small = ["data.num_workers=2", "trainer.max_steps=null", "trainer.tensorboard=false", "trainer.samples=0"]
    done = subprocess.run(
        [sys.executable, "-m", "segtrain", *own, *small, "trainer.device=cpu", "hydra.run.dir=run"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "FAULT": fault},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert all(text in done.stderr for text in texts), done.stderr
    assert "Traceback" not in done.stderr
    assert "this is a bug" not in done.stderr


SURVIVE = """
import os, signal, sys
from segtrain.data.loader import TrainLoader
from segtrain.data.shapes import Shapes

os.setpgid(0, 0)
data = Shapes(split="train", size=16, classes=["background", "disc", "square", "triangle", "ring"])
loader = TrainLoader(data, batch_size=4, num_workers=2)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
seen = 0
for epoch in range(2):
    for step in loader.steps(epoch):
        if seen % 30 == 7:
            os.killpg(0, (signal.SIGINT, signal.SIGTERM)[epoch])
        seen += 1
print(seen)
"""


@pytest.mark.skipif(os.name == "nt", reason="process groups")
def test_workers_survive_signals_to_the_group_and_end_with_the_program() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SURVIVE], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "160", "")


def test_a_dropped_loader_takes_its_workers_along_even_from_a_cycle() -> None:
    loaders: list[Any] = [TrainLoader(Numbered(4), batch_size=2, num_workers=1)]
    indices(loaders[0], 0)
    loaders += [EvalLoader(Numbered(4), batch_size=2, num_workers=1), loaders]  # type: ignore[arg-type]
    assert len(list(loaders[1])) == 2
    loaders[0].cycle = loaders[1].cycle = loaders
    workers = [worker for loader in loaders[:2] for worker in loader.loader._iterator._workers]
    assert all(worker.is_alive() for worker in workers)
    loaders = []
    gc.collect()
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_evaluation_gives_every_image_once_whatever_the_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    data = Numbered(7, sizes={1: (5, 5), 2: (5, 5), 6: (4, 7)})
    seen: list[int] = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        loader = EvalLoader(data, batch_size=3, num_workers=0)  # type: ignore[arg-type]
        mine = [int(index) for batch in loader for index in batch.index]
        assert loader.images == len(mine)
        seen += mine
    assert sorted(seen) == list(range(7))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_groups_equal_sizes_in_order_and_pads_nothing(workers: int) -> None:
    data = Numbered(7, sizes={1: (5, 5), 2: (5, 5), 6: (4, 7)})
    batches = list(EvalLoader(data, batch_size=3, num_workers=workers))  # type: ignore[arg-type]
    assert [batch.index.tolist() for batch in batches] == [[0], [1, 2], [3, 4, 5], [6]]
    for batch in batches:
        assert batch.image.shape[1:3] == batch.target.shape[1:3] == data.sizes.get(int(batch.index[0]), (4, 6))
        assert (batch.target == batch.index[:, None, None]).all()


def test_one_deep_image_makes_its_batch_float_and_changes_no_value() -> None:
    deep, plain = EvalLoader(Numbered(4, deep=(1,)), batch_size=2, num_workers=0)  # type: ignore[arg-type]
    assert (deep.image.dtype, plain.image.dtype) == (torch.float32, torch.uint8)
    assert deep.image[:, 0, 0, 0].tolist() == [0.0, 1.0]


def test_a_training_batch_of_two_sizes_is_refused() -> None:
    loader = TrainLoader(Numbered(2, sizes={1: (5, 5)}), batch_size=2, num_workers=0)
    with pytest.raises(DataError, match="different sizes") as caught:
        indices(loader, 0)
    assert "augment=" in (caught.value.fix or "")


def test_augmented_samples_do_not_depend_on_workers() -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        def transform(image: np.ndarray, target: np.ndarray, seed: tuple[int, int, int]) -> Any:
            return np.random.default_rng(seed).permutation(image.reshape(-1)).reshape(image.shape), target

        data = Shapes(split="train", size=16, limit=8, classes=SHAPES, transform=transform, seed=4)
        loader = TrainLoader(data, batch_size=2, num_workers=workers, seed=4)
        return [batch.image for epoch in (0, 1) for step in loader.steps(epoch) for batch in step]

    for mine, theirs in zip(batches(0), batches(2), strict=True):
        assert torch.equal(mine, theirs)


# Colors and seconds ---------------------------------------------------------------------------------------------------


class Tinted:
    """Hands on a matrix for samples of odd number, and none for the others."""

    def __call__(self, image: np.ndarray, target: np.ndarray, seed: tuple[int, int, int]) -> Any:
        raise AssertionError("the loader takes samples unfinished")

    def unfinished(self, image: np.ndarray, target: np.ndarray, seed: tuple[int, int, int]) -> Any:
        return image, target, np.full((3, 4), float(seed[2])) if seed[2] % 2 else None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_carries_each_samples_color_and_the_time_it_took(workers: int) -> None:
    data = Shapes(split="train", size=16, limit=8, classes=SHAPES, transform=Tinted())
    for step in TrainLoader(data, batch_size=4, num_workers=workers).steps(0):
        (batch,) = step
        assert batch.color is not None
        assert batch.color.dtype == torch.float32
        for index, color in zip(batch.index.tolist(), batch.color, strict=True):
            assert torch.equal(color, torch.full((3, 4), float(index)) if index % 2 else torch.eye(3, 4))
        assert batch.load_seconds > 0
        assert batch.augment_seconds > 0


def test_batches_without_colors_have_none() -> None:
    (batch, *_) = next(iter(TrainLoader(Numbered(4), batch_size=2, num_workers=0).steps(0)))
    assert batch.color is None
    assert batch.image.dtype == torch.uint8
    assert batch.image.shape == (2, 4, 6, 3)


class Doubling(Shapes):
    """Changes samples by its own `__getitem__`."""

    def __getitem__(self, key: Any) -> Any:
        image, target, record = super().__getitem__(key)
        return np.full_like(image, 200), target, record


def test_a_subclass_that_changes_its_samples_is_heeded() -> None:
    data = Doubling(split="train", size=16, limit=4, classes=SHAPES)
    (batch, *_) = next(iter(TrainLoader(data, batch_size=2, num_workers=0).steps(0)))
    assert (batch.image == 200).all()


# Workers --------------------------------------------------------------------------------------------------------------


class Threads(Numbered):
    """The number of threads of OpenCV and torch, and whether the worker speaks where it is hung up on."""

    def __getitem__(self, key: Any) -> Any:
        image, target, record = super().__getitem__(key)
        image[:] = [cv2.getNumThreads(), torch.get_num_threads(), sys.excepthook is _say_unless_hung_up]
        return image, target, record


def test_each_worker_is_one_thread_and_prefetches_what_it_is_told() -> None:
    loader = TrainLoader(Threads(4), batch_size=2, num_workers=1, prefetch=5)
    (batch,) = next(iter(loader.steps(0)))
    assert batch.image[0, 0, 0].tolist() == [1, 1, 1]
    assert loader.loader.prefetch_factor == 5
    assert loader.loader.persistent_workers
    assert TrainLoader(Threads(4), batch_size=2, num_workers=0, prefetch=5).loader.prefetch_factor is None
