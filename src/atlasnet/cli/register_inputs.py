"""What ``atlasnet register`` is given, read and checked before any work."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasnet.errors import InputError, TransformError, VolumeError
from atlasnet.wording import counted, series_name

if TYPE_CHECKING:
    from atlasnet.execution import Execution
    from atlasnet.registration import Operator
    from atlasnet.transform import Transform
    from atlasnet.volume import Volume


_TRANSFORMS = (".safetensors", ".h5", ".hdf5", ".tfm", ".mat", ".txt", ".xfm")


@dataclass(frozen=True, eq=False)
class Given:
    """The map that an option gives.

    Args:
        transform: of target points into the source; None where no option gives one.
        path: the file that says so.
        record: what the record says of it.
        points: landmarks of the target and of the source, (n, 3) LPS mm.
    """

    transform: Transform | None = None
    path: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)
    points: tuple[Any, Any] | None = None

    def with_errors(self, found: Transform) -> dict[str, Any]:
        """What the record says, with the errors of the landmarks at ``found`` after those of the fit."""
        if self.points is None:
            return self.record
        return {"landmarks": {**self.record["landmarks"], "after_mm": landmark_errors(found, self.points)}}


def check_folder(output: Path) -> None:
    """Refuse the name of an image or a transform: what is written is a folder.

    Raises:
        InputError: it is one.
    """
    from atlasnet.volume.names import image_suffix

    if not output.is_dir() and (image_suffix(output) or output.suffix.lower() in _TRANSFORMS):
        raise InputError(
            "this is the name of a file, and the results are a folder",
            path=output,
            remedy="name a folder; it gets transform.safetensors, and with --fields displacement.nii.gz or "
            "with --itk transform.h5, which 3D Slicer, ITK and ANTs read",
        )


def require_memory(args: argparse.Namespace, operator: Operator, execution: Execution, channels: int) -> None:
    """Find out from the headers what images of so many channels would take.

    Raises:
        VolumeError: a header cannot be used.
        InputError: memory does not suffice.
    """
    from atlasnet.cohort.channels import Source
    from atlasnet.registration import registration_bytes

    source, target = (
        Source(path, *series[:1]).read_grid()
        for path, series in ((args.source, args.source_series), (args.target, args.target_series))
    )
    remedy = "crop or resample the larger image, choose a larger --spacing or --preset fast"
    needed = registration_bytes(source, target, channels, operator, fields=args.fields)
    execution.require_memory(needed, remedy, args.source)


def check_apart(args: argparse.Namespace, names: Iterable[str]) -> None:
    """Refuse results whose names are those of images that were read; a map that is applied or refined may be replaced.

    Raises:
        InputError: an image, a mask or labels lie where a result goes.
    """
    from atlasnet.execution import place_of

    results = {place_of(args.output / name) for name in names}
    read = (args.source, args.target, args.source_labels, args.target_labels, args.source_mask, args.target_mask)
    for path in (*read, *args.source_channel, *args.target_channel):
        if path is not None and place_of(path) in results:
            raise InputError(
                "a result would take the place of what was read", path=path, remedy="give another folder after -o"
            )


def read_images(args: argparse.Namespace) -> tuple[Volume, Volume]:
    """Source and target, with as many channels.

    Raises:
        InputError: both ways of giving channels at once, or not one ``--mi-range`` or series a channel.
        VolumeError: a file cannot be used, or the images differ in their number of channels.
    """
    apart = (args.source_channel, args.target_channel, args.source_series[1:], args.target_series[1:])
    if args.channels and any(apart):
        raise InputError(
            "channels are either files or series of their own or in one file", found="--channels and others"
        )
    source, target = (
        _read_image(args, which, (path, *more), series)
        for which, path, more, series in (
            ("source", args.source, args.source_channel, args.source_series),
            ("target", args.target, args.target_channel, args.target_series),
        )
    )
    if source.channels != target.channels:
        raise VolumeError(
            "source and target have different channels",
            path=args.source,
            expected=f"{counted(target.channels, 'channel')}, as {args.target}",
            found=str(source.channels),
            remedy="give the others with --source-channel and --target-channel, or --source-series and --target-series",
        )
    if args.mi_range is not None and len(args.mi_range) != source.channels:
        raise InputError(
            "--mi-range must be given once for each channel",
            expected=str(source.channels),
            found=str(len(args.mi_range)),
        )
    return source, target


def _read_image(args: argparse.Namespace, which: str, files: tuple[Path, ...], series: list[str]) -> Volume:
    from atlasnet.cohort import Subject
    from atlasnet.cohort.channels import channel_doubts, require_export
    from atlasnet.volume import read_volume
    from atlasnet.volume.io import SEVERAL_VOLUMES
    from atlasnet.volume.names import is_dicom

    if not any(map(is_dicom, files)):
        require_export(files[0], series)
    if series and len(files) not in (1, len(series)):
        raise InputError(
            f"--{which}-series must be given once for each channel",
            expected=f"{len(files)}: of {', '.join(file.name for file in files)}",
            found=", ".join(map(series_name, series)),
        )
    try:
        if len(files) == 1 and len(series) < 2:
            return read_volume(files[0], channels=args.channels, series=series[0] if series else None)
        subject = Subject("", files, channels=max(len(files), len(series)), series=tuple(series))
        image = subject.read_image()
        for _, text in channel_doubts(subject.sources, [str(source) for source in subject.sources]):
            args.reporter.warn(text)
        return image
    except VolumeError as error:
        if error.problem != SEVERAL_VOLUMES:
            raise
        remedy = (
            "add --channels where they are the channels of one image; otherwise split the file, and give one volume"
        )
        raise error.told(remedy=remedy) from error


def given_map(args: argparse.Namespace) -> Given:
    """The map from which to begin, or which to apply.

    Raises:
        TransformError: the file is none of a map or of landmarks.
    """
    from atlasnet.transform import landmark_transform, read_landmarks, read_transform

    if args.landmarks is not None:
        points = read_landmarks(args.landmarks)
        try:
            transform = landmark_transform(*points)
        except TransformError as error:
            raise error.told(path=args.landmarks) from error
        return Given(transform, args.landmarks, {"landmarks": {"fit_mm": landmark_errors(transform, points)}}, points)
    path = args.initial or args.transform
    if path is None:
        return Given()
    transform, repaired = read_transform(path)
    if repaired is None:
        return Given(transform, path)
    if repaired.changed:
        args.reporter.note(
            f"{path}: folds, or nearly so, and was smoothed there: {counted(repaired.changed, 'voxel')}, least "
            f"Jacobian {repaired.minimum_before:.3g}"
        )
    said = {"jacobian_min_before_repair": round(repaired.minimum_before, 4), "voxels_repaired": repaired.changed}
    return Given(transform, path, {"given_field": said})


def landmark_errors(transform: Transform, points: tuple[Any, Any]) -> dict[str, Any]:
    """How far a map takes landmarks of the target from those of the source, mm: of each, mean and largest, and whose.

    ``worst`` counts the pairs of the file from 1.
    """
    import numpy as np
    import torch

    target, source = points
    missed = np.linalg.norm(transform.forward(torch.from_numpy(target)).numpy() - source, axis=1)
    return {
        "mean": round(float(missed.mean()), 3),
        "max": round(float(missed.max()), 3),
        "worst": int(missed.argmax()) + 1,
        "each": missed.round(3).tolist(),
    }


def check_overlap(args: argparse.Namespace, given: Given, source: Volume, target: Volume) -> None:
    """Refuse to begin where the images do not meet.

    Raises:
        TransformError: a map that was given, or the headers where there is no alignment, take nothing of the target
            into the source.
    """
    import torch

    from atlasnet.transform import Transform

    by_headers = args.no_affine or args.operator == "identity"
    begin = given.transform or (Transform.identity() if by_headers else None)
    if begin is None or begin.overlap(target.grid, source.grid) > 0:
        return
    if given.path is None:
        raise TransformError(
            "by their headers the images do not meet",
            path=args.source,
            remedy="leave the affine alignment on, or begin with --initial or --landmarks",
        )
    there = begin.forward(torch.from_numpy(target.grid.centre))
    raise TransformError(
        "this map takes nothing of the target into the source",
        path=given.path,
        expected="a map of target points into the source, LPS mm",
        found=f"the middle of the target goes to {_point(there)}, that of the source is {_point(source.grid.centre)}",
        remedy="give the map of the other direction, or one of these two images",
    )


def _point(values: Any) -> str:
    return "(" + ", ".join(f"{value:.0f}" for value in values) + ")"


def check_range(args: argparse.Namespace, source: Volume, target: Volume) -> None:
    """Refuse ``--mi-range`` where it leaves nothing of an image to see.

    Raises:
        InputError: no voxel lies within.
    """
    if args.mi_range is None:
        return
    for which, image in (("source", source), ("target", target)):
        files = [getattr(args, which), *getattr(args, f"{which}_channel")]
        for number, ((low, high), channel) in enumerate(zip(args.mi_range, image.array, strict=True)):
            least, most = float(channel.min()), float(channel.max())
            if most <= low or least >= high:
                raise InputError(
                    "all voxels are alike within --mi-range",
                    path=files[min(number, len(files) - 1)],
                    expected=f"intensities between {low:g} and {high:g}",
                    found=f"{least:g} to {most:g}",
                    remedy="give a range that the intensities of both images meet, or none",
                )


def labels_on(image: Volume, path: Path | None) -> Volume | None:
    """The label map of an image; one of a part of it, as 3D Slicer saves, is put in its place.

    Raises:
        VolumeError: it cannot be used, or does not lie on the image's voxels.
    """
    if path is None:
        return None
    from atlasnet.cohort.conversion.lattice import placed  # the conversion of cohorts takes a while to load
    from atlasnet.volume import Volume, read_labels

    labels = read_labels(path)
    return Volume(placed(labels.array[0], labels.grid, image.grid, path), image.grid)
