"""A folder of phantom subjects in nnU-Net's layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atlasnet.cohort.layout import PARTS
from atlasnet.cohort.phantom.render import LABELS
from atlasnet.cohort.phantom.subject import phantom_grid, phantom_subject
from atlasnet.errors import InputError
from atlasnet.execution import Reporter, SilentReporter, read_json, write_json
from atlasnet.volume import write_labels, write_volume


def write_phantom_cohort(
    folder: str | Path,
    subjects: int,
    *,
    shape: Sequence[int],
    spacing: Sequence[float] | None = None,
    test_subjects: int = 0,
    seed: int = 0,
    disease: bool = True,
    reporter: Reporter | None = None,
) -> Path:
    """Write a cohort of phantoms in nnU-Net's layout; cases that are there already are left as they are.

    Args:
        folder: receives ``dataset.json``, ``imagesTr``, ``labelsTr`` and, for tests, ``imagesTs``, ``labelsTs``.
        subjects: how many to train on.
        shape: voxels along (z, y, x).
        spacing: mm along (x, y, z); see `phantom_grid`.
        test_subjects: how many to test on.
        seed: the cohort's seed; no two cohorts with different seeds share a subject.
        disease: whether the subjects are ill.
        reporter: follows the work.

    Returns:
        The folder.

    Raises:
        InputError: an argument is out of range, or the folder holds a phantom cohort made with other arguments.
    """
    folder = Path(folder)
    if subjects < 1 or test_subjects < 0 or seed < 0:
        raise InputError(
            "such a phantom cohort cannot be made",
            expected="at least one subject, and no negative number",
            found=f"{subjects} subjects, {test_subjects} test subjects, seed {seed}",
        )
    grid = phantom_grid(shape, spacing)
    reporter = reporter or SilentReporter()
    made_with = {
        "name": "Phantom",
        "description": "Synthetic chest CT with interstitial lung disease",
        "channel_names": {"0": "CT"},
        "labels": LABELS if disease else {"background": 0, "lung": 1},
        "numTraining": subjects,
        "file_ending": ".nii.gz",
        "phantom": {
            "seed": seed,
            "shape": list(grid.shape),
            "spacing": grid.spacing.tolist(),
            "disease": disease,
            "training": subjects,
            "test": test_subjects,
        },
    }
    _refuse_another(folder, made_with)
    cases = [("Tr", number) for number in range(subjects)] + [
        ("Ts", subjects + number) for number in range(test_subjects)
    ]
    todo = [(part, number) for part, number in cases if not all(path.exists() for path in _paths(folder, part, number))]
    write_json(folder / "dataset.json", made_with)
    for part, number in reporter.track(todo, "phantom subjects", len(todo)) if todo else ():
        # Cantor's pairing gives every (cohort, case) its own subject.
        own = (seed + number) * (seed + number + 1) // 2 + number
        image, labels = phantom_subject(own, shape=grid.shape, spacing=grid.spacing.tolist(), disease=disease)
        image_path, labels_path = _paths(folder, part, number)
        write_volume(image_path, image)
        write_labels(labels_path, labels)
    return folder


def _paths(folder: Path, part: str, number: int) -> tuple[Path, Path]:
    name = f"phantom_{number:03d}"
    return folder / f"images{part}" / f"{name}_0000.nii.gz", folder / f"labels{part}" / f"{name}.nii.gz"


def _refuse_another(folder: Path, made_with: dict[str, object]) -> None:
    """Keep cases of two cohorts from ending up in one folder."""
    path = folder / "dataset.json"
    if not path.exists():
        if any((folder / name).exists() for name in PARTS):
            raise InputError(
                "the folder holds images that are no phantom cohort", path=folder, remedy="choose another folder"
            )
        return
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(
            "the folder's dataset.json cannot be read", path=path, found=str(error), remedy="choose another folder"
        ) from error
    if found != made_with:
        phantom = isinstance(found, dict) and "phantom" in found
        raise InputError(
            "the folder holds another cohort",
            path=path,
            expected=f"phantom {made_with['phantom']}",
            found=f"phantom {found['phantom']}" if phantom else "no phantom",
            remedy="choose another folder" + (", or delete this one" if phantom else ""),
        )
