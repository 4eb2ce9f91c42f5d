"""Pictures for a page: slices turned into the bytes of small image files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image

JPEG_QUALITY = 82
SHARE_STEPS = 20  # a map of shares has so many colours
SHARE_COLOURS = "cividis"  # even for every colour vision


def grey(pixels: NDArray[Any], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Intensities (rows, columns) as 0 (black) to 255 (white)."""
    low, high = window
    return np.asarray(np.clip((pixels.astype(np.float32) - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8)


def jpeg(pixels: NDArray[np.uint8], longest: int | None = None) -> bytes:
    """A JPEG of grey (rows, columns) or RGB (rows, columns, 3) pixels, neither edge longer than ``longest``."""
    image = Image.fromarray(pixels)
    if longest is not None and max(image.size) > longest:
        image = image.resize(_within(image.size, longest), Image.Resampling.BOX)
    stream = io.BytesIO()
    image.save(stream, "jpeg", quality=JPEG_QUALITY, optimize=True)
    return stream.getvalue()


def indexed_png(indices: NDArray[np.uint8], colours: NDArray[np.uint8], longest: int | None = None) -> bytes:
    """A PNG of colour numbers (rows, columns), 0 transparent; ``colours`` is (n, 3), its first row not seen."""
    image = Image.fromarray(indices)
    if longest is not None and max(image.size) > longest:
        image = image.resize(_within(image.size, longest), Image.Resampling.NEAREST)
    image.putpalette(colours.astype(np.uint8).tobytes())
    stream = io.BytesIO()
    image.save(stream, "png", transparency=0, optimize=True)
    return stream.getvalue()


def label_indices(pixels: NDArray[Any], colours: Mapping[int, str]) -> NDArray[np.uint8]:
    """Label values (rows, columns) as the numbers of their colours in `label_palette`, 0 for those without one."""
    result = np.zeros(pixels.shape, np.uint8)
    for place, value in enumerate(colours, start=1):
        result[pixels == value] = min(place, 255)
    return result


def label_palette(colours: Mapping[int, str]) -> NDArray[np.uint8]:
    """(n + 1, 3), the colours in their order behind the transparent one."""
    rows = [(0.0, 0.0, 0.0), *(to_rgb(colour) for colour in list(colours.values())[:255])]
    return np.asarray(np.rint(255 * np.array(rows)), np.uint8)


def share_indices(shares: NDArray[Any], shown: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Shares from 0 to 1 as the numbers of their colours in `share_palette`, 0 where not ``shown``."""
    steps = np.rint(np.clip(shares, 0, 1) * SHARE_STEPS).astype(np.uint8)
    return np.where(shown, steps + np.uint8(1), np.uint8(0))


def share_palette() -> NDArray[np.uint8]:
    """(n, 3), from a share of 0 to one of 1, behind the transparent one."""
    colours = colormaps[SHARE_COLOURS](np.linspace(0, 1, SHARE_STEPS + 1))[:, :3]
    return np.asarray(np.rint(255 * np.vstack([np.zeros((1, 3)), colours])), np.uint8)


def gradient(name: str, steps: int = 12) -> str:
    """A matplotlib colour map as a CSS background, from left to right."""
    rows = np.rint(255 * colormaps[name](np.linspace(0, 1, steps))[:, :3]).astype(int)
    return "linear-gradient(to right," + ",".join(f"rgb({r},{g},{b})" for r, g, b in rows) + ")"


def _within(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """The width and height with no edge longer than that; each edge on its own, since pixels need not be square."""
    return min(size[0], longest), min(size[1], longest)
