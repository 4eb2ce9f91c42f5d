"""Bones: spine, ribs with their cartilage, sternum, clavicles, scapulae and upper arms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort.phantom.build import Build
from atlasnet.cohort.phantom.canvas import TISSUES, Canvas
from atlasnet.cohort.phantom.solids import Points, Window, capsule, ellipse
from atlasnet.cohort.phantom.thorax import BACK, COLUMN, DENT, FRONT, Thorax

Array = NDArray[np.floating]

CORTEX, SPONGE, CARTILAGE = 620.0, 190.0, 105.0  # HU


def _bone(canvas: Canvas, distance: Array, marrow: Array | float, window: Window, *, shell: float) -> None:
    """A solid bone with a dense shell ``shell`` mm thick."""
    canvas.paint(distance, CORTEX, "bone", window)
    canvas.paint(distance + np.float32(shell), marrow, "marrow", window)


def _all(*distances: Array) -> Array:
    """The intersection of solids."""
    return np.asarray(np.maximum.reduce(distances), np.float32)


def paint_spine(canvas: Canvas, build: Build, frame: Thorax, texture: Array) -> None:
    """Vertebral bodies and discs, canal, arches, transverse and spinous processes."""
    p = canvas.points
    low = float(COLUMN.table.min())
    window = p.window((-60, low - 40, -400), (60, 140, 400))
    if window is None:
        return
    x, y, z = frame.spine_x[window], frame.spine_y[window], p.z[window]
    period = np.float32(build.vertebra)

    def within(height: Array) -> Array:
        """Height above the middle of the nearest vertebra, mm."""
        return np.asarray(height - period * np.rint(height / period), np.float32)

    w = within(z)
    half = period / 2 - np.float32(2.4)
    waist = np.float32(1.5) * (1 - (w / half) ** 2)
    body = ellipse(x, y, 17.5, 14.0) + waist
    canvas.paint(_all(body + 1, np.abs(w) - period / 2), 85.0, "cartilage", window)
    _bone(canvas, _all(body, np.abs(w) - half), SPONGE + 35 * texture[window], window, shell=1.6)
    ring = np.hypot(x, y - np.float32(24))
    _bone(canvas, _all(ring - np.float32(14), np.abs(w - 2) - np.float32(9.5)), 320.0, window, shell=1.8)
    across = np.abs(x)
    wing = _all(np.abs(y - 24 - np.float32(0.3) * across) - 4, np.abs(w - 4) - 5, across - 32, 8 - across)
    _bone(canvas, wing, 260.0, window, shell=1.6)
    tip = _all(
        across - np.float32(3.2), np.abs(within(z + np.float32(0.6) * (y - 34))) - np.float32(5.5), y - 64, 32 - y
    )
    _bone(canvas, tip, 300.0, window, shell=1.5)
    canvas.paint(ring - np.float32(9.5), -40.0, "canal", window)
    canvas.paint(ring - np.float32(7.5), 28.0, "canal", window)


def paint_ribs(canvas: Canvas, build: Build, frame: Thorax) -> None:
    """Twelve pairs of ribs that follow the cavity's wall, sloping down to the front where cartilage goes on."""
    p = canvas.points
    near = np.flatnonzero((frame.cavity > 0) & (frame.cavity < 16) & (p.z < 112))
    if near.size == 0:
        return
    d, x, z = frame.cavity.ravel()[near], np.abs(p.x.ravel()[near]), p.z.ravel()[near]
    depth, sx = frame.depth.ravel()[near], np.abs(frame.spine_x.ravel()[near])
    # 0 at the spine, 1 at the sternum, along the wall.
    way = np.arctan2(x / np.float32(125), depth) / np.float32(np.pi)
    drop = np.float32(96) * np.power(way, np.float32(1.1))
    rise = np.float32(76) * np.maximum(way - np.float32(0.76), 0) / np.float32(0.24) * (z < np.float32(-20))
    period = np.float32(build.vertebra)
    phase = z + drop - rise + np.float32(build.rib_phase) * period
    dz = (phase - period * np.rint(phase / period)) * np.float32(0.9)
    section = (np.sqrt(((d - np.float32(7.2)) / np.float32(3.6)) ** 2 + (dz / np.float32(6.2)) ** 2) - 1) * np.float32(
        4.2
    )
    distance = np.maximum(section, np.float32(21) - sx)
    # The lowest ribs end free in the flank.
    floating = np.float32(0.62) + np.clip((z + np.float32(190)) / np.float32(140), 0, 1) * np.float32(0.4)
    distance = np.maximum(distance, (way - floating) * 120)
    share = canvas.coverage(distance)
    gristle = np.clip((way - np.float32(0.80)) * 18 + np.float32(0.5), 0, 1)
    marrow = canvas.coverage(distance + np.float32(1.5))
    solid = CORTEX + marrow * (np.float32(230) - CORTEX)
    value = solid + gristle * (CARTILAGE - solid)
    hu, tissue = canvas.hu.reshape(-1), canvas.tissue.reshape(-1)
    hu[near] += share * (value - hu[near])
    inside = share > 0.5
    tissue[near[inside & (gristle > 0.5)]] = TISSUES["cartilage"]
    tissue[near[inside & (gristle <= 0.5)]] = TISSUES["bone"]


def paint_sternum(canvas: Canvas) -> None:
    """Manubrium and body of the sternum, in front of the cavity."""
    p = canvas.points
    window = p.window((-32, -120, -90), (32, 0, 80))
    if window is None:
        return
    block = p[window]
    front, back = FRONT(block.z), BACK(block.z)
    lead = block.y - ((front + back) / 2 - (back - front) / np.float32(2 * (1 + DENT)))
    wide = np.clip(
        13 + np.maximum(block.z - 34, 0) * np.float32(0.45) + np.clip((-40 - block.z) * np.float32(0.1), 0, 4), 0, 27
    )
    plate = _all(np.abs(lead + 9) - np.float32(5.5), np.abs(block.x) - wide, np.abs(block.z + 4) - 78)
    _bone(canvas, plate, 150.0, window, shell=1.5)


def _rod(
    canvas: Canvas,
    start: Sequence[float],
    end: Sequence[float],
    radii: tuple[float, float],
    marrow: float,
    shell: float,
) -> None:
    margin = max(radii) + canvas.edge
    window = canvas.points.window(
        [min(a, b) - margin for a, b in zip(start, end, strict=True)],
        [max(a, b) + margin for a, b in zip(start, end, strict=True)],
    )
    if window is not None:
        _bone(canvas, capsule(canvas.points[window], start, end, *radii), marrow, window, shell=shell)


def _blade(p: Points, side: int) -> Array:
    """The blade of one scapula: a thin curved triangle."""
    x = p.x * np.float32(side)
    surface = np.abs(ellipse(x, p.y - 8, 146.0, 98.0)) - np.float32(2.3)
    angle = np.arctan2(x / np.float32(146), (p.y - 8) / np.float32(98))
    height = (p.z + np.float32(30)) / np.float32(125)
    medial = np.float32(0.62) - angle
    lateral = angle - (np.float32(0.78) + np.float32(0.62) * np.clip(height, 0, 1))
    return _all(surface, medial * 110, lateral * 110, np.abs(p.z - 32) - 62)


def paint_girdle(canvas: Canvas, build: Build) -> None:
    """Clavicles, scapulae and the upper arms."""
    p = canvas.points
    for side in (-1, 1):
        low, high = sorted((side * 60, side * 165))
        window = p.window((low, -20, -40), (high, 112, 100))
        if window is not None:
            canvas.paint(_blade(p[window], side), 480.0, "bone", window)
        _rod(canvas, (side * 88, 86, 72), (side * 158, 36, 104), (4.5, 7.5), 240.0, 2.0)
        _rod(canvas, (side * 132, 40, 88), (side * 146, 22, 92), (10, 14), 260.0, 2.0)
        _rod(canvas, (side * 20, -44, 74), (side * 72, -50, 96), (8.5, 6), 200.0, 2.2)
        _rod(canvas, (side * 72, -50, 96), (side * 146, 4, 116), (6, 7), 200.0, 2.2)
        if build.arms_down:
            _rod(canvas, (side * 178, 10, 84), (side * 180, 12, 78), (24, 22), 170.0, 2.2)
            _rod(canvas, (side * 180, 12, 74), (side * 218, 18, -300), (11.5, 10.5), 40.0, 4.0)
        else:
            _rod(canvas, (side * 170, 8, 110), (side * 172, 6, 118), (24, 22), 170.0, 2.2)
            _rod(canvas, (side * 173, 5, 122), (side * 198, -10, 300), (12, 11), 40.0, 4.0)
