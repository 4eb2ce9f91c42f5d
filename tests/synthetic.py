"""A small cohort of known shapes for tests of the whole way: two nested ellipsoids in noise, differing by subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from atlasnet.execution import write_json
from atlasnet.volume import Grid, Volume, write_volume

if TYPE_CHECKING:
    import pytest

SHAPE = (14, 28, 32)
SPACING = (2.0, 2.0, 3.5)
LABELS = {"background": 0, "core": 4, "shell": 2}


def subject(seed: int, *, shape: Sequence[int] = SHAPE) -> tuple[Volume, Volume]:
    """An image (float32) and its labels (uint8) on one grid; ``seed`` decides shape, place and noise."""
    random = np.random.default_rng(seed)
    grid = Grid.from_parts(shape, SPACING, origin=random.uniform(-20, 20, 3))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    offset = (index - (np.array(shape) - 1) / 2 - random.uniform(-1.5, 1.5, 3)) * np.array(SPACING[::-1])
    radius = np.array([14.0, 17.0, 19.0]) * random.uniform(0.85, 1.15, 3)
    distance = np.sqrt(np.sum((offset / radius) ** 2, -1))
    labels = np.where(distance < 0.55, 4, np.where(distance < 1, 2, 0)).astype(np.uint8)
    clean = np.select([labels == 4, labels == 2], [300.0, 120.0], 20.0)
    texture = ndimage.gaussian_filter(random.normal(size=shape), 2) * 60
    image = (clean + texture + random.normal(size=shape) * 8).astype(np.float32)
    return Volume(image, grid), Volume(labels, grid)


def write_cohort(folder: Path, seeds: Sequence[int], *, ignore: int | None = None) -> Path:
    """The subjects ``s0``, ``s1``, … in the nnU-Net layout."""
    names = dict(LABELS) | ({"ignore": ignore} if ignore is not None else {})
    for seed in seeds:
        image, labels = subject(seed)
        if ignore is not None:
            labels.array[:, : SHAPE[0] // 3] = ignore
        write_volume(folder / "imagesTr" / f"s{seed}_0000.nii.gz", image)
        write_volume(folder / "labelsTr" / f"s{seed}.nii.gz", labels)
    write_json(
        folder / "dataset.json",
        {"channel_names": {"0": "MR"}, "labels": names, "numTraining": len(seeds), "file_ending": ".nii.gz"},
    )
    return folder


def write_study_cohort(folder: Path, seeds: Sequence[int], tests: Sequence[str]) -> Path:
    """A cohort with test subjects of these names, which are like no training subject."""
    for number, name in enumerate(tests):
        image, labels = subject(50 + number)
        write_volume(folder / "imagesTs" / f"{name}_0000.nii.gz", image)
        write_volume(folder / "labelsTs" / f"{name}.nii.gz", labels)
    return write_cohort(folder, seeds)


def write_place(folder: Path) -> Path:
    """Data, and two scans."""
    write_cohort(folder / "data", range(2))
    for number in (200, 201):
        write_volume(folder / "scans" / f"c{number}.nii.gz", subject(number)[0])
    return folder


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap of two masks."""
    return float(2 * np.sum(a & b) / (np.sum(a) + np.sum(b)))


def shorten_presets(patch: pytest.MonkeyPatch, **changes: int) -> None:
    """Give the presets of training four steps an epoch, of four slices each, and what else is to be other."""
    from atlasnet.training import recipe

    wanted = {"iterations": 4, "passes": 0.0, "batch_slices": 4} | changes
    short = {name: replace(preset, **wanted) for name, preset in recipe._PRESETS.items()}
    patch.setattr(recipe, "_PRESETS", short)
