"""The topic `losses`: forward and backward from coarse logits upsampled to the image's size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segtrain.benchmark import reference_losses as reference
from segtrain.benchmark.bench import Bench
from segtrain.benchmark.measuring import Row, Table, interleaved, require_equal, rows, waiting_for
from segtrain.benchmark.memory import Job, peaks
from segtrain.benchmark.samples import label_map
from segtrain.losses.pixel import CrossEntropy, Focal, OhemCrossEntropy
from segtrain.losses.region import Dice, Lovasz, Tversky

LossFunction = Callable[[Tensor, Tensor], Tensor]
OURS: dict[str, LossFunction] = {
    "ce": CrossEntropy(),
    "ohem": OhemCrossEntropy(),
    "focal": Focal(),
    "dice": Dice(),
    "tversky": Tversky(),
    "lovasz": Lovasz(),
}
REFERENCES: dict[str, tuple[LossFunction, str]] = {
    "ce": (reference.cross_entropy, "F.cross_entropy"),
    "ohem": (reference.ohem, "OHEM by a full sort"),
    "focal": (reference.focal, "focal, one-hot"),
    "dice": (reference.dice, "Dice, one-hot"),
    "tversky": (reference.tversky, "Tversky, one-hot"),
    "lovasz": (reference.lovasz, "Lovász, one float sort per class"),
}
CLASSES = 21


@dataclass(frozen=True)
class Work:
    """The size of the work: logits (batch, 21, coarse, coarse) and a target (batch, full, full)."""

    batch: int = 1
    coarse: int = 64
    full: int = 512

    def make(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Logits that want a gradient, and a target int64 with unlabelled pixels."""
        rng = np.random.default_rng(0)
        target = np.stack([label_map(rng, (self.full, self.full), CLASSES) for _ in range(self.batch)])
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(self.batch, CLASSES, self.coarse, self.coarse, generator=generator)
        return logits.to(device).requires_grad_(), torch.from_numpy(target).long().to(device)

    @property
    def logits_mib(self) -> float:
        """Size of the logits at the target's size."""
        return self.batch * CLASSES * self.full**2 * 4 / 2**20


def function(key: str) -> LossFunction:
    """`ours_dice` or `naive_dice`."""
    kind, _, name = key.partition("_")
    return OURS[name] if kind == "ours" else REFERENCES[name][0]


def forward_backward(loss: LossFunction, logits: Tensor, target: Tensor) -> Tensor:
    """The loss of the upsampled logits, and its gradient left in `logits.grad`."""
    logits.grad = None
    value = loss(F.interpolate(logits, size=target.shape[-2:], mode="bilinear"), target)
    value.backward()
    return value.detach()


def prepare(key: str, work: Work, device: str) -> Callable[[], object]:
    """One computation for a process that measures its memory; small ones before it, to load all code."""
    where = torch.device(device)
    forward_backward(function(key), *Work(1, 8, 32).make(where))
    logits, target = work.make(where)
    return lambda: forward_backward(function(key), logits, target)


def measure(bench: Bench, work: Work | None = None) -> list[Table]:
    """One table: each loss of this package and the usual way to write it.

    Raises:
        RuntimeError: the two disagree.
    """
    device = bench.device()
    work = work or Work(batch=1 if device.type == "cpu" else 16)
    logits, target = work.make(device)
    keys = [f"{kind}_{name}" for name in OURS for kind in ("naive", "ours")]
    bench.say(f"losses: values of {len(OURS)} losses against their references")
    equal = {name: _difference(name, logits, target) for name in OURS}
    bench.say(f"losses: {len(keys)} candidates, {bench.repeats} repeats")
    candidates = {key: _bind(key, logits, target) for key in keys}
    times = interleaved(candidates, repeats=bench.repeats, seconds=bench.budget(0.5), sync=waiting_for(device))
    names = {f"naive_{name}": text for name, (_, text) in REFERENCES.items()}
    names |= {f"ours_{name}": f"ours: {type(loss).__name__}" for name, loss in OURS.items()}
    base = {key: f"naive_{key.partition('_')[2]}" for key in keys}
    found = rows(times, names, base=base, items=work.batch)
    bench.say("losses: peak memory, each in a process of its own")
    jobs: dict[str, Job] = {key: (prepare, (key, work, str(device))) for key in keys}
    memory = peaks(jobs, device)
    ce = next(row for row in found if row.key == "naive_ce").median
    for row in found:
        _add(row, memory[row.key], work, ce, equal)
    title = (
        f"losses, forward and backward from {work.coarse}x{work.coarse} logits upsampled to {work.full}x{work.full}, "
        f"{CLASSES} classes, batch {work.batch}; ratio: to the same loss as it is usually written"
    )
    worst = max(equal.values())
    notes = [
        f"values equal the references' (largest relative difference {worst:.1e}); x CE: time over F.cross_entropy's",
        f"peak MiB beyond the inputs; logits at full size are {work.logits_mib:.0f} MiB",
    ]
    return [Table("losses", title, "image", found, notes)]


def _bind(key: str, logits: Tensor, target: Tensor) -> Callable[[], object]:
    loss = function(key)
    return lambda: forward_backward(loss, logits, target)


def _difference(name: str, logits: Tensor, target: Tensor) -> float:
    """How far loss and gradient are from the reference's, relative to it."""
    expected = float(forward_backward(REFERENCES[name][0], logits, target))
    slopes = logits.grad
    found = float(forward_backward(OURS[name], logits, target))
    assert slopes is not None
    assert logits.grad is not None
    size = max(float(slopes.norm()), 1e-12)
    require_equal(f"gradient of {name}", 1 + float((logits.grad - slopes).norm()) / size, 1.0, 1e-3)
    return require_equal(name, found, expected)


def _add(row: Row, memory: float, work: Work, ce: float, equal: dict[str, float]) -> None:
    row.extra["x CE"] = row.median / ce
    row.extra["peak MiB"] = memory
    row.extra["peak/logits"] = memory / work.logits_mib
    if row.key.startswith("ours"):
        row.extra["difference"] = equal[row.key.partition("_")[2]]
