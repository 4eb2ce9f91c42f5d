"""A prediction's files: labels, maps, and the run record beside them, which tells whether they are what is wanted."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
import torch

from atlasnet import __version__
from atlasnet.cohort import Subject
from atlasnet.cohort.segments import Segment
from atlasnet.errors import InputError, VolumeError
from atlasnet.execution import Execution, Stages, digest, file_digest, place_of, read_json, write_json
from atlasnet.network import code_digest
from atlasnet.prediction.ensemble import Ensemble
from atlasnet.prediction.prediction import Prediction, PredictOptions
from atlasnet.prediction.slicer import slicer_fields
from atlasnet.prediction.verdict import UNUSUAL
from atlasnet.registration import make_operator
from atlasnet.training.model import Model
from atlasnet.training.pairs import REVISION
from atlasnet.volume import read_volume, volume_digest, volume_files, write_labels, write_volume
from atlasnet.volume.files import require_files
from atlasnet.volume.names import image_stem, image_suffix, of_slicer
from atlasnet.volume.writing import LABEL_SUFFIXES, WRITABLE_SUFFIXES

if TYPE_CHECKING:
    from atlasnet.prediction.dicom import Origin

LABELS, RECORD, DICOM_SEG, RTSTRUCT, REPORT = "labels", "record", "dicom_seg", "rtstruct", "report"
MAPS = ("probabilities", "agreement", "entropy")
_OUTPUTS = (LABELS, *MAPS, DICOM_SEG, RTSTRUCT, REPORT)  # beside the record
_OWN_SUFFIX = {RECORD: ".json", DICOM_SEG: "_seg.dcm", RTSTRUCT: "_rtstruct.dcm", REPORT: "_report.html"}
# Writes the page of a prediction: where to, and the record but for the hashes of the files.
WritePage = Callable[[Path, Mapping[str, Any]], None]


def output_path(path: Path, output: str) -> Path:
    """Where an output lies whose labels lie at ``path``: beside them, under the same stem."""
    if output == LABELS:
        return path
    stem = image_stem(path) or path.name
    suffix = ".nrrd" if of_slicer(path) else path.name[len(stem) :]  # a map is no segmentation
    return path.with_name(stem + _OWN_SUFFIX.get(output, f"_{output}{suffix}"))


def output_files(path: Path, output: str) -> dict[str, Path]:
    """The files of an output, by what the record calls them: one, and the voxels of a MetaImage beside its header."""
    file = output_path(path, output)
    return {output: file} | ({f"{output}_voxels": file.with_suffix(".raw")} if file.suffix.lower() == ".mhd" else {})


def every_file(path: Path) -> list[Path]:
    """All that a prediction whose labels lie at ``path`` may be written into."""
    return [file for output in (RECORD, *_OUTPUTS) for file in output_files(path, output).values()]


def check_places(cases: Sequence[Subject], paths: Mapping[str, Path], outputs: Collection[str]) -> None:
    """Find out before any work that a result would take the place of a scan, a mask, another result or a folder.

    Args:
        cases: what is read.
        paths: by case name, where its labels go.
        outputs: what is written beside labels and record.

    Raises:
        InputError: it would, or it would lie in a DICOM folder that is read; or no file can be written there, or none
            with that suffix.
    """
    read = [path for case in cases for path in (*case.images, case.mask) if path is not None]
    folders = [place_of(path) for path in read if path.is_dir()]
    files = {place_of(file) for path in read if not path.is_dir() for file in volume_files(path)}
    taken: dict[Path, str] = {}
    for case in cases:
        path = paths[case.name]
        if image_suffix(path) not in WRITABLE_SUFFIXES:
            raise InputError("no such image can be written", path=path, expected=" ".join(WRITABLE_SUFFIXES))
        if path.parent.exists() and not path.parent.is_dir():
            raise InputError("the folder of the results cannot be made: a file of that name exists", path=path.parent)
        for output in (LABELS, RECORD, *outputs):
            for file in output_files(path, output).values():
                place = place_of(file)
                if file.is_dir():
                    raise InputError(
                        "the result would take the place of a folder",
                        path=file,
                        remedy="move the folder away, or give another place after -o",
                    )
                if place in files or any(place.is_relative_to(folder) for folder in folders):
                    raise InputError(
                        "the result would take the place of what is read, or lie in its midst",
                        path=file,
                        remedy="give another folder after -o",
                    )
                other = taken.setdefault(place, case.name)
                if other != case.name:
                    raise InputError(
                        f"results of {other!r} and of {case.name!r} would both be this file",
                        path=file,
                        remedy="rename one, or predict them into two folders",
                    )


def provenance(
    case: Subject,
    models: Model | Ensemble,
    options: PredictOptions,
    execution: Execution,
    *,
    allow_module: bool = False,
) -> dict[str, Any]:
    """What a prediction is made of, and by: hashes and versions, and nothing of who the patient is.

    ``request`` is a hash of all that decides labels and verdict: two predictions with the same one are the same, but
    for the rounding that device, threads and versions of libraries bring. They stand beside it. Several models stand
    under ``models`` with their names and checksums, and ``model`` is a checksum of all.

    Raises:
        VolumeError: the input cannot be read.
    """
    try:
        for path in case.images:
            require_files(path)
        files = [file for path in case.images for file in volume_files(path)]
        hashes = {file: file_digest(file) for file in files}
        mask = None if case.mask is None else volume_digest(case.mask)
    except OSError as error:
        raise VolumeError("the file cannot be read", path=case.images[0], found=str(error)) from error
    inputs = [hashes[file] for file in sorted(files)]
    # A strict prediction is the same one, or none.
    chosen = {name: value for name, value in asdict(options).items() if name not in (*MAPS, "strict")}
    ensemble = Ensemble.of(models)
    request: dict[str, Any] = {
        "atlasnet": __version__,
        "registration": REVISION,
        "input": inputs,
        "series": case.series if len(case.series) > 1 else next(iter(case.series), None),  # as earlier results have it
        "options": chosen,
        "seed": execution.seed,
    }
    if len(case.images) > 1:  # which channel is which, their names do not decide
        request["channel_files"] = [hashes[file] for file in files]
    if options.fusion == "learnt":
        weights = ensemble.models[0].fusion_weights
        request["fusion_weights"] = None if weights is None else weights.to_json()
    listed: dict[str, Any] = {}
    if mask is not None:
        request["organ_mask"] = listed["organ_mask_sha256"] = mask
    if len(ensemble) == 1:
        request |= _decisive(ensemble.models[0], allow_module)
    else:
        # Records name the models, so that other names make other records.
        request["models"] = [[name, _decisive(model, allow_module)] for name, model in ensemble.members]
        listed |= {"models": [{"name": name, "checksum": model.checksum} for name, model in ensemble.members]}
    return {
        "request": digest(request),
        "input_sha256": inputs,
        "model": ensemble.checksum,
        **listed,
        "options": chosen,
        "seed": execution.seed,
        "device": execution.device,
        "threads": execution.threads,
        "atlasnet": __version__,
        "torch": torch.__version__,
        "simpleitk": sitk.Version.VersionString(),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _decisive(model: Model, allow_module: bool) -> dict[str, Any]:
    """What of a model decides labels and verdict, JSON-able."""
    return _elsewhere(model, allow_module) | {
        "model": dict(model.checksums),
        "channels": model.channels,
        "labels": dict(model.labels),
        "ignore_label": model.ignore_label,
        "segments": dict(model.segment_table),
        "plan": model.plan.to_json(),
        "registration": [model.operator, dict(model.operator_settings)],
        "network": model.network.to_json(),
        "typical": None if model.typical is None else model.typical.to_json(),
        "dice_estimate": None if model.dice_estimate is None else model.dice_estimate.to_json(),
        **({"regions": dict(model.regions)} if model.regions else {}),
    }


def _elsewhere(model: Model, allow_module: bool) -> dict[str, Any]:
    """What decides it outside AtlasNet: the code of a network of one's own, the version of another registration."""
    found = {}
    # What may not be used, or is not there, is refused by whoever segments.
    with suppress(InputError):
        if (code := code_digest(model.network.name, allow_module=allow_module)) is not None:
            found["code"] = code
    with suppress(InputError):
        operator = make_operator(model.operator, **model.operator_settings)
        if (package := getattr(operator, "package_version", None)) is not None:
            found["package"] = package
    return found


def is_written(path: Path, origin: Mapping[str, Any], outputs: Collection[str], *, strict: bool = False) -> bool:
    """Whether the labels at ``path`` and these outputs are there, whole, and of the same request.

    Args:
        path: of the labels.
        origin: from `provenance`.
        outputs: what is wanted beside the labels and the record, by the names of `output_path`.
        strict: whether what was made of an unusual scan does not count.
    """
    try:
        record = read_json(output_path(path, RECORD))
        if strict and record["verdict"]["result"] == UNUSUAL:
            return False
        return bool(record["provenance"]["request"] == origin["request"]) and all(
            file_digest(file) == record["outputs"][name]
            for output in (LABELS, *outputs)
            for name, file in output_files(path, output).items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False  # absent, or not a record of ours


def is_whole(path: Path) -> bool:
    """Whether the labels at ``path`` are there with a record of ours that was finished, of whatever request."""
    hashes = _known(path)
    return path.is_file() and hashes is not None and None not in hashes.values()


def check_own(path: Path, *, edited: bool) -> None:
    """Find out that something else than a result of ours lies where one is to be written.

    Args:
        path: of the labels.
        edited: whether labels that are another image than their record knows may be replaced.

    Raises:
        InputError: a JSON file that is no record lies there, or labels that somebody may have edited or made.
    """
    record = output_path(path, RECORD)
    try:
        content = read_json(record)
    except FileNotFoundError:
        if not edited and _is_edited(path, {}):
            raise InputError(
                "labels lie there that no record tells of: a reference, it seems, or the result of another program",
                path=path,
                remedy="give another folder or name with -o, or --overwrite to lose them",
            ) from None
        return
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return  # damaged
    except ValueError:
        content = None  # other programs write NaN, we do not
    if not isinstance(content, dict) or "provenance" not in content:
        raise InputError(
            "the run record would take the place of a file that is none",
            path=record,
            remedy="give another folder or name with -o, or move the file away",
        )
    hashes = _outputs(content)
    if not edited and hashes is not None and _is_edited(path, hashes):
        raise InputError(
            "the labels are not those that were written there: edited, it seems",
            path=path,
            remedy="move them away to keep them, or give --overwrite to lose them",
        )


def _known(path: Path) -> dict[str, Any] | None:
    """The hashes of the outputs at ``path`` by their record, None while they are written; None without one of ours."""
    try:
        return _outputs(read_json(output_path(path, RECORD)))
    except (OSError, ValueError):
        return None


def _outputs(record: Any) -> dict[str, Any] | None:
    """The hashes that a record states, None where it is none of ours."""
    try:
        return dict(record["outputs"])
    except (KeyError, TypeError, ValueError):
        return None


def _is_edited(path: Path, hashes: Mapping[str, Any]) -> bool:
    """Whether labels are a whole image, and another one than their record knows."""
    try:
        if all(_is_known(file, hashes.get(name, "")) for name, file in output_files(path, LABELS).items()):
            return False
        read_volume(path)
    except (OSError, VolumeError):
        return False  # absent, of another format, or damaged
    return True


def _is_known(file: Path, checksum: str | None) -> bool:
    """Whether a file is what its record knows; what was being written when the program was stopped is, whatever it is.

    Raises:
        OSError: it is absent.
    """
    return file_digest(file) == checksum or checksum is None


def withdraw(path: Path) -> bool:
    """Remove the earlier result of a case that has none now, or what there is of one; whether a whole one was there.

    Labels that somebody edited stay.

    Args:
        path: of the labels.
    """
    hashes = _known(path)
    if hashes is None or _is_edited(path, hashes):
        return False
    _remove_written(path, hashes, labels=True)
    output_path(path, RECORD).unlink(missing_ok=True)
    return None not in hashes.values()


def write_prediction(
    prediction: Prediction,
    path: str | Path,
    *,
    provenance: Mapping[str, Any],
    stages: Stages | None = None,
    segments: Sequence[Segment] = (),
    origin: Origin | None = None,
    dicom_seg: bool = False,
    rtstruct: bool = False,
    page: WritePage | None = None,
) -> list[Path]:
    """Write the labels to ``path`` and, beside it under the same stem, the record and the maps that are there.

    ``STEM.json`` holds the record; ``STEM_probabilities``, ``STEM_agreement`` and ``STEM_entropy`` have the suffix of
    ``path``, or ``.nrrd`` beside a ``.seg.nrrd``, which names and colours its segments for 3D Slicer. Each file is
    whole or absent. The record comes first, with what is going to be there, and again last, with the SHA-256 of the
    others: where it has them, everything is there, and what it does not name is not ours. What an earlier record names
    and this one does not is removed: it tells of another result.

    Args:
        prediction: what is written.
        path: of the labels.
        provenance: see the function `provenance`.
        stages: what was done before the prediction, for the record.
        segments: of the model, for a ``.seg.nrrd``.
        origin: the DICOM series that was segmented, for the next two.
        dicom_seg: whether to write ``STEM_seg.dcm``, a DICOM segmentation.
        rtstruct: whether to write ``STEM_rtstruct.dcm``, a DICOM structure set.
        page: writes ``STEM_report.html``.

    Returns:
        What was written.
    """
    path, before = Path(path), Stages() if stages is None else stages
    watch = before.copy()
    record = output_path(path, RECORD)
    _remove_written(path, _known(path) or {})
    volumes = {name: getattr(prediction, name) for name in (*MAPS, LABELS)}
    volumes = {name: volume for name, volume in volumes.items() if volume is not None}
    asked = {DICOM_SEG: dicom_seg and origin is not None, RTSTRUCT: rtstruct and origin is not None}
    outputs = [*volumes, *(name for name, wanted in asked.items() if wanted), *([] if page is None else [REPORT])]
    files = {name: file for output in outputs for name, file in output_files(path, output).items()}
    write_json(record, {"outputs": dict.fromkeys(files), "provenance": dict(provenance)})
    with watch("writing"):
        for name, volume in volumes.items():
            if name == LABELS:
                write_labels(path, volume, slicer_fields(segments, volume.grid.shape) if of_slicer(path) else None)
            else:
                write_volume(files[name], volume)
        if origin is not None and dicom_seg:
            from atlasnet.prediction.dicom_seg import write_dicom_seg

            write_dicom_seg(files[DICOM_SEG], prediction.labels, origin)
        if origin is not None and rtstruct:
            from atlasnet.prediction.rtstruct import write_rtstruct

            write_rtstruct(files[RTSTRUCT], prediction.labels, origin)
    if page is not None:
        with watch("report"):
            page(files[REPORT], {**_with_times(prediction.record, before, watch), "provenance": dict(provenance)})
    with watch("writing"):
        hashes = {name: file_digest(file) for name, file in files.items()}
    found = {**_with_times(prediction.record, before, watch), "outputs": hashes, "provenance": dict(provenance)}
    write_json(record, found)
    return [*files.values(), record]


def _remove_written(path: Path, hashes: Mapping[str, Any], *, labels: bool = False) -> None:
    """Remove the outputs at ``path`` that their record knows, under whatever suffix they were written.

    Args:
        path: of the labels.
        hashes: of the outputs, by the record.
        labels: whether these are removed too; else those at ``path`` itself are left, to be replaced in one step.
    """
    stem = image_stem(path) or path.name
    places = (path, *(path.with_name(stem + suffix) for suffix in LABEL_SUFFIXES))
    files = {f: name for place in places for output in _OUTPUTS for name, f in output_files(place, output).items()}
    if not labels:
        files = {f: name for f, name in files.items() if f not in output_files(path, LABELS).values()}
    here = every_file(path)
    for file, name in files.items():
        # What was begun and has no checksum yet has the suffix of today, or is left.
        named = name in hashes and (hashes[name] is not None or file in here)
        if named and file.is_file() and _is_known(file, hashes[name]):
            file.unlink(missing_ok=True)


def _with_times(record: Mapping[str, Any], before: Stages, watch: Stages) -> dict[str, Any]:
    """The record with what the stages before the prediction and all around it took, in the order they came."""
    first, whole = before.to_json(), watch.to_json()
    return {**record, **{kind: {**first.get(kind, {}), **record.get(kind, {}), **whole[kind]} for kind in whole}}
