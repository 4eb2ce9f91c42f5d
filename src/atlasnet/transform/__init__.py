"""Spatial maps in both directions: composing, inverting, warping, measuring, storing."""

from atlasnet.transform.coverage import Coverage, part_box
from atlasnet.transform.extremes import Extremes, extremes_on
from atlasnet.transform.field import consistency, displacement_on, length_summary
from atlasnet.transform.invert import inverse_grid, inverse_on, invert
from atlasnet.transform.itk import itk_field, read_itk_field, write_itk_field
from atlasnet.transform.itk_transform import itk_transform, write_itk_transform
from atlasnet.transform.jacobian import corner_jacobians, jacobian_determinant, jacobian_summary
from atlasnet.transform.landmarks import landmark_transform, read_landmarks
from atlasnet.transform.maps import (
    AffineMap,
    BSplineMap,
    CompositeMap,
    DisplacementMap,
    FramedPoints,
    PointMap,
    compose,
)
from atlasnet.transform.reading import read_transform
from atlasnet.transform.repair import RepairRecord, repair, smooth_at
from atlasnet.transform.transform import Transform

__all__ = [
    "AffineMap",
    "BSplineMap",
    "CompositeMap",
    "Coverage",
    "DisplacementMap",
    "Extremes",
    "FramedPoints",
    "PointMap",
    "RepairRecord",
    "Transform",
    "compose",
    "consistency",
    "corner_jacobians",
    "displacement_on",
    "extremes_on",
    "inverse_grid",
    "inverse_on",
    "invert",
    "itk_field",
    "itk_transform",
    "jacobian_determinant",
    "jacobian_summary",
    "landmark_transform",
    "length_summary",
    "part_box",
    "read_itk_field",
    "read_landmarks",
    "read_transform",
    "repair",
    "smooth_at",
    "write_itk_field",
    "write_itk_transform",
]
