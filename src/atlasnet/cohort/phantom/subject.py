"""One phantom subject from a seed, at any shape and spacing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atlasnet.cohort.phantom.build import Build
from atlasnet.cohort.phantom.render import Rendering, render
from atlasnet.errors import InputError
from atlasnet.volume.grid import Grid
from atlasnet.volume.volume import Volume

# Field of view in mm: across (arms over the head, arms beside the body) and along the body.
ACROSS = (430.0, 500.0)
ALONG = 330.0
MIDDLE = (0.0, 5.0, -25.0)
LARGEST = (512, 512, 512)
SMALLEST = 8


def phantom_grid(shape: Sequence[int], spacing: Sequence[float] | None = None, *, arms_down: bool = False) -> Grid:
    """The grid of a phantom of ``shape`` (z, y, x): LPS axes, the chest in its middle.

    Args:
        shape: voxels along (z, y, x), from 8 to 512 each.
        spacing: mm along (x, y, z); by default a field of view of 430 mm (500 mm with the arms down) across and 330 mm
            along the body fills the shape.
        arms_down: whether the default field of view has to hold arms beside the body.

    Raises:
        InputError: a shape or spacing that cannot be rendered.
    """
    size = tuple(int(n) for n in shape)
    if len(size) != 3 or any(not SMALLEST <= n <= top for n, top in zip(size, LARGEST, strict=True)):
        raise InputError(
            "a phantom of this shape cannot be made",
            expected=f"(z, y, x), each from {SMALLEST} to {LARGEST[0]}",
            found=str(tuple(shape)),
        )
    if spacing is None:
        across = ACROSS[int(arms_down)] / max(size[1:])
        steps = np.array([across, across, ALONG / size[0]])
    else:
        steps = np.asarray(spacing, np.float64)
    if steps.shape != (3,) or not np.isfinite(steps).all() or (steps <= 0).any():
        raise InputError(
            "a phantom with this spacing cannot be made",
            expected="three positive lengths (x, y, z) in mm",
            found=str(spacing),
        )
    origin = np.array(MIDDLE) - (np.array(size[::-1]) - 1) / 2 * steps
    return Grid.from_parts(size, steps, origin)


def phantom_rendering(
    seed: int,
    *,
    shape: Sequence[int],
    spacing: Sequence[float] | None = None,
    disease: bool = True,
    arms_down: bool = False,
) -> Rendering:
    """Like `phantom_subject`, with the tissue of every voxel besides (`TISSUES` holds their values).

    Raises:
        InputError: an argument is out of range.
    """
    if seed < 0:
        raise InputError("a phantom's seed must not be negative", found=str(seed))
    return render(
        Build.draw(seed, arms_down=arms_down), phantom_grid(shape, spacing, arms_down=arms_down), disease=disease
    )


def phantom_subject(
    seed: int,
    *,
    shape: Sequence[int],
    spacing: Sequence[float] | None = None,
    disease: bool = True,
    arms_down: bool = False,
) -> tuple[Volume, Volume]:
    """One synthetic chest CT and its exact labels.

    The subject is a function of ``seed`` alone: another shape or spacing shows the same person in other voxels (with
    other noise), ``disease=False`` the same person before falling ill. Equal arguments give equal bytes on one machine.

    Args:
        seed: which subject, 0 or more.
        shape: voxels along (z, y, x), up to 512 each; 512 x 512 x 300 takes a minute or two and under 2 GiB.
        spacing: mm along (x, y, z); see `phantom_grid` for the default.
        disease: whether there is interstitial lung disease.
        arms_down: arms beside the body rather than over the head.

    Returns:
        The image, int16 HU, and the labels, uint8: 0 background, 1 lung, 2 disease (within the lung), on one LPS grid.

    Raises:
        InputError: an argument is out of range.
    """
    rendering = phantom_rendering(seed, shape=shape, spacing=spacing, disease=disease, arms_down=arms_down)
    return rendering.image, rendering.labels
