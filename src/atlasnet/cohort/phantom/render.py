"""From one subject's measures to voxels: CT image, labels and tissues, slab by slab."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort.phantom.build import NOISE, REACH, TEXTURE, Build, stream
from atlasnet.cohort.phantom.canvas import TISSUES, Canvas
from atlasnet.cohort.phantom.disease import Disease
from atlasnet.cohort.phantom.lattice import Lattice
from atlasnet.cohort.phantom.organs import paint_abdomen, paint_mediastinum, paint_windpipe
from atlasnet.cohort.phantom.skeleton import paint_girdle, paint_ribs, paint_spine, paint_sternum
from atlasnet.cohort.phantom.solids import Points, Window
from atlasnet.cohort.phantom.thorax import Thorax, thorax
from atlasnet.cohort.phantom.tree import AIRWAY_WALL, draw, trees
from atlasnet.volume.grid import Grid
from atlasnet.volume.volume import Volume

Array = NDArray[np.floating]
Axes = tuple[Array, Array, Array]

LABELS = {"background": 0, "lung": 1, "disease": 2}
SLAB_VOXELS = 1_200_000  # keeps each of a slab's arrays within a processor's cache


@dataclass(frozen=True)
class Rendering:
    """One subject in voxels, all on one grid.

    Args:
        image: int16, HU.
        labels: uint8, values of `LABELS`; disease lies inside the lung.
        tissues: uint8, values of `TISSUES`.
    """

    image: Volume
    labels: Volume
    tissues: Volume


@dataclass(frozen=True)
class _Subject:
    """What stays the same from slab to slab."""

    build: Build
    disease: Disease | None
    coarse: Lattice
    fine: Lattice
    vessels: NDArray[np.uint8]
    walls: NDArray[np.uint8]
    lumina: NDArray[np.uint8]
    edge: float


def render(build: Build, grid: Grid, *, disease: bool) -> Rendering:
    """Render a subject on an axis-aligned grid; memory is that of the results plus a few dozen slabs."""
    axes = tuple(
        (grid.origin[i] + grid.spacing[i] * np.arange(grid.shape[2 - i])).astype(np.float32) for i in (2, 1, 0)
    )
    assert len(axes) == 3
    volume = float(np.prod(grid.spacing))
    edge = max(0.7, float(np.cbrt(volume)))
    vessels, airways = trees(build)
    rng = stream(build.seed, TEXTURE)
    subject = _Subject(
        build,
        Disease.draw(build) if disease else None,
        Lattice.random(rng, 14.0, REACH),
        Lattice.random(rng, 5.0, REACH),
        draw(vessels, axes, edge),
        draw(airways, axes, edge, AIRWAY_WALL),
        draw(airways, axes, edge),
        edge,
    )
    image = np.empty(grid.shape, np.int16)
    labels = np.empty(grid.shape, np.uint8)
    tissues = np.empty(grid.shape, np.uint8)
    thickness = max(1, SLAB_VOXELS // (grid.shape[1] * grid.shape[2]))
    sigma = 11.0 * float(np.clip((11.4 / volume) ** 0.25, 0.5, 2.0))
    for low in range(0, grid.shape[0], thickness):
        slab = slice(low, min(low + thickness, grid.shape[0]))
        canvas, labels[slab] = _paint(subject, (axes[0][slab], axes[1], axes[2]), slab)
        for z in range(slab.start, slab.stop):
            canvas.hu[z - low] += sigma * _grain(stream(build.seed, NOISE, z), grid.shape[1:])
        image[slab] = np.clip(np.rint(canvas.hu), -1024, 3071)
        tissues[slab] = canvas.tissue
    return Rendering(Volume(image, grid), Volume(labels, grid), Volume(tissues, grid))


def _grain(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """The noise of one slice: deviation 1, neighbours correlated as a soft reconstruction kernel leaves them."""
    ny, nx = shape
    white = rng.standard_normal((ny + 2, nx + 2), dtype=np.float32)
    rows = white[:-2] + 2 * white[1:-1] + white[2:]
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / np.float32(6))


def _paint(subject: _Subject, axes: Axes, slab: slice) -> tuple[Canvas, NDArray[np.uint8]]:
    """Everything but noise, from outside to inside."""
    build = subject.build
    points = Points(*build.to_anatomy(*axes))
    shape = points.x.shape
    canvas = Canvas(points, np.full(shape, -1000, np.float32), np.zeros(shape, np.uint8), subject.edge)
    frame = thorax(build, points)
    coarse = subject.coarse.on_axes(*axes)[0]
    _paint_table(canvas, build, axes)
    _paint_wall(canvas, build, frame, coarse)
    canvas.paint(frame.cavity, -95 + 6 * coarse, "mediastinum")
    paint_abdomen(canvas, build, frame, coarse)
    paint_mediastinum(canvas, build, coarse)
    labels = _paint_lungs(subject, canvas, frame, coarse, axes, slab)
    paint_windpipe(canvas)
    paint_spine(canvas, build, frame, coarse)
    paint_ribs(canvas, build, frame)
    paint_sternum(canvas)
    paint_girdle(canvas, build)
    return canvas, labels


def _paint_table(canvas: Canvas, build: Build, axes: Axes) -> None:
    """The scanner's table top: a sheet on foam over a curved shell, in the world's coordinates."""
    y, x = axes[1][:, None], axes[2][None, :]
    top = (116 + 0.3 * build.fat) * build.scale[1] + 12
    sheet = np.maximum(np.abs(y - top) - 1.5, np.abs(x) - 205)
    shell = np.maximum(np.abs(y - top - 62 + (x / 205) ** 2 * 40) - 2.0, np.abs(x) - 205)
    shape = canvas.hu.shape
    for distance, hu in ((sheet, -350.0), (shell, 60.0)):
        canvas.paint(np.broadcast_to(distance, shape).astype(np.float32), hu, "table")


def _paint_wall(canvas: Canvas, build: Build, frame: Thorax, coarse: Array) -> None:
    """Skin, fat and muscle of the chest wall."""
    canvas.paint(frame.body, 5.0, "muscle")
    canvas.paint(frame.body + np.float32(2), -102 + 5 * coarse, "fat")
    # Fat is thickest in front and at the flanks, thin over the back.
    fat = np.float32(build.fat) * (np.float32(0.95) - np.float32(0.35) * np.clip(frame.depth, -1.5, 1.5)) + 3 * coarse
    # In front, the muscles over the ribs are thin whatever the thickness of the fat.
    limit = 20 + 60 * np.maximum(frame.depth + 0.75, 0) + 3 * np.maximum(canvas.points.z - 45, 0)
    muscle = np.maximum.reduce([frame.body + np.maximum(fat, 3.0), -frame.cavity, frame.cavity - limit])
    if build.breast:
        # Breasts are fat with strands of gland, not muscle.
        p = canvas.points
        front = np.maximum(
            np.abs(np.abs(p.x) - 82) - np.float32(build.breast), np.abs(p.z + 22) - np.float32(build.breast)
        )
        gland = np.maximum.reduce([front, frame.body + 9, p.y + np.float32(96), 6 - 14 * np.abs(coarse)])
        canvas.paint(gland, 5.0, "fat")
    # Sheets of fat part the layers of muscle: surfaces on which a smooth field has one of a few values.
    layer = np.abs(np.sin(np.float32(0.11) * frame.cavity + np.float32(1.15) * coarse))
    part = np.clip((layer - np.float32(0.10)) * 7 + np.float32(0.4), 0, 1) * np.clip(
        np.float32(1.6) - 0.5 * np.abs(coarse), 0.3, 1
    )
    canvas.paint(muscle, -70 + part * np.float32(122) + 3 * coarse, "muscle")


def _paint_lungs(
    subject: _Subject, canvas: Canvas, frame: Thorax, coarse: Array, axes: Axes, slab: slice
) -> NDArray[np.uint8]:
    """Parenchyma, disease, vessels and airways; gives the slab's labels."""
    labels = np.zeros(canvas.hu.shape, np.uint8)
    near = frame.lung < subject.edge
    if not near.any():
        return labels
    window = _bounds(near)
    block = (axes[0][window[0]], axes[1][window[1]], axes[2][window[2]])
    part = Thorax(*(a[window] for a in vars(frame).values()))
    inside = part.lung < 0
    build, points = subject.build, part.points
    fine = subject.fine.on_axes(*block)[0]
    hu = np.float32(build.air) + np.float32(build.gradient) * np.clip(0.5 + 0.5 * part.depth, 0, 1.1)
    hu += np.float32(0.18) * np.clip(np.float32(-40) - points.z, 0, 100) + 14 * coarse[window] + 11 * fine
    # The oblique fissure, a sheet about 1 mm thick.
    fissure = np.abs(np.float32(0.62) * points.y + np.float32(0.78) * points.z + np.float32(22) + 5 * coarse[window])
    thin = min(1.0, 1.0 / subject.edge)
    hu += thin * np.clip(1 - fissure / np.float32(subject.edge), 0, 1) * 170
    labels[window][inside] = LABELS["lung"]
    if subject.disease is not None:
        score = subject.disease.score(part, block)
        subject.disease.apply(hu, score, block, subject.edge)
        labels[window][inside & (score > 0)] = LABELS["disease"]
    rows = slice(slab.start + window[0].start, slab.start + window[0].stop)
    for volume, value in (
        (subject.vessels, np.float32(build.blood)),
        (subject.walls, np.float32(-150)),
        (subject.lumina, np.float32(-985)),
    ):
        share = volume[rows, window[1], window[2]] * np.float32(1 / 255)
        hu += share * (value - hu)
    canvas.paint(part.lung, hu, "lung", window)
    tissue = canvas.tissue[window]
    tissue[inside & (subject.vessels[rows, window[1], window[2]] > 127)] = TISSUES["vessel"]
    tissue[inside & (subject.lumina[rows, window[1], window[2]] > 127)] = TISSUES["airway"]
    return labels


def _bounds(mask: NDArray[np.bool_]) -> Window:
    """The smallest block that holds every true voxel."""
    found = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(i for i in range(3) if i != axis)))
        found.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return found[0], found[1], found[2]
