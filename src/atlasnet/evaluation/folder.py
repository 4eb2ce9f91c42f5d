"""Evaluating a folder of predictions against a folder of references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atlasnet.cohort import Subject, find_masks
from atlasnet.cohort.annotated import ANNOTATED
from atlasnet.cohort.cohort import unknown_cases
from atlasnet.cohort.declaration import Declaration, read_declaration
from atlasnet.cohort.masks import check_masks
from atlasnet.cohort.structures import Values, all_values, structures_of
from atlasnet.errors import InputError, VolumeError
from atlasnet.evaluation.patches import PatchCounts, PatchProtocol
from atlasnet.evaluation.scores import LabelScores, SliceScores, SubjectScores, check_ignore_label, evaluate_subject
from atlasnet.evaluation.table import Table, unannotated
from atlasnet.execution import Execution, in_order
from atlasnet.volume import Volume
from atlasnet.volume.io import read_labels
from atlasnet.volume.label_boxes import label_values
from atlasnet.volume.names import READABLE_SUFFIXES, image_suffix, images_by_stem, of_slicer
from atlasnet.wording import counted, shortened

_LABEL_MAPS = ("labelsTr", "labelsTs", "labels", "predictions")  # of cohorts and cross-validations

# What `atlasnet predict` writes beside CASE on request; they are no predictions to score.
_MAPS = ("probabilities", "agreement", "entropy")


def evaluate_folder(
    predictions: str | Path,
    references: str | Path,
    *,
    labels: Sequence[str] | None = None,
    ignore_label: int | None = None,
    tolerance_mm: float = 1.0,
    per_slice: bool = False,
    patches: PatchProtocol | None = None,
    allow_missing: bool = False,
    organ_masks: str | Path | None = None,
    jobs: int = 1,
    execution: Execution | None = None,
) -> Table:
    """Compare label maps with references of the same case name.

    Scored are the labels that ``dataset.json``, in the folder of references or in its parent, declares, where it
    declares regions these and the labels that it names, and any further value that occurs in the references, named by
    its number. A label that nobody annotated in a case, as ``dataset.json`` says, has no score there. See `LabelScores`
    and `SliceScores` for the definitions.

    Args:
        predictions: folder of CASE.nii.gz (or another readable suffix), or one file.
        references: the same; one file if ``predictions`` is one.
        labels: names (or values) of the labels and regions to score instead of all.
        ignore_label: the value of voxels that nobody annotated, by default the one named "ignore" in ``dataset.json``.
        tolerance_mm: deviation up to which a contour voxel is right in the surface Dice.
        per_slice: score annotated slices too.
        patches: classify patches of the annotated slices too; see `classify_patches`.
        allow_missing: leave out, and name in the table, references without a prediction; otherwise they are an error,
            because a mean without the failures flatters. Predictions without a reference are named in the table.
        organ_masks: folder of CASE.nii.gz, an organ mask of each case, or one file: what lies outside is background in
            prediction and reference.
        jobs: how many cases are scored at a time, each in memory; files are read one after the other.
        execution: its reporter and its cancellation are used.

    Raises:
        InputError: a folder is absent or empty, predictions are missing, an unknown label, nothing to be scored was
            annotated, the background as ignore label, a negative tolerance, no job.
        CohortError: ``dataset.json`` cannot be used, a reference holds labels that nobody is said to have annotated in
            it, or an organ mask is missing.
        VolumeError: a file cannot be read, a mask is empty, or files of a case do not lie on one grid.
    """
    execution = Execution.of(execution)
    if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise InputError("the tolerance cannot be used", expected="0 mm or more", found=str(tolerance_mm))
    if jobs < 1:
        raise InputError("the number of jobs must be positive", found=str(jobs))
    truth, found = _cases(Path(references)), _cases(Path(predictions))
    if Path(references).is_file() and Path(predictions).is_file():
        found = dict(zip(truth, found.values(), strict=True))
    maps = {f"{case}_{name}" for case in {*truth, *found} for name in _MAPS}
    missing = [case for case in truth if case not in found]
    if missing and (not allow_missing or len(missing) == len(truth)):
        raise InputError(
            f"no prediction for {len(missing)} of {counted(len(truth), 'reference')}",
            path=predictions,
            expected="a file CASE.nii.gz, or with another image suffix, for each reference",
            found="none for "
            + shortened(missing)
            + (
                f"; those that there are: {shortened([case for case in found if case not in maps])}"
                if len(missing) == len(truth)
                else ""
            ),
            remedy="predict these cases"
            + (", or name both alike" if len(missing) == len(truth) else ", or leave them out with --allow-missing"),
        )
    check_ignore_label(ignore_label)
    declared = _declaration(Path(references), [*truth], execution)
    hidden = {case: declared.hidden.get(case, ()) for case in truth}
    ignore_label = declared.ignore_label if ignore_label is None else ignore_label
    pairs = {case: path for case, path in truth.items() if case in found}
    places = {} if organ_masks is None else find_masks([*pairs], organ_masks)
    cases = {case: Subject(case, (path,), mask=places.get(case)) for case, path in pairs.items()}
    check_masks(cases.values(), execution.reporter)
    values: set[int] = set()
    for path in execution.reporter.track(pairs.values(), "reading references", total=len(pairs)):
        execution.pause()
        values |= label_values(read_labels(path).array)
    named = _named(declared.labels or {}, values - {0, ignore_label}, ignore_label)
    scored = _chosen(named, declared.regions, labels, references)
    if patches is not None:
        patches.values(named)  # a wrong name is said before the work
    counts: dict[str, PatchCounts] = {}
    rows: list[LabelScores] = []
    slices: list[SliceScores] = []
    unknown: set[int] = set()

    def read(case: str) -> _Pair:
        execution.pause()
        path = pairs[case]
        prediction, reference = read_labels(found[case]), read_labels(path)
        if not prediction.grid.matches(reference.grid):
            raise VolumeError(
                "the prediction does not lie on the grid of its reference",
                path=found[case],
                expected=f"{reference.grid!r} as {path}",
                found=repr(prediction.grid),
                remedy="make label maps on the scans' grids of what 3D Slicer saved: atlasnet convert"
                if of_slicer(path) or of_slicer(found[case])
                else "resample the prediction onto the grid of the reference",
            )
        return _Pair(case, prediction, reference, cases[case].read_mask(reference.grid))

    def score(pair: _Pair) -> tuple[str, SubjectScores, PatchCounts | None, set[int]]:
        with_patches = None
        scores = evaluate_subject(
            pair.prediction,
            pair.reference,
            scored,
            case=pair.case,
            ignore_label=ignore_label,
            hidden=hidden[pair.case],
            tolerance_mm=tolerance_mm,
            per_slice=per_slice,
            mask=pair.mask,
        )
        if patches is not None and patches.annotated(named, hidden[pair.case]):
            with_patches = patches.count(
                pair.prediction, pair.reference, named, ignore_label=ignore_label, mask=pair.mask, case=pair.case
            )
        return pair.case, scores, with_patches, label_values(pair.prediction.array)

    results = in_order(score, map(read, pairs), jobs)
    for case, scores, with_patches, occurring in execution.reporter.track(results, "evaluating", total=len(pairs)):
        unknown |= occurring - {0, ignore_label, *named.values()}
        rows += scores.rows
        slices += scores.slices
        if with_patches is not None:
            counts[case] = with_patches
    if not rows:
        raise InputError(
            "nothing that is to be scored was annotated in any case",
            path=references,
            expected=", ".join(scored),
            remedy=f"score what was annotated with --labels, or mend {ANNOTATED!r} in dataset.json",
        )
    if unknown:
        execution.reporter.warn(
            "values that no reference holds and no dataset.json declares are in predictions, and not scored: "
            + shortened([str(value) for value in sorted(unknown)])
        )
    return Table(
        labels=scored,
        rows=tuple(rows),
        slices=tuple(slices),
        protocol=patches,
        patches=counts,
        tolerance_mm=tolerance_mm,
        ignore_label=ignore_label,
        organ_mask=organ_masks is not None,
        missing=tuple(missing),
        unannotated=unannotated(scored, {case: hidden[case] for case in pairs}),
        unscored=tuple(sorted(unknown)),
        unreferenced=tuple(sorted(set(found) - set(truth) - maps)),
    )


@dataclass(frozen=True, eq=False)
class _Pair:
    """A case as it is scored, on one grid."""

    case: str
    prediction: Volume
    reference: Volume
    mask: Volume | None


def _cases(path: Path) -> dict[str, Path]:
    """Case name to image file, sorted by name."""
    if path.is_file():
        return {path.name[: len(path.name) - len(image_suffix(path) or "")]: path}
    if not path.is_dir():
        raise InputError("there is no such folder", path=path)
    cases = images_by_stem(path)
    if not cases:
        within = [str(path / name) for name in _LABEL_MAPS if (path / name).is_dir()]
        raise InputError(
            "the folder holds no image",
            path=path,
            expected="files with " + ", ".join(READABLE_SUFFIXES),
            remedy=f"give the folder of label maps there: {' or '.join(within)}" if within else None,
        )
    return cases


def _declaration(references: Path, cases: Sequence[str], execution: Execution) -> Declaration:
    """The dataset.json beside the references or one folder up; an empty one where there is none."""
    folder = (references.parent if references.is_file() else references).resolve()
    path = next((p for p in (folder / "dataset.json", folder.parent / "dataset.json") if p.is_file()), None)
    if path is None:
        return Declaration()
    declared = read_declaration(path)
    if unknown := unknown_cases(path.parent, declared, cases):
        execution.reporter.warn(f"{path}: {ANNOTATED!r} names what is no case: {shortened(unknown)}")
    return declared


def _named(declared: Mapping[str, int], values: set[int], ignore_label: int | None) -> dict[str, int]:
    """Name to value, by value: those declared, and the rest under their number, or so that no name means two values."""
    others = values - set(declared.values())
    every = dict(declared) | {f"value {v}" if str(v) in declared else str(v): v for v in others}
    scored = {name: value for name, value in every.items() if value not in (0, ignore_label)}
    return dict(sorted(scored.items(), key=lambda item: item[1]))


def _chosen(
    named: Mapping[str, int], regions: Mapping[str, Values], wanted: Sequence[str] | None, references: str | Path
) -> dict[str, Values]:
    """What is scored: the regions, or labels, and the values of neither; or what is wanted of all that has a name."""
    if not named:
        raise InputError("the references hold no label", path=references, expected="a value other than 0")
    if wanted is None:
        known = {value for values in regions.values() for value in all_values(values)}
        others = {name: value for name, value in named.items() if value not in known}
        return structures_of(named, regions) | (others if regions else {})
    every = {**named, **regions}
    by_value = {str(value): name for name, value in named.items()}
    chosen = {}
    for word in wanted:
        name = word if word in every else by_value.get(word)
        if name is None:
            raise InputError(
                f"there is no label {word!r}", path=references, expected="one of " + ", ".join(every), found=repr(word)
            )
        chosen[name] = every[name]
    return chosen
