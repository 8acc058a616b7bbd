"""Images read in background threads while the network works, within a bound of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from segtrain.data.reading import read_image
from segtrain.errors import DataError
from segtrain.prediction.journal import Stamp

PIXELS_HELD = 64_000_000
"""Pixels that wait to be predicted, or to be written, at once; one image larger than that waits alone."""


@dataclass(frozen=True)
class Loaded:
    """A file as it was read: its pixels (H, W, C), or why there are none."""

    name: str
    file: Path
    stamp: Stamp | None
    image: np.ndarray | DataError


@contextmanager
def pixel_limit(limit: int | None) -> Iterator[None]:
    """Within, Pillow refuses images of more pixels than `limit` and no others; None: it refuses none."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = limit
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def read_ahead(
    inputs: Iterable[tuple[str, Path]], channels: Literal[1, 3], *, threads: int, depth: int
) -> Generator[Loaded, None, None]:
    """Every image in its order; at most `depth` of them and `PIXELS_HELD` pixels are read before they are asked for.

    With no threads an image is read when it is asked for.
    """

    def load(name: str, file: Path) -> Loaded:
        stamp = Stamp.of(file)  # before the pixels: a file that changes meanwhile is then read again next time
        try:
            return Loaded(name, file, stamp, read_image(file, channels))
        except DataError as error:
            if error.found.startswith("image is too large"):
                error.expected = f"at most max_pixels={Image.MAX_IMAGE_PIXELS} pixels"
                error.fix = "max_pixels=N, if you trust the file and have some 15 bytes of memory per pixel"
            return Loaded(name, file, stamp, error)

    if threads == 0:
        yield from (load(name, file) for name, file in inputs)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
        queue = Bounded(pool, depth)
        try:
            for name, file in inputs:
                yield from queue.submit(_pixels(file), load, name, file)
            yield from queue.rest()
        finally:
            queue.give_up()


class Bounded:
    """Work of a pool whose results come in the order of submission, with a bound on what waits."""

    def __init__(self, pool: ThreadPoolExecutor, depth: int) -> None:
        self.pool = pool
        self.depth = depth
        self.waiting: deque[tuple[int, Future[Any]]] = deque()

    def submit(self, pixels: int, work: Callable[..., Any], *args: Any) -> Iterator[Any]:
        """Starts `work(*args)` as soon as there is room for its pixels; yields the results that had to make room."""
        while self.waiting and (
            len(self.waiting) >= self.depth or pixels + sum(held for held, _ in self.waiting) > PIXELS_HELD
        ):
            yield self.waiting.popleft()[1].result()
        self.waiting.append((pixels, self.pool.submit(work, *args)))

    def rest(self) -> Iterator[Any]:
        """All results that are still out."""
        while self.waiting:
            yield self.waiting.popleft()[1].result()

    def give_up(self) -> None:
        """Starts nothing more."""
        for _, future in self.waiting:
            future.cancel()


def _pixels(file: Path) -> int:
    """What the header says; 0 where there is no telling, which reading the file will then report."""
    try:
        with Image.open(file) as image:
            return image.width * image.height
    except Exception:  # damaged files make Pillow raise almost anything
        return 0
