"""The patch protocol for every method of a study, from the label maps that it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from atlasnet.cohort import Subject
from atlasnet.evaluation import PatchCounts, PatchProtocol
from atlasnet.execution import Execution, file_digest
from atlasnet.study.kept import read_sealed, write_sealed
from atlasnet.study.records import OfSubjects, Study
from atlasnet.study.statistics import Float, interval
from atlasnet.study.subjects import observer_files
from atlasnet.volume import read_labels


def with_patches(
    study: Study,
    tests: Sequence[Subject],
    protocol: PatchProtocol,
    *,
    observers: Sequence[Path] = (),
    ignore_label: int | None = None,
    execution: Execution,
) -> Study:
    """The study with the patches of every row of its main table and of the observers.

    Args:
        study: its label maps are read, each once: the counts are kept beside them.
        tests: its test subjects.
        protocol: what is classified.
        observers: folders of other people's segmentations, CASE.nii.gz each.
        ignore_label: the reference value that counts nowhere.
        execution: its reporter and its cancellation are used.
    """
    subjects = {test.name: test for test in tests}
    annotated = {test.name for test in tests if protocol.annotated(study.labels, test.hidden)}

    def count(path: Path, case: str) -> PatchCounts:
        execution.pause()
        prediction = read_labels(path)
        reference = subjects[case].read_labels(prediction.grid)
        mask = subjects[case].read_mask(prediction.grid)
        return protocol.count(prediction, reference, study.labels, ignore_label=ignore_label, mask=mask, case=case)

    def remembered(path: Path, case: str) -> PatchCounts:
        kept = path.with_name(f"{case}.patches.json")
        asked = asdict(protocol) | {"region": list(protocol.region), "labels": file_digest(path)}
        content = read_sealed(kept, execution.reporter.warn)
        if content is not None and content["protocol"] == asked:
            return PatchCounts(**content["counts"])
        counts = count(path, case)
        write_sealed(kept, {"protocol": asked, "counts": asdict(counts)})
        return counts

    main = [r for r in study.results if r.run.is_main(len(study.atlases))]
    of_methods: dict[str, dict[int, dict[str, PatchCounts]]] = {}
    for result in execution.reporter.track(main, "classifying patches", len(main)):
        patches = of_methods.setdefault(result.run.method.name, {}).setdefault(result.run.seed, {})
        if result.scores and result.case in annotated:
            path = study.folder / result.run.folder / f"{result.case}.nii.gz"
            patches[result.case] = remembered(path, result.case)
    files = [observer_files(folder, tests) for folder in observers]
    return replace(
        study,
        protocol=protocol,
        patches={name: tuple(seeds.values()) for name, seeds in of_methods.items()},
        observer_patches=tuple(
            {case: count(path, case) for case, path in found.items() if case in annotated} for found in files
        ),
    )


def summarise_patches(study: Study) -> dict[str, Any] | None:
    """What the patches of a study say, JSON-able; None where they were not asked for.

    Returns:
        ``protocol``; ``methods`` and ``observers``, of each what `accuracies` gives.
    """
    if study.protocol is None:
        return None
    return {
        "protocol": asdict(study.protocol) | {"region": list(study.protocol.region)},
        "methods": {name: accuracies(seeds) for name, seeds in study.patches.items()},
        "observers": [accuracies([found]) for found in study.observer_patches],
    }


def accuracies(seeds: Sequence[OfSubjects]) -> dict[str, Any]:
    """The accuracies of one method over the patches of all subjects together.

    Args:
        seeds: the counts of the subjects, for each seed; a subject that a seed could not segment is left out.

    Returns:
        ``subjects``; ``diseased`` and ``healthy``, the numbers of patches; ``diseased_accuracy``, ``healthy_accuracy``
        and ``mean_accuracy``, means over the seeds, None without such patches; ``interval`` of the mean accuracy, by
        bootstrap over subjects, None where a draw may hold no patches of a kind.
    """
    cases = [case for case in seeds[0] if all(case in seed for seed in seeds)]
    # How many patches there are, the reference decides: a pooled mean over the seeds is the mean of their accuracies.
    counts = np.array([[list(asdict(seed[case]).values()) for case in cases] for seed in seeds], dtype=np.float64)
    means = counts.reshape(len(seeds), len(cases), 4).mean(0)

    def pooled(index: Float, axis: int = -1) -> Float:
        drawn = means[np.moveaxis(index, axis, -1).astype(int)].sum(-2)
        return np.asarray((drawn[..., 1] / drawn[..., 0] + drawn[..., 3] / drawn[..., 2]) / 2)

    diseased, diseased_right, healthy, healthy_right = means.sum(0).tolist()
    every = np.arange(len(cases), dtype=np.float64)
    both = diseased > 0 and healthy > 0
    ends = interval(every, pooled) if both else None
    return {
        "subjects": len(cases),
        "diseased": round(diseased),
        "healthy": round(healthy),
        "diseased_accuracy": diseased_right / diseased if diseased else None,
        "healthy_accuracy": healthy_right / healthy if healthy else None,
        "mean_accuracy": float(pooled(every)) if both else None,
        "interval": ends if ends is not None and np.isfinite(ends).all() else None,
    }
