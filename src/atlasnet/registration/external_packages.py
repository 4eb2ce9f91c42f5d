"""ANTs, elastix and greedy as operators."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from atlasnet.registration.external import Array, ExternalOperator, Images

# elastix's default, and the voxels by which it then erodes the moving mask, lest smoothing brings in what lies outside.
RESOLUTIONS = 4
ERODED = 17


class GreedyOperator(ExternalOperator):
    """greedy (Yushkevich et al.): diffeomorphic, local NCC."""

    name, package, module = "greedy", "picsl_greedy", "picsl_greedy"

    def displacement(self, images: Images) -> Array:
        """See `ExternalOperator.displacement`."""
        package, plane = self._loaded(), len(images.axes) == 2
        program = package.Greedy2D() if plane else package.Greedy3D()
        # By default it adds another noise to the images whenever it runs.
        options = {"-m": "NCC 2x2" if plane else "NCC 2x2x2", "-n": "100x50x10", "-seed": images.seed + 1}
        options |= self.options.arguments
        named: dict[str, Any] = {"fixed": images.itk(images.fixed), "moving": images.itk(images.moving), "warp": None}
        words = ["-V 0 -i fixed moving -o warp -threads", str(images.threads)]
        for option, name, mask in (("-gm", "here", images.fixed_mask), ("-mm", "there", images.moving_mask)):
            if mask is not None:
                named[name] = images.itk(mask.astype(np.float32))
                words += [option, name]
        for option, value in options.items():
            words += [option, *map(str, value if isinstance(value, (list, tuple)) else [value])]
        program.execute(" ".join(words), out=io.StringIO(), err=io.StringIO(), **named)
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
            origin, spacing, direction = images.geometry
            values = np.ascontiguousarray(images.seen(array).T, dtype=np.float32)
            return ants.from_numpy(values, origin=origin, spacing=spacing, direction=direction)

        arguments = {
            "type_of_transform": "SyNOnly",
            "reg_iterations": (100, 70, 50, 0),
            "initial_transform": "Identity",
            "random_seed": images.seed + 1,
            # It joins tuples, and only those, into words; JSON has lists.
            **{name: tuple(v) if isinstance(v, list) else v for name, v in self.options.arguments.items()},
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
            return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(composed))), dtype=np.float32)


class ElastixOperator(ExternalOperator):
    """elastix (Klein et al.): B-splines, mutual information, its default parameter map ``bspline``."""

    name, package, module = "elastix", "itk-elastix", "itk"

    def displacement(self, images: Images) -> Array:
        """See `ExternalOperator.displacement`."""
        itk = self._loaded()

        def image(array: NDArray[Any], kind: Any) -> Any:
            origin, spacing, direction = images.geometry
            result = itk.image_from_array(images.seen(array).astype(kind))
            result.SetOrigin(origin)
            result.SetSpacing(spacing)
            result.SetDirection(itk.matrix_from_array(np.ascontiguousarray(direction)))
            return result

        parameters = itk.ParameterObject.New()
        resolutions = int(self.options.arguments.get("NumberOfResolutions", RESOLUTIONS))
        entries = dict(parameters.GetDefaultParameterMap("bspline", resolutions))
        entries["RandomSeed"] = [str(images.seed + 1)]
        if not all(_outlasts_erosion(mask) for mask in (images.fixed_mask, images.moving_mask)):
            entries["ErodeMask"] = ["false"]
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
            log = Path(folder, "elastix.log")
            options = {"parameter_object": parameters, "output_directory": folder, "log_to_console": False, **masks}
            try:
                _, found = itk.elastix_registration_method(
                    fixed, moving, log_to_file=True, log_file_name=log.name, **options
                )
            except RuntimeError as error:  # which only says that the log says why
                raise RuntimeError(log.read_text(errors="replace") if log.is_file() else str(error)) from error
            field_ = itk.transformix_deformation_field(moving, found, output_directory=folder)
        return np.asarray(field_, dtype=np.float32)


def _outlasts_erosion(mask: NDArray[np.uint8] | None) -> bool:
    """Whether most of a mask is left where elastix looks at the coarsest resolution; of a small image nothing is."""
    if mask is None:
        return True
    left = ndimage.minimum_filter(mask, size=[1 if n == 1 else 2 * ERODED + 1 for n in mask.shape], mode="nearest")
    return bool(2 * np.count_nonzero(left) > np.count_nonzero(mask))


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
