"""Random changes of a batch of slices, on whichever device it lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from atlasnet.training.loss import UNCOUNTED
from atlasnet.training.recipe import Augmentation


@dataclass(frozen=True)
class Draw:
    """The random numbers of one batch, (b,) each: drawn on the CPU, so that they are the same on every device.

    Args:
        moved: whether the slice is moved at all.
        angle: radians.
        shift: (b, 2), shares of the sides, (x, y).
        scale: logarithm of the magnification.
        contrast: logarithm of the factor.
        brightness: added.
        gamma: logarithm of the exponent.
        noise: standard deviation.
        noise_seed: of the noise.
    """

    moved: NDArray[np.bool_]
    angle: NDArray[np.float64]
    shift: NDArray[np.float64]
    scale: NDArray[np.float64]
    contrast: NDArray[np.float64]
    brightness: NDArray[np.float64]
    gamma: NDArray[np.float64]
    noise: NDArray[np.float64]
    noise_seed: int

    @classmethod
    def of(cls, options: Augmentation, batch: int, random: np.random.Generator) -> Draw:
        """Draw for ``batch`` slices."""
        moved = random.random(batch) < options.probability
        signed = random.uniform(-1, 1, (7, batch))
        return cls(
            moved=moved,
            angle=np.deg2rad(options.rotation) * signed[0],
            shift=options.translation * signed[1:3].T,
            scale=options.scale * signed[3],
            contrast=options.contrast * signed[4],
            brightness=options.brightness * signed[5],
            gamma=options.gamma * signed[6],
            noise=options.noise * random.random(batch),
            noise_seed=int(random.integers(2**31)),
        )


def sampling_matrices(draw: Draw, height: int, width: int) -> NDArray[np.float64]:
    """Where each output pixel lies in the input: (b, 2, 3) for `torch.nn.functional.affine_grid`, pixels square.

    ``align_corners`` is false: -1 and 1 are the outer edges of the border pixels.
    """
    angle, zoom = draw.angle * draw.moved, np.exp(-draw.scale * draw.moved)
    cosine, sine, aspect = zoom * np.cos(angle), zoom * np.sin(angle), height / width
    shift = 2 * draw.shift * draw.moved[:, None]
    rows = [[cosine, -sine * aspect, shift[:, 0]], [sine / aspect, cosine, shift[:, 1]]]
    return np.array(rows).transpose(2, 0, 1)


def _beside(images: Tensor, values: NDArray[np.float64]) -> Tensor:
    """Numbers in float32 on the device of the images; the host does not wait for what a GPU has yet to do."""
    return torch.from_numpy(values.astype(np.float32)).to(images.device, non_blocking=True)


def move(images: Tensor, target: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Turn, shift and magnify slices and their classes by one interpolation.

    Args:
        images: (b, channels, y, x); neighbouring slices count as channels and move alike.
        target: (b, planes, y, x) int64, `UNCOUNTED` where a voxel does not count.
        draw: the random numbers.

    Returns:
        Both, moved. Beyond the input the image continues with its edge, and no voxel counts.
    """
    if not draw.moved.any():
        return images, target
    height, width = images.shape[-2:]
    matrices = _beside(images, sampling_matrices(draw, height, width))
    grid = F.affine_grid(matrices, [len(images), 1, height, width], align_corners=False)
    moved = F.grid_sample(images, grid, "bilinear", "border", align_corners=False)
    # Shifted by one, so that the zeros which grid_sample puts outside mean "does not count".
    classes = (target - UNCOUNTED).float()
    classes = F.grid_sample(classes, grid, "nearest", "zeros", align_corners=False)
    return moved, classes.round().long() + UNCOUNTED


def recolour(images: Tensor, draw: Draw) -> Tensor:
    """Change contrast, brightness, gamma and noise of normalised slices (b, channels, y, x), in place where it can."""

    def column(values: NDArray[np.float64]) -> Tensor:
        return _beside(images, values)[:, None, None, None]

    if draw.gamma.any():
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        spread = (high - low).clamp_min(1e-6)
        images = ((images - low) / spread).pow(column(np.exp(draw.gamma))) * spread + low
    if draw.contrast.any() or draw.brightness.any():
        mean = images.mean((1, 2, 3), keepdim=True)
        factor = column(np.exp(draw.contrast))
        images = images * factor + (mean * (1 - factor) + column(draw.brightness))
    if draw.noise.any():
        generator = torch.Generator(images.device).manual_seed(draw.noise_seed)
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        images = images + noise * column(draw.noise)
    return images
