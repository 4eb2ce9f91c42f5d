"""Does a scan fit better when it is mirrored? What a wrong orientation in a header looks like to a registration."""

from __future__ import annotations

import itertools
from dataclasses import replace

from atlasnet.errors import RegistrationError
from atlasnet.execution import Execution
from atlasnet.registration.affine import AffineSettings, align_contents, contents_of
from atlasnet.registration.affine_pyramid import build_pyramid
from atlasnet.volume import Volume

# Coarse: which side the heart is on needs no detail, and what differs between two subjects in detail is left out. Turns
# are not searched: a scan and its mirror images are placed by the same means, and only their difference counts.
MIRROR_SETTINGS = AffineSettings(voxels=(10_000, 3_000), turn_count=0)


def mirror_correlations(
    source: Volume,
    target: Volume,
    *,
    execution: Execution | None = None,
) -> dict[str, float]:
    """How like the target the source is, as it is stored and mirrored along its canonical axes, each best placed.

    The array is mirrored and the header stays, as in a file whose header names the wrong orientation.

    Args:
        source: (c, z, y, x), canonical orientation.
        target: (c, z, y, x), with as many channels.
        execution: device, threads, cancellation.

    Returns:
        The correlation (NCC of local contrast, see `affine_register`) by the axes that were mirrored: ``""`` for none,
        ``"x"`` for left and right exchanged, ``"xy"``, and so on; 0 where no placement makes the images alike.

    Raises:
        VolumeError: images that do not fit each other, or a constant one.
        Cancelled: the caller asked for it.
    """
    place = Execution.of(execution)
    found = {}
    with place.active():
        here, there = contents_of(target, None, source, None, MIRROR_SETTINGS, place)
        with replace(place, threads=1).active():
            pyramid = build_pyramid(here.level, there.level, MIRROR_SETTINGS.voxels, place.pause)
            for mirrored in itertools.product((False, True), repeat=here.level.dims):
                axes = [axis for axis, turned in enumerate(mirrored) if turned]
                # Levels are (c, [z,] y, x), axes (x, y[, z]); the middle of the field of view stays where it is.
                dimensions = [here.level.dims - axis for axis in axes]
                levels = [
                    (
                        seen,
                        replace(level, image=level.image.flip(dimensions), weight=level.weight.flip(dimensions)),
                    )
                    for seen, level in pyramid
                ]
                name = "".join("xyz"[there.axes[axis]] for axis in axes)
                try:
                    fit, _ = align_contents(here, there, levels, MIRROR_SETTINGS, place)
                    found[name] = round(fit.correlation, 6)
                except RegistrationError:
                    found[name] = 0.0
    return found


def orientation_margin(correlations: dict[str, float]) -> tuple[float, str]:
    """By how much the scan as it is stored fits better than its best mirror image, and along which axes that is."""
    mirrored = {axes: value for axes, value in correlations.items() if axes}
    best = max(mirrored, key=lambda axes: mirrored[axes])
    return correlations[""] - mirrored[best], best
