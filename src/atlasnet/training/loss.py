"""What training minimises: balanced cross-entropy, soft Dice, over the voxels that count."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

UNCOUNTED = -1  # target of voxels that do not count


def median_frequency_weights(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Weights of the classes by median frequency balancing (Eigen and Fergus, ICCV 2015; SegNet, PAMI 2017).

    The weight of class c is the median of all frequencies over that of c; the frequency of c is its pixels over all
    annotated pixels of the slices in which c occurs. A class that never occurs gets weight 0 and no part in the median.

    Args:
        counts: (slices, classes) annotated pixels.

    Returns:
        (classes,) float32.
    """
    occurs = counts > 0
    pixels = (counts.sum(1, keepdims=True) * occurs).sum(0)
    frequency = counts.sum(0) / np.maximum(pixels, 1)
    present = frequency > 0
    weights = np.zeros(counts.shape[1], dtype=np.float32)
    weights[present] = np.median(frequency[present]) / frequency[present]
    return weights


def segmentation_loss(logits: Tensor, target: Tensor, weights: Tensor | None, *, dice: bool) -> Tensor:
    """Cross-entropy, plus one minus the mean soft Dice of the foreground classes over the batch if ``dice``.

    Args:
        logits: (b, classes, ...).
        target: (b, ...) int64 class indices, `UNCOUNTED` where a voxel does not count.
        weights: (classes,) of the cross-entropy, or None.
        dice: add the Dice term (Milletari et al., 3DV 2016; summed over the batch as in nnU-Net).

    Returns:
        A scalar; 0 when no voxel counts.
    """
    logits = logits.float()
    counted = target != UNCOUNTED
    safe = target.clamp_min(0)
    logarithm = F.log_softmax(logits, 1)
    voxel = counted.float() if weights is None else counted * weights[safe]
    entropy = -(logarithm.gather(1, safe[:, None])[:, 0] * voxel).sum() / voxel.sum().clamp_min(1e-6)
    if not dice:
        return entropy
    mask = counted[:, None].float()
    truth = torch.zeros_like(logarithm).scatter_(1, safe[:, None], 1.0) * mask
    probability = logarithm.exp() * mask
    over = [0, *range(2, logits.ndim)]
    common, size = (probability * truth).sum(over)[1:], (probability + truth).sum(over)[1:]
    return entropy + 1 - ((2 * common + 1e-5) / (size + 1e-5)).mean()
