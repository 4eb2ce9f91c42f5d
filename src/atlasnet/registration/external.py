"""Registrations of other packages as operators: ANTs, elastix, greedy.

Each starts from this package's affine alignment, deforms on the grid on which the built-in registration would work, and
sees the intensities that it would see. What comes back is made fold-free where it is not, and inverted, so that every
later stage may rely on a map in both directions.
"""

from __future__ import annotations

import os
import tempfile
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module, metadata
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from atlasnet.errors import InputError, RegistrationError, VolumeError
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

    def itk(self, array: NDArray[Any]) -> sitk.Image:
        """One of the arrays as an image."""
        image = sitk.GetImageFromArray(array)
        image.SetOrigin(self.grid.origin.tolist())
        image.SetSpacing(self.grid.spacing.tolist())
        image.SetDirection(self.grid.direction.ravel().tolist())
        return image


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
            (z, y, x, 3) LPS mm that take points of the fixed image into the moving one.
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
        field_ = self.displacement(self._images(source, source_mask, task, start, grid, execution))
        if field_.shape != (*grid.shape, 3) or not np.isfinite(field_).all():
            raise RegistrationError(f"{self.package} returned no finite displacement on the target's grid")
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


class GreedyOperator(ExternalOperator):
    """greedy (Yushkevich et al.): diffeomorphic, local NCC."""

    name, package, module = "greedy", "picsl_greedy", "picsl_greedy"

    def displacement(self, images: Images) -> Array:
        """See `ExternalOperator.displacement`."""
        if 1 in images.grid.shape:
            raise VolumeError("the registration operator 'greedy' takes volumes", found="a 2-D image")
        program = self._loaded().Greedy3D()
        options = {"-m": "NCC 2x2x2", "-n": "100x50x10", **self.options.arguments}
        named: dict[str, Any] = {"fixed": images.itk(images.fixed), "moving": images.itk(images.moving), "warp": None}
        words = ["-i fixed moving -o warp -threads", str(images.threads)]
        for option, name, mask in (("-gm", "here", images.fixed_mask), ("-mm", "there", images.moving_mask)):
            if mask is not None:
                named[name] = images.itk(mask.astype(np.float32))
                words += [option, name]
        words += [f"{option} {value}" for option, value in options.items()]
        program.execute(" ".join(words), **named)
        return np.asarray(sitk.GetArrayFromImage(program["warp"]), dtype=np.float32)


class AntsOperator(ExternalOperator):
    """ANTs (Avants et al.): symmetric normalisation, mutual information."""

    name, package, module = "ants", "antspyx", "ants"

    def displacement(self, images: Images) -> Array:
        """See `ExternalOperator.displacement`."""
        ants = self._loaded()

        def image(array: NDArray[Any] | None) -> Any:
            if array is None:
                return None
            grid = images.grid
            return ants.from_numpy(
                np.ascontiguousarray(array.T, dtype=np.float32),
                origin=grid.origin.tolist(),
                spacing=grid.spacing.tolist(),
                direction=grid.direction,
            )

        arguments = {
            "type_of_transform": "SyNOnly",
            "reg_iterations": (100, 70, 50, 0),
            "initial_transform": "Identity",
            "random_seed": images.seed + 1,
            **self.options.arguments,
        }
        fixed, moving = image(images.fixed), image(images.moving)
        with tempfile.TemporaryDirectory() as folder, _environment(images.threads):
            found = ants.registration(
                fixed,
                moving,
                mask=image(images.fixed_mask),
                moving_mask=image(images.moving_mask),
                outprefix=f"{folder}/ants_",
                **arguments,
            )
            composed = ants.apply_transforms(fixed, moving, found["fwdtransforms"], compose=f"{folder}/composed_")
            vectors = sitk.GetArrayFromImage(sitk.ReadImage(str(composed)))
        return np.asarray(vectors, dtype=np.float32).reshape(*images.grid.shape, -1)


class ElastixOperator(ExternalOperator):
    """elastix (Klein et al.): B-splines, mutual information, its default parameter map ``bspline``."""

    name, package, module = "elastix", "itk-elastix", "itk"

    def displacement(self, images: Images) -> Array:
        """See `ExternalOperator.displacement`."""
        itk = self._loaded()

        def image(array: NDArray[Any], kind: Any) -> Any:
            result = itk.image_from_array(np.ascontiguousarray(array, dtype=kind))
            result.SetOrigin(images.grid.origin.tolist())
            result.SetSpacing(images.grid.spacing.tolist())
            result.SetDirection(itk.matrix_from_array(np.ascontiguousarray(images.grid.direction)))
            return result

        parameters = itk.ParameterObject.New()
        entries = dict(parameters.GetDefaultParameterMap("bspline"))
        entries["RandomSeed"] = [str(images.seed + 1)]
        for name, value in self.options.arguments.items():
            entries[name] = [str(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
        parameters.AddParameterMap(entries)
        masks = {
            name: image(mask, np.uint8)
            for name, mask in (("fixed_mask", images.fixed_mask), ("moving_mask", images.moving_mask))
            if mask is not None
        }
        itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(images.threads)
        fixed, moving = image(images.fixed, np.float32), image(images.moving, np.float32)
        with tempfile.TemporaryDirectory() as folder:
            _, found = itk.elastix_registration_method(
                fixed, moving, parameter_object=parameters, log_to_console=False, output_directory=folder, **masks
            )
            field_ = itk.transformix_deformation_field(moving, found, output_directory=folder)
        return np.asarray(field_, dtype=np.float32)


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """ITK's number of threads, which ANTs reads from the environment."""
    name = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
    before = os.environ.get(name)
    os.environ[name] = str(threads)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


EXTERNAL = {operator.name: operator for operator in (AntsOperator, ElastixOperator, GreedyOperator)}
