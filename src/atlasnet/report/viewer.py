"""NiiVue on a page: volumes to look through in the browser, held in the page itself."""

from __future__ import annotations

import base64
import gzip
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb

from atlasnet.report.page import Page, asset, script_json
from atlasnet.volume import Volume, resample, write_volume
from atlasnet.wording import lengths

VERSION = "0.69.0"
BUNDLE, LICENCE = f"niivue-{VERSION}.js", f"niivue-{VERSION}.LICENSE.txt"
SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
MOST_VOXELS = 1_500_000  # of a volume in a page; a larger one is made coarser
_WHOLE_NUMBERS = 100.0  # intensities that span more than this are kept as whole numbers, which halves the page


@dataclass(frozen=True)
class Shown:
    """A volume in the viewer.

    Args:
        name: what it is.
        volume: (c, z, y, x), whose first channel is shown.
        window: the intensities that are black and white, of an image.
        labels: value to name and colour, of a label map.
    """

    name: str
    volume: Volume
    window: tuple[float, float] | None = None
    labels: Mapping[int, tuple[str, str]] | None = None


def add_viewer(page: Page, shown: Sequence[Shown], at: Sequence[float] | None = None) -> None:
    """Put a viewer onto a page, with the volumes over each other; it starts when its button is clicked.

    Volumes of more than `MOST_VOXELS` are made coarser, of which the page tells.

    Args:
        page: where to.
        shown: the volumes.
        at: the point (x, y, z; LPS mm) at which the planes open; the middle without one.
    """
    volumes, coarser = [], []
    for place, one in enumerate(shown):
        volume, made_coarser = _fitted(one)
        if made_coarser:
            spacing = lengths(volume.grid.spacing)
            coarser.append(f"{one.name}: {spacing} mm")
        # What lies over the first is half transparent, as the slider is at the start.
        volumes.append(_settings(one, volume, 0.5 if place else 1.0))
    at_ras = None if at is None else [-float(at[0]), -float(at[1]), float(at[2])]
    options = "".join(
        f'<option value="{value}">{name}</option>'
        for value, name in ((3, "three planes"), (0, "axial"), (1, "coronal"), (2, "sagittal"), (4, "volume"))
    )
    fade = (
        f'<label>{escape(shown[-1].name)} <input type="range" min="0" max="100" value="50"></label>'
        if len(shown) > 1
        else ""
    )
    page.part(
        '<div class="viewer"><div class="controls"><button type="button">Open the viewer</button>'
        f'<span class="said" role="status"></span></div><div class="stage" hidden>'
        f'<div class="controls"><label>view <select>{options}</select></label>{fade}</div>'
        '<div class="screen"><canvas aria-label="the volume in the viewer"></canvas></div></div>'
        f"{script_json({'volumes': volumes, 'at': at_ras})}</div>",
        what="the volume to look through, " + " and ".join(one.name for one in shown),
    )
    note = "Click into a plane to move the cross, scroll to leaf, drag with the right button to change the grey window."
    if coarser:
        note += f" Made coarser, to keep the page small: {'; '.join(coarser)}."
    page.text(note, small=True)
    page.once("niivue", f'<script type="text/plain" id="niivue-bundle">{_bundle()}</script>')
    page.once(
        "niivue licence",
        f"<details><summary>The viewer is NiiVue {VERSION}: its licence</summary>"
        f"<pre>{escape(asset(LICENCE))}</pre></details>",
    )


@cache
def _bundle() -> str:
    return _packed(asset(BUNDLE).encode())


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode("ascii")


def _fitted(one: Shown) -> tuple[Volume, bool]:
    """The first channel, with few enough voxels and in a type that a page can carry."""
    volume = Volume(one.volume.array[:1], one.volume.grid)
    grid = volume.grid
    if coarse := grid.voxels > MOST_VOXELS:
        # Towards cubes: the axis that is finest gives way first.
        spacing = grid.spacing.copy()
        thick = grid.size > 1
        while np.prod(np.ceil(grid.size * grid.spacing / spacing)) > MOST_VOXELS:
            spacing[thick & (spacing <= spacing[thick].min() * 1.01)] *= 1.05
        volume = resample(volume, grid.with_spacing(spacing), interpolation="linear" if one.labels is None else "label")
    array = volume.array
    if one.labels is None:
        low, high = float(array.min()), float(array.max())
        whole = high - low > _WHOLE_NUMBERS and low >= -32768 and high <= 32767
        array = np.rint(array).astype(np.int16) if whole else array.astype(np.float32)
    else:
        # The viewer finds a colour by its place, so the labels are numbered as they come.
        numbered = np.zeros(array.shape, np.uint8 if len(one.labels) < 256 else np.uint16)
        for place, value in enumerate(one.labels, start=1):
            numbered[array == value] = place
        array = numbered
    return volume.replace(array), coarse


def _settings(one: Shown, volume: Volume, opacity: float) -> dict[str, Any]:
    """What NiiVue is told of a volume."""
    with tempfile.TemporaryDirectory(prefix="atlasnet-") as folder:
        path = Path(folder) / "volume.nii"
        write_volume(path, volume)
        data = _packed(path.read_bytes())
    settings: dict[str, Any] = {
        "url": f"data:application/gzip;base64,{data}",
        "name": f"{one.name}.nii.gz",
        "opacity": opacity,
    }
    if one.window is not None:
        settings |= {"cal_min": one.window[0], "cal_max": one.window[1]}
    if one.labels is not None:
        colours = np.array([(0.0, 0.0, 0.0), *(to_rgb(colour) for _, colour in one.labels.values())])
        red, green, blue = np.rint(255 * colours).astype(int).T.tolist()
        settings["colours"] = {
            "R": red,
            "G": green,
            "B": blue,
            "A": [0, *[255] * len(one.labels)],
            "I": list(range(len(one.labels) + 1)),
            "labels": ["background", *(name for name, _ in one.labels.values())],
        }
    return settings
