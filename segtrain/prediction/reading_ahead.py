"""Images read in background threads while the network works, within a bound of memory."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from segtrain.data.reading import FORMATS, read_image
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


def read_ahead(
    inputs: Iterable[tuple[str, Path]], channels: Literal[1, 3], *, threads: int, depth: int, max_pixels: int | None
) -> Generator[Loaded, None, None]:
    """Every image in its order; at most `depth` of them and `PIXELS_HELD` pixels are read before they are asked for.

    With no threads an image is read when it is asked for. Images of more than `max_pixels` are not read; None: all are.
    """

    def load(name: str, file: Path) -> Loaded:
        stamp = Stamp.of(file)  # before the pixels: a file that changes meanwhile is then read again next time
        try:
            image = read_image(file, channels, max_pixels=sys.maxsize if max_pixels is None else max_pixels)
            return Loaded(name, file, stamp, image)
        except DataError as error:
            return Loaded(name, file, stamp, _advised(error, max_pixels))

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


def _advised(error: DataError, max_pixels: int | None) -> DataError:
    """The error with advice for predict, which has neither a split nor `data.max_pixels`."""
    if error.found.startswith("image is too large"):
        error.expected = f"at most max_pixels={max_pixels} pixels"
        error.fix = "max_pixels=N, if you trust the file and have some 15 bytes of memory per pixel"
    elif error.found == "file not found":
        error.fix = "correct its path, or take it out of the input"
    elif error.fix and "split" in error.fix:
        error.fix = "replace the file, or take it out of the input"
    return error


def _pixels(file: Path) -> int:
    """What the header says; 0 where there is no telling, which reading the file will then report."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            return image.width * image.height
    except Image.DecompressionBombError:  # more than twice Pillow's own limit, which here may be allowed
        return PIXELS_HELD
    except Exception:  # damaged files make Pillow raise almost anything
        return 0
