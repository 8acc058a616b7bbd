"""What a run says: the console, `train.log`, `metrics.jsonl`, `metrics.json` and TensorBoard.

`Tracker` says nothing and is what every rank but the first gets; `RunTracker` writes into one run folder. Monitoring
never stops a run: if TensorBoard, `train.log` or `metrics.jsonl` fails, one warning is printed and training goes on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from segtrain import distributed, pictures
from segtrain.atomic import write_atomically


def say_early(text: str) -> None:
    """A console line from before there is a run folder; the first rank speaks."""
    if distributed.is_main():
        _speak(text)


def _speak(text: str, *, above_bars: bool = False) -> None:
    """A line on standard output, whatever its encoding lacks; nothing once nobody reads it any more."""
    encoding = sys.stdout.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        if above_bars:
            tqdm.write(text)
        else:
            sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        # As after `| head -1`: the work goes on, and whoever prints after this, Python's last flush too, to nowhere.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):  # as a full disk under `> file`, which somebody wants to know
            with contextlib.suppress(OSError):  # the same disk
                sys.stderr.write(f"warning: standard output cannot be written ({error.strerror}); the run goes on\n")


class Bar(Protocol):
    """As much of a progress bar as a loop needs."""

    def update(self, n: int) -> object:
        """Moves on by n."""

    def close(self) -> object:
        """Takes the bar away."""


class Tracker:
    """Says and writes nothing."""

    @property
    def draws(self) -> bool:
        """Whether pictures are wanted; they cost predictions."""
        return False

    def say(self, text: str = "") -> None:
        """A line for the person at the console, and for `train.log`."""

    def note(self, text: str) -> None:
        """A line for `train.log` alone."""

    def bar(self, total: int, name: str) -> Bar:
        """A progress bar on a terminal, nothing elsewhere."""
        return tqdm(total=total, desc=name, disable=True)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Curves at an optimizer step."""

    def epoch(self, record: dict[str, Any], per_class: Iterable[str] = ()) -> None:
        """One line of `metrics.jsonl` and the validation curves; `per_class` scores have one for each class."""

    def rewind(self, history: Iterable[dict[str, Any]]) -> None:
        """`metrics.jsonl` as it was when a checkpoint was written."""

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture (H, W, 3) uint8 of one validation sample."""

    def text(self, name: str, content: str) -> None:
        """A block of text for TensorBoard."""

    def flush(self) -> None:
        """Brings the curves to the disk."""

    def finish(self, scores: dict[str, Any], settings: dict[str, Any], monitor: str) -> None:
        """Writes `metrics.json`, the hyperparameters with their score, and closes."""


class RunTracker(Tracker):
    """Writes into `folder`.

    Args:
        folder: the run folder.
        log_name: text file that gets every console line; appended to on resume.
        tensorboard: whether to write `tb/`.
        purge_after: on resume, the last step whose curves stay; later ones are hidden and drawn anew.
    """

    def __init__(
        self,
        folder: Path,
        *,
        log_name: str = "train.log",
        tensorboard: bool = False,
        purge_after: int | None = None,
    ) -> None:
        self.folder = folder
        self.log = folder / log_name
        self.history = folder / "metrics.jsonl"
        self.live = sys.stdout.isatty()
        self.writer: Any = None
        self.failed: set[Path] = set()  # files whose failure has been told
        folder.mkdir(parents=True, exist_ok=True)
        if tensorboard:
            self._open_tensorboard(None if purge_after is None else purge_after + 1)

    @property
    def draws(self) -> bool:
        return self.writer is not None

    def say(self, text: str = "") -> None:
        _speak(text, above_bars=self.live)
        self.note(text)

    def note(self, text: str) -> None:
        self._append(self.log, text)

    def bar(self, total: int, name: str) -> Bar:
        return tqdm(total=total, desc=name, disable=not self.live, leave=False, dynamic_ncols=True)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):
                self._write(partial(_add_scalar, name, value, step))

    def epoch(self, record: dict[str, Any], per_class: Iterable[str] = ()) -> None:
        step, scores = record["step"], record["val"]
        # The matrix is in `metrics.json`, and not in the history that a resumed run writes these lines from.
        short = {**record, "val": {name: score for name, score in scores.items() if name != "confusion"}}
        self._append(self.history, json.dumps(plain(short)))
        curves = {f"val/{k}": v for k, v in scores.items() if isinstance(v, float)}
        for group in per_class:
            curves |= {f"val/{group}/{name}": value for name, value in scores[group].items()}
        self.scalars(step, {**curves, "epoch": float(record["epoch"])})
        if "confusion" in scores:
            matrix = pictures.confusion_picture(np.array(scores["confusion"]), list(scores["iou"]))
            self._write(lambda w: w.add_image("val/confusion", matrix, step, dataformats="HWC"))
        self.flush()

    def rewind(self, history: Iterable[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(plain(record)) + "\n" for record in history)
        write_atomically(self.history, lines.encode())

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        self._write(lambda w: w.add_image(f"val/{name}", picture, step, dataformats="HWC"))

    def text(self, name: str, content: str) -> None:
        self._write(lambda w: w.add_text(name, content))

    def flush(self) -> None:
        self._write(lambda w: w.flush())

    def finish(self, scores: dict[str, Any], settings: dict[str, Any], monitor: str) -> None:
        write_json(self.folder / "metrics.json", scores)
        flat = {key: value for key, value in settings.items() if isinstance(value, bool | int | float | str)}
        score = scores.get(monitor)
        if isinstance(score, float) and math.isfinite(score):
            # run_name="." keeps the table in this run; by default each call makes a run of its own.
            self._write(lambda w: w.add_hparams(flat, {f"best/{monitor}": score}, run_name="."))
        self._write(lambda w: w.close())
        self.writer = None

    def _append(self, path: Path, line: str) -> None:
        """One more line; a file that cannot be written, as on a full disk, costs one warning."""
        try:
            # A file name that is no UTF-8 keeps its bytes as \udcXX, which UTF-8 cannot hold.
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line + "\n")
        except OSError as error:
            if path not in self.failed:
                self.failed.add(path)
                _speak(f"warning: {path} cannot be written ({error.strerror}); the run goes on, some lines are lost")

    def _open_tensorboard(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # two seconds of imports that only training needs

        try:
            self.writer = SummaryWriter(str(self.folder / "tb"), purge_step=purge_step)
        except OSError as error:
            self._give_up(error)

    def _write(self, action: Callable[[Any], object]) -> None:
        if self.writer is None:
            return
        try:
            action(self.writer)
        except (OSError, RuntimeError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.writer = None
        self.say(f"warning: TensorBoard stopped ({error}); training goes on, metrics.jsonl keeps the numbers")


def _add_scalar(name: str, value: float, step: int, writer: Any) -> None:
    writer.add_scalar(name, value, step)


def plain(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file in one step."""
    write_atomically(path, (json.dumps(plain(content), indent=2) + "\n").encode())


def percent(value: float | None) -> str:
    """A score in [0, 1] as people read it; `-` where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def clock(seconds: float) -> str:
    """`1:02` or `3:04:05`."""
    whole = round(max(0.0, seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class Stopwatch:
    """Seconds since it was made, by a clock that never runs backwards."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def lap(self) -> float:
        """Seconds since the start, or since this was last asked; from now on they are counted anew."""
        before, self.started = self.started, time.monotonic()
        return self.started - before
