"""How a volume is shown: which plane, which way up, at which intensities, in which colours.

Pictures follow the radiological convention: axial slices are seen from the feet, so that the patient's right is on the
left of the picture and the front is up; coronal and sagittal slices have the head up, sagittal ones the front to the
left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlasnet.cohort.plan import is_ct
from atlasnet.cohort.segments import palette_colour
from atlasnet.errors import InputError
from atlasnet.volume import Volume, canonical

Plane = Literal["axial", "coronal", "sagittal"]

# Of canonical arrays (z, y, x): the axis across the plane, and whether the first axis that remains points up.
_PLANES: dict[str, tuple[int, bool]] = {"axial": (0, False), "coronal": (1, True), "sagittal": (2, True)}

# By world axis (LPS), what lies towards its lower and its higher end.
_ENDS = ("RL", "AP", "IS")
_OBLIQUE = float(np.sin(np.pi / 8))  # a direction turned further than this out of an axis is named by a second letter

# Windows of CT, HU.
LUNG_WINDOW = (-1150.0, 150.0)
SOFT_WINDOW = (-160.0, 240.0)


@dataclass(frozen=True)
class Edges:
    """What of the patient lies beyond each edge of a slice as it is drawn: of R, L, A, P, I and S one letter.

    Where an edge faces a direction more than 22.5 degrees from the nearest, it has two or three, the nearest first.
    """

    left: str
    right: str
    top: str
    bottom: str

    def html(self) -> str:
        """Letters that lie over a picture, in an element of the class ``lettered``."""
        return "".join(
            f'<span class="edge {side}" aria-hidden="true">{letters}</span>' for side, letters in vars(self).items()
        )


@dataclass(frozen=True)
class Slice:
    """One slice as it is drawn.

    Args:
        pixels: (rows, columns); row 0 is at the top.
        spacing: mm between rows, and between columns.
        edges: where they lie in the patient.
    """

    pixels: NDArray[Any]
    spacing: tuple[float, float]
    edges: Edges

    @property
    def aspect(self) -> float:
        """Height of a pixel over its width."""
        return self.spacing[0] / self.spacing[1]


def take_slice(volume: Volume, index: int, plane: Plane = "axial", channel: int = 0) -> Slice:
    """One slice of a volume in any orientation, turned as a radiologist expects it.

    Args:
        volume: (c, z, y, x).
        index: of the slice in canonical orientation: axial from the feet up, coronal from the front, sagittal from the
            patient's right.
        plane: which way the slice lies.
        channel: of the volume.

    Raises:
        InputError: there is no such plane or slice.
    """
    across, up = _plane(plane)
    upright = canonical(volume)[0]
    size = upright.grid.shape[across]
    if not 0 <= index < size:
        raise InputError(f"there is no {plane} slice {index}", expected=f"0 to {size - 1}", found=str(index))
    pixels = np.take(upright.array[channel], index, axis=across)
    z_y_x = upright.grid.spacing[::-1]
    inside = [axis for axis in range(3) if axis != across]
    rows, columns = (float(z_y_x[axis]) for axis in inside)
    down, right = (upright.grid.direction[:, 2 - axis] for axis in inside)
    down = -down if up else down
    edges = Edges(_facing(-right), _facing(right), _facing(-down), _facing(down))
    return Slice(pixels[::-1] if up else pixels, (rows, columns), edges)


def slice_through(voxel: tuple[int, int, int], plane: Plane) -> int:
    """The slice that a canonical voxel (z, y, x) lies in."""
    return voxel[_plane(plane)[0]]


def slice_count(volume: Volume, plane: Plane = "axial") -> int:
    """How many slices `take_slice` knows."""
    return canonical(volume.grid)[0].shape[_plane(plane)[0]]


def planes_of(volume: Volume, several: Sequence[Plane]) -> list[Plane]:
    """The planes in which to show a volume: ``several``, but of an image of one slice its own."""
    single: list[Plane] = [plane for plane in get_args(Plane) if slice_count(volume, plane) == 1]
    return single[:1] or [*several]


def richest_slice(labels: Volume, plane: Plane = "axial") -> int:
    """The slice with the most voxels of the rarest label there is, where the most is to be seen; the middle if none."""
    across, _ = _plane(plane)
    array = canonical(labels)[0].array[0]
    values, counts = np.unique(array[array > 0], return_counts=True)
    if len(values) == 0:
        return int(array.shape[across] // 2)
    others = tuple(axis for axis in range(3) if axis != across)
    return int((array == values[counts.argmin()]).sum(axis=others).argmax())


def opening_point(labels: Volume) -> tuple[int, int, int]:
    """The voxel at which a viewer opens: in the largest piece of the rarest label, the one nearest its centroid.

    Args:
        labels: (1, z, y, x).

    Returns:
        (z, y, x) in canonical orientation; the middle of the field of view where there is no label.
    """
    array = canonical(labels)[0].array[0]
    values, counts = np.unique(array[array > 0], return_counts=True)
    if len(values) == 0:
        z, y, x = (side // 2 for side in array.shape)
        return z, y, x
    mask = array == values[counts.argmin()]
    (box,) = ndimage.find_objects(mask.view(np.int8))
    pieces, _ = ndimage.label(mask[box], structure=np.ones((3, 3, 3)))
    inside = np.argwhere(pieces == np.bincount(pieces.ravel())[1:].argmax() + 1)
    z, y, x = inside[np.square(inside - inside.mean(axis=0)).sum(axis=1).argmin()] + [side.start for side in box]
    return int(z), int(y), int(x)


def same_level(volume: Volume, index: int, other: Volume) -> int:
    """The axial slice of ``other`` that lies where slice ``index`` of ``volume`` does, or the nearest there is."""
    grid, target = canonical(volume.grid)[0], canonical(other.grid)[0]
    point = (grid.size - 1) / 2
    point[2] = index
    found = round(float(target.to_index(grid.to_world(point))[2]))
    return min(max(found, 0), int(target.size[2]) - 1)


def window(volume: Volume, modality: str = "") -> tuple[float, float]:
    """The intensities that are shown black and white.

    Args:
        volume: (c, z, y, x), whose first channel counts.
        modality: the channel's name; ``"CT"`` gives the lung window where there is lung or air in the picture and
            the soft tissue window elsewhere, anything else the 1st to the 99th percentile.
    """
    values = volume.array[0]
    if is_ct(modality):
        return LUNG_WINDOW if np.mean(values < -500) > 0.03 else SOFT_WINDOW
    low, high = (float(v) for v in np.percentile(values, (1, 99)))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def colours(labels: Mapping[str, int]) -> dict[int, str]:
    """A colour for every label value but the background, the same whichever labels a picture happens to hold."""
    values = sorted(value for value in set(labels.values()) if value != 0)
    return {value: palette_colour(i) for i, value in enumerate(values)}


def _facing(direction: NDArray[np.float64]) -> str:
    """The letters of a direction in the world, a unit vector."""
    axes = sorted(range(3), key=lambda axis: -abs(direction[axis]))
    return "".join(_ENDS[axis][int(direction[axis] > 0)] for axis in axes if abs(direction[axis]) > _OBLIQUE)


def _plane(plane: str) -> tuple[int, bool]:
    if plane not in _PLANES:
        raise InputError(f"no plane is called {plane!r}", expected=", ".join(_PLANES))
    return _PLANES[plane]
