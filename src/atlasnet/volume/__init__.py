"""Volumes with trustworthy geometry: reading, writing, orientation, resampling."""

from atlasnet.volume.files import volume_digest, volume_files
from atlasnet.volume.grid import Grid
from atlasnet.volume.io import read_grid, read_labels, read_volume
from atlasnet.volume.orientation import Orientation, canonical
from atlasnet.volume.resample import resample
from atlasnet.volume.sampling import sample
from atlasnet.volume.volume import Volume
from atlasnet.volume.writing import write_labels, write_volume

__all__ = [
    "Grid",
    "Orientation",
    "Volume",
    "canonical",
    "read_grid",
    "read_labels",
    "read_volume",
    "resample",
    "sample",
    "volume_digest",
    "volume_files",
    "write_labels",
    "write_volume",
]
