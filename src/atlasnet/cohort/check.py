"""`check_cohort`: everything that is wrong with a cohort, in one pass, before any work starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atlasnet.cohort.annotated import check_hidden
from atlasnet.cohort.cohort import Cohort, scan
from atlasnet.cohort.doubts import AIR, TISSUE, cohort_doubts, header_doubts, is_hardly_hounsfield, modality_doubts
from atlasnet.cohort.duplicates import voxel_digest
from atlasnet.cohort.fingerprint import DECLARE_THEM, Fingerprint, Measured, combine, measure
from atlasnet.cohort.masks import with_masks, within
from atlasnet.cohort.plan import Plan, is_ct
from atlasnet.cohort.planning import Planned, plan_for
from atlasnet.cohort.problem import Problem
from atlasnet.cohort.spacing import WantedSpacing, require_spacing
from atlasnet.cohort.subject import Subject, check_same_grid
from atlasnet.errors import CohortError, InputError
from atlasnet.execution import Reporter, SilentReporter
from atlasnet.volume.io import read_labels
from atlasnet.volume.kept import kept_open
from atlasnet.volume.volume import Volume
from atlasnet.wording import counted, lengths, shortened

_LISTED = 8
_UNLIKE = 3.0


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Args:
        problems: errors and warnings, the layout's first, then subject by subject.
        cohort: the subjects with complete files, or None where no layout was recognised.
        fingerprint: of the subjects that could be read, or None without any.
        planned: by it.
    """

    problems: tuple[Problem, ...]
    cohort: Cohort | None = None
    fingerprint: Fingerprint | None = None
    planned: Planned | None = None

    @property
    def plan(self) -> Plan | None:
        """The plan, where there is a fingerprint."""
        return None if self.planned is None else self.planned.plan

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that keep the cohort from being used."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The problems that do not."""
        return tuple(problem for problem in self.problems if problem.severity == "warning")

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    def __repr__(self) -> str:
        found = f"{counted(len(self.errors), 'error')}, {counted(len(self.warnings), 'warning')}"
        return f"CheckReport({found}; {'no cohort' if self.cohort is None else repr(self.cohort)})"

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "ok": self.ok,
            "problems": [problem.to_json() for problem in self.problems],
            "format": None if self.cohort is None else self.cohort.format,
            "channels": None if self.cohort is None else list(self.cohort.channels),
            "labels": None if self.cohort is None else self.cohort.labels,
            "regions": None if self.cohort is None else dict(self.cohort.regions),
            "ignore_label": None if self.cohort is None else self.cohort.ignore_label,
            "annotated_in": None if self.cohort is None else self.cohort.annotated_in(),
            "fingerprint": None if self.fingerprint is None else self.fingerprint.to_json(),
            "plan": None if self.plan is None else self.plan.to_json(),
            "kept": None if self.planned is None or self.planned.kept is None else self.planned.kept.to_json(),
        }


def check_cohort(
    path: str | Path,
    *,
    labelled: bool = True,
    spacing: WantedSpacing | None = None,
    subjects: Sequence[str] | None = None,
    masks: str | Path | None = None,
    reporter: Reporter | None = None,
) -> CheckReport:
    """Read every file of a cohort and collect all that is wrong; nothing is raised for a fault of the data.

    Errors: no layout, missing, surplus, doubly named or unreadable files, missing channels, image and reference on
    different grids, labels that are not whole, not declared or not said to be annotated, no label besides the
    background, one that nobody annotated, an organ mask that is missing, empty or on another grid, an image that is
    constant, or of a single slice where most are volumes. Warnings: stray files, a key of ``dataset.json`` that may be
    misspelt, an empty reference, a single subject with one or with some label, a label that nobody has, a channel that
    is constant beside others, CT without Hounsfield units, two subjects with the same voxels, a NIfTI header that does
    not say how the image lies, a CT series in DICOM that does not say how its values are rescaled, a spacing or size
    unlike the others', structures for which the plan's voxels are too coarse.

    Args:
        path: the cohort's folder.
        labelled: whether every subject must have a reference.
        spacing: of the plan; see `Plan.derive`.
        subjects: names of those that are read, and by which the plan is made; None: all. What is wrong with files and
            names of the others is told all the same, as a training refuses it.
        masks: folder with the organ mask CASE.nii.gz of each of them.
        reporter: follows the reading.

    Raises:
        InputError: ``spacing`` is none.
    """
    require_spacing(spacing)
    reporter = reporter or SilentReporter()
    try:
        cohort, problems = scan(path, labelled=labelled)
    except CohortError as error:
        return CheckReport((Problem(_text(error), path=Path(error.path) if error.path else Path(path)),))
    try:
        if subjects is not None:
            cohort = cohort.select(subjects)
        if masks is not None:
            cohort = with_masks(cohort, masks)
    except CohortError as error:
        problems.append(Problem(_text(error), path=Path(error.path or cohort.root)))
        return CheckReport(tuple(problems), cohort)
    measured, seen = [], dict[str, str]()
    for subject in reporter.track(cohort, "checked", len(cohort)):
        found, part, voxels = _check_subject(cohort, subject)
        problems.extend(found)
        if part is not None:
            measured.append(part)
        if voxels is not None and seen.setdefault(voxels, subject.name) != subject.name:
            text = f"the image has the same voxels as that of {seen[voxels]}"
            problems.append(Problem(text, subject.name, subject.images[0], "warning"))
    if not measured:
        if not any(problem.severity == "error" for problem in problems):
            problems.append(Problem("there are no subjects", path=cohort.root))
        return CheckReport(tuple(problems), cohort)
    fingerprint = combine(cohort.channels, measured)
    if labelled and not cohort.structures:
        problems.append(Problem("there is no label besides the background, and nothing to learn", path=cohort.root))
    problems.extend(_compare(cohort, fingerprint))
    planned = plan_for(cohort, fingerprint, spacing=spacing, reporter=reporter)
    if planned.doubt is not None:
        problems.append(Problem(planned.doubt, path=cohort.root, severity="warning"))
    return CheckReport(tuple(problems), cohort, fingerprint, planned)


def _check_subject(cohort: Cohort, subject: Subject) -> tuple[list[Problem], Measured | None, str | None]:
    """Problems of one subject, its measurements, and the digest of its voxels; image and labels are judged apart."""
    problems: list[Problem] = []

    def note(text: str, path: Path, *, warning: bool = False) -> None:
        problems.append(Problem(text, subject.name, path, "warning" if warning else "error"))

    image = labels = mask = None
    with kept_open():
        try:
            image = subject.read_image()
        except InputError as error:
            note(_text(error), Path(error.path or subject.images[0]))
        else:
            for channel, text, warning in _image_doubts(cohort, image):
                note(text, subject.images[min(channel, len(subject.images) - 1)], warning=warning)
            for path, text in (*header_doubts(subject, cohort.channels), *modality_doubts(subject, cohort.channels)):
                note(text, path, warning=True)
    if subject.labels is not None:
        try:
            labels = read_labels(subject.labels)
        except InputError as error:
            note(_text(error), subject.labels)
        else:
            for text, warning in _label_doubts(cohort, labels, subject):
                note(text, subject.labels, warning=warning)
    if subject.labels is not None and image is not None and labels is not None:
        try:
            check_same_grid(labels.grid, image.grid, subject.labels, *subject.sources)
        except InputError as error:
            note(_text(error), subject.labels)
            labels = None
    if subject.mask is not None and image is not None:
        try:
            mask = subject.read_mask(image.grid)
        except InputError as error:
            note(_text(error), subject.mask)
    if image is None:
        return problems, None, None
    if labels is not None and mask is not None:
        labels = within(labels, mask)
    measured = measure(subject.name, image, labels, cohort.told_of(subject), cohort.ignore_label)
    return problems, measured, voxel_digest(image)


def _image_doubts(cohort: Cohort, image: Volume) -> list[tuple[int, str, bool]]:
    """What is wrong with a channel, and whether that is only a warning."""
    doubts = []
    ranges = [(float(channel.min()), float(channel.max())) for channel in image.array]
    some = any(low < high for low, high in ranges)
    for index, (name, (low, high)) in enumerate(zip(cohort.channels, ranges, strict=True)):
        if low == high:
            doubts.append((index, f"channel {name} is constant: {low:g} everywhere", some))
        elif is_ct(name) and is_hardly_hounsfield(low, high):
            text = f"channel {name} runs from {low:g} to {high:g}: these are hardly Hounsfield units"
            doubts.append((index, text, True))
    return doubts


def _label_doubts(cohort: Cohort, labels: Volume, subject: Subject) -> list[tuple[str, bool]]:
    """What is wrong with the reference of a subject, and whether that is only a warning."""
    values, counts = np.unique(labels.array, return_counts=True)
    strange = [(int(v), int(n)) for v, n in zip(values, counts, strict=True) if int(v) not in cohort.declared]
    if strange:
        listed = shortened([f"{value} ({counted(count, 'voxel')})" for value, count in strange], _LISTED)
        return [(f"label values that dataset.json does not declare: {listed}; to mend it: {DECLARE_THEM}", False)]
    try:
        check_hidden(labels, subject.hidden, subject.name, subject.labels)
    except CohortError as error:
        return [(_text(error), False)]
    if set(values.tolist()) <= {0, cohort.ignore_label}:
        text = "nothing is labelled" if 0 in values else "every voxel has the ignore label"
        return [(text, True)]
    return []


def _compare(cohort: Cohort, fingerprint: Fingerprint) -> list[Problem]:
    """What only shows beside the other subjects."""
    problems = [Problem(text, path=cohort.root, severity="warning") for text in cohort_doubts(cohort, fingerprint)]
    try:
        cohort.require_annotated()
    except CohortError as error:
        problems.append(Problem(_text(error), path=cohort.root))
    for name, count in cohort.annotated_in().items() if cohort.hidden else ():
        if count == 1:
            text = (
                f"{name} was annotated in a single subject: nothing is learnt of how it differs, and nothing measured"
            )
            problems.append(Problem(text, path=cohort.root, severity="warning"))
    prints = fingerprint.subjects
    labelled = [subject for subject in prints if subject.label_ml]
    if len(labelled) == 1:
        text = "a single subject has a reference: at least two are needed to learn how subjects differ, better 10 to 20"
        problems.append(Problem(text, path=cohort.root, severity="warning"))
    for index, channel in enumerate(cohort.channels):
        ranges = [subject.percentiles[index] for subject in prints]
        if not is_ct(channel) and all(low <= AIR and high >= TISSUE for low, *_, high in ranges):
            text = f"channel {channel} looks like CT in Hounsfield units and would be normalised image by image"
            name = json.dumps({str(index): "CT"})
            text += f'; to mend it: call it so in dataset.json, "channel_names": {name}'
            problems.append(Problem(text, path=cohort.root, severity="warning"))
    flat = [tuple(axis for axis, n in zip("zyx", subject.shape, strict=True) if n == 1) for subject in prints]
    usual_axes = max(sorted(set(flat)), key=flat.count)
    for subject, axes in zip(prints, flat, strict=True):
        if axes != usual_axes:
            text = f"{_extent(axes)}, and most of the cohort {_extent(usual_axes)}: they cannot be aligned"
            problems.append(Problem(text, subject.name))
    spacings = np.array([subject.spacing for subject in prints])
    extents = np.array([np.array(subject.shape[::-1]) * subject.spacing for subject in prints])
    for what, values in (("spacing", spacings), ("field of view", extents)):
        median = np.median(values, axis=0)
        for subject, own in zip(prints, values, strict=True):
            if np.any(np.maximum(own / median, median / own) > _UNLIKE):
                shown, usual = (lengths(three) for three in (own, median))
                text = f"the {what}, {shown} mm (x, y, z), is unlike the cohort's median, {usual} mm"
                problems.append(Problem(text, subject.name, severity="warning"))
    return problems


def _extent(single: Sequence[str]) -> str:
    return f"has a single slice along {', '.join(single)}" if single else "has several slices along all axes"


def _text(error: InputError) -> str:
    """The error's text without its path, which the problem carries."""
    text = str(error)
    return text.removeprefix(f"{error.path}: ") if error.path is not None else text
