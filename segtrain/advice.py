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
    """

    images: int
    seconds: float
    waited: float
    load: float
    augment: float
    workers: int
    cores: int
    cached: bool

    @property
    def share(self) -> float:
        """The part of the time spent waiting, in [0, 1]."""
        return self.waited / max(self.seconds, 1e-9)

    def gain(self, workers: int, cached: bool) -> float:
        """How many times as fast training would be: an estimate from this epoch's own times."""
        load = self.load * (CACHED if cached and not self.cached else 1.0)
        work = load + self.augment
        network = self.seconds - self.waited
        # Workers work beside the network, but share the cores with it where it computes on them.
        expected = network + work if workers == 0 else max(network, work / workers)
        return self.seconds / max(expected, 1e-9)

    def advice(self) -> str | None:
        """One line for a person, None where data are not what training waits for."""
        if self.share <= WORTH_SAYING or not self.images:
            return None
        most = max(self.cores, 1)
        # Twice as many at a time, as far as there are cores: what is tried next, not the best that there is.
        workers = next((n for n in (1, 2, 4, 8, 16, 32, 64) if n > self.workers), most)
        while workers < most and self.gain(workers, self.cached) < 0.95 * self.gain(most, self.cached):
            workers = min(2 * workers, most)
        changes = []
        if self.workers < workers <= most:
            changes.append((self.gain(workers, self.cached), f"data.num_workers={workers}"))
        if not self.cached:
            changes.append((self.gain(self.workers, True), "data.cache=disk (or ram)"))
        useful = [f"{name} about {gain:.1f}x" for gain, name in sorted(changes, reverse=True) if gain >= WORTH_DOING]
        each = 1000 * (self.load + self.augment) / self.images
        found = (
            f"data     {self.share:.0%} of the time was spent waiting for images (each takes {each:.1f} ms, "
            f"{self.workers} workers on {self.cores} cores): "
        )
        if useful:
            return found + "faster with " + ", or ".join(useful)
        return found + "smaller files, a smaller data.crop_size or fewer augment.transforms would help"
