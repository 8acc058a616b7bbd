"""The mean field of a fully connected CRF, computed exactly: every pixel hears every other one.

Krähenbühl and Koltun 2011, arXiv 1210.5644, algorithm 1, with the Potts model (a label that differs costs the same
whichever it is):

    Q <- softmax(log p + sum_m w_m K~_m Q),   K_ij = exp(-|f_i - f_j|^2 / 2), i = j included

All in float64 and of quadratic cost: it is what the lattice of `segtrain.postprocess.crf.DenseCRF` approximates.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalization = Literal["symmetric", "after", "none"]
"""K~_ij, with s_i = sum_j K_ij: `symmetric` K_ij / sqrt(s_i s_j), pydensecrf's default; `after` K_ij / s_i, which
the 2011 code of DeepLab v1 and v2 does; `none` K_ij."""


def positions(height: int, width: int) -> Tensor:
    """(height * width, 2) float64: x and y of every pixel, row by row."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1).double()


def gaussian_kernel(features: Tensor, normalization: Normalization, *, include_self: bool = True) -> Tensor:
    """K~ (N, N) of `features` (N, D), whose unit is one standard deviation.

    Args:
        include_self: whether a pixel hears itself, as in the published code; without, K_ii = 0 before normalization.
    """
    squares = features.new_zeros(len(features), len(features))
    # One feature at a time: the differences of all at once would need D times the memory.
    for feature in features.T:
        squares += (feature[:, None] - feature).square_()
    kernel = squares.mul_(-0.5).exp_()
    if not include_self:
        kernel.fill_diagonal_(0)
    if normalization == "none":
        return kernel
    # A lone pixel without itself hears nothing: 0 and not 0 / 0.
    sums = kernel.sum(1).clamp_min(torch.finfo(kernel.dtype).tiny)
    if normalization == "after":
        return kernel.div_(sums[:, None])
    root = sums.sqrt()
    return kernel.div_(root[:, None]).div_(root)


def mean_field(log_probs: Tensor, kernel: Tensor, iterations: int) -> Tensor:
    """log Q (C, N) after `iterations` updates of all pixels at once.

    Args:
        log_probs: log p (C, N), the network's; one more constant per pixel changes nothing.
        kernel: the weighted sum of all K~_m (N, N).
    """
    log_q = log_probs.log_softmax(0)
    for _ in range(iterations):
        log_q = (log_probs + log_q.exp() @ kernel.T).log_softmax(0)
    return log_q
