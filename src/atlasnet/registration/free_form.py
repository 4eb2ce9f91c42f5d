"""Free-form deformation steps that cannot fold, and their composition.

A step moves points by a cubic B-spline over the control points. Choi and Lee ("Injectivity conditions of 2D and 3D
uniform cubic B-spline functions", Graphical Models 62(6), 2000) prove it one-to-one while every coefficient stays
below about 0.4 control spacings. A longer step is halved until it meets that bound, and composed with itself as
often: a composition of homeomorphisms is one (Rueckert, Aljabar, Heckemann, Hajnal, Hammers, "Diffeomorphic
registration using B-splines", MICCAI 2006).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atlasnet.registration import lattice
from atlasnet.registration.lattice import Lattice
from atlasnet.volume.sampling import along_axes, sample
from atlasnet.volume.sampling import lattice as index_points

# Coefficients up to this share of the control spacing keep a three-dimensional step one-to-one (Choi and Lee).
LARGEST_STEP = 0.4


def step_field(coefficients: Tensor, control: Lattice, image: Lattice) -> Tensor:
    """The displacement of a fold-free step.

    Args:
        coefficients: (3, cz, cy, cx) components (x, y, z), in voxels of ``image``.
        control: lattice of the coefficients.
        image: lattice on which the step is wanted.

    Returns:
        (3, z, y, x) displacement, voxels of ``image``.
    """
    spacing = torch.tensor(
        [c / i for c, i in zip(reversed(control.spacing), reversed(image.spacing), strict=True)],
        device=coefficients.device,
    )
    ratio = float((coefficients.abs() / spacing[:, None, None, None]).max()) / LARGEST_STEP
    halvings = max(0, math.ceil(math.log2(ratio))) if ratio > 1 else 0
    field = along_axes(lattice.spline(control, image, coefficients.device), coefficients / 2**halvings)
    for _ in range(halvings):
        field = compose(field, field)
    return field


def compose(first: Tensor, then: Tensor) -> Tensor:
    """The displacement of x -> x + first(x) -> ... + then(...), both (3, z, y, x) in voxels, components (x, y, z)."""
    _, z, y, x = first.shape
    points = index_points((z, y, x), 0, z, device=first.device) + first.movedim(0, -1)
    return first + sample(then, points)


def resize(displacement: Tensor, source: Lattice, target: Lattice) -> Tensor:
    """Bring a displacement (3, z, y, x) in voxels of ``source`` to ``target``, in voxels of ``target``."""
    moved = along_axes(lattice.interpolation(source, target, displacement.device), displacement)
    scale = torch.tensor(
        [s / t for s, t in zip(reversed(source.spacing), reversed(target.spacing), strict=True)],
        device=displacement.device,
    )
    return moved * scale[:, None, None, None]
