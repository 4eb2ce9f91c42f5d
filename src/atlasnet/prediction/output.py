"""A prediction's files: labels, maps, and the run record beside them."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

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


def write_prediction(prediction: Prediction, path: str | Path, *, case: Subject, model: Model) -> list[Path]:
    """Write the labels to ``path`` and, beside it under the same stem, the record and the maps that are there.

    ``STEM.json`` holds the record; ``STEM_probabilities``, ``STEM_agreement`` and ``STEM_entropy`` have the suffix of
    ``path``. Each file is whole or absent, and the labels come last: where they are, everything is.

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
    record = path.with_name(f"{stem}.json")
    write_json(record, {"case": case.name, **prediction.record, "provenance": _provenance(case, model)})
    write_volume(path, prediction.labels)
    return [*written, record, path]


def _provenance(case: Subject, model: Model) -> dict[str, Any]:
    """Hashes and versions: enough to tell whether two outputs should be the same, and nothing of who the patient is."""
    inputs = sorted(p for path in case.images for p in (path.iterdir() if path.is_dir() else [path]) if p.is_file())
    return {
        "input_sha256": [file_digest(p) for p in inputs],
        "model": digest(dict(model.checksums)),
        "atlasnet": __version__,
        "torch": torch.__version__,
        "simpleitk": sitk.Version.VersionString(),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
