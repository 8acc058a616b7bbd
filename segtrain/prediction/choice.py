"""Which results a task has."""

from __future__ import annotations

from collections.abc import Callable

from segtrain.errors import ConfigError, listed
from segtrain.prediction.objects import ObjectResults
from segtrain.prediction.results import Asked, Results
from segtrain.prediction.segments import SegmentResults
from segtrain.prediction.semantic import PixelResults
from segtrain.segmenter import Segmenter

OF_TASK: dict[str, Callable[[Segmenter, Asked], Results]] = {
    "semantic": PixelResults.of,
    "instance": ObjectResults.of,
    "panoptic": SegmentResults.of,
}


def results_of(segmenter: Segmenter, asked: Asked) -> Results:
    """The results of the network's task.

    Raises:
        ConfigError: a task of your own that predict knows nothing of; or one that has not what is asked for.
    """
    name = segmenter.task.name
    if name not in OF_TASK:
        raise ConfigError(
            f"predict with task={name}",
            expected=f"one of {listed(OF_TASK)}",
            fix="Segmenter.predict of the Python interface works with any task",
        )
    return OF_TASK[name](segmenter, asked)
