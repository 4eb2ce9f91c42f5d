"""A volume on another grid, without aliasing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from atlasnet.errors import VolumeError
from atlasnet.volume.grid import Grid
from atlasnet.volume.sampling import TIE, apply_affine, lattice, sample, slabs
from atlasnet.volume.volume import Volume

# Kernels are cut at this many standard deviations, where a Gaussian has fallen to 3e-4.
TRUNCATE = 4.0


def antialias_sigma(factor: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation in source voxels of the Gaussian to apply before taking one sample in ``factor`` voxels.

    The point spread functions of both samplings are taken as Gaussians whose full width at half maximum is one voxel;
    the filter is what turns the one into the other. Factors up to 1 need none.

    Cardoso, Modat, Vercauteren, Ourselin: Scale factor point spread function matching: beyond aliasing in image
    resampling. MICCAI 2015.
    """
    excess = np.maximum(np.asarray(factor, dtype=np.float64) ** 2 - 1, 0)
    return np.asarray(np.sqrt(excess) / (2 * np.sqrt(2 * np.log(2))))


def smooth(array: NDArray[Any], sigma: NDArray[np.float64]) -> NDArray[Any]:
    """Gaussian of ``sigma`` voxels along (x, y, z) of an array (z, y, x); the edge voxels continue outside.

    The result lies where the array was: a large scan has no room for a copy per axis.
    """
    for axis, width in zip((2, 1, 0), sigma, strict=True):
        # Below a twentieth of a voxel the neighbours' weight is under float32 resolution.
        if width > 0.05 and array.shape[axis] > 1:
            ndimage.gaussian_filter1d(array, width, axis=axis, output=array, mode="nearest", truncate=TRUNCATE)
    return array


def working_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The floating type in which ``dtype`` is interpolated: float64 where float32 would lose whole numbers."""
    exact = np.issubdtype(dtype, np.floating) and dtype.itemsize <= 4
    exact = exact or dtype.kind == "b" or (np.issubdtype(dtype, np.integer) and dtype.itemsize <= 2)
    return np.dtype(np.float32 if exact else np.float64)


def resample(
    volume: Volume,
    grid: Grid,
    *,
    interpolation: str = "linear",
    fill: float | None = None,
    antialias: bool = True,
) -> Volume:
    """Put a volume onto another grid in the same world.

    Args:
        volume: (c, z, y, x) in any type.
        grid: where the samples are taken; any spacing and direction.
        interpolation: ``"linear"``; ``"nearest"``; or ``"label"``, the arg max over labels of their linearly
            interpolated one-hot maps, ties to the lower label.
        fill: the value outside the volume's field of view (half a voxel beyond the outermost centres). None continues
            the edge; for ``"label"`` it means 0.
        antialias: before going to a coarser grid, smooth images, and one-hot maps, with `antialias_sigma` along
            every axis. ``"nearest"`` is never smoothed.

    Returns:
        A volume on ``grid``: for ``"linear"`` float32 (float64 from float64 or wide integers), else the input's type.

    Raises:
        VolumeError: no interpolation has that name.
    """
    if interpolation not in ("linear", "nearest", "label"):
        raise VolumeError(f"no interpolation is called {interpolation!r}", expected="linear, nearest or label")
    if interpolation == "label" and fill is None:
        fill = 0
    to_source = np.linalg.inv(volume.grid.affine) @ grid.affine
    # The step of one target voxel along each source axis; rows keep this right for turned and permuted axes too.
    factor = np.linalg.norm(to_source[:3, :3], axis=1)
    sigma = antialias_sigma(factor) if antialias else np.zeros(3)
    if interpolation == "label" and (sigma > 0).any():
        return Volume(
            np.stack([_smoothed_labels(labels, to_source, grid, sigma, fill) for labels in volume.array]), grid
        )
    floating = working_type(volume.array.dtype)
    channels = []
    for channel in volume.array:
        if interpolation == "linear":
            channels.append(_take(smooth(channel.astype(floating), sigma), to_source, grid, "linear", fill))
        else:
            channels.append(_take(channel, to_source, grid, interpolation, fill))
    return Volume(np.stack(channels), grid)


def torch_voxels(array: NDArray[Any]) -> torch.Tensor:
    """Voxels as a tensor, without a copy where torch has the type; unsigned numbers widened, byte order made native."""
    array = np.ascontiguousarray(array)
    if array.dtype.kind == "u" and array.dtype.itemsize in (2, 4, 8):
        array = array.astype({2: np.int32, 4: np.int64, 8: np.int64}[array.dtype.itemsize])
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _take(
    array: NDArray[Any], to_source: NDArray[np.float64], grid: Grid, mode: str, fill: float | None
) -> NDArray[Any]:
    """Sample (z, y, x) slab by slab at the grid's voxels."""
    voxels = torch_voxels(array)[None]
    # In float64 where that is the type of the values, so that nothing is lost on the way.
    precision = torch.float64 if voxels.dtype == torch.float64 else torch.float32
    result = np.empty(grid.shape, dtype=array.dtype)
    for z0, z1 in slabs(grid.shape):
        index = apply_affine(to_source, lattice(grid.shape, z0, z1, dtype=precision))
        result[z0:z1] = sample(voxels, index, mode=mode, fill=fill)[0].numpy()
    return result


def _smoothed_labels(
    labels: NDArray[Any], to_source: NDArray[np.float64], grid: Grid, sigma: NDArray[np.float64], fill: float | None
) -> NDArray[Any]:
    """Arg max over labels of their smoothed one-hot maps, holding one map and one running maximum."""
    best = np.full(grid.shape, -1, dtype=np.float32)
    winner = np.empty(grid.shape, dtype=labels.dtype)
    for label in np.unique(labels):
        share = _take(smooth((labels == label).astype(np.float32), sigma), to_source, grid, "linear", None)
        better = share > best + np.float32(TIE)
        np.copyto(best, share, where=better)
        winner[better] = label
    if fill is not None:
        outside = _take(np.ones(labels.shape, dtype=np.uint8), to_source, grid, "nearest", 0) == 0
        winner[outside] = fill
    return winner
