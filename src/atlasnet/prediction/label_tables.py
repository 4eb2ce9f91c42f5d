"""Names and colours of labels in the files that ITK-SNAP and 3D Slicer load beside a label map.

ITK-SNAP's label descriptions (``.label``) are as ``ColorLabelTable::LoadFromFile`` reads them
(github.com/pyushkevich/itksnap, Logic/Common/ColorLabelTable.cxx). 3D Slicer's colour tables (``.ctbl``) follow
slicer.readthedocs.io/en/5.6/developer_guide/modules/colors.html and what ``vtkMRMLColorTableStorageNode`` reads
(github.com/Slicer/Slicer, Libs/MRML/Core): names without spaces, label values up to 32768.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from atlasnet.cohort.segments import Segment
from atlasnet.execution import Reporter, SilentReporter, atomic_path

ITK_SNAP, SLICER = ".label", ".ctbl"
# Label values that the viewers have room for.
LARGEST = {ITK_SNAP: 2**16 - 2, SLICER: 2**15}

_UNNAMED = "unnamed"
_LONGEST_NAME = 500  # bytes; Slicer reads lines of at most 1023
_FIELDS = (
    ("IDX", "value of the label in the image"),
    ("-R-", "red, 0 to 255"),
    ("-G-", "green, 0 to 255"),
    ("-B-", "blue, 0 to 255"),
    ("-A-", "opacity, 0 to 1"),
    ("VIS", "whether it is seen in slices, 0 or 1"),
    ("MSH", "whether it is seen in 3D, 0 or 1"),
    ("LABEL", "name"),
)


def write_label_tables(
    stem: str | Path, segments: Sequence[Segment], *, reporter: Reporter | None = None
) -> list[Path]:
    """Write ``STEM.label`` for ITK-SNAP and ``STEM.ctbl`` for 3D Slicer, each whole or not at all.

    Colours are those of DICOM segmentations and reports. Viewers do not tell labels of one name apart, so names stay as
    they are but for what a format has no room for: quotation marks in ITK-SNAP's, spaces in Slicer's.

    Args:
        stem: path without a suffix.
        segments: of a model, see `atlasnet.training.model.Model.segments`.
        reporter: is warned of labels whose value a viewer has no room for; they are left out.

    Returns:
        Where they lie.
    """
    say, written = reporter or SilentReporter(), []
    for suffix, text in _WRITERS.items():
        path = Path(f"{stem}{suffix}")
        fitting = [segment for segment in segments if 0 < segment.value <= LARGEST[suffix]]
        if len(fitting) < len(segments):
            lost = ", ".join(f"{one.name} ({one.value})" for one in segments if one not in fitting)
            say.warn(f"{path.name} is without {lost}: its labels have values from 1 to {LARGEST[suffix]}")
        content = text(fitting).encode()
        if not path.is_file() or path.read_bytes() != content:  # what is done stays as it is
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
        written.append(path)
    return written


def _itk_snap(segments: Sequence[Segment]) -> str:
    lines = ["# ITK-SnAP Label Description File", "# IDX -R- -G- -B- -A- VIS MSH LABEL"]
    lines += [f"# {name}: {meaning}" for name, meaning in _FIELDS]
    lines.append('0 0 0 0 0 0 0 "Clear Label"')
    for segment in segments:
        red, green, blue = segment.rgb
        name = printable(segment.name).replace('"', "'")
        lines.append(f'{segment.value} {red} {green} {blue} 1 1 1 "{name}"')
    return "\n".join([*lines, ""])


def _slicer(segments: Sequence[Segment]) -> str:
    lines = ["# Color table file", f"# {len(segments) + 1} values", "0 Background 0 0 0 0"]
    for segment in segments:
        red, green, blue = segment.rgb
        # Slicer cuts off ticks at the ends, and a name of nothing else would stop it.
        name = "_".join(printable(segment.name).split()).strip("'") or _UNNAMED
        lines.append(f"{segment.value} {name} {red} {green} {blue} 255")
    return "\n".join([*lines, ""])


def printable(name: str) -> str:
    """A name on one line, never empty, cut where no viewer would read on."""
    text = "".join(letter if letter.isprintable() else " " for letter in name).strip()
    return text.encode()[:_LONGEST_NAME].decode(errors="ignore") or _UNNAMED


_WRITERS: dict[str, Callable[[Sequence[Segment]], str]] = {ITK_SNAP: _itk_snap, SLICER: _slicer}
