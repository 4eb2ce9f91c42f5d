"""Volumes with trustworthy geometry: reading, writing, orientation, resampling."""

from atlasnet.volume.grid import Grid
from atlasnet.volume.volume import Volume

__all__ = ["Grid", "Volume"]
