"""Many scans, one after the other: one that fails does not stop the others, one that is done is not done again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from atlasnet.cohort import Subject
from atlasnet.cohort.doubts import header_doubts, modality_doubts
from atlasnet.errors import AtlasNetError, Cancelled, InputError, UnusualInputError, explained
from atlasnet.execution import Execution, NamingReporter, Stages, give_back_memory, hold, remains_in
from atlasnet.execution.stages import MIB
from atlasnet.prediction.dicom import find_origin
from atlasnet.prediction.output import (
    DICOM_SEG,
    REPORT,
    RTSTRUCT,
    check_own,
    check_places,
    every_file,
    is_whole,
    is_written,
    provenance,
    withdraw,
    write_prediction,
)
from atlasnet.prediction.prediction import Prediction, PredictOptions
from atlasnet.prediction.predictor import Predictor
from atlasnet.volume import Volume, volume_digest
from atlasnet.volume.io import stated_series
from atlasnet.volume.kept import kept_open
from atlasnet.volume.names import image_stem
from atlasnet.wording import counted

TRAINED_ON = "the model was trained on this scan: how well it does here says nothing of other scans"

E = TypeVar("E", bound=AtlasNetError)
# Writes the page of a case: its name, its image, what became of it, where the page goes, the record.
Report = Callable[[str, Volume, Prediction, Path, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Batch:
    """What became of the cases, by their names.

    Args:
        written: where the labels of those lie that were segmented now.
        kept: the same of those that were there, of the same model, input and options.
        failed: why the others have none.
        refused: why those have none that are not like the training subjects.
    """

    written: dict[str, Path] = field(default_factory=dict)
    kept: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, AtlasNetError] = field(default_factory=dict)
    refused: dict[str, UnusualInputError] = field(default_factory=dict)

    def __repr__(self) -> str:
        problems = {**self.failed, **self.refused}
        first = "".join(f"; {name}: {problem}" for name, problem in [*problems.items()][:1])
        return f"Batch({self.summary()}{first})"

    def summary(self) -> str:
        """One line."""
        counts = {
            "segmented": len(self.written),
            "kept as they were": len(self.kept),
            "refused": len(self.refused),
            "failed": len(self.failed),
        }
        total = sum(counts.values())
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return f"{counted(total, 'case')}: {said or 'nothing to do'}"


def wanted_outputs(
    options: PredictOptions, *, dicom_seg: bool = False, rtstruct: bool = False, report: bool = False
) -> tuple[str, ...]:
    """What is written beside labels and record, by the names of `atlasnet.prediction.output.output_path`."""
    names = [
        ("probabilities", options.probabilities),
        ("agreement", options.agreement),
        ("entropy", options.agreement),
        (DICOM_SEG, dicom_seg),
        (RTSTRUCT, rtstruct),
        (REPORT, report),
    ]
    return tuple(name for name, wanted in names if wanted)


def predict_cases(
    predictor: Predictor,
    cases: Sequence[Subject],
    paths: Mapping[str, Path],
    options: PredictOptions | None = None,
    *,
    dicom_seg: bool = False,
    rtstruct: bool = False,
    report: Report | None = None,
    overwrite: bool = False,
) -> Batch:
    """Segment cases and write what `write_prediction` writes, as each is done.

    A case is kept as it is when its record names the same request (version, model, input files, options and seed, by
    a hash) and every output that is wanted has the SHA-256 that the record says. An earlier result of another request,
    whose case fails now, is removed, as far as its record knows the files: it would pass for one of this call. Where
    the input cannot be read, or the DICOM series that is named is not there, no one can tell, and the result stays; so
    does one of this very request. One of a case that is refused is removed. A case that another process is segmenting
    is looked at again after the others: it is kept if that one has finished it, attempted if that one is gone, and has
    failed if it is still at it.

    Args:
        predictor: the model or models, ready.
        cases: from `find_cases`.
        paths: by case name, where its labels go.
        options: fusion, outputs, post-processing.
        dicom_seg: whether to write DICOM segmentations; the cases must be DICOM, and so for the next.
        rtstruct: whether to write DICOM structure sets.
        report: writes a page for each case, such as `atlasnet.report.PredictionReport`.
        overwrite: whether to segment the cases again that are done.

    Returns:
        What became of each case. A case fails when its files cannot be read or written, it has not the model's
        channels, it cannot be mapped onto any atlas, memory does not suffice, another process is segmenting it into the
        same place, or something that is no result of ours lies in its place: a JSON file that is no record, or, without
        ``overwrite``, labels that were edited. With ``strict``, one that is not like the training subjects is refused:
        nothing is written for it.

    Raises:
        ModelError: ``strict`` is wanted, and no scan can be judged with a model; or cases need organ masks.
        InputError: there are several models, and the fusion is not the mean; or a result would take the place of a
            scan or a folder.
        Cancelled: on request; what was finished stays, and the same call goes on.
    """
    options, execution = options or PredictOptions(), predictor.execution
    predictor.ensemble.check(options)
    predictor.ensemble.check_masks(cases)
    outputs = wanted_outputs(options, dicom_seg=dicom_seg, rtstruct=rtstruct, report=report is not None)
    check_places(cases, paths, outputs)
    remains = {path: left for place in {p.parent for p in paths.values()} for path, left in remains_in(place).items()}
    request = _Request(predictor, options, outputs, report, overwrite, remains)
    batch, alone = Batch(), len(cases) == 1
    busy: list[Subject] = []
    for case in execution.reporter.track(cases, "segmenting", len(cases)):
        execution.pause()
        held = request.attempt_held(case, paths[case.name], batch, alone=alone)
        if held is not None and (alone or overwrite):
            batch.failed[case.name] = held
        elif held is not None:
            busy.append(case)
            execution.reporter.note(f"{case.name}: {held.problem}; it is looked at again after the others")
    for case in busy:  # by now the other process has finished it, or is gone
        execution.pause()
        held = request.attempt_held(case, paths[case.name], batch, alone=alone)
        if held is not None:
            batch.failed[case.name] = held
            execution.reporter.warn(f"{case.name}: {held}")
    return batch


@dataclass(frozen=True)
class _Request:
    """What is wanted of every case; see `predict_cases`."""

    predictor: Predictor
    options: PredictOptions
    outputs: Collection[str]
    report: Report | None
    overwrite: bool
    remains: Mapping[Path, Sequence[Path]]

    def is_kept(self, case: Subject, path: Path) -> bool:
        """Whether the case is segmented as it is wanted, as far as it can be read."""
        try:
            return is_written(path, self._made_of(case), self.outputs, strict=self.options.strict)
        except (AtlasNetError, OSError):
            return False

    def attempt_held(self, case: Subject, path: Path, batch: Batch, *, alone: bool) -> InputError | None:
        """Attempt a case that no other process is at; otherwise say why not, unless its result is there."""
        try:
            with _held(path):
                _clear(case, path, self.remains, self.predictor.execution)
                self.attempt(case, path, batch, alone=alone)
        except InputError as held:
            # For a result that is there, nothing need be written; what another process writes stays as it is.
            if self.overwrite or not self.is_kept(case, path):
                return held
            batch.kept[case.name] = path
        return None

    def attempt(self, case: Subject, path: Path, batch: Batch, *, alone: bool) -> None:
        """Note in ``batch`` what becomes of a case; raises nothing of what is wrong with it."""
        execution, stages = self.predictor.execution, Stages(device=self.predictor.execution.device)
        made_of: dict[str, Any] | None = None
        try:
            with stages("reading"):
                made_of = self._made_of(case)
            said = self._segment(case, path, made_of, stages, alone=alone)
        except Cancelled:
            raise
        except UnusualInputError as refusal:
            batch.refused[case.name] = _alone(refusal)
            _withdraw(case, path, execution)
            if not alone:
                execution.reporter.warn(f"{case.name}: refused: {refusal}")
            return
        except (AtlasNetError, OSError, MemoryError, RuntimeError) as problem:
            error = explained(problem)
            if error is None:
                raise
            batch.failed[case.name] = error = _located(_alone(error), case)
            if not _is_there(case):
                made_of = None
            stays = is_whole(path) if made_of is None else is_written(path, made_of, ())
            if not stays:
                _withdraw(case, path, execution)
            elif made_of is None:
                execution.reporter.warn(f"{case.name}: its earlier result stays: whether it is of this scan is unknown")
            if not alone:
                execution.reporter.warn(f"{case.name}: {error}")
            return
        finally:
            give_back_memory()
        (batch.kept if said is None else batch.written)[case.name] = path
        execution.reporter.note(f"{case.name}: {said or 'kept, it is of the same model, input and options'}")

    def _made_of(self, case: Subject) -> dict[str, Any]:
        predictor = self.predictor
        return provenance(
            case, predictor.ensemble, self.options, predictor.execution, allow_module=predictor.allow_module
        )

    def _segment(
        self, case: Subject, path: Path, made_of: Mapping[str, Any], stages: Stages, *, alone: bool
    ) -> str | None:
        """Segment a case and write it; a line on the result, None where it is there already.

        Nothing of the case is in memory afterwards, while the next one is segmented.
        """
        predictor, execution = self.predictor, self.predictor.execution
        options = self.options
        asked = options if self.report is None else replace(options, agreement=True)
        dicom_seg, rtstruct = DICOM_SEG in self.outputs, RTSTRUCT in self.outputs
        with stages("reading"), kept_open():
            if not self.overwrite and is_written(path, made_of, self.outputs, strict=options.strict):
                return None
            check_own(path, edited=self.overwrite)
            needed = predictor.require_memory(case.read_grid(), asked, case.images[0])
            origin = find_origin(case, predictor.ensemble) if dicom_seg or rtstruct else None
            image = case.read_image()
            mask = case.read_mask(image.grid)
            told = [text for _, text in header_doubts(case, predictor.ensemble.channels)]
            if tuple(map(volume_digest, case.images)) in predictor.ensemble.seen:
                told.append(TRAINED_ON)
            against = [text for _, text in modality_doubts(case, predictor.ensemble.channels)]
        for text in told:
            execution.reporter.warn(f"{case.name}: {text}")
        if not alone:
            predictor = predictor.reporting_to(NamingReporter(execution.reporter, case.name))
        prediction = predictor.predict(image, asked, mask=mask, against=against)
        prediction.record["warnings"][:0] = told
        prediction.record["estimated_memory_mib"] = round(needed / MIB, 1)
        page = None
        if self.report is not None:
            page = partial(self.report, case.name, image, prediction)
            if not options.agreement:
                prediction = replace(prediction, agreement=None, entropy=None, confidence=None)
        write_prediction(
            prediction,
            path,
            provenance=made_of,
            stages=stages,
            segments=predictor.ensemble.segments,
            origin=origin,
            dicom_seg=dicom_seg,
            rtstruct=rtstruct,
            page=page,
        )
        return prediction.summary()


def _held(path: Path) -> AbstractContextManager[None]:
    """The results of a case, by the path of its labels, for this process."""
    return hold(
        path.with_name(f".{image_stem(path) or path.name}.lock"),
        place=path,
        busy="another process is segmenting this case",
        remedy="give another folder or name with -o",
    )


def _clear(case: Subject, path: Path, remains: Mapping[Path, Sequence[Path]], execution: Execution) -> None:
    """Remove what a process that was killed had begun to write of a case; no other can be writing it now."""
    begun = [folder for file in every_file(path) for folder in remains.get(file, ()) if folder.is_dir()]
    for folder in begun:
        shutil.rmtree(folder, ignore_errors=True)
    if begun:
        text = (
            f"what a process that was killed had begun to write was removed: {counted(len(begun), 'temporary folder')}"
        )
        execution.reporter.note(f"{case.name}: {text}")


def _withdraw(case: Subject, path: Path, execution: Execution) -> None:
    """Take away the earlier result of a case that has none now."""
    try:
        if withdraw(path):
            execution.reporter.warn(f"{case.name}: its earlier result was removed")
    except OSError as problem:
        execution.reporter.warn(f"{case.name}: its earlier result remains: {problem.strerror}")


def _is_there(case: Subject) -> bool:
    """Whether the scan that is meant can be told; of a DICOM export another series may have been named by mistake."""
    try:
        for path, series in case.sources:
            stated_series(path, series=series)
    except (AtlasNetError, OSError):
        return False
    return True


def _located(error: AtlasNetError, case: Subject) -> AtlasNetError:
    """The error with the scan that it is about, where it names no file: what fails below knows arrays only."""
    if not isinstance(error, InputError) or error.path is not None:
        return error
    return error.told(path=case.images[0])


def _alone(error: E) -> E:
    """The error without the frames that it was raised in: they hold the scan, and what had been made of it."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error
