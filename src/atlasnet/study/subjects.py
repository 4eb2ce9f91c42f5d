"""Whom a study tests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from atlasnet.cohort import Cohort, Subject
from atlasnet.cohort.channels import Source
from atlasnet.cohort.declaration import read_declaration
from atlasnet.cohort.duplicates import same_scans
from atlasnet.cohort.subject import HIDDEN, check_same_grid
from atlasnet.errors import CohortError, InputError
from atlasnet.execution import digest
from atlasnet.prediction import find_cases
from atlasnet.volume import read_grid
from atlasnet.volume.names import composed, images_by_stem
from atlasnet.wording import shortened


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
    root, names = Path(path), None if names is None else [composed(name) for name in names]
    images, labels = root / "imagesTs", root / "labelsTs"
    found: dict[str, Subject] = {}
    if images.is_dir():
        references = images_by_stem(labels) if labels.is_dir() else {}
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
    if (root / "dataset.json").is_file():
        declared = read_declaration(root / "dataset.json")
        if declared.labels is not None:
            _check_alike(root, declared.labels, declared.ignore_label, cohort)
        found = {name: replace(test, hidden=declared.hidden.get(name, ())) for name, test in found.items()}
    if not images.is_dir() or not set(names or ()) <= set(found):
        own = Cohort.read(root)
        found = {subject.name: subject for subject in own} | found
        _check_alike(root, own.labels, own.ignore_label, cohort)
    if names is None:
        return tuple(found.values())
    unknown = [name for name in names if name not in found]
    if unknown:
        raise CohortError(
            "these are not test subjects", path=root, expected=shortened([*found]), found=shortened(unknown)
        )
    return tuple(found[name] for name in names)


def subject_digests(subject: Subject) -> tuple[str, ...]:
    """Of a subject's images, of its reference, empty where there is none, and of its organ mask where it has one.

    Where some labels were not annotated, it says which.
    """
    hashes = subject.hashes()
    hidden = ["not annotated: " + ", ".join(hashes[HIDDEN])] if HIDDEN in hashes else []
    return (digest(hashes["images"]), *(hashes["labels"] or [""]), *hashes.get("mask", []), *hidden)


def observer_files(folder: Path, tests: Sequence[Subject]) -> dict[str, Path]:
    """Another person's segmentations, by test subject: CASE with any readable suffix.

    Raises:
        InputError: the folder is absent or holds none.
    """
    files = images_by_stem(folder) if folder.is_dir() else {}
    found = {test.name: files[test.name] for test in tests if test.name in files}
    if not found:
        raise InputError(
            "the observer's folder holds no test subject",
            path=folder,
            expected=f"files such as {tests[0].name}.nii.gz",
        )
    return found


def check_observer(folder: Path, tests: Sequence[Subject]) -> None:
    """Whether another person's segmentations can be scored; see `observer_files`.

    Raises:
        InputError: the folder is absent or holds none.
        VolumeError: one cannot be read, or does not lie on the grid of the subject's reference.
    """
    references = {test.name: test.labels for test in tests}
    for name, path in observer_files(folder, tests).items():
        if (reference := references[name]) is not None:
            check_same_grid(read_grid(path), read_grid(reference), path, Source(reference))


def check_test_subjects(cohort: Cohort, tests: Sequence[Subject]) -> None:
    """Whether one can learn from the training subjects and test on ``tests``.

    Args:
        cohort: the training subjects.
        tests: others.

    Raises:
        CohortError: a test subject has other channels.
        VolumeError: its reference does not lie on the grid of its image, or an image cannot be read.
        InputError: its scan is that of a training subject.
    """
    for test in tests:
        if test.channels != len(cohort.channels):
            raise CohortError(
                f"test subject {test.name} has not the channels of the training subjects",
                path=test.images[0],
                expected=str(len(cohort.channels)),
                found=str(test.channels),
            )
        if test.labels is not None:
            check_same_grid(read_grid(test.labels), test.read_grid(), test.labels, *test.sources)
    leaked = [f"{test.name} is {subject.name}" for test, subject in same_scans(tests, tuple(cohort))]
    if leaked:
        raise InputError(
            "test subjects are training subjects",
            path=cohort.root,
            found=shortened(leaked),
            remedy="name others with --test, or divide the subjects with --subjects and --test-subjects",
        )


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
