"""Affine pre-alignment: twelve degrees of freedom that hardly depend on where the headers say the images lie.

Both images are described in frames of their own: along their axes (the stored order and direction undone), in mm from
the middle of the field of view. A masked correlation over all translations and a set of turns (`affine_search`) finds
where the contents match; the best few places, and the one that the headers claim, are refined at low resolution
(`affine_refine`), the best of them at higher resolution with a scale and then with all degrees of freedom. Headers
enter only as one more candidate, so a wrong position or turn in them costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atlasnet.errors import InputError, RegistrationError, VolumeError
from atlasnet.execution import Execution
from atlasnet.registration.affine_pyramid import Level, build_pyramid, contrast_pair
from atlasnet.registration.affine_refine import STAGES, Fit, Penalty, View, refine
from atlasnet.registration.affine_search import search, turns
from atlasnet.registration.intensity import CT_CLAMP, Pair, Ranges, choose_windows
from atlasnet.registration.operator import check_mask
from atlasnet.transform import Transform
from atlasnet.volume import Volume, canonical
from atlasnet.volume.volume import bounding_box

Float = NDArray[np.float64]

# Lung against soft tissue against bone: neither vessels in the lungs nor dense bone decide where a chest lies.
CT_WINDOW: Pair = (-500.0, 300.0)
# Cost of a voxel out of view where a mask says what counts, which belongs into view: as much as unrelated images.
MISSING_UNDER_MASK = 1.0


@dataclass(frozen=True)
class AffineSettings:
    """Settings of the alignment; one set serves every image.

    Args:
        stage: the degrees of freedom of the result: ``rigid`` (6; 3 in the plane), ``similarity`` (7; 4) or
            ``affine`` (12; 6).
        clamp: per channel the intensities beyond which differences do not count; None: -500..300 for Hounsfield
            units, robust percentiles for others.
        voxels: of the larger image per level, finest first; the last is where the search happens.
        turn_step: degrees between the turns that are searched.
        turn_count: how many steps to either side along each axis of rotation; 0 searches translations only.
        candidates: how many of the places found are refined before one is chosen.
        minimum_overlap: share of the smaller image that the other must see.
        missing: cost of a voxel out of the other's view, between 0 (as good as a perfect match) and 1 (as bad as none);
            under a mask it is 1.
        scale_deviation: standard deviation of the logarithm of size between subjects.
        shear_deviation: standard deviation of the logarithms of anisotropic stretches.
        regularisation: weight of one such deviation, squared, against 1 - NCC^2.
        iterations: at most, per level.
        tolerance: movement of the corners, in voxels of the level, below which a level is finished.

    Raises:
        InputError: a value that makes no sense; the message names it.
    """

    stage: str = "affine"
    clamp: Ranges | None = None
    voxels: tuple[int, ...] = (40_000, 10_000, 3_000)
    turn_step: float = 20.0
    turn_count: int = 1
    candidates: int = 3
    minimum_overlap: float = 0.25
    missing: float = 0.6
    scale_deviation: float = 0.15
    shear_deviation: float = 0.1
    regularisation: float = 0.002
    iterations: int = 12
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        # JSON has no tuples: settings read back from a record are taken as they are.
        object.__setattr__(self, "voxels", tuple(int(n) for n in self.voxels))
        if self.clamp is not None:
            object.__setattr__(self, "clamp", tuple((float(low), float(high)) for low, high in self.clamp))
        checks: list[tuple[bool, str, str]] = [
            (self.stage in STAGES, "stage", "one of " + ", ".join(STAGES)),
            (all(low < high for low, high in self.clamp or ()), "clamp", "(low, high) with low < high"),
            (
                len(self.voxels) > 0
                and min(self.voxels) >= 64
                and list(self.voxels) == sorted(self.voxels, reverse=True),
                "voxels",
                "descending numbers, 64 at least",
            ),
            (0 < self.turn_step <= 90, "turn_step", "degrees in (0, 90]"),
            (self.turn_count >= 0, "turn_count", "0 or more"),
            (self.candidates >= 1, "candidates", "1 or more"),
            (0 < self.minimum_overlap <= 1, "minimum_overlap", "a share in (0, 1]"),
            (0 <= self.missing <= 1, "missing", "a cost in [0, 1]"),
            (self.scale_deviation > 0, "scale_deviation", "a positive number"),
            (self.shear_deviation > 0, "shear_deviation", "a positive number"),
            (self.regularisation > 0, "regularisation", "a positive number"),
            (self.iterations >= 1, "iterations", "1 or more"),
            (self.tolerance > 0, "tolerance", "a positive number"),
        ]
        for fine, name, expected in checks:
            if not fine:
                raise InputError(
                    f"affine setting {name} cannot be used", expected=expected, found=str(getattr(self, name))
                )


@dataclass(frozen=True, eq=False)
class Content:
    """An image in its own frame: the stored order undone, axes of a single voxel left out.

    Args:
        level: at full resolution.
        frame: (4, 4) rigid, content points (x, y, z; mm from the middle) to LPS mm.
        axes: which of the three canonical axes (0 x, 1 y, 2 z) the level has.
    """

    level: Level
    frame: Float
    axes: tuple[int, ...]

    def embed(self, matrix: Float) -> Float:
        """A map of the level's dimensions as one of space: axes left out stay as they are."""
        rows = [*self.axes, 3]
        full = np.eye(4)
        full[np.ix_(rows, rows)] = matrix
        return full


def prealign(
    source: Volume,
    target: Volume,
    *,
    settings: AffineSettings | None = None,
    source_mask: Volume | None = None,
    target_mask: Volume | None = None,
    execution: Execution | None = None,
) -> Transform:
    """The map of `affine_register` without its record."""
    return affine_register(
        source, target, settings=settings, source_mask=source_mask, target_mask=target_mask, execution=execution
    )[0]


def affine_register(
    source: Volume,
    target: Volume,
    *,
    settings: AffineSettings | None = None,
    source_mask: Volume | None = None,
    target_mask: Volume | None = None,
    execution: Execution | None = None,
) -> tuple[Transform, dict[str, Any]]:
    """Align two images of one modality affinely, wherever their headers place them.

    The result depends on the source's header only through its spacing, the nearest of its 48 axis orientations, and
    one of several starting candidates. Images of a single slice are aligned in their plane. The same call gives the
    same bytes.

    Args:
        source: (c, z, y, x).
        target: (c, z, y, x), with as many channels; similarity is the mean over channels.
        settings: see `AffineSettings`.
        source_mask: (1, z, y, x) on the source's grid, non-zero where voxels count; None: everywhere.
        target_mask: likewise for the target.
        execution: device, threads, cancellation.

    Returns:
        The transform (forward: LPS mm points of the target to the source; backward: its exact inverse), and a
        JSON-able record: ``matrix`` (4 x 4, LPS mm), ``cost``, ``correlation`` (NCC of local contrast), ``overlap``,
        ``turn_degrees``, ``stretches`` (singular values), ``candidates`` and ``levels``.

    Raises:
        VolumeError: images or masks that do not fit each other, a constant image, or one in space with one in a plane.
        RegistrationError: no placement with the required overlap makes the images alike.
        Cancelled: the caller asked for it.
    """
    options, place = settings or AffineSettings(), Execution.of(execution)
    begin = time.perf_counter()
    with place.active():
        here, there = contents_of(target, target_mask, source, source_mask, options, place)
        # Thousands of operations on a few thousand voxels: waking a second thread for each takes far longer.
        with replace(place, threads=1).active():
            pyramid = build_pyramid(here.level, there.level, options.voxels, place.pause)
            try:
                fit, record = align_contents(here, there, pyramid, options, place)
            except RegistrationError as error:
                if source_mask is None and target_mask is None:
                    raise
                raise RegistrationError(f"{error}; the masks may leave too little of them: widen these") from error
    matrix = there.frame @ there.embed(fit.matrix) @ np.linalg.inv(here.frame)
    d = here.level.dims
    left, stretches, right = np.linalg.svd(fit.matrix[:d, :d])
    cosine = (np.trace(left @ right) - (d - 2)) / 2
    record |= {
        "settings": asdict(options),
        "matrix": matrix.tolist(),
        "cost": fit.cost,
        "correlation": fit.correlation,
        "turn_degrees": float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
        "stretches": stretches.tolist(),
        "seconds": round(time.perf_counter() - begin, 3),
    }
    return Transform.affine(matrix), record


def align_contents(
    here: Content, there: Content, pyramid: list[tuple[Level, Level]], options: AffineSettings, execution: Execution
) -> tuple[Fit, dict[str, Any]]:
    """Search and refine, coarsest level first.

    Raises:
        RegistrationError: no placement with the required overlap makes the images alike.
    """
    d = here.level.dims
    penalty = Penalty(options.scale_deviation, options.shear_deviation, options.regularisation)
    coarse_target, coarse_source = pyramid[-1]
    masked = here.level.masked or there.level.masked
    missing = MISSING_UNDER_MASK if masked else options.missing
    headers = _headers(here, there)
    rotations = turns(d, options.turn_step, options.turn_count)
    claimed = headers[:d, :d]
    # A turn in the headers that the set does not come near may be true (an oblique acquisition): it is searched as
    # well.
    if min(float(np.abs(claimed - rotation).max()) for rotation in rotations) > np.sin(
        np.radians(options.turn_step / 4)
    ):
        rotations.append(claimed)
    poses = search(coarse_target, coarse_source, rotations, minimum_overlap=options.minimum_overlap, missing=missing)
    starts = [pose.matrix for pose in poses[: options.candidates]] + [headers]

    def improve(level: tuple[View, View], start: Float, stage: str) -> Fit:
        return refine(
            *level,
            start,
            stage,
            penalty,
            missing=missing,
            masked=masked,
            iterations=options.iterations,
            tolerance=options.tolerance,
            checkpoint=execution.pause,
        )

    views = View.of(coarse_target), View.of(coarse_source)
    fits = [improve(views, start, "rigid") for start in starts]
    usable = [fit for fit in fits if fit.overlap >= options.minimum_overlap and fit.correlation > 0]
    if not usable:
        raise _unlike(fits)

    def descend(best: Fit) -> tuple[Fit, float, list[dict[str, Any]]]:
        """From a start through all levels: where it ends, the overlap, and a record of each level."""
        pair, overlap, records = views, best.overlap, []
        for position, level in enumerate(pyramid[::-1]):
            execution.pause()
            start = time.perf_counter()
            if position > 0:
                # The coarsest level shows intensities, whose broad valleys a search needs, the others local contrast.
                target, source = contrast_pair(level, best.matrix)
                pair = View.of(target), View.of(source)
            last = options.stage if position > 0 or len(pyramid) == 1 else "similarity"
            stage = STAGES[min(STAGES.index(options.stage), STAGES.index(last))]
            best = improve(pair, best.matrix, stage)
            if position == 0:
                overlap = best.overlap  # of the whole images; finer levels weigh only what they share
            records.append(
                {
                    "spacing_mm": [round(s, 4) for s in level[0].spacing],
                    "stage": stage,
                    "iterations": best.iterations,
                    "cost": best.cost,
                    "correlation": best.correlation,
                    "seconds": round(time.perf_counter() - start, 3),
                }
            )
        return best, overlap, records

    # By one price for what is out of view, whatever each has paid itself. A start may still look best where the images
    # hardly meet, and lose the other image on the way: then the next one is it.
    price = max(fit.missing for fit in usable)
    for start in sorted(usable, key=lambda fit: fit.cost_at(price)):
        best, overlap, records = descend(start)
        if best.correlation > 0:
            break
    else:
        raise _unlike([best])
    candidates = [{"cost": fit.cost, "overlap": fit.overlap, "iterations": fit.iterations} for fit in fits]
    return best, {
        "operator": "affine",
        "dimensions": d,
        "candidates": candidates,
        "overlap": overlap,
        "levels": records,
    }


def _unlike(fits: Sequence[Fit]) -> RegistrationError:
    return RegistrationError(
        f"no placement makes the images alike (best correlation {max(fit.correlation for fit in fits):.2f}); "
        "check that both show the same part of the body in the same modality"
    )


def _headers(here: Content, there: Content) -> Float:
    """(d + 1, d + 1) rigid map between content frames that the headers claim."""
    rows = [*here.axes, 3]
    matrix = (np.linalg.inv(there.frame) @ here.frame)[np.ix_(rows, rows)]
    left, _, right = np.linalg.svd(matrix[:-1, :-1])
    flip = np.ones(len(left))
    flip[-1] = np.sign(np.linalg.det(left @ right))
    matrix[:-1, :-1] = (left * flip) @ right
    return np.asarray(matrix)


def contents_of(
    target: Volume,
    target_mask: Volume | None,
    source: Volume,
    source_mask: Volume | None,
    options: AffineSettings,
    execution: Execution,
) -> tuple[Content, Content]:
    """The target and the source, checked against each other, each in its own frame.

    Raises:
        VolumeError: see `affine_register`.
    """
    windows = choose_windows(source, target, options.clamp, None)
    contents = []
    for name, image, mask, own in (
        ("target", target, target_mask, windows[1]),
        ("source", source, source_mask, windows[0]),
    ):
        check_mask(f"{name} mask", image, mask)
        limits = [CT_WINDOW if options.clamp is None and w.clamp == CT_CLAMP else w.clamp for w in own]
        contents.append(_content(name, image, mask, limits, execution))
    here, there = contents
    if here.axes != there.axes:
        raise VolumeError(
            "an image of a single slice can only be aligned with one of the same plane",
            expected=f"extent along axes {_names(here.axes)}, as the target",
            found=f"extent along axes {_names(there.axes)} in the source",
        )
    return here, there


def _content(name: str, image: Volume, mask: Volume | None, limits: list[Pair], execution: Execution) -> Content:
    grid, orientation = canonical(image.grid)
    axes = tuple(axis for axis in range(3) if grid.size[axis] > 1)
    if len(axes) < 2:
        raise VolumeError(f"the {name} is a line of voxels", expected="extent along two axes", found=str(image.grid))
    # A mask that leaves everything is none.
    counts = None if mask is None or mask.array.all() else orientation.apply(mask.array) != 0
    stored = orientation.turn(execution.tensor(image.array))
    if counts is not None:
        # What counts, with a voxel around it.
        box = bounding_box(counts[0]) or ()
        grid, stored, counts = grid.cropped(box), stored[:, *box], counts[:, *box]
    kept = tuple(grid.shape[2 - axis] for axis in axes[::-1])
    values = stored.to(torch.float32, copy=True, memory_format=torch.contiguous_format).reshape(-1, *kept)
    for channel, (low, high) in zip(values, limits, strict=True):
        channel.clamp_(low, high)
    # A channel that was not acquired, one of several, has nothing to say; the others have.
    if all(float(channel.max()) <= float(channel.min()) for channel in values):
        raise VolumeError(
            f"the {name} is constant" + ("" if mask is None else " where its mask lies"),
            expected="different intensities, of those that count: " + ", ".join(f"{a:g} to {b:g}" for a, b in limits),
            found=f"{float(stored.min()):g} to {float(stored.max()):g}",
        )
    weight = torch.ones((), device=values.device).expand(1, *kept)  # one number in memory
    if counts is not None:
        weight = torch.from_numpy(counts.astype(np.float32)).reshape(1, *kept).to(values.device)
    frame = np.eye(4)
    frame[:3, :3], frame[:3, 3] = grid.direction, grid.centre
    return Content(Level(values, weight, tuple(float(grid.spacing[axis]) for axis in axes)), frame, axes)


def _names(axes: tuple[int, ...]) -> str:
    return "".join("xyz"[axis] for axis in axes)
