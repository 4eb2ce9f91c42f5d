"""Soft organs: heart, great vessels, windpipe, gullet, and what the diaphragm covers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort.phantom.build import Build
from atlasnet.cohort.phantom.canvas import Canvas
from atlasnet.cohort.phantom.solids import capsule, ellipsoid, smooth_union
from atlasnet.cohort.phantom.thorax import Thorax, heart, heart_axes

Array = NDArray[np.floating]
Node = tuple[float, float, float, float]  # x, y, z, radius

# Great vessels as chains of nodes, mm.
GREAT_VESSELS: tuple[tuple[Node, ...], ...] = (
    # aorta: root, ascending, arch, descending
    (
        (4, -22, -42, 15),
        (-13, -29, -4, 15.5),
        (-9, -19, 26, 14.5),
        (4, -2, 37, 13.5),
        (19, 16, 31, 13),
        (27, 24, 8, 12.5),
        (27, 26, -40, 12),
        (17, 12, -110, 11.5),
        (5, 0, -260, 10),
    ),
    # pulmonary trunk with its left and right branch
    ((18, -42, -34, 14), (19, -22, -6, 13.5), (30, -2, 4, 11), (46, 8, -4, 9)),
    ((17, -18, -7, 11), (-10, -8, -11, 10.5), (-44, 4, -14, 9)),
    # superior and inferior vena cava
    ((-24, -22, 66, 7.5), (-25, -16, 20, 9.5), (-25, -14, -30, 10)),
    ((-24, 0, -66, 11), (-22, 8, -200, 12)),
    # brachiocephalic trunk, left carotid, left subclavian artery, left brachiocephalic vein, both jugular veins
    ((-5, -14, 36, 6.5), (-22, -10, 76, 6), (-30, -4, 200, 4.5)),
    ((5, -4, 40, 4.5), (14, -4, 90, 4.5), (28, -4, 200, 4)),
    ((14, 12, 38, 5), (26, 16, 84, 5), (80, -6, 112, 4.5), (150, 0, 124, 4)),
    ((-24, -22, 62, 7.5), (8, -32, 66, 7), (34, -26, 82, 7)),
    ((-24, -22, 66, 7), (-38, -16, 100, 6.5), (-40, -6, 200, 5.5)),
    ((34, -26, 82, 6), (40, -8, 200, 5.5)),
    # pulmonary veins into the left atrium
    ((-10, 6, -34, 8), (-52, 6, -38, 6.5)),
    ((14, 8, -32, 8), (54, 10, -36, 6.5)),
)

WINDPIPE: tuple[tuple[Node, ...], ...] = (
    ((0, -8, 260, 8.5), (0, -2, 110, 8.5), (-1, 4, 60, 8.5), (-2, 10, 4, 8.5)),
    ((-2, 10, 3, 7.5), (-26, 14, -18, 7), (-46, 14, -34, 5.5)),
    ((-2, 10, 3, 7), (26, 15, -18, 6), (50, 18, -30, 5)),
)
GULLET: tuple[Node, ...] = ((4, 8, 260, 6), (5, 16, 60, 6), (8, 18, 0, 6), (10, 8, -100, 7), (26, -4, -130, 9))
WINDPIPE_WALL = 2.0  # mm


def _chain(canvas: Canvas, nodes: tuple[Node, ...], extra: float, hu: Array | float, tissue: str) -> None:
    """Paint a tube through ``nodes``, each radius widened by ``extra``."""
    for a, b in pairwise(nodes):
        margin = max(a[3], b[3]) + extra + canvas.edge
        window = canvas.points.window(
            [min(a[i], b[i]) - margin for i in range(3)], [max(a[i], b[i]) + margin for i in range(3)]
        )
        if window is not None:
            distance = capsule(canvas.points[window], a[:3], b[:3], a[3] + extra, b[3] + extra)
            canvas.paint(distance, hu if isinstance(hu, float) else hu[window], tissue, window)


def paint_mediastinum(canvas: Canvas, build: Build, texture: Array) -> None:
    """Heart, great vessels and gullet in their fat. ``texture`` is a smooth field with unit deviation."""
    p = canvas.points
    reach = 80 * build.heart
    window = p.window((26 - reach, -34 - reach, -58 - reach), (26 + reach, -34 + reach, -58 + reach))
    if window is not None:
        block, lift = p[window], 0.5 * build.dome[1]
        muscle = heart(build, block)
        canvas.paint(muscle, build.blood + 6 + 3 * texture[window], "heart", window)
        # Blood is a little darker than the wall of the left ventricle where no contrast medium was given.
        chamber = ellipsoid(
            block, (28, -32, -58 + lift), (47 * build.heart, 30 * build.heart, 28 * build.heart), heart_axes()
        )
        canvas.paint(chamber, build.blood - 4, "heart", window)
        # The groove between atria and ventricles holds fat and the coronary arteries.
        groove = np.maximum(np.abs(ellipsoid(block, (-10, -24, -46 + lift), (35, 38, 44))) - 2, muscle + 1)
        canvas.paint(np.maximum(groove, -(muscle + 9)), -60.0, "mediastinum", window)
    atrium = p.window((-40, -16, -66), (44, 36, 6))
    if atrium is not None:
        canvas.paint(ellipsoid(p[atrium], (2, 6, -32), (34, 17, 22)), build.blood, "heart", atrium)
    _chain(canvas, GULLET, 0, 32.0, "mediastinum")
    for vessel in GREAT_VESSELS:
        _chain(canvas, vessel, 0, build.blood + 2 * texture, "vessel")


def paint_windpipe(canvas: Canvas) -> None:
    """Trachea and main bronchi: first every wall, then every lumen, so that branches join."""
    for tube in WINDPIPE:
        _chain(canvas, tube, WINDPIPE_WALL, 35.0, "mediastinum")
    for tube in WINDPIPE:
        _chain(canvas, tube, 0, -990.0, "airway")


def paint_abdomen(canvas: Canvas, build: Build, frame: Thorax, texture: Array) -> None:
    """Liver, stomach with its bubble of gas, spleen and kidneys in fat, under a thin sheet of diaphragm."""
    p = canvas.points
    top = max(build.dome) - 50
    window = p.window((-150, -110, -400), (150, 110, top))
    if window is None:
        return
    block, noise = p[window], texture[window]
    inside = np.maximum(frame.cavity[window] + 4, block.z - np.float32(top))
    # What of the cavity the lungs leave below the domes belongs to the abdomen.
    below = np.maximum(
        inside, np.minimum(frame.dome[window], block.z + np.float32(118) - 0.25 * np.maximum(50 - block.y, 0))
    )
    canvas.paint(below, -98 + 5 * noise, "fat", window)
    canvas.paint(np.maximum(below, -(below + 3.5)), 42.0, "muscle", window)
    lift = build.dome
    liver = smooth_union(
        ellipsoid(block, (-62, -8, -128 + lift[0]), (64, 78, 68)),
        ellipsoid(block, (4, -40, -112 + lift[0]), (62, 36, 34)),
        14,
    )
    cut = block.z * 0.6 + block.y * 0.2 - block.x * 0.5 + np.float32(175)
    canvas.paint(np.maximum.reduce([liver, below + 4, -cut]), 58 + 3 * noise, "liver", window)
    spleen = ellipsoid(block, (88, 42, -122 + lift[1]), (26, 38, 42))
    canvas.paint(np.maximum(spleen, below + 4), 50 + 2 * noise, "spleen", window)
    stomach = np.maximum(ellipsoid(block, (58, -18, -128 + lift[1]), (44, 46, 44)) + 3 * noise, below + 5)
    canvas.paint(stomach, 45.0, "stomach", window)
    canvas.paint(stomach + 4, 22.0, "stomach", window)
    canvas.paint(np.maximum(stomach + 4, block.y + np.float32(34)), -960.0, "stomach", window)
    for side in (-1, 1):
        kidney = ellipsoid(block, (side * 58, 34, -205), (27, 24, 48))
        canvas.paint(np.maximum(kidney, below + 4), 34 + 3 * noise, "muscle", window)
