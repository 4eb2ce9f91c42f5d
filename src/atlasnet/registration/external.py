"""What the operators of other packages have in common; the packages are in `atlasnet.registration.external_packages`.

Each starts from this package's affine alignment, deforms on the grid on which the built-in registration would work, and
sees the intensities that it would see; an image of one slice is a 2-D image to it. What comes back is made fold-free
where it is not, and inverted, so that every later stage may rely on a map in both directions.
"""

from __future__ import annotations

import re
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module, metadata
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from atlasnet.errors import InputError, RegistrationError, VolumeError, explained
from atlasnet.execution import Execution
from atlasnet.registration.affine import AffineSettings
from atlasnet.registration.external_arguments import check_arguments
from atlasnet.registration.intensity import Ranges, Window, choose_windows
from atlasnet.registration.measured import Found, MeasuringOperator, started
from atlasnet.registration.operator import Task
from atlasnet.registration.pyramid import registration_grid
from atlasnet.transform import DisplacementMap, Transform, repair
from atlasnet.volume import Grid, Volume
from atlasnet.wording import counted

Array = NDArray[np.float32]
# What is seen of the images is brought to 0..SCALE: some metrics bin or threshold as if intensities were large.
SCALE = 1000.0


@dataclass(frozen=True)
class ExternalSettings:
    """What the operators of other packages may be told.

    Args:
        arguments: for the other package: keyword arguments of ``ants.registration``, entries of elastix's parameter
            map, or options of the greedy command line (``{"-m": "NCC 2x2x2"}``, of a flag ``{"-sv": ""}``). They
            replace the operator's defaults; only those that name no files are taken.
        spacing: as in `MRFSettings`.
        voxels: as in `MRFSettings`.
        clamp: as in `MRFSettings`.
        affine: whether to align affinely first, where no initial map is given.
        affine_settings: of that alignment.
        smallest_jacobian: the map is smoothed where its one-sided corner Jacobians do not exceed this.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    spacing: float | None = None
    voxels: int = 1_500_000
    clamp: Ranges | None = None
    affine: bool = True
    affine_settings: AffineSettings = field(default_factory=AffineSettings)
    smallest_jacobian: float = 0.05

    def __post_init__(self) -> None:
        # JSON has neither tuples nor our types: a settings() dictionary read back is taken as it is.
        if isinstance(self.affine_settings, Mapping):
            object.__setattr__(self, "affine_settings", AffineSettings(**self.affine_settings))
        if self.clamp is not None:
            object.__setattr__(self, "clamp", tuple((float(low), float(high)) for low, high in self.clamp))
        if not 0 < self.smallest_jacobian < 1:
            raise InputError("smallest_jacobian cannot be used", expected="(0, 1)", found=str(self.smallest_jacobian))
        if self.voxels <= 0 or (self.spacing is not None and self.spacing <= 0):
            raise InputError("spacing or voxels cannot be used", expected="numbers above 0")


@dataclass(frozen=True, eq=False)
class Images:
    """What another package registers: two images on one grid, and where they count.

    It gets them by `itk` or by `seen` and `geometry`, which leave out an axis of a single voxel.

    Args:
        fixed: (z, y, x) the target.
        moving: (z, y, x) the source where the initial map puts it.
        fixed_mask: (z, y, x) non-zero where the target counts; None: everywhere.
        moving_mask: likewise; the source's field of view is in it.
        grid: of all four.
        threads: how many may be used.
        seed: of whatever is drawn.
    """

    fixed: Array
    moving: Array
    fixed_mask: NDArray[np.uint8] | None
    moving_mask: NDArray[np.uint8] | None
    grid: Grid
    threads: int
    seed: int

    @property
    def axes(self) -> NDArray[np.intp]:
        """The axes, 0 x to 2 z, of more than one voxel: two of a plane."""
        return np.flatnonzero(self.grid.size > 1)

    @property
    def geometry(self) -> tuple[list[float], list[float], NDArray[np.float64]]:
        """Origin, spacing (mm) and direction, of a plane within it."""
        grid, axes = self.grid, self.axes
        if len(axes) == 3:
            return grid.origin.tolist(), grid.spacing.tolist(), grid.direction
        return [0.0] * len(axes), grid.spacing[axes].tolist(), np.eye(len(axes))

    def seen(self, array: NDArray[Any]) -> NDArray[Any]:
        """One of the arrays, (z, y, x), of a plane its two axes."""
        return np.ascontiguousarray(array.squeeze())

    def itk(self, array: NDArray[Any]) -> sitk.Image:
        """One of the arrays as an image."""
        image = sitk.GetImageFromArray(self.seen(array))
        origin, spacing, direction = self.geometry
        image.SetOrigin(origin)
        image.SetSpacing(spacing)
        image.SetDirection(direction.ravel().tolist())
        return image

    def in_space(self, vectors: Array) -> Array:
        """Displacements of the voxels as `geometry` has them, (..., 2 or 3), as (z, y, x, 3) LPS mm."""
        axes = self.axes
        vectors = vectors.reshape(*self.grid.shape, len(axes))
        return vectors if len(axes) == 3 else vectors @ self.grid.direction[:, axes].T.astype(np.float32)


class ExternalOperator(MeasuringOperator):
    """What the operators of other packages have in common.

    Args:
        settings: everything they may be told.

    Raises:
        InputError: the other package is not installed, or not whole; or it may not be told what the settings tell it.
    """

    seeded = True
    package: ClassVar[str]
    module: ClassVar[str]

    def __init__(self, settings: ExternalSettings | None = None) -> None:
        self.options = settings or ExternalSettings()
        self.clamp = self.options.clamp
        check_arguments(self.name, self.options.arguments)
        self._loaded()

    def settings(self) -> dict[str, Any]:
        """All settings as JSON."""
        return asdict(self.options)

    @property
    def package_version(self) -> str:
        """Name and version of the other package; another one may give another map."""
        return f"{self.package} {metadata.version(self.package)}"

    def _loaded(self) -> ModuleType:
        """The other package; a module of its name may belong to another distribution, and it may lack what it needs."""
        try:
            metadata.version(self.package)
            return import_module(self.module)
        except (ImportError, AttributeError, OSError) as error:
            raise InputError(
                f"the registration operator {self.name!r} needs the package {self.package}",
                found=str(error) or None,
                remedy=f"pip install '.[{self.name}]' in the source of atlasnet",
            ) from error

    @abstractmethod
    def displacement(self, images: Images) -> Array:
        """Register.

        Returns:
            (z, y, x, 3), of a plane (y, x, 2): mm that take points of the fixed image into the moving one, in the
            space that `Images.geometry` describes.
        """

    def find(self, source: Volume, source_mask: Volume | None, task: Task, execution: Execution) -> Found:
        """The map of the other package, without its folds, and its inverse."""
        options, begin = self.options, time.perf_counter()
        if source.channels != 1:
            raise VolumeError(
                f"the registration operator {self.name!r} takes images of one channel",
                found=counted(source.channels, "channel"),
                remedy="use the operator mrf",
            )
        start = started(source, source_mask, task, options.affine_settings if options.affine else None, execution)
        aligned = time.perf_counter()
        grid = registration_grid(task.target.grid, options.spacing, options.voxels)
        images = self._images(source, source_mask, task, start, grid, execution)
        try:
            field_ = images.in_space(self.displacement(images))
        except Exception as error:
            # A package raises what it likes, for images that it cannot bring together as for anything else.
            if explained(error) is not None:
                raise
            raise RegistrationError(f"{self.package} found no map: {_reason(str(error))}") from error
        if not np.isfinite(field_).all():
            raise RegistrationError(f"{self.package} returned a displacement that is not finite")
        steps = torch.from_numpy(np.moveaxis(field_, -1, 0).astype(np.float32, order="C"))
        steps, repaired = repair(steps, grid, floor=options.smallest_jacobian)
        transform = Transform.from_displacement(DisplacementMap(steps, grid), measure=False).then(start)
        record = {
            "package": self.package_version,
            "seconds_affine": round(aligned - begin, 3),
            "seconds_deformation": round(time.perf_counter() - aligned, 3),
            "spacing_mm": [round(float(s), 4) for s in grid.spacing],
            "jacobian_min_before_repair": round(repaired.minimum_before, 4),
            "voxels_repaired": repaired.changed,
        }
        return Found(transform, start, record)

    def _images(
        self,
        source: Volume,
        source_mask: Volume | None,
        task: Task,
        start: Transform,
        grid: Grid,
        execution: Execution,
    ) -> Images:
        (there,), (here,) = choose_windows(source, task.target, self.options.clamp, None)
        identity = Transform.identity()
        seen = source_mask or Volume(np.ones((1, *source.grid.shape), dtype=np.uint8), source.grid)
        return Images(
            fixed=_seen(identity, task.target, grid, here),
            moving=_seen(start, source, grid, there),
            fixed_mask=None if task.mask is None else _mask(identity, task.mask, grid),
            moving_mask=_mask(start, seen, grid),
            grid=grid,
            threads=execution.threads,
            seed=execution.seed,
        )


def _seen(transform: Transform, volume: Volume, grid: Grid, window: Window) -> Array:
    low, high = window.clamp
    values = transform.warp(volume, grid, fill=low).array[0].astype(np.float32)
    return np.asarray((values.clip(low, high) - low) * (SCALE / (high - low)), dtype=np.float32)


def _mask(transform: Transform, mask: Volume, grid: Grid) -> NDArray[np.uint8] | None:
    """(z, y, x) 1 where the mask is not zero; None where it takes nothing away."""
    binary = Volume((mask.array != 0).astype(np.uint8), mask.grid)
    warped = transform.warp(binary, grid, interpolation="nearest", fill=0).array[0]
    return None if warped.all() else warped


def _reason(text: str) -> str:
    """The last line of a log that tells of an error, or else the last, without what ITK puts around it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it gave no reason"]
    told = [line for line in lines if "ERROR" in line] or lines
    return re.sub(r"^.*ITK ERROR: |\(0x[0-9a-f]+\)", "", told[-1])
