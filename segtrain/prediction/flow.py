"""Read ahead, ask the network, write behind: the loop of `predict`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segtrain.errors import DataError
from segtrain.prediction.files import result_files, write_areas
from segtrain.prediction.inputs import is_video
from segtrain.prediction.journal import Journal, Stamp
from segtrain.prediction.network import predict_batch
from segtrain.prediction.reading_ahead import Bounded, Loaded, read_ahead
from segtrain.prediction.results import Results
from segtrain.prediction.video import Film, OverlayVideo
from segtrain.segmenter import Segmenter

WRITERS = 2
"""Threads that write; most of it is compression."""
PIXELS_PER_BATCH = 4_000_000
"""Larger images go through the network alone: they keep it busy, and a batch of them would not fit into memory."""


@dataclass
class Flow:
    """Predicts inputs one after the other.

    Args:
        segmenter, results: who predicts, and what becomes of it.
        journal: where done images are noted; its folder takes the results.
        batch_size, threads: of reading; neither changes a result's content.
        max_pixels: larger images are failures; None: there are none.
        failures: inputs that are known to be none, for the report at the end.
        stopped: asked between batches.
        note: told of each input that is done: its file and its line in the journal.
    """

    segmenter: Segmenter
    results: Results
    journal: Journal
    batch_size: int
    threads: int
    max_pixels: int | None
    stop_on_error: bool
    stopped: Callable[[], bool]
    note: Callable[[Path, Mapping[str, Any]], object]
    failures: list[DataError] = field(default_factory=list)

    def run(self, inputs: Mapping[str, Path]) -> None:
        """Writes the results of every input; those that cannot be read are in `failures`."""
        images = [(name, file) for name, file in inputs.items() if not is_video(file)]
        videos = [(name, file) for name, file in inputs.items() if is_video(file)]
        depth = 2 * self.batch_size
        loaded = read_ahead(
            images, self.segmenter.channels, threads=self.threads, depth=depth, max_pixels=self.max_pixels
        )
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="write") as pool, closing(loaded):
            writers = Bounded(pool, depth)
            try:
                for batch in self._batches(loaded):
                    self._images(batch, writers)
                    if self.stopped():
                        return
                for name, file in videos:
                    if self.stopped():
                        return
                    self._video(name, file, Bounded(pool, depth))
            finally:
                self._keep(writers.rest())  # also where something failed: what is written need not be done again

    def _batches(self, loaded: Iterable[Loaded]) -> Iterator[list[Loaded]]:
        """Neighbors of one size and type together."""
        batch: list[Loaded] = []
        for one in loaded:
            if isinstance(one.image, DataError):
                self._fail(one.image)
                continue
            if batch and not self._fits(batch, one.image):
                yield batch
                batch = []
            batch.append(one)
        if batch:
            yield batch

    def _fits(self, batch: list[Loaded], image: np.ndarray) -> bool:
        first = _pixels(batch[0])
        room = len(batch) < self.batch_size and (len(batch) + 1) * first[..., 0].size <= PIXELS_PER_BATCH
        return room and (first.shape, first.dtype) == (image.shape, image.dtype)

    def _images(self, batch: list[Loaded], writers: Bounded) -> None:
        started = time.monotonic()
        found = predict_batch(self.segmenter, [_pixels(one) for one in batch], self.results)
        seconds = (time.monotonic() - started) / len(batch)
        for one, answer in zip(batch, found, strict=True):
            self._keep(writers.submit(self.results.held(answer), self._write_image, one, answer, seconds))

    def _write_image(self, one: Loaded, answer: Any, seconds: float) -> tuple[Any, ...]:
        files = result_files(self.journal.output, one.name, self.results.kinds)
        counts, image = self.results.count(answer), _pixels(one)
        found = self._found(one.file, image.shape, counts, answer, files["areas"], seconds)
        self.results.write(files, image, answer)
        return one.name, one.file, one.stamp, files.values(), found

    def _found(
        self,
        file: Path,
        size: tuple[int, ...],
        counts: np.ndarray,
        answer: Any,
        path: Path,
        seconds: float,
        **more: int,
    ) -> dict[str, Any]:
        """Writes the file of the areas; returns what the journal says of the same."""
        results, plane = self.results, (size[0], size[1])
        described = {**results.described(counts, answer), **more}
        write_areas(path, file, plane, results.areas(counts), self.segmenter.classes, described)
        return {"size": list(plane), **results.line(counts), **more, "seconds": round(seconds, 4)}

    def _keep(self, written: Iterable[tuple[Any, ...]]) -> None:
        for name, file, stamp, files, found in written:
            self.journal.add(name, file, stamp, files, found)
            self.note(file, self.journal.lines[name])

    def _fail(self, error: DataError) -> None:
        if self.stop_on_error:
            raise error
        self.failures.append(error)

    # --- videos

    def _video(self, name: str, file: Path, writers: Bounded) -> None:
        stamp, started = Stamp.of(file), time.monotonic()
        path = self.journal.output / "areas" / f"{name}.json"
        with Film(file, self.segmenter.channels) as film:
            frames = film.frames()
            try:
                first = next(frames)
            except DataError as error:
                self._fail(error)
                return
            size = (first.shape[0], first.shape[1])
            # First, as for images: it says that all files of this name are ours.
            self._found(file, size, self.results.count(None), None, path, 0.0, frames=0)
            with OverlayVideo(self.journal.output / "overlays" / f"{name}.mp4", film.rate, size) as overlays:
                kinds = {kind: suffix for kind, suffix in self.results.kinds.items() if kind != "areas"}
                if overlays.works:
                    del kinds["overlays"]
                count, counts = self._frames(name, self._frame_batches(first, frames), kinds, overlays, writers)
                if self.stopped():
                    return
                if overlays.works:
                    overlays.finish()
        places = [self.journal.output / kind / name for kind in kinds]
        _drop_later_frames(places, count)
        places += [] if "overlays" in kinds else [overlays.path]
        found = self._found(file, size, counts, None, path, time.monotonic() - started, frames=count)
        self._keep([(name, file, stamp, [path, *places], found)])

    def _frames(
        self,
        name: str,
        batches: Iterable[list[np.ndarray]],
        kinds: Mapping[str, str],
        overlays: OverlayVideo,
        writers: Bounded,
    ) -> tuple[int, np.ndarray]:
        """Writes the frames; returns how many there are, and the counts of all together."""
        count, counts = 0, self.results.count(None)
        for batch in batches:
            found = predict_batch(self.segmenter, batch, self.results)
            for frame, answer in zip(batch, found, strict=True):
                count += 1
                files = result_files(self.journal.output, f"{name}/{count:06}", kinds)
                for done in writers.submit(self.results.held(answer), self._write_frame, files, frame, answer):
                    counts += done
                if overlays.works:
                    overlays.add(self.results.overlay(frame, answer))
            if self.stopped():
                break
        for done in writers.rest():
            counts += done
        return count, counts

    def _frame_batches(self, first: np.ndarray, frames: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
        size = max(1, min(self.batch_size, PIXELS_PER_BATCH // first[..., 0].size))
        batch = [first]
        for frame in frames:
            if len(batch) == size:
                yield batch
                batch = []
            batch.append(frame)
        yield batch

    def _write_frame(self, files: Mapping[str, Path], frame: np.ndarray, answer: Any) -> np.ndarray:
        self.results.write(files, frame, answer)
        return self.results.count(answer)


def _pixels(one: Loaded) -> np.ndarray:
    assert isinstance(one.image, np.ndarray)  # failures were sorted out before
    return one.image


def _drop_later_frames(folders: Iterable[Path], count: int) -> None:
    """Takes away the frames that an earlier, longer video of this name left."""
    for folder in folders:
        for path in folder.iterdir():
            if path.stem.isdecimal() and int(path.stem) > count:
                path.unlink()
