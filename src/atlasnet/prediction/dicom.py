"""What DICOM segmentations and structure sets have in common: whose they are, of which series, and what made them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atlasnet import __version__
from atlasnet.errors import InputError, VolumeError
from atlasnet.volume import Volume
from atlasnet.volume.names import is_dicom

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from atlasnet.cohort import Subject
    from atlasnet.cohort.segments import Segment
    from atlasnet.prediction.ensemble import Ensemble
    from atlasnet.volume.dicom import DicomSource

MANUFACTURER = "AtlasNet"
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID")
_WRITTEN = (*_REQUIRED, "SeriesNumber", "Modality", *LOSSY)  # of a source, beside what says whose it is


def require_writers() -> None:
    """Check that the packages that write DICOM are there.

    Raises:
        InputError: they are not.
    """
    if util.find_spec("highdicom") is None:
        raise InputError(
            "writing DICOM needs the package highdicom", remedy="pip install '.[dicom]' in the source of atlasnet"
        )


def require_dicom(cases: Sequence[Subject]) -> None:
    """Check that every case is DICOM.

    Raises:
        InputError: one is not: there is no series to which a DICOM object could refer.
    """
    for case in cases:
        if not is_dicom(case.images[0]):
            raise InputError(
                "a DICOM segmentation or structure set is made of a DICOM scan only",
                path=case.images[0],
                expected="a DICOM folder, zip or file",
                remedy="give the scan as DICOM, or leave out --dicom-seg and --rtstruct",
            )


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a segmentation comes from.

    Args:
        source: the series that was segmented.
        segments: of the model, labels in the order of their values and then its regions of several; the n-th of them is
            segment or region of interest n.
        model: checksum of the model or models.
        created: when.
    """

    source: DicomSource
    segments: tuple[Segment, ...]
    model: str
    created: datetime

    @property
    def made(self) -> datetime:
        """When it was created, by the clock of the source where that tells its distance from UTC."""
        offset = self.identity().get("TimezoneOffsetFromUTC")
        return self.created if not offset else self.created.astimezone(datetime.strptime(offset, "%z").tzinfo)

    def uid(self, labels: Volume, kind: str) -> str:
        """A UID that all that is written decides, the time and the patient too: one UID means the same bytes."""
        from pydicom.uid import generate_uid

        voxels = sha256(np.ascontiguousarray(labels.array).tobytes()).hexdigest()
        words = [repr(segment) for segment in self.segments]
        source = self.source
        stated = [[str(header.get(keyword)) for keyword in _WRITTEN] for header in source.headers]
        places = [source.frames, source.positions.tolist(), source.grid.affine.tolist()]
        content = [self.created.isoformat(), self.identity().to_json(), repr(stated), repr(places)]
        return generate_uid(entropy_srcs=[kind, voxels, self.model, __version__, *words, *content])

    def series_number(self, offset: int) -> int:
        """A number that tells the new series from the source's and from each other."""
        return int(self.source.headers[0].get("SeriesNumber") or 0) % 10**6 * 100 + offset

    def identity(self) -> Dataset:
        """Patient, study and frame of reference, see `atlasnet.prediction.dicom_identity`."""
        from atlasnet.prediction.dicom_identity import identity

        return identity(self.source.headers[0])


def find_origin(case: Subject, ensemble: Ensemble) -> Origin:
    """What the segmentation of a DICOM case by one or several models refers to; of several channels, the first.

    Raises:
        VolumeError: the series cannot be read, or nothing can refer to it.
    """
    from atlasnet.volume.dicom import read_dicom_source

    source = read_dicom_source(*case.sources[0])
    check_source(source, case.images[0])
    return Origin(source, (*ensemble.segments, *ensemble.region_segments), ensemble.checksum, datetime.now())


def check_source(source: DicomSource, path: Path) -> None:
    """Check that a segmentation can refer to the series.

    Raises:
        VolumeError: an identifier is missing, a header is damaged, or the series is spread over several multi-frame
            files.
    """
    from atlasnet.prediction.dicom_identity import REQUIRED

    with _explained(path):
        for header in source.headers:
            for keyword in _REQUIRED:
                if not header.get(keyword):
                    raise VolumeError(
                        f"nothing can refer to this series: it lacks {keyword}",
                        path=path,
                        remedy="export it again, or leave out --dicom-seg and --rtstruct",
                    )
            for keyword in (*REQUIRED, "SeriesNumber", "PositionReferenceIndicator"):
                str(header.get(keyword))
        for keyword in ("PatientID", "IssuerOfPatientID", *_REQUIRED[:2], *_REQUIRED[4:]):
            if len({str(header.get(keyword) or "") for header in source.headers}) > 1:
                raise VolumeError(f"the slices of the series differ in {keyword}", path=path)
    if source.frames[0] is not None and len({header.SOPInstanceUID for header in source.headers}) > 1:
        raise VolumeError(
            "the series is spread over several multi-frame files, which DICOM segmentations cannot refer to",
            path=path,
            remedy="leave out --dicom-seg and --rtstruct",
        )


def check_labels(labels: Volume, origin: Origin) -> None:
    """Check that labels lie on the source's grid and are described.

    Raises:
        VolumeError: they do not, or are not.
    """
    if labels.grid.shape != origin.source.grid.shape or not labels.grid.matches(origin.source.grid, 0.01):
        raise VolumeError(
            "the labels do not lie on the grid of the DICOM series",
            expected=repr(origin.source.grid),
            found=repr(labels.grid),
        )
    unknown = set(np.unique(labels.array).tolist()) - {0, *(segment.value for segment in origin.segments)}
    if unknown:
        raise VolumeError("there are labels that no segment describes", found=", ".join(map(str, sorted(unknown))))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    from atlasnet.volume.dicom_files import quiet_pydicom

    with quiet_pydicom():
        try:
            yield
        except VolumeError:
            raise
        except Exception as error:  # pydicom converts values when they are asked for, and fails in many ways
            raise VolumeError(
                "the header of the series is damaged", path=path, found=type(error).__name__, remedy="export it again"
            ) from error


def referenced(source: DicomSource, slices: Sequence[int]) -> list[Any]:
    """Items that refer to these slices of the source (Image SOP Instance Reference, DICOM PS3.3 table 10-3)."""
    from pydicom.dataset import Dataset

    items = []
    for index in slices:
        item = Dataset()
        item.ReferencedSOPClassUID = source.headers[index].SOPClassUID
        item.ReferencedSOPInstanceUID = source.headers[index].SOPInstanceUID
        if source.frames[index] is not None:
            item.ReferencedFrameNumber = source.frames[index]
        items.append(item)
    return items
