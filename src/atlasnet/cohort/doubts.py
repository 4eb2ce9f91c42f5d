"""What a cohort and the headers of its images leave open, although they can be read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from atlasnet.cohort.channels import channel_doubts
from atlasnet.cohort.cohort import Cohort
from atlasnet.cohort.fingerprint import Fingerprint
from atlasnet.cohort.plan import is_ct
from atlasnet.cohort.subject import Subject
from atlasnet.volume.io import is_placed, stated_series, states_rescale
from atlasnet.wording import counted

AIR, TISSUE = -900.0, 0.0
"""HU that a CT scan reaches below and above."""

_MODALITIES = {
    "CT": ("ct",),
    "MR": (
        *("mr", "mri", "t1", "t1w", "t1c", "t1ce", "t1gd", "t1n", "t2", "t2w", "t2f", "t2star", "flair", "pd", "pdw"),
        *("adc", "dwi", "dti", "swi"),
    ),
    "PT": ("pet", "pt"),
}
"""What well-known names of channels mean in the terms of DICOM (PS3.3 C.7.3.1.1.1), without case and marks."""

_RAW = ("nonorm", "rescale_to_0_1", "rgb_to_0_1")  # nnU-Net's names for intensities that are left as they are


def is_hardly_hounsfield(low: float, high: float) -> bool:
    """Whether intensities of this range are those of no CT."""
    return low > -100 or high < TISSUE


def cohort_doubts(cohort: Cohort, fingerprint: Fingerprint) -> list[str]:
    """What a cohort declares and its subjects do not show: labels, and what channels are called.

    Args:
        cohort: whose declaration it is.
        fingerprint: of its subjects.
    """
    found = []
    labelled = [subject for subject in fingerprint.subjects if subject.label_ml]
    for name, value in cohort.labels.items():
        if labelled and value != 0 and not any(subject.label_ml.get(name) for subject in labelled):
            found.append(f"no subject has the label {name} ({value})")
    for name in cohort.channels:
        if name.strip().lower() in _RAW:
            text = f"channel {name}: what nnU-Net takes from this name is not taken here: intensities are normalised"
            found.append(f"{text} image by image, unless plan.json gives the channel a window")
    return found


def ct_doubts(cohort: Cohort, fingerprint: Fingerprint) -> list[str]:
    """Channels that are called CT, and how many subjects' intensities are hardly those of one."""
    found = []
    for index, name in enumerate(cohort.channels):
        ranges = [subject.percentiles[index] for subject in fingerprint.subjects]
        others = sum(is_hardly_hounsfield(low, high) for low, *_, high in ranges)
        if is_ct(name) and others:
            text = (
                f"channel {name} of {counted(others, 'subject')} hardly holds Hounsfield units, and is taken for them"
            )
            found.append(f"{text}; see atlasnet check")
    return found


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
    found = channel_doubts(subject.sources, channels)
    for path in subject.images:
        if not is_placed(path):
            text = "the NIfTI header has neither form (both codes are 0): left and right, and the order of slices,"
            found.append((path, f"{text} are not known; to mend it: convert the image again from its source"))
    # One image of several channels is no DICOM.
    for (path, series), channel in zip(subject.sources, channels, strict=False):
        if is_ct(channel) and not states_rescale(path, series=series):
            text = "the CT series states no rescale slope and intercept: its values are taken as Hounsfield units as"
            found.append((path, f"{text} they are stored; to mend it, where air is not about -1000: export it again"))
    for path, series in dict(subject.sources).items():  # of several series of one export, one
        stated = stated_series(path, series=series)
        if stated is not None and stated.damaged_beside:
            text = f"{counted(stated.damaged_beside, 'file')} of series that were not asked for cannot be read"
            found.append((path, f"{text}; to mend it, where they are wanted: export them again"))
    return found


def modality_doubts(subject: Subject, channels: Sequence[str]) -> list[tuple[Path, str]]:
    """Each DICOM image that states another modality than its channel is named after, and what it states.

    Names that are not well known say nothing, and neither does the modality OT (other), which tools state that make
    DICOM of other formats.

    Args:
        subject: whose images can be read.
        channels: their names, in the order of the arrays.

    Raises:
        VolumeError: an image cannot be read.
    """
    found = []
    for (path, series), channel in zip(subject.sources, channels, strict=False):
        plain = re.sub("[^a-z0-9]", "", channel.lower())
        expected = next((modality for modality, names in _MODALITIES.items() if plain in names), None)
        if expected is None:
            continue
        stated = stated_series(path, series=series)
        if stated is not None and stated.modality not in ("", "OT", expected):
            found.append(
                (path, f"its DICOM header states the modality {stated.modality}, and the channel is {channel}")
            )
    return found
