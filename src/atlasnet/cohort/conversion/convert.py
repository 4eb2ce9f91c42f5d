"""A cohort in nnU-Net's layout made of a folder with a folder for each case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlasnet import __version__
from atlasnet.cohort.annotated import ANNOTATED
from atlasnet.cohort.conversion.find import Case, find_case, holds_documents_alone
from atlasnet.cohort.conversion.labels import (
    Chosen,
    Labels,
    check_missing,
    check_united,
    drawn_whole,
    every_structure,
    is_ignored,
    label_values,
)
from atlasnet.cohort.conversion.painting import Combining, Covering, Painting
from atlasnet.cohort.doubts import header_doubts, modality_doubts
from atlasnet.cohort.layout import PARTS
from atlasnet.cohort.plan import is_ct
from atlasnet.cohort.segments import label_segments
from atlasnet.cohort.structures import Values
from atlasnet.cohort.subject import NOT_AS_DECLARED, Subject
from atlasnet.errors import CohortError, InputError, VolumeError, require_folder
from atlasnet.execution import Reporter, SilentReporter, atomic_folder, require_absent, write_json
from atlasnet.volume import Volume, read_labels, write_labels, write_volume
from atlasnet.volume.io import SEVERAL_VOLUMES
from atlasnet.volume.kept import kept_open
from atlasnet.volume.names import is_dicom
from atlasnet.wording import counted, in_lines, shortened


@dataclass(frozen=True)
class Conversion:
    """A cohort that was made.

    Args:
        folder: of the cohort.
        cases: their names.
        channels: their names.
        labels: name to value, background included; to values where structures overlap.
        notes: what was done that a person should know of.
    """

    folder: Path
    cases: tuple[str, ...]
    channels: tuple[str, ...]
    labels: dict[str, Values]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "folder": str(self.folder),
            "cases": list(self.cases),
            "channels": list(self.channels),
            "labels": self.labels,
            "notes": list(self.notes),
        }


def convert_cohort(
    source: str | Path,
    folder: str | Path,
    *,
    channels: Sequence[str] = (),
    images: Sequence[str] = (),
    series: Sequence[str] = (),
    structures: str | None = None,
    labels: Labels | None = None,
    overlapping: bool = False,
    allow_missing: bool = False,
    partial: bool = False,
    reporter: Reporter | None = None,
) -> Conversion:
    """Make a cohort of annotated cases as annotation tools leave them.

    Every case has a folder of its own in ``source``; folders of nothing but texts and tables are left out. What is
    annotated may be a folder with a mask for each structure, a label map, a ``.seg.nrrd`` of 3D Slicer, a DICOM
    segmentation or a DICOM structure set; see `find_case` for how it is found. A mask may cover a part of the image, or
    have its axes in another order: nothing is interpolated.

    Args:
        source: holds a folder for each case.
        folder: of the cohort, which must not exist yet.
        channels: what the images show, in the order of ``images`` or ``series``, or of the channels of the one image
            that holds them all; may be left out where all are DICOM and say it (their modality).
        images: a pattern for each channel, or for the one image of all channels.
        series: the DICOM series of each channel in the one image, by number, UID or description, as `read_volume` takes
            them.
        structures: a pattern.
        labels: names of the labels, in the order of their values, each with the structures that it unites, whose names
            are compared without regard to capitals. Where structures overlap, later labels cover earlier ones. By
            default every structure is a label, in the order of their names, and none may overlap.
        overlapping: structures may overlap: voxels of several have a value of their own, and a label that others lie in
            is declared as a region of several values.
        allow_missing: take a structure that a case does not have for absent in it, instead of refusing.
        partial: take it for not annotated, and say so in ``dataset.json``; no label may cover another then. Of
            structures that are united, those of a case which has fewer than another case are left out.
        reporter: follows the work.

    Raises:
        InputError: the cohort exists already or would lie in ``source``, or arguments contradict each other.
        CohortError: what is wrong with the cases, all of it; no cohort is made.
    """
    source, folder, reporter = Path(source), Path(folder), reporter or SilentReporter()
    require_folder(source)
    require_absent(folder)
    if folder.resolve().is_relative_to(source.resolve()):
        raise InputError(
            "the cohort would lie among the cases, and the next call would take it for one",
            path=folder,
            expected="a folder outside that of the cases",
            remedy=f"give another one, such as {source.absolute().with_name(f'{source.absolute().name}_data')}",
        )
    if series and len(images) > 1:
        raise InputError(
            "channels are either images or DICOM series of one",
            expected="--series with one --image at most",
            found=f"{counted(len(images), 'image')}, {len(series)} series",
        )
    apart = max(len(images), len(series))
    if apart > 1 and channels and len(channels) != apart:
        raise InputError(
            "images or series and channels are not as many",
            expected="an image or a series and a name for each channel, or one image that holds them all",
            found=f"{apart} of them, {counted(len(channels), 'channel')}",
        )
    if partial and allow_missing:
        raise InputError(
            "structures that a case does not have are either absent or not annotated",
            expected="one of --allow-missing and --partial",
        )
    cases, beside = _cases(source, reporter, images=images, structures=structures, series=series)
    channels = tuple(channels) or (_modality(cases),)
    _check_modality(cases, channels[0])
    wanted = every_structure(cases) if labels is None else labels
    values = label_values(wanted)
    painting = Combining([*wanted]) if overlapping else Covering(values, labels is not None, partial)
    chosen = [Chosen.of(case, wanted) for case in cases]
    notes = _left_out(source, beside)
    if partial:
        chosen, parts = drawn_whole(chosen)
        notes += parts
    notes += check_missing(chosen, wanted, allow_missing, partial)
    notes += check_united(chosen, wanted, allow_missing)
    problems: list[str] = []
    # Values are given in this order: first those of the cases that have all labels.
    ordered = (
        sorted(chosen, key=lambda case: sum(not names for names in case.structures.values())) if partial else chosen
    )
    with atomic_folder(folder) as made:
        for case in reporter.track(ordered, "converting", len(chosen)):
            try:
                notes += _write_case(made, case, channels, painting)
            except InputError as error:
                problems.append(f"{case.case.name}: {error}")
        _refuse(problems)
        if partial and isinstance(painting, Combining):
            for name, changed in painting.settle().items():
                _change(made / "labelsTr" / f"{name}.nii.gz", changed)
        declared = painting.declared()
        _declare(made, chosen, channels, declared, partial=partial)
    notes += painting.notes()
    return Conversion(folder, tuple(case.name for case in cases), channels, declared, tuple(notes))


def _cases(source: Path, reporter: Reporter, **wanted: Any) -> tuple[list[Case], list[Path]]:
    """The cases, see `find_case`, and folders beside theirs that hold none."""
    if any((source / part).is_dir() for part in PARTS):
        raise CohortError(
            "this is a cohort already",
            path=source,
            expected="a folder for each case",
            remedy=f"use it as it is, or find what is wrong with it: atlasnet check {source}",
        )
    beside = [entry for entry in _entries(source) if entry.is_dir() and holds_documents_alone(entry)]
    folders = [entry for entry in _entries(source) if entry.is_dir() and entry not in beside]
    if not folders:
        raise CohortError(
            "there is no folder of a case",
            path=source,
            expected="one for each case, with its image and what is annotated",
        )
    cases, problems = [], []
    for folder in reporter.track(folders, "looking at the cases", len(folders)):
        try:
            with kept_open():
                cases.append(find_case(folder, **wanted))
        except InputError as error:
            problems.append(str(error))
    _refuse(problems)
    return cases, beside


def _entries(source: Path) -> list[Path]:
    return [entry for entry in sorted(source.iterdir()) if not entry.name.startswith(".") and entry.name != "__MACOSX"]


def _left_out(source: Path, beside: Sequence[Path]) -> list[str]:
    """Files and folders beside those of cases, told: one may be a case."""
    files = [entry.name for entry in _entries(source) if not entry.is_dir()]
    notes = [f"left out, in no folder of a case: {shortened(files)}"] if files else []
    folders = [folder.name for folder in beside]
    return [*notes, f"left out, with texts and tables alone: {shortened(folders)}"] if folders else notes


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        said = f"{counted(len(problems), 'case')} cannot be converted; no cohort was made"
        raise CohortError(f"{said}\n{in_lines(problems)}")


def _modality(cases: Sequence[Case]) -> str:
    """What all images show, where all are DICOM and say it."""
    found = {case.modality for case in cases if max(len(case.images), len(case.series)) == 1}
    (modality,) = found if len(found) == 1 else (None,)
    if modality is not None:
        return modality
    raise InputError(
        "what the images show is not known",
        expected="--channel CT for CT in Hounsfield units, or another name such as T1, for each --image or --series",
        found=shortened(sorted(modality or "images that do not say it" for modality in found))
        or "several channels of each case",
    )


def _check_modality(cases: Sequence[Case], channel: str) -> None:
    """Refuse images under the name CT, whose values are taken for Hounsfield units, that say that they are others."""
    others = [f"{case.name} ({case.modality})" for case in cases if case.modality not in (None, "CT")]
    if others and is_ct(channel):
        raise CohortError(
            "not all images are CT",
            expected=f"CT, for the channel {channel}",
            found=shortened(others),
            remedy="name the CT series with --series or --image, or call the channel otherwise",
        )


def _write_case(folder: Path, chosen: Chosen, channels: Sequence[str], painting: Painting) -> list[str]:
    """Write image and labels of a case; what is to be told of it."""
    case = chosen.case
    subject = Subject(case.name, case.images, channels=len(channels), series=case.series)
    with kept_open():
        image = _read(subject)
        doubts = header_doubts(subject, channels) + modality_doubts(subject, channels)
    labels, notes = painting.paint(chosen, image.grid)
    notes += [f"{case.name}: {doubt}" for _, doubt in doubts]
    if case.elsewhere:
        notes.append(
            f"{case.name}: the structures state another series than the one that was named, which is taken for theirs"
        )
    write_labels(folder / "labelsTr" / f"{case.name}.nii.gz", Volume(labels[None], image.grid))
    for number, channel in enumerate(image.array):
        write_volume(folder / "imagesTr" / f"{case.name}_{number:04d}.nii.gz", Volume(channel[None], image.grid))
    return notes


def _change(file: Path, changed: Mapping[int, int]) -> None:
    """Give other values to voxels of a label map."""
    labels = read_labels(file)
    made = labels.array.copy()
    for value, other in changed.items():
        made[labels.array == value] = other
    write_labels(file, labels.replace(made))


def _read(subject: Subject) -> Volume:
    """The image; where its channels are not those that were named, told with what mends it here."""
    try:
        return subject.read_image()
    except VolumeError as error:
        if error.problem not in (SEVERAL_VOLUMES, NOT_AS_DECLARED):
            raise
        if is_dicom(subject.images[0]):
            alone = "a DICOM series is one channel: give --series once for each --channel"
        else:
            alone = "name its channels, in their order: --channel once for each of them"
        each = "give one file for each --image and --channel, or one --image that holds all channels"
        raise error.told(remedy=alone if len(subject.images) == 1 else each) from error


def _declare(
    folder: Path, chosen: Sequence[Chosen], channels: Sequence[str], values: Mapping[str, Values], *, partial: bool
) -> None:
    """Write ``dataset.json``, with the colours and codes that the first case states that has the label.

    If the cases are ``partial``, it says which labels were annotated in those that do not have all.
    """
    segments = {}
    for label in (name for name in values if not is_ignored(name)):
        stated = ((c.case, c.structures[label]) for c in chosen if c.structures.get(label))
        entry = next((case.segments[names[0]] for case, names in stated if len(names) == 1), {})
        try:
            label_segments({label: 1}, {label: entry})
        except InputError:  # longer than DICOM allows, or incomplete
            continue
        if entry:
            segments[label] = entry
    content: dict[str, Any] = {
        "description": f"converted by AtlasNet {__version__}",
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": dict(values),
        "numTraining": len(chosen),
        "file_ending": ".nii.gz",
    }
    if segments:
        content["segments"] = segments
    if partial:
        wanted = [name for name in values if name in chosen[0].structures and not is_ignored(name)]
        drawn = {c.case.name: [name for name in wanted if c.structures[name]] for c in chosen}
        content[ANNOTATED] = {case: names for case, names in drawn.items() if names != wanted}
    write_json(folder / "dataset.json", content)
