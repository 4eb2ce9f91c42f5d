"""What a batch of predictions would do, what of it is done already, and what the rest takes: measured, not guessed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from atlasnet.cohort import Subject
from atlasnet.errors import AtlasNetError, InputError, RegistrationError, explained
from atlasnet.execution import Execution, SilentReporter, Stages, json_text, peak_memory, read_json
from atlasnet.execution.stages import MIB
from atlasnet.prediction.batch import Report
from atlasnet.prediction.dicom import find_origin
from atlasnet.prediction.ensemble import Ensemble
from atlasnet.prediction.member import operator_of
from atlasnet.prediction.memory import answer_bytes
from atlasnet.prediction.output import (
    DICOM_SEG,
    RECORD,
    RTSTRUCT,
    check_own,
    check_places,
    is_written,
    output_path,
    provenance,
    write_prediction,
)
from atlasnet.prediction.prediction import PredictOptions
from atlasnet.prediction.predictor import Predictor
from atlasnet.registration import at_a_time
from atlasnet.training.model import Model
from atlasnet.volume import read_grid
from atlasnet.volume.kept import kept_open


@dataclass(frozen=True)
class BatchForecast:
    """What `atlasnet.prediction.predict_cases` would do.

    Args:
        missing: the cases that would be segmented.
        kept: those that would be kept.
        unreadable: those that would fail, and why, as far as that is known.
        case_seconds: of a case, by stage; None where nothing could be measured.
        peak_mib: the most memory that a case needs, MiB; None where nothing could be measured.
        case_disk_mib: what is written of a case, MiB; None where nothing could be measured.
    """

    missing: tuple[str, ...]
    kept: tuple[str, ...]
    unreadable: Mapping[str, str]
    case_seconds: Mapping[str, float] | None
    peak_mib: float | None
    case_disk_mib: float | None = None

    @property
    def seconds(self) -> float | None:
        """Of all that are missing."""
        return None if self.case_seconds is None else len(self.missing) * sum(self.case_seconds.values())

    @property
    def disk_mib(self) -> float | None:
        """Of all that are missing."""
        return None if self.case_disk_mib is None else len(self.missing) * self.case_disk_mib

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        case = self.case_seconds
        return {
            "missing": list(self.missing),
            "kept": list(self.kept),
            "unreadable": dict(self.unreadable),
            "case_seconds": None if case is None else {stage: round(value, 2) for stage, value in case.items()},
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "peak_memory_mib": None if self.peak_mib is None else round(self.peak_mib),
            "disk_mib": None if self.disk_mib is None else round(self.disk_mib, 4),
        }


def forecast_cases(
    models: Model | Ensemble,
    cases: Sequence[Subject],
    paths: Mapping[str, Path],
    options: PredictOptions | None = None,
    *,
    outputs: Sequence[str] = (),
    report: Callable[[Predictor], Report] | None = None,
    overwrite: bool = False,
    allow_module: bool = False,
    execution: Execution | None = None,
) -> BatchForecast:
    """What a batch with the same arguments would do; nothing is written but into the system's temporary folder.

    The inputs are hashed, to tell what is kept. The first missing case that can be is segmented with as many atlases of
    the first model as it is registered onto at a time, and written; what depends on their number is multiplied.

    Args:
        models: the trained model, or several that segment together.
        cases: from `find_cases`.
        paths: by case name, where its labels would go.
        options: fusion, outputs, post-processing.
        outputs: what is wanted beside the labels, see `atlasnet.prediction.batch.wanted_outputs`.
        report: gives what writes a case's page for a predictor, such as `atlasnet.report.PredictionReport`; without it
            the trial has none.
        overwrite: whether nothing would be kept.
        allow_module: whether the code that the model's network names may be imported.
        execution: device, threads, seed, progress.

    Raises:
        ModelError: ``strict`` is wanted, and no scan can be judged with a model; or cases need organ masks.
        InputError: there are several models, and the fusion is not the mean; or a result would take the place of a
            scan or a folder.
    """
    options, execution = options or PredictOptions(), Execution.of(execution)
    ensemble = Ensemble.of(models)
    ensemble.check(options)
    ensemble.check_masks(cases)
    check_places(cases, paths, outputs)
    missing: list[Subject] = []
    kept: list[Subject] = []
    unreadable: dict[str, str] = {}
    for case in execution.reporter.track(cases, "checking the files", len(cases)):
        try:
            origin = provenance(case, ensemble, options, execution, allow_module=allow_module)
        except AtlasNetError as error:
            unreadable[case.name] = str(error)
            continue
        if not overwrite and is_written(paths[case.name], origin, outputs, strict=options.strict):
            kept.append(case)
            continue
        try:
            check_own(paths[case.name], edited=overwrite)
        except InputError as error:
            unreadable[case.name] = str(error)
            continue
        missing.append(case)
    seconds, peak, disk = None, None, None
    silent = replace(execution, reporter=SilentReporter())
    for case in [*missing]:
        try:
            seconds, peak, disk = _measured(ensemble, case, options, outputs, report, silent, allow_module)
            break
        except (AtlasNetError, OSError, MemoryError, RuntimeError) as problem:
            reason = explained(problem)
            if reason is None:
                raise
            # The batch would warn of it and go on.
            unreadable[case.name] = str(reason)
            missing.remove(case)
    names = tuple(c.name for c in missing), tuple(c.name for c in kept)
    return BatchForecast(*names, unreadable, seconds, peak, disk)


def _measured(
    ensemble: Ensemble,
    case: Subject,
    options: PredictOptions,
    outputs: Collection[str],
    report: Callable[[Predictor], Report] | None,
    execution: Execution,
    allow_module: bool,
) -> tuple[dict[str, float], float | None, float]:
    """Seconds by stage, MiB of memory and MiB on disk of a case, from one with a few atlases of the first model."""
    first = ensemble.models[0]
    with first.named():
        grids = [read_grid(first.atlas_path(atlas)) for atlas in first.atlases]
        few = at_a_time(operator_of(first), grids, execution)
    predictors = (
        Predictor(replace(first, atlases=first.atlases[start:][:few]), execution=execution, allow_module=allow_module)
        for start in range(len(first.atlases) - few + 1)
    )
    predictor, stages = next(predictors), Stages()
    atlases = sum(len(model.atlases) for model in ensemble.models)
    once = ("postprocessing", "writing", "report")
    times = {"registration": ensemble.pairs / few, "verdict": len(ensemble), **dict.fromkeys(once, 1)}
    # One atlas that fits badly would not be asked, and the others might.
    asked = replace(options, minimum_quality=0.0, strict=False, agreement=options.agreement or report is not None)
    dicom = {name: name in outputs for name in (DICOM_SEG, RTSTRUCT)}
    with stages("reading"), kept_open():
        made_of = provenance(case, ensemble, options, execution, allow_module=allow_module)
        predictor.require_memory(case.read_grid(), asked, case.images[0])
        origin = find_origin(case, ensemble) if any(dicom.values()) else None
        image = case.read_image()
        mask = case.read_mask(image.grid)
    prediction = None
    while prediction is None:
        try:
            prediction = predictor.predict(image, asked, mask=mask)
        except RegistrationError:
            following = next(predictors, None)
            if following is None:
                raise
            predictor = following
    page = None if report is None else partial(report(predictor), case.name, image, prediction)
    if not options.agreement:
        prediction = replace(prediction, agreement=None, entropy=None, confidence=None)
    with tempfile.TemporaryDirectory(prefix="atlasnet-") as folder:
        path = Path(folder) / f"{case.name}.nii.gz"
        written = write_prediction(
            prediction,
            path,
            provenance=made_of,
            origin=origin,
            dicom_seg=dicom[DICOM_SEG],
            rtstruct=dicom[RTSTRUCT],
            page=page,
        )
        disk = float(sum(file.stat().st_size for file in written))
        record = read_json(output_path(path, RECORD))
    disk += (atlases / few - 1) * len(json_text(record["atlases"]))
    each = {stage: times.get(stage, atlases / few) * value for stage, value in record["seconds"].items()}
    peak = peak_memory()
    return (
        stages.seconds | each,
        None if peak is None else peak / MIB + (atlases - few) * _atlas_mib(predictor),
        disk / MIB,
    )


def _atlas_mib(predictor: Predictor) -> float:
    """What a further atlas keeps in memory: its image, its network, its answer."""
    (member,) = predictor.members
    image, *_ = member.images
    weights = sum(tensor.nbytes for tensor in member.networks[0].state_dict().values())
    return float(image.array.nbytes + weights + answer_bytes(member, 0)) / MIB
