"""Images of one size through the network, and what its answers depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from segtrain.checkpoint import digest
from segtrain.prediction.results import Results
from segtrain.segmenter import Segmenter


@torch.inference_mode()
def predict_batch(segmenter: Segmenter, images: list[np.ndarray], results: Results) -> list[Any]:
    """Images (H, W, C) of one shape and type -> the answer to each, in their order.

    Raises:
        ConfigError: more is asked for than memory can hold.
    """
    # One image is not copied where torch can take it as it is: it may have a gigabyte.
    single = len(images) == 1
    stack = np.require(images[0], requirements=["C", "W"])[None] if single else np.stack(images)
    batch = torch.from_numpy(stack).to(segmenter.device)
    with segmenter.precision():
        return results.ask(segmenter, batch)


def made_by(segmenter: Segmenter, results: Results) -> str:
    """Digest of all that a result depends on besides its image: weights, and the settings that predict uses."""
    settings = segmenter.settings
    return digest(
        {
            "model": segmenter.model.state_dict(),
            "nodes": {name: settings.node[name] for name in ("model", "inference", "task")},
            "normalize": dict(segmenter.normalize),
            "classes": segmenter.classes,
            "palette": [list(color) for color in segmenter.palette],
            "amp": str(segmenter.amp),
            **results.settings,
        }
    )
