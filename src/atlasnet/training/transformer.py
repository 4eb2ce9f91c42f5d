"""The transformer: every subject mapped into every atlas's space, and kept there for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from atlasnet.cohort import Plan
from atlasnet.cohort.fingerprint import check_declared
from atlasnet.errors import CohortError, RegistrationError
from atlasnet.execution import Execution, WorkFolder, allow_open_files, digest, read_json, reading_back
from atlasnet.registration import Operator
from atlasnet.training.mapping import map_image, map_labels, prepare, to_slices, working_grid
from atlasnet.training.pairs import PairRegistrar
from atlasnet.training.region import Region
from atlasnet.training.sources import Keyed
from atlasnet.training.store import MappedCase
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume

REVISION = 2  # counts up when the same input would give other mapped cases


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
        """Whether the subjects are annotated in part; see `Region.of`."""
        return self.ignore_label is not None

    def map(self, subjects: Sequence[Keyed], atlases: Sequence[Keyed]) -> list[MappedCohort]:
        """Map every subject, with its reference, onto every atlas; one result per atlas.

        Raises:
            CohortError: a reference holds values that are not declared.
            InputError: the system does not let so many mapped cases be open.
            RegistrationError: no subject could be mapped onto an atlas.
        """
        allow_open_files(2 * len(subjects) * len(atlases))
        grids = [working_grid(atlas.read().grid, self.plan) for atlas in atlases]
        kept: list[list[tuple[str, MappedCase]]] = [[] for _ in atlases]
        qualities: list[list[float]] = [[] for _ in atlases]
        for subject in self.execution.reporter.track(subjects, "registering subjects onto atlases", len(subjects)):
            self.execution.pause()
            source = subject.remembered()
            registrations = self.registrar.register(source, atlases)
            prepared = cache(partial(self._prepared, source))
            for index, (atlas, grid, registration) in enumerate(zip(atlases, grids, registrations, strict=True)):
                quality = 0.0 if registration is None else float(registration.record["quality"])
                if source.key != atlas.key:
                    qualities[index].append(quality)
                if registration is None:
                    continue
                if quality < self.minimum_quality:
                    self.execution.reporter.warn(
                        f"{source.name} does not train the network of atlas {atlas.name}: registration quality "
                        f"{quality:.3f} is below {self.minimum_quality:g}"
                    )
                    continue
                key = self._key(source, atlas)
                if not self.work.finished("mapped", key, self.execution.reporter.warn):
                    case = self._case(source.name, *prepared(), registration.transform, grid)
                    with self.work.making("mapped", key) as folder:
                        case.save(folder)
                kept[index].append((key, _opened(self.work.entry("mapped", key), source.name)))
        for atlas, cases in zip(atlases, kept, strict=True):
            if not cases:
                raise RegistrationError(f"no subject could be mapped onto atlas {atlas.name}; choose another one")
        return [self._cohort(*of) for of in zip(atlases, kept, qualities, strict=True)]

    def kept(self, subjects: Sequence[Keyed], atlases: Sequence[Keyed]) -> tuple[int, list[MappedCohort] | None]:
        """What the work folder holds of `map`, without doing any of it.

        Returns:
            How many pairs are registered, and what `map` would give, None where some of it is missing.
        """
        allow_open_files(2 * len(subjects) * len(atlases))
        registered, cohorts, whole = 0, [], True
        for atlas in atlases:
            cases, qualities = [], []
            for subject in subjects:
                key = self._key(subject, atlas)
                if subject.key == atlas.key:
                    quality = 1.0
                elif (pair := self.work.lying("registrations", self.registrar.key(subject, atlas))) is not None:
                    registered += 1
                    with reading_back(pair):
                        quality = float(read_json(pair / "record.json")["quality"])
                    qualities.append(quality)
                else:
                    whole = False
                    continue
                if quality < self.minimum_quality:
                    continue
                if (case := self.work.lying("mapped", key)) is None:
                    whole = False
                    continue
                cases.append((key, _opened(case, subject.name)))
            cohorts.append((atlas, cases, qualities))
        if not whole or not all(cases for _, cases, _ in cohorts):
            return registered, None
        return registered, [self._cohort(*cohort) for cohort in cohorts]

    def _key(self, source: Keyed, atlas: Keyed) -> str:
        """What a mapped case depends on."""
        return digest(
            {
                "revision": REVISION,
                "pair": self.registrar.key(source, atlas),
                "labels": source.labels_key,
                "values": self.values,
                "plan": self.plan.to_json(),
                **({"mask": source.mask_key} if source.mask_key else {}),
            }
        )

    def _prepared(self, source: Keyed) -> tuple[Volume, Volume, Volume | None]:
        """The normalised image, the reference, and the organ mask where there is one."""
        if source.read_labels is None:
            raise CohortError(f"subject {source.name} has no reference")
        mask, labels = None if source.read_mask is None else source.read_mask(), source.read_labels()
        ignored = () if self.ignore_label is None else (self.ignore_label,)
        check_declared(labels, (*self.values, *ignored), source.name)
        return prepare(source.read(), self.plan), labels, mask

    def _case(
        self, name: str, image: Volume, labels: Volume, mask: Volume | None, transform: Transform, grid: Grid
    ) -> MappedCase:
        """A subject in an atlas's space, slices first."""
        axis = self.plan.slice_axis
        mapped = map_image(image, transform, grid)
        reference = map_labels(labels, self.values, transform, grid, mask)
        return MappedCase(name, to_slices(mapped.array, axis), to_slices(reference.array, axis)[0])

    def _cohort(
        self, atlas: Keyed, cases: Sequence[tuple[str, MappedCase]], qualities: Sequence[float]
    ) -> MappedCohort:
        key, spread = digest([key for key, _ in cases]), _spread(qualities)
        whole = tuple(case for _, case in cases)
        before = self.regions.get(atlas.name)
        if not self.cropped or (before is None and atlas.name in self.regions):
            return MappedCohort(key, whole, spread)
        region = Region.of([case.labels for case in whole], partly=self.partly)
        if before is not None:
            region = region.united(before)
        cut = tuple(region.cut(case) for case in whole)
        return MappedCohort(digest([key, region.to_json()]), cut, spread, region)


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
