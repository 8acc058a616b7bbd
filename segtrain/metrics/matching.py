"""Which detection is which object of an image: for pictures, and to find the images that went worst."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from segtrain.instances import Detections, Instances
from segtrain.metrics.object_overlap import cuts, mask_iou


@dataclass(frozen=True)
class Match:
    """One object found: places in the lists of detections and of true objects, and the IoU of the masks."""

    detection: int
    truth: int
    iou: float


@dataclass(frozen=True)
class Matches:
    """One image's objects, sorted out. Places in the lists of detections and of true objects.

    Attributes:
        pairs: objects found, the likeliest detection first.
        missed: true objects that nothing matches; crowds are never missed.
        invented: detections of nothing.
        on_crowds: detections that lie on a crowd of their class, neither right nor wrong.
    """

    pairs: list[Match]
    missed: list[int]
    invented: list[int]
    on_crowds: list[int]

    @property
    def quality(self) -> float:
        """In [0, 1]: summed IoU of the pairs over pairs + invented / 2 + missed / 2; NaN where there is none of them.

        Panoptic quality (Kirillov et al. 2019) of this image, classes taken together.
        """
        wrong = (len(self.invented) + len(self.missed)) / 2
        total = len(self.pairs) + wrong
        return sum(pair.iou for pair in self.pairs) / total if total else math.nan


def match(detections: Detections, truth: Instances, *, iou: float = 0.5, score: float = 0.5) -> Matches:
    """Detections, likeliest first, each take the free true object of their class that they overlap most, as COCO does.

    Args:
        detections: of one image; those below `score` take no part and appear nowhere.
        truth: of the same image.
        iou: least IoU of masks, in (0, 1]; of a crowd it is the share of the detection on it.
        score: least score.
    """
    scores = detections.scores.cpu().double().numpy()
    labels, true_labels = detections.labels.cpu().numpy(), truth.labels.cpu().numpy()
    crowd = truth.crowd.cpu().numpy()
    order = [int(place) for place in np.argsort(-scores, kind="stable") if scores[place] >= score]
    overlap = mask_iou(cuts(detections.masks[order]), cuts(truth.masks), crowd)
    overlap[labels[order][:, None] != true_labels] = 0
    free = ~crowd
    pairs, invented, on_crowds = [], [], []
    for row, place in zip(overlap, order, strict=True):
        enough = np.flatnonzero(free & (row >= iou))
        if len(enough):
            taken = int(enough[row[enough].argmax()])
            free[taken] = False
            pairs.append(Match(place, taken, float(row[taken])))
        elif (row[crowd] >= iou).any():
            on_crowds.append(place)
        else:
            invented.append(place)
    return Matches(pairs, np.flatnonzero(free).tolist(), invented, on_crowds)
