"""Mapped cases on disk: arrays that are opened as memory maps, so that a cohort need not fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort.structures import Hidden
from atlasnet.errors import CohortError, VolumeError
from atlasnet.execution import atomic_path
from atlasnet.wording import counted

STORED_BYTES = 2  # of a voxel of a channel on disk: float16
IGNORED = 255  # class index of voxels that nobody annotated or that lie outside the source's field of view


@dataclass(frozen=True, eq=False)
class MappedCase:
    """One subject in an atlas's space.

    Args:
        name: of the subject.
        image: (c, z, y, x), normalised, float16 or float32; slices along z.
        labels: (z, y, x) uint8 class indices, `IGNORED` where a voxel does not count.
        hidden: classes that nobody annotated in the subject, each with the one that ``labels`` have where there may be
            one of them. They are no part of the files.

    Raises:
        VolumeError: the arrays do not fit each other or are of other types.
    """

    name: str
    image: NDArray[Any]
    labels: NDArray[np.uint8]
    hidden: Hidden = ()

    def __post_init__(self) -> None:
        right = (
            self.image.ndim == 4
            and self.image.shape[1:] == self.labels.shape
            and self.image.size > 0
            and self.image.dtype in (np.float16, np.float32)
            and self.labels.dtype == np.uint8
        )
        if not right:
            raise VolumeError(
                f"the mapped case {self.name!r} cannot be trained on",
                expected="an image (c, z, y, x) of float16 or float32 and labels (z, y, x) of uint8",
                found=f"{self.image.shape} of {self.image.dtype} and {self.labels.shape} of {self.labels.dtype}",
            )

    def save(self, folder: str | Path) -> None:
        """Write NAME.image.npy (float16) and NAME.labels.npy; the labels come last, so a case that has them is whole.

        Raises:
            VolumeError: the image holds voxels that are not finite, or too large for float16.
        """
        image = np.asarray(self.image)
        if not bool(np.isfinite(image).all()) or float(np.abs(image).max()) > float(np.finfo(np.float16).max):
            raise VolumeError(
                f"the mapped image of {self.name!r} is not normalised",
                expected="finite intensities of about unit spread",
                found=f"values from {image.min()} to {image.max()}",
            )
        for part, array in (("image", image.astype(np.float16)), ("labels", self.labels)):
            with atomic_path(_path(folder, self.name, part)) as temporary, temporary.open("wb") as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)

    @classmethod
    def open(cls, folder: str | Path, name: str) -> MappedCase:
        """Open what `save` wrote, without reading the voxels.

        Raises:
            CohortError: the case is absent or damaged.
        """
        arrays = []
        for part in ("image", "labels"):
            path = _path(folder, name, part)
            try:
                arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
            except (OSError, ValueError, EOFError) as error:
                raise CohortError(
                    "a mapped case cannot be opened",
                    path=path,
                    found=str(error),
                    remedy="delete the file; the same training command maps the case again",
                ) from error
        return cls(name, *arrays)


def _path(folder: str | Path, name: str, part: str) -> Path:
    return Path(folder) / f"{name}.{part}.npy"


@dataclass(frozen=True, eq=False)
class SliceTable:
    """The slices of a cohort that have an annotated voxel.

    Args:
        case: (n,) index of the case.
        z: (n,) index of the slice in it.
        counts: (n, classes) annotated voxels of each class; those of hidden classes are among their stand-ins'.
        shown: (cases, classes) the class that stands for each in the labels of a case, where not all are themselves.
    """

    case: NDArray[np.intp]
    z: NDArray[np.intp]
    counts: NDArray[np.int64]
    shown: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.z)

    @classmethod
    def of(cls, cases: Sequence[MappedCase], classes: int) -> SliceTable:
        """Count the voxels of every slice of ``cases``.

        Raises:
            CohortError: there are no cases, their channels differ, a class index is too large, or nothing is annotated.
        """
        if not cases:
            raise CohortError("there are no cases to train on")
        channels = {case.image.shape[0] for case in cases}
        if len(channels) > 1:
            raise CohortError(
                "the mapped cases differ in channels",
                expected="one number of channels",
                found=", ".join(f"{case.name}: {case.image.shape[0]}" for case in cases),
            )
        tables = []
        for index, case in enumerate(cases):
            counts = np.stack([np.bincount(plane.ravel(), minlength=IGNORED + 1) for plane in case.labels])
            unknown = np.flatnonzero(counts[:, classes:IGNORED].sum(0))
            if len(unknown):
                raise CohortError(
                    f"the mapped case {case.name!r} holds class indices that the network does not have",
                    expected=f"indices below {classes}, or {IGNORED} for ignored voxels",
                    found=str(int(unknown[-1]) + classes),
                )
            annotated = np.flatnonzero(counts[:, :classes].sum(1))
            tables.append((np.full(len(annotated), index), annotated, counts[annotated, :classes]))
        owner, z, counts = (np.concatenate(parts) for parts in zip(*tables, strict=True))
        if len(z) == 0:
            raise CohortError(
                "no slice of any case has an annotated voxel inside the field of view",
                found=counted(len(cases), "case"),
                remedy="look at the registrations and at the ignore label",
            )
        shown = None
        if any(case.hidden for case in cases):
            shown = np.tile(np.arange(classes), (len(cases), 1))
            for own, case in zip(shown, cases, strict=True):
                for index, stands in case.hidden:
                    own[index] = stands
        return cls(owner.astype(np.intp), z.astype(np.intp), counts.astype(np.int64), shown)

    def shown_at(self, rows: NDArray[np.intp]) -> NDArray[np.int64] | None:
        """(rows, classes) of ``shown`` for these slices."""
        return None if self.shown is None else self.shown[self.case[rows]]
