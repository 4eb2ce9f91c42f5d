"""The transformer: every subject mapped into every atlas's space, and kept there for training."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort import Plan
from atlasnet.cohort.annotated import lost_values
from atlasnet.cohort.fingerprint import check_declared
from atlasnet.cohort.plan import REGION_VOXELS
from atlasnet.cohort.planning import MOST_FINER
from atlasnet.cohort.structures import Hidden
from atlasnet.errors import CohortError, RegistrationError
from atlasnet.execution import Execution, WorkFolder, allow_open_files, digest, read_json, reading_back
from atlasnet.registration import Operator, Registration, shortcoming
from atlasnet.training.mapping import map_image, map_labels, prepare, region_grid, to_slices, working_grid
from atlasnet.training.overview import Overview
from atlasnet.training.pairs import PairRegistrar
from atlasnet.training.region import Region
from atlasnet.training.sources import Keyed
from atlasnet.training.store import MappedCase
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume

MANY_VOXELS = 1.2 * MOST_FINER * REGION_VOXELS
OVERVIEW = "overview.npz"
REVISION = 4  # counts up when the same input would give other mapped cases


@dataclass(frozen=True)
class MappedCohort:
    """The subjects in one atlas's space.

    Args:
        key: of all the cases together.
        cases: those whose registration was good enough, cut to the region.
        quality: lowest, median and highest registration quality of all subjects but the atlas's own, which is not
            registered; empty where there is no other.
        region: of the networks' grid, slices first; None: all of it.
    """

    key: str
    cases: tuple[MappedCase, ...]
    quality: Mapping[str, float]
    region: Region | None = None


class Transformer:
    """Registers subjects onto atlases and stores images and references in the atlases' spaces.

    Args:
        plan: spacing, normalisation, slice axis.
        operator: registers.
        values: the label value of each class index.
        minimum_quality: pairs of lower registration quality are left out.
        work: where registrations and mapped cases are kept.
        execution: device, threads, seed, progress.
        cropped: whether networks see only the region that holds the structures of all subjects.
        ignore_label: the value of voxels that nobody annotated, None where the subjects are annotated everywhere.
        regions: by the name of an atlas, the region in which its network has learnt before, None being everywhere: it
            stays part of the region.
    """

    def __init__(
        self,
        plan: Plan,
        operator: Operator,
        values: tuple[int, ...],
        minimum_quality: float,
        work: WorkFolder,
        execution: Execution,
        *,
        cropped: bool = False,
        ignore_label: int | None = None,
        regions: Mapping[str, Region | None] | None = None,
    ) -> None:
        self.plan, self.values, self.minimum_quality = plan, values, minimum_quality
        self.cropped, self.ignore_label = cropped, ignore_label
        self.regions = dict(regions or {})
        self.work, self.execution = work, execution
        self.registrar = PairRegistrar(operator, work, execution)

    @property
    def partly(self) -> bool:
        """Whether the subjects are annotated in part; see `Overview.region`."""
        return self.ignore_label is not None

    def map(self, subjects: Sequence[Keyed], atlases: Sequence[Keyed]) -> list[MappedCohort]:
        """Map every subject, with its reference, onto every atlas; one result per atlas.

        An overview of the references comes first. It tells the region, to which images are then mapped at once: the
        rest of a scan, which may be a hundred times as large, is never made at the networks' resolution.

        Raises:
            CohortError: a reference holds values that are not declared.
            InputError: the system does not let so many mapped cases be open.
            RegistrationError: no subject, or none with some label, could be mapped onto an atlas.
        """
        allow_open_files(2 * len(subjects) * len(atlases))
        track, pairs = self.execution.reporter.track, [_Accepted(atlas, self._overview(atlas)) for atlas in atlases]
        for subject in track(subjects, "registering subjects onto atlases", len(subjects)):
            self.execution.pause()
            source = subject.remembered()
            reference = cache(partial(self._reference, source))
            with closing(self.registrar.register(source, atlases)) as registrations:
                for own, registration in zip(pairs, registrations, strict=True):
                    if self._fits(own, subject, registration) and registration is not None and self._cropped(own.atlas):
                        self._see(own, source, reference, registration.transform)
        for own in pairs:
            if not own.subjects:
                raise RegistrationError(f"no subject could be mapped onto atlas {own.atlas.name}; choose another one")
            if lost := lost_values(self.values, [s.hidden for s in subjects], [s.hidden for s in own.subjects]):
                raise RegistrationError(
                    f"no subject in whom {', '.join(map(str, lost))} was annotated could be mapped onto atlas "
                    f"{own.atlas.name}; choose another one"
                )
        regions = [self._region(own) for own in pairs]
        self._tell_of_size(pairs, regions)
        for subject in track(subjects, "mapping subjects onto atlases", len(subjects)):
            self.execution.pause()
            source = subject.remembered()
            prepared = cache(partial(self._prepared, source))
            for own, region in zip(pairs, regions, strict=True):
                key = self._key(source, own.atlas, region)
                if subject not in own.subjects or self.work.finished("mapped", key, self.execution.reporter.warn):
                    continue
                registration = self.registrar.kept(source, own.atlas)
                assert registration is not None
                grid = region_grid(own.overview.grid, region, self.plan.slice_axis)
                case = self._case(source.name, *prepared(), registration.transform, grid)
                with self.work.making("mapped", key) as folder:
                    case.save(folder)
        return [self._cohort(own, region) for own, region in zip(pairs, regions, strict=True)]

    def kept(self, subjects: Sequence[Keyed], atlases: Sequence[Keyed]) -> tuple[int, list[MappedCohort] | None]:
        """What the work folder holds of `map`, without doing any of it.

        Returns:
            How many pairs are registered, and what `map` would give, None where some of it is missing.
        """
        allow_open_files(2 * len(subjects) * len(atlases))
        registered, cohorts, whole = 0, [], True
        for atlas in atlases:
            own = _Accepted(atlas, self._overview(atlas))
            for subject in subjects:
                fits = True
                if subject.key != atlas.key:
                    if (pair := self.registrar.place(subject, atlas)) is None:
                        whole = False
                        continue
                    registered += 1
                    with reading_back(pair):
                        record = read_json(pair / "record.json")
                        own.qualities.append(float(record["quality"]))
                        fits = shortcoming(record, self.minimum_quality) is None
                if fits:
                    own.subjects.append(subject)
            seen = [self.work.lying("overviews", self._overview_key(subject, atlas)) for subject in own.subjects]
            if not own.subjects or (self._cropped(atlas) and None in seen):
                whole = False
                continue
            region = self._region(own)
            cases = [self.work.lying("mapped", self._key(subject, atlas, region)) for subject in own.subjects]
            if None in cases:
                whole = False
            else:
                cohorts.append(self._cohort(own, region))
        return registered, cohorts if whole else None

    def alone(self, subject: Keyed, atlas: Keyed, transform: Transform) -> MappedCase:
        """A subject in an atlas's space, in the region that there would be of the two of them; not kept."""
        region = self.region_alone(subject, atlas, transform)
        grid = region_grid(self._overview(atlas).grid, region, self.plan.slice_axis)
        return self._case(subject.name, *self._prepared(subject), transform, grid)

    def region_alone(self, subject: Keyed, atlas: Keyed, transform: Transform) -> Region | None:
        """The region, None being everywhere, that there would be of a subject and an atlas alone."""
        if not self._cropped(atlas):
            return None
        overview, (labels, mask) = self._overview(atlas), self._reference(subject)
        seen = [overview.map(labels, self.values, transform, mask)]
        if atlas.read_labels is not None:
            own, within = self._reference(atlas)
            seen.append(overview.map(own, self.values, Transform.identity(), within))
        return self._united(atlas, overview, seen)

    def _tell_of_size(self, pairs: Sequence[_Accepted], regions: Sequence[Region | None]) -> None:
        """Warn of a region that is far larger than a plan is made for, before anything is mapped to it."""
        axis = self.plan.slice_axis
        grids = [region_grid(own.overview.grid, region, axis) for own, region in zip(pairs, regions, strict=True)]
        voxels, name = max((grid.voxels, own.atlas.name) for grid, own in zip(grids, pairs, strict=True))
        if voxels > MANY_VOXELS:
            self.execution.reporter.warn(
                f"the network of atlas {name} sees {voxels / 1e6:.1f} million voxels of every subject, which takes its "
                "time: structures lie far apart, it sees whole scans, or the spacing in plan.json is very fine"
            )

    def _overview(self, atlas: Keyed) -> Overview:
        return Overview.of(working_grid(atlas.read().grid, self.plan))

    def _cropped(self, atlas: Keyed) -> bool:
        """Whether the network of an atlas sees a region only; one that has learnt everywhere before does not."""
        return self.cropped and not (atlas.name in self.regions and self.regions[atlas.name] is None)

    def _fits(self, own: _Accepted, subject: Keyed, registration: Registration | None) -> bool:
        """Whether a subject trains the network of an atlas; its quality is noted either way."""
        quality = 0.0 if registration is None else float(registration.record["quality"])
        if subject.key != own.atlas.key:
            own.qualities.append(quality)
        if registration is None:
            return False
        wrong = shortcoming(registration.record, self.minimum_quality)
        if wrong is not None:
            self.execution.reporter.warn(
                f"{subject.name} does not train the network of atlas {own.atlas.name}: {wrong}"
            )
            return False
        own.subjects.append(subject)
        return True

    def _see(
        self, own: _Accepted, source: Keyed, reference: Callable[[], tuple[Volume, Volume | None]], transform: Transform
    ) -> None:
        """Keep the overview of a subject's reference in an atlas's space."""
        key = self._overview_key(source, own.atlas)
        if not self.work.finished("overviews", key, self.execution.reporter.warn):
            labels, mask = reference()
            seen = own.overview.map(labels, self.values, transform, mask)
            with self.work.making("overviews", key) as folder:
                np.savez_compressed(folder / OVERVIEW, seen=seen)

    def _region(self, own: _Accepted) -> Region | None:
        """Where an atlas's network works, None being everywhere."""
        if not self._cropped(own.atlas):
            return None
        seen = []
        for subject in own.subjects:
            place = self.work.lying("overviews", self._overview_key(subject, own.atlas))
            assert place is not None
            seen.append(_read_overview(place / OVERVIEW))
        return self._united(own.atlas, own.overview, seen)

    def _united(self, atlas: Keyed, overview: Overview, seen: Sequence[NDArray[np.uint8]]) -> Region:
        """Where there are structures in overviews, and where the atlas's network has learnt before."""
        region = overview.region(seen, self.plan.slice_axis, self.plan.margin, partly=self.partly)
        before = self.regions.get(atlas.name)
        return region if before is None else region.united(before)

    def _overview_key(self, source: Keyed, atlas: Keyed) -> str:
        """What an overview depends on."""
        return digest({**self._reference_key(source, atlas), "spacing": self.plan.spacing})

    def _key(self, source: Keyed, atlas: Keyed, region: Region | None) -> str:
        """What a mapped case depends on."""
        part = None if region is None else region.to_json()
        return digest({**self._reference_key(source, atlas), "plan": self.plan.to_json(), "region": part})

    def _reference_key(self, source: Keyed, atlas: Keyed) -> dict[str, Any]:
        return {
            "revision": REVISION,
            "pair": self.registrar.key(source, atlas),
            "labels": source.labels_key,
            "values": self.values,
            **({"mask": source.mask_key} if source.mask_key else {}),
        }

    def _reference(self, source: Keyed) -> tuple[Volume, Volume | None]:
        """The reference, and the organ mask where there is one."""
        if source.read_labels is None:
            raise CohortError(f"subject {source.name} has no reference")
        mask, labels = None if source.read_mask is None else source.read_mask(), source.read_labels()
        ignored = () if self.ignore_label is None else (self.ignore_label,)
        check_declared(labels, (*self.values, *ignored), source.name)
        return labels, mask

    def _prepared(self, source: Keyed) -> tuple[Volume, Volume, Volume | None]:
        """The normalised image, the reference, and the organ mask where there is one."""
        return prepare(source.read(), self.plan), *self._reference(source)

    def _case(
        self, name: str, image: Volume, labels: Volume, mask: Volume | None, transform: Transform, grid: Grid
    ) -> MappedCase:
        """A subject in an atlas's space, slices first."""
        axis, device = self.plan.slice_axis, self.execution.torch_device()
        mapped = map_image(image, transform, grid, device=device)
        reference = map_labels(labels, self.values, transform, grid, mask, device=device)
        return MappedCase(name, to_slices(mapped.array, axis), to_slices(reference.array, axis)[0])

    def _cohort(self, own: _Accepted, region: Region | None) -> MappedCohort:
        keys = [self._key(subject, own.atlas, region) for subject in own.subjects]
        places = [self.work.lying("mapped", key) or self.work.entry("mapped", key) for key in keys]
        hidden: list[Hidden] = [
            tuple((self.values.index(value), self.values.index(stands)) for value, stands in subject.hidden)
            for subject in own.subjects
        ]
        cases = tuple(
            replace(_opened(place, subject.name), hidden=classes)
            for place, subject, classes in zip(places, own.subjects, hidden, strict=True)
        )
        return MappedCohort(digest([keys, hidden] if any(hidden) else keys), cases, _spread(own.qualities), region)


@dataclass(frozen=True)
class _Accepted:
    """An atlas with the subjects whose registration is good enough, and the qualities of all but its own subject's."""

    atlas: Keyed
    overview: Overview
    subjects: list[Keyed] = field(default_factory=list)
    qualities: list[float] = field(default_factory=list)


def _read_overview(path: Path) -> NDArray[np.uint8]:
    with reading_back(path):
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                seen: NDArray[np.uint8] = arrays["seen"]
        except (BadZipFile, EOFError, zlib.error) as error:
            raise ValueError(str(error)) from error
    return seen


def _opened(entry: Path, name: str) -> MappedCase:
    """A case of the work folder, which is kept by its content: the subject may have been called otherwise."""
    made_of = [path.name.removesuffix(".labels.npy") for path in entry.glob("*.labels.npy")]
    return replace(MappedCase.open(entry, made_of[0] if made_of else name), name=name)


def _spread(qualities: Sequence[float]) -> dict[str, float]:
    """The lowest, median and highest of some registration qualities, if there are any."""
    if not qualities:
        return {}
    return {
        "minimum": float(np.min(qualities)),
        "median": float(np.median(qualities)),
        "maximum": float(np.max(qualities)),
    }
