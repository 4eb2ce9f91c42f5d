"""A prediction's files: labels, maps, and the run record beside them."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
import torch

from atlasnet import __version__
from atlasnet.cohort import Subject
from atlasnet.execution import digest, file_digest, write_json
from atlasnet.prediction.inputs import image_stem
from atlasnet.prediction.predictor import Prediction
from atlasnet.training.model import Model
from atlasnet.volume import write_volume

if TYPE_CHECKING:
    from atlasnet.prediction.dicom import Origin


def write_prediction(
    prediction: Prediction,
    path: str | Path,
    *,
    case: Subject,
    model: Model,
    origin: Origin | None = None,
    dicom_seg: bool = False,
    rtstruct: bool = False,
) -> list[Path]:
    """Write the labels to ``path`` and, beside it under the same stem, the record and the maps that are there.

    ``STEM.json`` holds the record; ``STEM_probabilities``, ``STEM_agreement`` and ``STEM_entropy`` have the suffix of
    ``path``. Each file is whole or absent, and the labels come last: where they are, everything is.

    Args:
        prediction: what is written.
        path: of the labels.
        case: what was segmented.
        model: what segmented it.
        origin: the DICOM series that was segmented, for the next two.
        dicom_seg: whether to write ``STEM_seg.dcm``, a DICOM segmentation.
        rtstruct: whether to write ``STEM_rtstruct.dcm``, a DICOM structure set.

    Returns:
        What was written.
    """
    path = Path(path)
    stem = image_stem(path) or path.name
    suffix = path.name[len(stem) :]
    written = []
    for name in ("probabilities", "agreement", "entropy"):
        volume = getattr(prediction, name)
        if volume is not None:
            written.append(path.with_name(f"{stem}_{name}{suffix}"))
            write_volume(written[-1], volume)
    if origin is not None and dicom_seg:
        from atlasnet.prediction.dicom_seg import write_dicom_seg

        written.append(path.with_name(f"{stem}_seg.dcm"))
        write_dicom_seg(written[-1], prediction.labels, origin)
    if origin is not None and rtstruct:
        from atlasnet.prediction.rtstruct import write_rtstruct

        written.append(path.with_name(f"{stem}_rtstruct.dcm"))
        write_rtstruct(written[-1], prediction.labels, origin)
    record = path.with_name(f"{stem}.json")
    write_json(record, {"case": case.name, **prediction.record, "provenance": _provenance(case, model)})
    write_volume(path, prediction.labels)
    return [*written, record, path]


def _provenance(case: Subject, model: Model) -> dict[str, Any]:
    """Hashes and versions: enough to tell whether two outputs should be the same, and nothing of who the patient is."""
    inputs = sorted(p for path in case.images for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())
    return {
        "input_sha256": [file_digest(p) for p in inputs],
        "model": digest(dict(model.checksums)),
        "atlasnet": __version__,
        "torch": torch.__version__,
        "simpleitk": sitk.Version.VersionString(),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
