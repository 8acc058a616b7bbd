"""What would make training wait less for its images, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

WORTH_SAYING = 0.10
"""Share of the time spent waiting from which a person hears of it."""
WORTH_DOING = 1.05
"""Speed-up from which a change is named."""
CACHED = 0.02
"""What is left of reading and decoding with a cache: measured 0.01 to 0.02 for JPEG and PNG of 500x375."""


@dataclass(frozen=True)
class Waiting:
    """Where the time of one epoch's training went.

    Args:
        images: images trained on by this process.
        seconds: time of the epoch's training.
        waited: of these, waiting for a batch.
        load, augment: seconds that workers, all together, spent on reading and on augmenting.
        workers: worker processes; 0: this process reads.
        cores: cores that this process and its workers may use.
        cached: whether decoded images are cached.
        shared: whether the network computes on these cores, too.
    """

    images: int
    seconds: float
    waited: float
    load: float
    augment: float
    workers: int
    cores: int
    cached: bool
    shared: bool

    @property
    def share(self) -> float:
        """The part of the time spent waiting, in [0, 1]."""
        return self.waited / max(self.seconds, 1e-9)

    def gain(self, workers: int, cached: bool) -> float:
        """How many times as fast training would be: an estimate from this epoch's own times."""
        work = self.load * (CACHED if cached and not self.cached else 1.0) + self.augment
        network = self.seconds - self.waited
        if workers == 0:
            expected = network + work
        else:
            # Workers work beside the network, and take its time where it computes on the same cores.
            expected = max(network + (work / self.cores if self.shared else 0), work / workers)
        return self.seconds / max(expected, 1e-9)

    def explained(self) -> bool:
        """Whether reading and augmenting take long enough to be what is waited for."""
        return self.load + self.augment >= 0.5 * self.waited * max(self.workers, 1)

    def advice(self) -> str | None:
        """One line for a person, None where data are not what training waits for."""
        if not (self.share > WORTH_SAYING and self.images):
            return None
        each = 1000 * (self.load + self.augment) / self.images
        found = (
            f"data     {self.share:.0%} of the time was spent waiting for images (each takes {each:.1f} ms, "
            f"{self.workers} workers on {self.cores} cores): "
        )
        if not self.explained():
            return found + "more than reading and augmenting take; is the machine busy, or each step very short?"
        changes = [] if self.cached else [(self.gain(self.workers, True), "data.cache=disk (or ram)")]
        workers = self._more_workers()
        if workers > self.workers:
            changes.append((self.gain(workers, self.cached), f"data.num_workers={workers}"))
        useful = [f"{name} about {gain:.1f}x" for gain, name in sorted(changes, reverse=True) if gain >= WORTH_DOING]
        if useful:
            return found + "faster with " + ", or ".join(useful)
        smaller = "" if self.cached else "smaller files, "
        return found + f"{smaller}a smaller data.crop_size or fewer augment.transforms would help"

    def _more_workers(self) -> int:
        """The fewest workers that are nearly as good as one per core."""
        every = [n for n in sorted({1, 2, 4, 8, 16, 32, self.cores}) if self.workers < n <= self.cores]
        best = max((self.gain(n, self.cached) for n in every), default=0.0)
        return next((n for n in every if self.gain(n, self.cached) >= 0.95 * best), self.workers)
