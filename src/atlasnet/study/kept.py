"""The results that a study keeps: of every run and scan, a label map and its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from atlasnet.errors import AtlasNetError
from atlasnet.execution import Reporter, digest, file_digest, read_json, write_json
from atlasnet.study.methods import METHODS
from atlasnet.study.records import CaseResult, Run
from atlasnet.volume import Volume, write_labels

CHECKSUM, LABELS_CHECKSUM = "checksum", "labels_sha256"
LABELS = ".nii.gz"


class KeptResults:
    """The folder ``runs`` of a study.

    Args:
        folder: of the study.
        say: is told of what is damaged.
    """

    def __init__(self, folder: Path, say: Reporter) -> None:
        self.folder, self.say = folder, say

    def result(self, run: Run, case: str) -> CaseResult | None:
        """What a run found of a scan; None where it has found nothing yet, or its files are gone or damaged.

        A scan that it could not segment is a result without scores.
        """
        path = self._path(run, case)
        content = read_sealed(path, self.say.warn)
        if content is None or (content["scores"] and not self._has_labels(path, content)):
            return None
        return CaseResult(run, case, tuple(content["scores"]), content["details"], tuple(content.get("versions", ())))

    def write(self, result: CaseResult, labels: Volume) -> None:
        """Keep a result and its label map; the JSON comes last: where it is, the label map was whole."""
        path = self._path(result.run, result.case)
        place = path.with_suffix(LABELS)
        write_labels(place, labels)
        content = {"scores": result.scores, "details": result.details, "versions": result.versions}
        write_sealed(path, {**content, LABELS_CHECKSUM: file_digest(place)})

    def fail(self, run: Run, case: str, error: AtlasNetError) -> None:
        """Keep that a scan could not be segmented."""
        write_sealed(self._path(run, case), {"scores": [], "details": {}, "error": str(error)})

    def jobs(self) -> list[Run]:
        """What left results, whichever call asked for it: one `Run` for all its numbers of atlases, as they are run."""
        places = (path.relative_to(self.folder).as_posix() for path in self.folder.glob("runs/*/*/*"))
        jobs = {replace(run, atlases=None) for place in places if (run := Run.of_folder(place)) is not None}
        return sorted(jobs, key=_order)

    def _has_labels(self, path: Path, content: Mapping[str, Any]) -> bool:
        """Whether the label map of a result is there as it was written; one of before has no checksum."""
        place = path.with_suffix(LABELS)
        if not place.is_file():
            return False
        if content.get(LABELS_CHECKSUM) in (None, file_digest(place)):
            return True
        self.say.warn(f"{place} is not what was written, and counts as missing")
        return False

    def _path(self, run: Run, case: str) -> Path:
        return self.folder / run.folder / f"{case}.json"


def _order(job: Run) -> tuple[float | str, ...]:
    return (-job.fraction, job.fraction_of, job.seed, METHODS.index(job.method), job.epoch or 0)


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with the checksum of what it says."""
    write_json(path, {**content, CHECKSUM: digest(content)})


def read_sealed(path: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """What `write_sealed` wrote; None where there is nothing, or something else, of which ``warn`` is told."""
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = read_json(path)
        if content.pop(CHECKSUM) == digest(content):
            return content
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    warn(f"{path} is not what was written, and counts as missing")
    return None
