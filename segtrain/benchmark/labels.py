"""The topic `eval`: from a network's coarse logits to labels at the image's size and to the confusion matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segtrain.benchmark.bench import Bench
from segtrain.benchmark.measuring import Table, interleaved, rows, waiting_for
from segtrain.benchmark.memory import Job, peaks
from segtrain.benchmark.samples import label_map
from segtrain.metrics.confusion import ConfusionMatrix
from segtrain.types import IGNORE_INDEX
from segtrain.upsampling import upsampled_labels

GOAL = 4.0
NAMES = {
    "usual": "upsample, argmax, bincount of the labelled pixels",
    "softmax": "upsample, softmax, argmax, bincount: as after sliding windows",
    "ours": "ours: upsampled_labels and ConfusionMatrix",
    "usual_labels": "upsample, argmax: labels alone",
    "ours_labels": "ours: upsampled_labels alone",
    "usual_matrix": "bincount of the labelled pixels: matrix alone",
    "ours_matrix": "ours: ConfusionMatrix alone",
}
BASE = {"usual": "usual", "softmax": "usual", "ours": "usual"} | {
    f"{kind}_{part}": f"usual_{part}" for kind in ("usual", "ours") for part in ("labels", "matrix")
}


@dataclass(frozen=True)
class Work:
    """Logits (batch, classes, *coarse) for images of (height, width) `full`.

    Args:
        sure: by how much the class that is there leads: 0 = noise, where any class may win anywhere, which is the
            worst case; a trained network is sure of most pixels.
    """

    key: str
    batch: int
    classes: int
    coarse: tuple[int, int]
    full: tuple[int, int]
    sure: float = 0.0

    def make(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Logits float32 as smooth as a network's, and a target (batch, *full) uint8."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.batch, self.classes, *self.coarse, generator=generator)
        rng = np.random.default_rng(0)
        size = self.full[1], self.full[0]
        target = torch.from_numpy(np.stack([label_map(rng, size, self.classes) for _ in range(self.batch)]))
        rows, columns = ((torch.arange(n) * side) // n for n, side in zip(self.coarse, self.full, strict=True))
        coarse = target[:, rows][:, :, columns].long()
        there = F.one_hot(coarse.masked_fill(coarse == IGNORE_INDEX, 0), self.classes).permute(0, 3, 1, 2)
        return F.avg_pool2d(noise + self.sure * there, 3, 1, 1).to(device), target.to(device)


SURE = 8.0
WORK = (
    Work("voc", 16, 21, (64, 64), (512, 512)),
    Work("voc_sure", 16, 21, (64, 64), (512, 512), SURE),
    Work("cityscapes", 1, 19, (128, 256), (1024, 2048)),
    Work("cityscapes_sure", 1, 19, (128, 256), (1024, 2048), SURE),
)


def usual_labels(logits: Tensor, size: tuple[int, int], softmax: bool = False) -> Tensor:
    """All logits at the image's size, then the class of the highest: (B, H, W) int64."""
    full = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return (full.softmax(1) if softmax else full).argmax(1)


def usual_matrix(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """Pairs of labelled pixels, counted: (C, C) int64, as in the FCN paper's code and torchvision's references."""
    valid = target != IGNORE_INDEX
    pairs = classes * target[valid].long() + prediction[valid].long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def our_matrix(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """The same by this package."""
    matrix = ConfusionMatrix(classes)
    matrix.update(prediction, target)
    return matrix.counts


def computation(key: str, logits: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """One of `NAMES` as a function without arguments."""
    size, classes = (target.shape[1], target.shape[2]), logits.shape[1]
    if key == "usual_labels":
        return lambda: usual_labels(logits, size)
    if key == "ours_labels":
        return lambda: upsampled_labels(logits, size, False)
    if key in ("usual_matrix", "ours_matrix"):
        wide = usual_labels(logits, size)
        narrow = wide.to(torch.uint8)
        if key == "ours_matrix":
            return lambda: our_matrix(narrow, target, classes)
        return lambda: usual_matrix(wide, target, classes)
    if key == "ours":
        return lambda: our_matrix(upsampled_labels(logits, size, False), target, classes)
    return lambda: usual_matrix(usual_labels(logits, size, key == "softmax"), target, classes)


def prepare(key: str, work: Work, device: str) -> Callable[[], object]:
    """One computation for a process that measures its memory; a small one before it, to load all code."""
    where = torch.device(device)
    computation(key, *Work("", 1, work.classes, (8, 8), (32, 32)).make(where))()
    return computation(key, *work.make(where))


def measure(bench: Bench, works: tuple[Work, ...] = WORK) -> list[Table]:
    """One table per size of the work.

    Raises:
        RuntimeError: the labels or the matrix are not those of the usual way.
    """
    return [_table(bench, work) for work in works]


def _table(bench: Bench, work: Work) -> Table:
    device = bench.device()
    logits, target = work.make(device)
    require_same_labels(logits, target)
    height, width = work.full
    bench.say(f"eval: {work.key}, {work.batch} x {height}x{width}, {len(NAMES)} candidates, {bench.repeats} repeats")
    candidates = {key: computation(key, logits, target) for key in NAMES}
    times = interleaved(candidates, repeats=bench.repeats, seconds=bench.budget(2.0), sync=waiting_for(device))
    found = rows(times, NAMES, base=BASE, items=work.batch, goals={"ours": GOAL})
    bench.say("eval: peak memory, each in a process of its own")
    jobs: dict[str, Job] = {key: (prepare, (key, work, str(device))) for key in ("usual", "softmax", "ours")}
    for key, memory in peaks(jobs, device).items():
        next(row for row in found if row.key == key).extra["peak MiB"] = memory
    shape = f"{work.batch}x{work.classes}x{work.coarse[0]}x{work.coarse[1]}"
    kind = "noise" if work.sure == 0 else "a trained network's (made up)"
    title = f"eval, logits {shape}, {kind}, to labels of {height}x{width} to the confusion matrix"
    size = work.batch * work.classes * height * width * 4 / 2**20
    notes = [f"0 pixels and 0 counts differ from the usual way's; logits at full size are {size:.0f} MiB"]
    return Table(f"eval_{work.key}", title, "image", found, notes)


def require_same_labels(logits: Tensor, target: Tensor) -> None:
    """Stops the run if this package's labels or counts are not those of the usual way.

    Raises:
        RuntimeError: with the number of pixels that differ.
    """
    size, classes = (target.shape[1], target.shape[2]), logits.shape[1]
    expected = usual_labels(logits, size)
    found = upsampled_labels(logits, size, False)
    if wrong := int((found.long() != expected).sum()):
        raise RuntimeError(f"{wrong} of {expected.numel()} labels differ from upsample and argmax")
    matrices = usual_matrix(expected, target, classes).cpu(), our_matrix(found, target, classes).cpu()
    if not torch.equal(*matrices):
        raise RuntimeError("the confusion matrix differs from the one by bincount")
