"""One registration by one method, timed in memory, as a process of its own: the worker of `registration.py`.

    python benchmarks/peers.py METHOD FIXED MOVING MASK OUT THREADS

FIXED and MOVING are images on one grid, of two or three dimensions; MASK is 1 where the moving image was seen and 0
where its edge was continued, for the methods that take one (all but convexAdam). Writes OUT.npy, the displacement
(z, y, x, 3) in LPS mm that takes points of the fixed image into the moving one, and OUT.json with the seconds, version
and settings. Every method but `atlasnet` needs only its own package beside NumPy and SimpleITK, so that peers can live
in an environment of their own.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import SimpleITK as sitk

Result = tuple[np.ndarray, float, str, dict[str, object]]


def read(path: str) -> sitk.Image:
    return sitk.ReadImage(path, sitk.sitkFloat32)


def field_of(image: sitk.Image) -> np.ndarray:
    array = sitk.GetArrayFromImage(image)
    # Some carry an axis of time; a plane's (y, x, 2) becomes (1, y, x, 3).
    return flat(array.reshape(array.shape[-3:])) if array.shape[-1] == 2 else array.reshape(array.shape[-4:])


def flat(array: np.ndarray) -> np.ndarray:
    return np.pad(array[None], [(0, 0)] * 3 + [(0, 1)])


def atlasnet(fixed: str, moving: str, mask: str, threads: int) -> Result:
    """The deformable operator from images in memory to the map in both directions, with its record."""
    from atlasnet import read_volume
    from atlasnet.execution import Execution
    from atlasnet.registration import make_operator, register_images
    from atlasnet.volume import read_labels

    target, source, seen = read_volume(fixed), read_volume(moving), read_labels(mask)
    operator, execution = make_operator("mrf", affine=False), Execution(threads=threads)
    # A first registration loads code and starts threads; a coarse one is enough.
    register_images(source, target, operator=make_operator("mrf", affine=False, voxels=20_000), execution=execution)
    start = time.perf_counter()
    registration = register_images(source, target, operator=operator, source_mask=seen, execution=execution)
    seconds = time.perf_counter() - start
    field = registration.transform.displacement(target.grid).movedim(0, -1).numpy()
    keys = ("inverse_residual_mm", "seconds_deformation", "seconds_inverse", "seconds_checks")
    return field, seconds, version("atlasnet"), {key: registration.record[key] for key in keys}


def greedy(fixed: str, moving: str, mask: str, threads: int) -> Result:
    """greedy -m NCC 2x2x2 -n 100x50x10 -mm -oinv."""
    from picsl_greedy import Greedy2D, Greedy3D

    scan = read(fixed)
    images = {"fixed": scan, "moving": read(moving), "mask": read(mask), "warp": None, "inverse": None}
    plane = scan.GetDimension() == 2
    start = time.perf_counter()
    program = Greedy2D() if plane else Greedy3D()
    program.execute(
        f"-i fixed moving -mm mask -m NCC {'2x2' if plane else '2x2x2'} -n 100x50x10 -threads {threads} "
        "-o warp -oinv inverse",
        **images,
    )
    seconds = time.perf_counter() - start
    return field_of(program["warp"]), seconds, version("picsl_greedy"), {"call": greedy.__doc__}


def ants(fixed: str, moving: str, mask: str, threads: int) -> Result:
    """ants.registration SyNOnly (mattes), reg_iterations (100, 70, 50, 0), moving_mask."""
    import ants as package

    images = package.image_read(fixed), package.image_read(moving)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        found = package.registration(
            *images,
            "SyNOnly",
            outprefix=f"{folder}/ants_",
            reg_iterations=(100, 70, 50, 0),
            initial_transform="Identity",
            moving_mask=package.image_read(mask),
            mask_all_stages=True,
        )
        seconds = time.perf_counter() - start
        composed = package.apply_transforms(*images, found["fwdtransforms"], compose=f"{folder}/composed_")
        return field_of(sitk.ReadImage(composed)), seconds, version("antspyx"), {"call": ants.__doc__}


def convexadam(fixed: str, moving: str, mask: str, threads: int) -> Result:
    """convex_adam_pt with its defaults (MIND, grid 6, 80 iterations); forward only."""
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    torch.set_num_threads(threads)
    images = read(fixed), read(moving)
    start = time.perf_counter()
    voxels = convex_adam_pt(*images, dtype=torch.float32, device=torch.device("cpu"))
    seconds = time.perf_counter() - start
    matrix = np.reshape(images[0].GetDirection(), (3, 3)) * images[0].GetSpacing()
    return voxels[..., ::-1] @ matrix.T, seconds, version("convexAdam"), {"call": convexadam.__doc__}


def elastix(fixed: str, moving: str, mask: str, threads: int) -> Result:
    """itk.elastix with the default parameter map bspline and moving_mask, which is not eroded; forward only."""
    import itk

    images = itk.imread(fixed, itk.F), itk.imread(moving, itk.F)
    parameters = itk.ParameterObject.New()
    chosen = parameters.GetDefaultParameterMap("bspline")
    # By 17 voxels at the coarsest resolution, which is all of a small image.
    chosen["ErodeMask"] = chosen["ErodeMovingMask"] = ("false",)
    parameters.AddParameterMap(chosen)
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(threads)
    start = time.perf_counter()
    _, found = itk.elastix_registration_method(
        *images, parameter_object=parameters, moving_mask=itk.imread(mask, itk.UC), log_to_console=False
    )
    seconds = time.perf_counter() - start
    field = np.asarray(itk.transformix_deformation_field(images[1], found))
    field = flat(field) if field.shape[-1] == 2 else field
    return field, seconds, version("itk-elastix"), {"call": elastix.__doc__}


METHODS = {method.__name__: method for method in (atlasnet, greedy, ants, convexadam, elastix)}


def main() -> None:
    name, *paths, threads = sys.argv[1:]
    fixed, moving, mask, out = (Path(path).resolve() for path in paths)
    # elastix leaves files where it runs.
    os.chdir(out.parent)
    field, seconds, release, details = METHODS[name](str(fixed), str(moving), str(mask), int(threads))
    np.save(out.with_suffix(".npy"), np.ascontiguousarray(field, dtype=np.float32))
    out.with_suffix(".json").write_text(json.dumps({"seconds": seconds, "version": release, **details}))


if __name__ == "__main__":
    main()
