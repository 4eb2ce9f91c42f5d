"""Whom a study tests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from atlasnet.cohort import Cohort, Subject
from atlasnet.cohort.declaration import read_declaration
from atlasnet.errors import CohortError
from atlasnet.evaluation.table import shortened
from atlasnet.prediction import find_cases
from atlasnet.prediction.inputs import image_stem


def read_test_subjects(path: str | Path, cohort: Cohort, names: Sequence[str] | None = None) -> tuple[Subject, ...]:
    """The test subjects of a study: those of ``imagesTs`` and ``labelsTs`` below a folder, or of a whole cohort.

    Args:
        path: the folder.
        cohort: the training cohort, which says how many channels there are.
        names: only these; a name that is not among ``imagesTs`` may be that of a subject of the folder's own cohort.

    Raises:
        CohortError: some have no reference, a name is unknown, or the labels are declared otherwise.
        InputError: a channel is missing.
    """
    root = Path(path)
    images, labels = root / "imagesTs", root / "labelsTs"
    found: dict[str, Subject] = {}
    if images.is_dir():
        references = {image_stem(file): file for file in labels.iterdir()} if labels.is_dir() else {}
        cases = find_cases([images], len(cohort.channels))
        absent = [case.name for case in cases if case.name not in references and case.name in (names or [case.name])]
        if absent:
            raise CohortError(
                "test subjects have no reference",
                path=labels,
                expected="a label map of every image of imagesTs",
                found="none for " + shortened(absent),
                remedy="add them, or name subjects that have one with --test-subjects",
            )
        found = {case.name: replace(case, labels=references.get(case.name)) for case in cases}
    if not images.is_dir() or not set(names or ()) <= set(found):
        own = Cohort.read(root)
        found = {subject.name: subject for subject in own} | found
        _check_alike(root, own.labels, own.ignore_label, cohort)
    elif (root / "dataset.json").is_file():
        declared = read_declaration(root / "dataset.json")
        if declared.labels is not None:
            _check_alike(root, declared.labels, declared.ignore_label, cohort)
    if names is None:
        return tuple(found.values())
    unknown = [name for name in names if name not in found]
    if unknown:
        raise CohortError(
            "these are not test subjects", path=root, expected=shortened([*found]), found=shortened(unknown)
        )
    return tuple(found[name] for name in names)


def _check_alike(path: Path, labels: Mapping[str, int], ignore_label: int | None, cohort: Cohort) -> None:
    """Scores mean nothing where a value is another label in the test subjects than in the training subjects."""
    if dict(labels) != cohort.labels or ignore_label != cohort.ignore_label:
        raise CohortError(
            "the test subjects are not labelled as the training subjects are",
            path=path,
            expected=f"{cohort.labels}, ignored {cohort.ignore_label}",
            found=f"{dict(labels)}, ignored {ignore_label}",
            remedy="declare the same labels in both dataset.json",
        )
