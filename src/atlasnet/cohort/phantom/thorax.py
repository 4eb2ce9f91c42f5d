"""The frame of the phantom: outline of the body, thoracic cavity, diaphragm, mediastinum and, between them, the lungs.

Anatomical coordinates are in mm, LPS: x to the left, y to the back, z up; the origin lies in front of the carina.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort.phantom.build import Build
from atlasnet.cohort.phantom.solids import (
    Points,
    Profile,
    capsule,
    ellipse,
    ellipsoid,
    rotation_to,
    smooth_union,
    superellipse,
)

Array = NDArray[np.floating]

HALF_WIDTH = Profile.through(
    [(-200, 122), (-150, 128), (-100, 134), (-40, 132), (0, 123), (40, 106), (70, 82), (92, 52), (104, 28), (112, 8)]
)
FRONT = Profile.through(
    [(-200, -84), (-150, -90), (-100, -95), (-40, -90), (0, -79), (40, -58), (70, -30), (92, 2), (112, 34)]
)
BACK = Profile.through(
    [(-200, 74), (-150, 82), (-100, 89), (-40, 94), (0, 94), (40, 89), (70, 79), (92, 66), (112, 48)]
)
BODY_WIDTH = Profile.through(
    [
        (-250, 160),
        (-150, 164),
        (-90, 168),
        (-40, 178),
        (10, 186),
        (60, 180),
        (85, 150),
        (105, 98),
        (125, 64),
        (160, 58),
        (220, 70),
    ]
)
BODY_FRONT = Profile.through(
    [
        (-250, -112),
        (-150, -119),
        (-90, -124),
        (-30, -118),
        (20, -100),
        (60, -76),
        (90, -52),
        (115, -38),
        (160, -46),
        (220, -60),
    ]
)
BODY_BACK = Profile.through(
    [(-250, 112), (-100, 118), (-30, 128), (40, 130), (80, 119), (110, 94), (140, 74), (220, 80)]
)
COLUMN = Profile.through([(-250, 22), (-120, 30), (-40, 38), (0, 40), (50, 36), (90, 26), (130, 16), (220, 12)])
MEDIASTINUM = Profile.through([(-200, 34), (-100, 36), (-40, 32), (0, 31), (40, 30), (75, 27), (100, 34), (130, 50)])

DENT = 0.2  # how much shorter than beside the midline the cavity is in it
WALL = 1.5  # mm between the inner surface of the ribs' plane and the lung: pleura and fascia


@dataclass(frozen=True)
class Thorax:
    """Signed distances of one subject's large compartments at a block of voxels, mm.

    Args:
        points: where.
        body: outline of the body, arms and breasts included.
        cavity: inner surface of the chest wall.
        lung: both lungs.
        dome: diaphragm's upper surface, negative below it (right and left merged).
        spine_x, spine_y: distances (mm) from the axis of the vertebral bodies.
        depth: position from front (-1) to back (+1) inside the cavity.
    """

    points: Points
    body: Array
    cavity: Array
    lung: Array
    dome: Array
    spine_x: Array
    spine_y: Array
    depth: Array


def heart_axes() -> NDArray[np.float64]:
    """The heart's long axis, towards the apex, and two axes across it."""
    return rotation_to((0.76, -0.42, -0.50))


def heart(build: Build, p: Points) -> Array:
    """Distance from the heart."""
    size = build.heart
    lift = 0.5 * build.dome[1]
    ventricles = ellipsoid(p, (26, -34, -58 + lift), (66 * size, 47 * size, 44 * size), heart_axes())
    atrium = ellipsoid(p, (-10, -24, -46 + lift), (31 * size, 34 * size, 40 * size))
    return smooth_union(ventricles, atrium, 12)


def _tubes(p: Points, build: Build) -> Array:
    """Shoulders, and arms over the head or beside the body."""
    if build.arms_down:
        limbs = [
            ((60, 24, 92), (168, 14, 84), 38, 46),
            ((178, 14, 84), (214, 22, -60), 44, 40),
            ((214, 22, -60), (222, 10, -300), 40, 34),
        ]
    else:
        limbs = [((56, 24, 96), (160, 14, 112), 38, 50), ((164, 12, 112), (196, -8, 260), 48, 42)]
    result: Array | None = None
    for start, end, r0, r1 in limbs:
        for side in (-1, 1):
            limb = capsule(p, (side * start[0], start[1], start[2]), (side * end[0], end[1], end[2]), r0, r1)
            result = limb if result is None else np.minimum(result, limb)
    assert result is not None
    return result


def _diaphragm(build: Build, p: Points) -> Array:
    """Distance from the two domes, each an ellipsoid on a cylinder that widens downwards; negative below."""
    result: Array | None = None
    for x, y, rx, ry, peak in ((-66, -6, 57, 72, -62 + build.dome[0]), (64, -2, 56, 70, -76 + build.dome[1])):
        base = np.float32(peak - 78)
        flare = 1 + 0.13 * np.clip((base + 30 - p.z) / np.float32(60), 0, 1)
        above = np.maximum(p.z - base, 0)
        dx, dy = (p.x - np.float32(x)) / flare, (p.y - np.float32(y)) / flare
        f = np.sqrt((dx / np.float32(rx)) ** 2 + (dy / np.float32(ry)) ** 2 + (above / np.float32(78)) ** 2)
        dome = np.sqrt(dx**2 + dy**2 + above**2) * (1 - 1 / np.maximum(f, np.float32(1e-3)))
        result = dome if result is None else np.minimum(result, dome)
    assert result is not None
    return np.asarray(result, np.float32)


def thorax(build: Build, p: Points) -> Thorax:
    """Evaluate the frame of one subject at a block of points."""
    front, back, half = FRONT(p.z), BACK(p.z), HALF_WIDTH(p.z)
    middle, reach = (front + back) / 2, (back - front) / 2
    # The walls lean inwards towards the apex; a distance measured in the axial plane has to be shortened by that lean.
    lean = np.sqrt(1 + HALF_WIDTH.slope(p.z) ** 2)
    # Seen from above, the cavity has two lobes: spine and sternum dent it in the midline.
    dent = 1 + np.float32(DENT) * np.exp(-((p.x / np.float32(36)) ** 2))
    cavity = np.maximum(superellipse(p.x, (p.y - middle) * dent, half, reach) / lean, p.z - np.float32(110))

    body_front, body_back = BODY_FRONT(p.z), BODY_BACK(p.z)
    trunk = superellipse(p.x, p.y - (body_front + body_back) / 2, BODY_WIDTH(p.z), (body_back - body_front) / 2)
    trunk += np.float32(7) * np.exp(-((p.x / np.float32(30)) ** 2))
    body = smooth_union(trunk, _tubes(p, build), 22)
    if build.breast:
        for side in (-1, 1):
            body = smooth_union(
                body, ellipsoid(p, (side * 82, -94, -22), (build.breast * 1.15, build.breast * 0.72, build.breast)), 14
            )
    # A patient lies on the back, which the table makes flat.
    body = -smooth_union(-body, np.float32(116 + 0.3 * build.fat) - p.y, 18)

    spine_x = p.x - np.float32(build.scoliosis) * np.sin(p.z / np.float32(70))
    spine_y = p.y - COLUMN(p.z) - np.float32(build.kyphosis) * np.cos(p.z / np.float32(90))
    dome = _diaphragm(build, p)
    spread = MEDIASTINUM(p.z)
    central = ellipse(p.x - 2, p.y - (middle - 6), spread, reach * np.float32(0.86))
    central = np.minimum(central, np.abs(p.x - np.float32(2)) - np.float32(3.5))
    column = ellipse(spine_x, spine_y - 12, 22.0, 29.0)
    fat = heart(build, p) - np.float32(4)
    floor = np.float32(-146) + 0.22 * (build.dome[0] + build.dome[1]) + 0.30 * np.maximum(np.float32(50) - p.y, 0) - p.z
    blocked = smooth_union(smooth_union(central, column, 8), fat, 8)
    lung = np.maximum.reduce([cavity + np.float32(WALL), -smooth_union(blocked, dome, 7), floor])
    return Thorax(
        p,
        body.astype(np.float32),
        cavity,
        lung.astype(np.float32),
        dome,
        spine_x,
        spine_y,
        (p.y - middle) / np.maximum(reach, 1),
    )


def lung_distance(build: Build, points: NDArray[np.floating]) -> NDArray[np.float32]:
    """Distance from the lungs at scattered anatomical points (n, 3), (x, y, z), mm; negative inside."""
    x, y, z = np.asarray(points, np.float32).T[:, :, None, None]
    return thorax(build, Points(x, y, z)).lung[:, 0, 0]
