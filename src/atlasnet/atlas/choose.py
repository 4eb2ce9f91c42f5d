"""Choosing the subjects whose anatomies span a cohort."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from atlasnet.atlas.medoids import k_medoids
from atlasnet.errors import InputError, RegistrationError, VolumeError
from atlasnet.execution import Execution
from atlasnet.registration.affine import AffineSettings, affine_register
from atlasnet.registration.intensity import choose_windows
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume, canonical, resample

Float = NDArray[np.float64]

CHOICE_REVISION = 1  # counts up when the same images would give other atlases

# An atlas that sees less than half of what a subject sees stands for it as badly as can be, and so does one with which
# it has too little of the reference in common to be compared.
_LEAST_SEEN = 0.5
_LEAST_COMMON = 0.05
_UNLIKE = 2.0


@dataclass(frozen=True)
class ChoiceSettings:
    """Settings of the choice.

    Args:
        voxels: to which every image is reduced when it is read.
        compared: voxels of the reference on which subjects are compared.
        shape_weight: of the difference in size and proportions against that in appearance, each relative to its median
            over all pairs.
        affine: of the alignments onto the reference.

    Raises:
        InputError: a value that makes no sense.
    """

    voxels: int = 150_000
    compared: int = 15_000
    shape_weight: float = 0.5
    affine: AffineSettings = field(default_factory=AffineSettings)

    def __post_init__(self) -> None:
        checks = [
            (self.voxels >= 1000, "voxels", "1000 at least"),
            (self.compared >= 100, "compared", "100 at least"),
            (0 <= self.shape_weight < float("inf"), "shape_weight", "0 or more"),
        ]
        for fine, name, expected in checks:
            if not fine:
                raise InputError(
                    f"setting {name} of the atlas choice cannot be used",
                    expected=expected,
                    found=str(getattr(self, name)),
                )


def choose_atlases(
    volumes: Mapping[str, Callable[[], Volume]],
    n: int,
    *,
    included: Collection[str] = (),
    settings: ChoiceSettings | None = None,
    execution: Execution | None = None,
) -> list[str]:
    """Choose ``n`` subjects so that every subject is near one of them.

    Each image is reduced as it is read (one at full resolution in memory at a time) and aligned affinely onto a
    reference, the subject whose field of view is nearest to the median. Between two subjects, appearance differs by 1
    - NCC of the aligned images where both see the reference, which is what an affine map leaves for the deformation
    to explain; shape differs by the length of the logarithmic strain between their maps. Each is divided by its
    median over all pairs, and the weighted sum is the distance. A scan of a part stands for no whole one, whereas a
    whole one may stand for it. The k-medoids of the distances are the atlases: representatives that span the cohort,
    as an average or the n most typical subjects would not.

    Clustering subjects to select atlases: Aljabar et al., "Multi-atlas based segmentation of brain images: atlas
    selection and its effect on accuracy", NeuroImage 46(3), 2009, for selection by similarity after a common affine
    alignment; Kaufman and Rousseeuw 1990 for k-medoids (`atlasnet.atlas.medoids`).

    Args:
        volumes: per subject how to read its image, (c, z, y, x), any orientation.
        n: how many; all are returned where there are no more.
        included: those of ``volumes`` that are atlases in any case; the others are chosen to complete them.
        settings: see `ChoiceSettings`.
        execution: device, threads, progress, cancellation.

    Returns:
        Names in alphabetical order; the same for any order of ``volumes``.

    Raises:
        InputError: there are no subjects, or ``n`` is below 1 or below the number of those included.
        RegistrationError: fewer than ``n`` subjects can be aligned with the reference.
        VolumeError: an image cannot be read, or has another number of channels than the others.
    """
    if not volumes:
        raise InputError("there are no subjects to choose atlases from")
    if n < 1:
        raise InputError("the number of atlases must be positive", found=str(n))
    names = sorted(volumes)
    if n >= len(names):
        return names
    options, place = settings or ChoiceSettings(), Execution.of(execution)
    reduced = {}
    for name in place.reporter.track(names, "reading subjects", len(names)):
        place.pause()
        reduced[name] = _reduced(volumes[name](), options.voxels)
    distances, kept = subject_distances(reduced, options, place)
    alone = sorted(set(included) - set(kept))  # nobody can be compared with them
    if len(kept) < n - len(alone):
        raise RegistrationError(
            f"only {len(kept)} of {len(names)} subjects can be aligned with each other, fewer than the {n} atlases "
            "wanted; check that the others show the same part of the body, or name the atlases"
        )
    fixed = [i for i, name in enumerate(kept) if name in included]
    return sorted([*alone, *(kept[i] for i in k_medoids(distances, n - len(alone), fixed))])


def subject_distances(
    volumes: Mapping[str, Volume], settings: ChoiceSettings, execution: Execution
) -> tuple[Float, list[str]]:
    """How badly one subject (column) stands for another (row), (m, m), and the m names.

    Who cannot be aligned is left out with a warning.
    """
    reference_name = _median_size({name: volume.grid for name, volume in volumes.items()})
    reference = volumes[reference_name]
    grid = _spaced(reference.grid, settings.compared)
    images, covers, linears, kept = [], [], [], []
    for name in execution.reporter.track(sorted(volumes), "aligning subjects", len(volumes)):
        execution.pause()
        volume = volumes[name]
        if volume is reference:
            transform = Transform.identity()
        else:
            try:
                transform, _ = affine_register(volume, reference, settings=settings.affine, execution=execution)
            except RegistrationError as error:
                execution.reporter.warn(f"{name} cannot be an atlas: {error}")
                continue
            except VolumeError as error:
                raise error.told(problem=f"{name} cannot be aligned with {reference_name}: {error.problem}") from error
        windows, _ = choose_windows(volume, reference, settings.affine.clamp, None)
        limits = [np.clip(part, *window.clamp) for part, window in zip(volume.array, windows, strict=True)]
        seen = volume.replace(np.concatenate([np.stack(limits), np.ones_like(limits[:1])]).astype(np.float32))
        warped = transform.warp(seen, grid, fill=0.0, device=execution.device).array.reshape(volume.channels + 1, -1)
        images.append(warped[:-1].astype(np.float64))
        covers.append(warped[-1] > 0.99)
        linears.append(_content_matrix(transform, volume.grid, reference.grid))
        kept.append(name)
    appearance = _appearance(np.stack(images), np.stack(covers).astype(np.float64))
    shape = _shape(linears)
    return _relative(appearance) + settings.shape_weight * _relative(shape), kept


def _reduced(volume: Volume, voxels: int) -> Volume:
    turned, _ = canonical(volume)
    grid = _spaced(turned.grid, voxels)
    return turned if grid.shape == turned.grid.shape else resample(turned, grid)


def _spaced(grid: Grid, voxels: int) -> Grid:
    """The same field of view with at most about so many voxels, as cubic as its spacing allows."""
    spacing = grid.spacing
    free = grid.size > 1
    wanted = (np.prod((grid.size * spacing)[free]) / voxels) ** (1 / max(1, int(free.sum())))
    return grid.with_spacing(np.where(free, np.maximum(spacing, wanted), spacing))


def _median_size(grids: Mapping[str, Grid]) -> str:
    """Whose edges are nearest to the median edges; the first by name of equals."""
    edges = {name: np.log(np.sort(grid.size * grid.spacing)) for name, grid in grids.items()}
    middle = np.median(np.stack(list(edges.values())), axis=0)
    return min(sorted(edges), key=lambda name: round(float(np.abs(edges[name] - middle).sum()), 9))


def _content_matrix(transform: Transform, source: Grid, target: Grid) -> Float:
    """The linear part of the map between the images' own axes: what headers say about pose is no difference in
    shape.
    """
    import torch

    points = torch.from_numpy(np.vstack([np.zeros(3), target.direction.T]))
    moved = transform.forward(points).numpy()
    return np.asarray(source.direction.T @ (moved[1:] - moved[0]).T)


def _appearance(images: Float, covers: Float) -> Float:
    """1 - NCC of each pair (n, n), mean over channels, over the voxels that both cover; images (n, c, voxels).

    Where the second covers too little of what the first does, it is as unlike as can be.
    """
    common = covers @ covers.T
    safe = np.maximum(common, 1)
    total = np.zeros_like(common)
    for channel in np.moveaxis(images, 1, 0):
        # Correlation is blind to an offset; without the common one the sums below keep their digits.
        values = (channel - channel[covers > 0].mean()) * covers
        sums, squares = values @ covers.T, (values * values) @ covers.T
        spread = np.maximum(squares - sums**2 / safe, 0)
        covariance = values @ values.T - sums * sums.T / safe
        total += covariance / np.sqrt(np.maximum(spread * spread.T, 1e-12))
    distances = 1 - np.clip(total / images.shape[1], -1, 1)
    distances = np.asarray((distances + distances.T) / 2)
    distances[common < np.maximum(_LEAST_SEEN * covers.sum(1)[:, None], _LEAST_COMMON * images.shape[2])] = _UNLIKE
    np.fill_diagonal(distances, 0)
    return distances


def _shape(linears: list[Float]) -> Float:
    """Length of the logarithmic strain that turns one subject's map into another's (n, n)."""
    distances = np.zeros((len(linears),) * 2)
    for i, first in enumerate(linears):
        for j in range(i):
            stretches = np.linalg.svd(np.linalg.solve(first, linears[j]), compute_uv=False)
            distances[i, j] = distances[j, i] = float(np.linalg.norm(np.log(stretches)))
    return distances


def _relative(distances: Float) -> Float:
    """Divided by the median over pairs, where there is one."""
    pairs = distances[~np.eye(len(distances), dtype=bool)]
    middle = float(np.median(pairs)) if len(pairs) else 0.0
    return distances / middle if middle > 1e-9 else distances * 0
