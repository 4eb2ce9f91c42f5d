"""Branching vessels and airways: grown towards points of the lung, then drawn into the voxels.

A tree divides the points that it has to reach in two, grows part of the way to the middle of each half, and goes on
from there; radii follow Murray's law (Murray, PNAS 12, 1926): the cube of a parent's is the sum of its children's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort.phantom.build import TREES, Build, stream
from atlasnet.cohort.phantom.thorax import lung_distance

Array = NDArray[np.floating]

ENDS = 1800  # tips of each of the four trees (an artery's and a vein's in either lung)
TIP_RADIUS = 0.55  # mm
ARTERY_ROOTS = ((-44.0, 4.0, -14.0), (46.0, 8.0, -4.0))
VEIN_ROOTS = ((-52.0, 6.0, -38.0), (54.0, 10.0, -36.0))
BRONCHUS_ENDS = ((-46.0, 14.0, -34.0), (50.0, 18.0, -30.0))
AIRWAY_ENDS = 8  # an airway goes on while its artery feeds at least so many tips
AIRWAY_WALL = 0.35  # of the lumen's radius


@dataclass(frozen=True)
class Tree:
    """Nodes of a tree; segment i runs from node ``parent[i]`` to node i.

    Args:
        position: (n, 3) anatomical points (x, y, z), mm; node 0 is the root.
        parent: (n,) index of the parent; the root's is itself.
        tips: (n,) how many tips lie beyond the node.
    """

    position: NDArray[np.float64]
    parent: NDArray[np.int64]
    tips: NDArray[np.int64]

    @property
    def radius(self) -> NDArray[np.float64]:
        """(n,) radius in mm of the segment that ends at each node."""
        return np.asarray(TIP_RADIUS * np.cbrt(self.tips))


def grow(root: tuple[float, float, float], targets: NDArray[np.float64], rng: np.random.Generator) -> Tree:
    """Grow a tree from ``root`` to every one of ``targets`` (n, 3), anatomical mm, a generation at a time."""
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    # Not a matrix product, whose rounding depends on the number of threads.
    turned = (targets[:, :, None] * turn).sum(1)
    position, parent, tips = [np.asarray([root], np.float64)], [np.zeros(1, np.int64)], [np.array([len(targets)])]
    members, counts, nodes, total = np.arange(len(targets)), np.array([len(targets)]), np.zeros(1, np.int64), 1
    where = position[0]
    while len(counts):
        group = np.repeat(np.arange(len(counts)), counts)
        starts = np.cumsum(counts) - counts
        points = turned[members]
        spread = np.maximum.reduceat(points, starts) - np.minimum.reduceat(points, starts)
        along = np.take_along_axis(points, spread.argmax(1)[group, None], axis=1)[:, 0]
        members = members[np.lexsort((along, group))]
        cut = np.clip(np.rint(counts * rng.uniform(0.15, 0.85, len(counts))), 1, counts - 1).astype(np.int64)
        parts = np.stack([cut, counts - cut], 1).ravel()
        centre = np.add.reduceat(targets[members], np.cumsum(parts) - parts) / parts[:, None]
        way = np.where(parts == 1, 1.0, rng.uniform(0.26, 0.42, len(parts)))[:, None]
        origin = np.repeat(where, 2, axis=0)
        where = origin + way * (centre - origin)
        position.append(where)
        parent.append(np.repeat(nodes, 2))
        tips.append(parts)
        nodes = total + np.arange(len(parts))
        total += len(parts)
        alive = parts > 1
        members, counts, nodes, where = members[np.repeat(alive, parts)], parts[alive], nodes[alive], where[alive]
    return Tree(np.concatenate(position), np.concatenate(parent), np.concatenate(tips))


def _targets(build: Build, side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Points spread over one lung, none within 4 mm of its surface."""
    kept: list[NDArray[np.float64]] = []
    while sum(map(len, kept)) < ENDS:
        points = rng.uniform((2, -100, -170), (140, 95, 115), size=(4 * ENDS, 3))
        points[:, 0] *= side
        kept.append(points[lung_distance(build, points) < -4])
    return np.concatenate(kept)[:ENDS]


def _segments(
    build: Build, position: Array, radius: Array, parent: NDArray[np.int64], child: NDArray[np.int64]
) -> Array:
    """(n, 8) rows of start (x, y, z), radius, end (x, y, z), radius of the segments that end at ``child``."""
    world, above = build.to_world(position), parent[child]
    # A branch leaves a wider parent with nearly its own width.
    start = np.minimum(radius[above], 1.15 * radius[child])
    return np.concatenate([world[above], start[:, None], world[child], radius[child, None]], 1).astype(np.float32)


def trees(build: Build) -> tuple[Array, Array]:
    """The subject's pulmonary vessels and airway lumina as segments (n, 8) in world mm."""
    vessels: list[Array] = []
    airways: list[Array] = []
    for number, side in enumerate((-1, 1)):
        for kind, roots in enumerate((ARTERY_ROOTS, VEIN_ROOTS)):
            rng = stream(build.seed, TREES, number, kind)
            tree = grow(roots[number], _targets(build, side, rng), rng)
            child = np.arange(1, len(tree.parent))
            vessels.append(_segments(build, tree.position, tree.radius, tree.parent, child))
            if kind == 0:
                lumen = 0.85 * tree.radius
                # An airway runs beside its artery, wall against wall.
                beside = tree.position + (tree.radius + 1.35 * lumen)[:, None] * np.array([0.35 * side, 0.8, -0.45])
                beside[0] = BRONCHUS_ENDS[number]
                child = child[tree.tips[child] >= AIRWAY_ENDS]
                airways.append(_segments(build, beside, lumen, tree.parent, child))
    return np.concatenate(vessels), np.concatenate(airways)


def draw(segments: Array, axes: tuple[Array, Array, Array], edge: float, grow_by: float = 0.0) -> NDArray[np.uint8]:
    """The share of each voxel, in 255ths, that lies inside any segment.

    Args:
        segments: (n, 8), see `trees`.
        axes: world coordinates of the voxel centres along z, y and x, evenly spaced, mm.
        edge: width of the partial volume ramp, mm.
        grow_by: widen every radius by this share of itself.
    """
    shape = tuple(len(a) for a in axes)
    first = np.array([a[0] for a in axes], np.float32)
    step = np.array([a[1] - a[0] if len(a) > 1 else 1.0 for a in axes], np.float32)
    share = np.zeros(int(np.prod(shape)), np.uint8)
    a, b = segments[:, 2::-1], segments[:, 6:3:-1]  # (z, y, x)
    radius = np.maximum(segments[:, 3], segments[:, 7]) * np.float32(1 + grow_by)
    peak = _fullness(radius, edge) * np.minimum(1, (radius + np.float32(edge / 2)) / edge)
    visible = peak > 0.02
    a, b, radius = a[visible], b[visible], radius[visible]
    # Pieces no longer than a few voxels keep the boxes around them small.
    length = 2 * radius + edge + 2 * step.max()
    count = np.maximum(1, np.ceil(np.linalg.norm(b - a, axis=1) / length)).astype(int)
    owner = np.repeat(np.arange(len(count)), count)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    t = (number / count[owner])[:, None].astype(np.float32)
    way = (b - a)[owner]
    start, move, r = a[owner] + t * way, way / count[owner, None], radius[owner]
    half = np.ceil((np.abs(move) / 2 + (r + np.float32(edge / 2))[:, None]) / step).astype(int)
    order = np.lexsort(half.T)
    half, start, move, r = half[order], start[order], move[order], r[order]
    bounds = np.flatnonzero(np.r_[True, (half[1:] != half[:-1]).any(1), True])
    for low, high in pairwise(bounds.tolist()):
        box = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in half[low]], indexing="ij"), -1).reshape(-1, 3)
        batch = max(1, 1_000_000 // len(box))
        for i in range(low, high, batch):
            _draw_pieces(
                share,
                shape,
                first,
                step,
                edge,
                box,
                start[i : min(i + batch, high)],
                move[i : min(i + batch, high)],
                r[i : min(i + batch, high)],
            )
    return share.reshape(shape)


def _fullness(radius: Array, edge: float) -> Array:
    """The factor that gives a tube drawn with a ramp ``edge`` mm wide the cross-section that it has.

    The ramp alone has the integral of a cone for tubes thinner than it, of a plateau with slopes for others.
    """
    thin = 3 * radius**2 * edge / (radius + np.float32(edge / 2)) ** 3
    thick = radius**2 / (radius**2 + np.float32(edge**2 / 12))
    return np.asarray(np.where(radius < edge / 2, thin, thick), np.float32)


def _draw_pieces(
    share: NDArray[np.uint8],
    shape: tuple[int, ...],
    first: Array,
    step: Array,
    edge: float,
    box: NDArray[np.int64],
    start: Array,
    move: Array,
    radius: Array,
) -> None:
    """Draw pieces that all need the same ``box`` of voxels around their middle."""
    middle = np.rint((start + move / 2 - first) / step).astype(np.int64)
    voxel = middle[:, None] + box
    inside = ((voxel >= 0) & (voxel < np.array(shape))).all(-1)
    piece, _ = np.nonzero(inside)
    voxel = voxel[inside]
    offset = voxel.astype(np.float32) * step + first - start[piece]
    along = move[piece]
    t = np.clip((offset * along).sum(-1) / np.maximum((along * along).sum(-1), np.float32(1e-6)), 0, 1)
    gap = np.sqrt(((offset - t[:, None] * along) ** 2).sum(-1))
    r = radius[piece]
    value = np.clip(np.float32(0.5) + (r - gap) / np.float32(edge), 0, 1) * _fullness(r, edge)
    flat = np.ravel_multi_index(tuple(voxel.T), shape)
    np.maximum.at(share, flat, (value * np.float32(255)).astype(np.uint8))
