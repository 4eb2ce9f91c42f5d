"""What the headers of a subject's images leave open, although they can be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atlasnet.cohort.plan import is_ct
from atlasnet.cohort.subject import Subject
from atlasnet.volume.io import is_placed, states_rescale


def header_doubts(subject: Subject, channels: Sequence[str]) -> list[tuple[Path, str]]:
    """Each image whose header leaves something open, and what, with what mends it.

    A CT series without rescale slope and intercept is read as it is stored, as ITK and pydicom read it: tools
    that make DICOM of images in Hounsfield units leave them out. DICOM demands them (PS3.3 C.8.2.1), and without them a
    scanner's values are off by a thousand.

    Args:
        subject: whose images can be read.
        channels: their names, in the order of the arrays.

    Raises:
        VolumeError: an image cannot be read.
    """
    found = []
    for path in subject.images:
        if not is_placed(path):
            text = "the NIfTI header has neither form (both codes are 0): left and right, and the order of slices,"
            found.append((path, f"{text} are not known; to mend it: convert the image again from its source"))
    # One image of several channels is no DICOM.
    for path, channel in zip(subject.images, channels, strict=False):
        if is_ct(channel) and not states_rescale(path, series=subject.series):
            text = "the CT series states no rescale slope and intercept: its values are taken as Hounsfield units as"
            found.append((path, f"{text} they are stored; to mend it, where air is not about -1000: export it again"))
    return found
