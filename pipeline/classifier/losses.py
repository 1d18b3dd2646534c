"""The one loss of the classifiers: cross-entropy of adjusted logits against weighted, perhaps soft, targets.

    l(z, t) = - sum_y t_y log softmax(z + o - m t / |t|)_y,     t = w y,   |t| = sum_y t_y

With o_y = tau log pi_y this is the logit-adjusted loss (Menon et al., 2021, eq. 10); with o = 0, plain cross-entropy. A row's
weight and a mixed pair (Zhang et al., 2018) are both in t, whose sum need not be one. The loss of a pair of rows with offsets
of their own is the sum of two, each with its row's part of the target. The margins m are taken off the label's logit alone (Cao
et al., 2019, section 3.2), off each label by its share where a target is soft.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

TINY = 1e-30  # the least sum of a target, for a pair of which nothing is left


def adjusted_cross_entropy(logits: Tensor, targets: Tensor, offset: Tensor, margin: Tensor, scale: float) -> Tensor:
    """Mean of l over the batch divided by `scale`, the mean weight of a drawn row.

    logits (n, k); targets (n, k), >= 0; offset (n, k); margin (k,), >= 0.
    """
    shares = targets / targets.sum(1, keepdim=True).clamp(min=TINY)
    return F.cross_entropy(logits.float() + offset - margin * shares, targets) / scale
