"""Whole files of every kind that AtlasNet reads from a user, small, each with what reads it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

import dicoms
from atlasnet.execution import read_json, write_json
from atlasnet.volume import Grid, Volume, read_grid, read_labels, read_volume, write_volume

SHAPE = (3, 4, 5)
ANNOTATED = Grid.from_parts(SHAPE)


@dataclass(frozen=True)
class Specimen:
    """A file in a folder of its own.

    Args:
        path: the file.
        read: gets its path; returns what was read, for a check of its own.
    """

    path: Path
    read: Callable[[Path], Any]


def read_image(path: Path) -> Volume:
    """Both ways of reading, and what must hold for whatever comes through."""
    grid = read_grid(path)
    volume = read_volume(path, channels=True)
    assert grid.shape == volume.grid.shape
    assert np.isfinite(volume.grid.affine).all()
    assert np.isfinite(volume.array).all()
    assert (volume.grid.spacing > 0).all()
    assert abs(np.linalg.det(volume.grid.direction)) > 0.99
    return volume


def volumes(folder: Path) -> dict[str, Specimen]:
    """Images in every format and way of storing, and a zip of DICOM slices."""
    random = np.random.default_rng(0)
    array = random.integers(-1000, 1000, SHAPE).astype(np.int16)
    image = Volume(array, Grid.from_parts(SHAPE, (0.7, 0.8, 2.5), (-11.0, 22.5, -143.25)))
    found = {}
    for name in ("v.nii", "v.nii.gz", "v.nrrd", "v.mha", "v.mhd"):
        path = folder / name.replace(".", "_") / name
        write_volume(path, image)
        found[name] = Specimen(path, read_image)
    for name in ("raw.nrrd", "raw.nhdr", "raw.mha", "raw4.nrrd"):
        path = folder / name.replace(".", "_") / name
        path.parent.mkdir()
        raw = sitk.GetImageFromArray(np.stack([array] * 2) if "4" in name else array)
        sitk.WriteImage(raw, str(path), useCompression=False)
        found[name] = Specimen(path, read_image)
    labels = folder / "labels" / "labels.nii.gz"
    write_volume(labels, Volume((array > 0).astype(np.float32), image.grid))
    found["labels.nii.gz"] = Specimen(labels, read_labels)
    archive = folder / "dicom" / "ct.zip"
    slices = sorted(dicoms.save(folder / "slices", dicoms.slices(array)).iterdir())
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        for path in slices:
            stream.write(path, path.name)
    found["ct.zip"] = Specimen(archive, read_image)
    return found


def others(folder: Path) -> dict[str, Specimen]:
    """Models, weights, transforms, landmarks, lists, and the JSON files that users write or move."""
    import torch

    from atlasnet.network.weights import read_tensors, write_tensors
    from atlasnet.registration import MetricWeights, TissueClass
    from atlasnet.training.subjects import read_names
    from atlasnet.transform import AffineMap, DisplacementMap, Transform, compose
    from atlasnet.transform.itk import read_itk_field, write_itk_field
    from atlasnet.transform.landmarks import read_landmarks

    found = {}
    grid = Grid.from_parts(SHAPE, (1.1, 1.7, 2.3), (0.1, 0.2, 0.3))
    dense = DisplacementMap(torch.linspace(-1, 1, 180).reshape(3, *SHAPE), grid)
    transform = Transform(compose(dense, AffineMap(np.eye(4))), dense)
    tissue = tuple(TissueClass(f"class {label}", (label,), {"mi": 0.3, "ncc": 0.7}) for label in range(2))
    for name, read, write in (
        ("weights.json", MetricWeights.read, MetricWeights(tissue, {"mi": 0.3, "ncc": 0.7}, 0.1).write),
        ("transform.safetensors", Transform.load, transform.save),
        ("field.nii.gz", read_itk_field, lambda path: write_itk_field(path, dense, grid)),
        ("field.mha", read_itk_field, lambda path: write_itk_field(path, dense, grid)),
        (
            "network.safetensors",
            read_tensors,
            lambda path: write_tensors(path, {"a": torch.ones(3, 4), "b": torch.zeros(2)}, {"epoch": 1}),
        ),
        ("landmarks.csv", read_landmarks, lambda path: path.write_text("x,y,z,x,y,z\n" + "1,2,3,4,5,6.5\n" * 4)),
        ("subjects.txt", read_names, lambda path: path.write_text("# ours\ns1\ns2\n\ns3\n")),
    ):
        path = folder / name.replace(".", "_") / name
        path.parent.mkdir()
        write(path)
        found[name] = Specimen(path, read)
    return found | _cohorts(folder) | _annotations(folder) | _models(folder)


def _cohorts(folder: Path) -> dict[str, Specimen]:
    from atlasnet.cohort import Cohort

    segments = {"lung": {"category": ["1", "SCT", "A"], "type": ["2", "SCT", "Lung"], "colour": "#80ae80"}}
    image = Volume(np.zeros(SHAPE, np.uint8), Grid.from_parts(SHAPE))
    found = {}
    for name, content in (
        (
            "dataset.json",
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "lung": 1, "airways": 2},
                "annotated": {"s1": ["lung"]},
                "file_ending": ".nii.gz",
            },
        ),
        (
            "decathlon.json",
            {
                "modality": {"0": "CT"},
                "labels": {"0": "background", "1": "lung", "2": "ignore"},
                "training": [
                    {"image": f"./imagesTr/s{i}.nii.gz", "label": f"./labelsTr/s{i}.nii.gz"} for i in range(2)
                ],
            },
        ),
    ):
        root = folder / name.split(".")[0]
        for i in range(2):
            ending = "_0000" if name == "dataset.json" else ""
            write_volume(root / "imagesTr" / f"s{i}{ending}.nii.gz", image)
            write_volume(root / "labelsTr" / f"s{i}.nii.gz", image)
        write_json(root / "dataset.json", content | {"segments": segments})
        found[name] = Specimen(root / "dataset.json", lambda path: Cohort.read(path.parent))
    return found


def read_masks(path: Path) -> list[Any]:
    """Every structure of an annotation on the grid of the volumes."""
    from atlasnet.cohort.conversion.find import open_structures

    structures = open_structures(path)
    return [structures.mask(name, ANNOTATED) for name in structures.names]


def _annotations(folder: Path) -> dict[str, Specimen]:
    from datetime import datetime

    from atlasnet.cohort.segments import label_segments
    from atlasnet.prediction.dicom import Origin
    from atlasnet.prediction.dicom_seg import write_dicom_seg
    from atlasnet.prediction.rtstruct import write_rtstruct
    from atlasnet.volume.dicom import read_dicom_source

    labels = np.zeros((1, *SHAPE), np.uint8)
    labels[0, :2, 1:3, 1:4] = 1
    slicer = folder / "seg_nrrd" / "drawn.seg.nrrd"
    slicer.parent.mkdir()
    drawn = sitk.GetImageFromArray(labels[0])
    for key, text in {"ID": "a", "Name": "lung", "Layer": "0", "LabelValue": "1", "Color": "0.5 0.6 0.7"}.items():
        drawn.SetMetaData(f"Segment0_{key}", text)
    sitk.WriteImage(drawn, str(slicer), useCompression=False)
    series = dicoms.save(folder / "drawn_on", dicoms.slices(labels[0].astype(np.int16)))
    segments = label_segments({"background": 0, "lung": 1}, {})
    origin = Origin(read_dicom_source(series), segments, model="m", created=datetime(2026, 3, 4))
    found = {"drawn.seg.nrrd": Specimen(slicer, read_masks)}
    for name, write in (("seg.dcm", write_dicom_seg), ("rtstruct.dcm", write_rtstruct)):
        path = folder / name.replace(".", "_") / name
        write(path, Volume(labels, origin.source.grid), origin)
        found[name] = Specimen(path, read_masks)
    return found


def _models(folder: Path) -> dict[str, Specimen]:
    from atlasnet.cohort import Plan
    from atlasnet.cohort.normalisation import Normalisation
    from atlasnet.network import NetworkSpec, build_network
    from atlasnet.network.weights import write_tensors
    from atlasnet.prediction import Ensemble, Predictor, write_ensemble
    from atlasnet.registration import make_operator
    from atlasnet.training.model import Atlas, Model
    from atlasnet.training.region import Region

    window = Normalisation("CT", "window", (-1000.0, 400.0), -300.0, 250.0)
    plan = Plan((2.0, 2.0, 2.0), "z", (window,), ((-900.0, 100.0),), (2.0, 2.0, 2.0))
    operator = make_operator("mrf")
    model = Model(
        folder / "model",
        ("CT",),
        {"background": 0, "lung": 3},
        None,
        plan,
        "mrf",
        operator.settings(),
        NetworkSpec("unet", 0.25, {"context": 1, "depth": 1}),
        (Atlas("s0", "s0", {"median": 0.5}, Region((0, 0, 0), (1, 2, 1))),),
        {"versions": {"atlasnet": "0"}, "data": {"s0": "0"}},
    )
    write_volume(model.atlas_path(model.atlases[0]), Volume(np.zeros(SHAPE, np.int16), Grid.from_parts(SHAPE)))
    write_tensors(model.weights_path(model.atlases[0]), build_network(model.network, 1, 2).state_dict(), {})
    model.save()
    # Damage shall reach what is behind the digest.
    content = read_json(model.folder / "model.json")
    del content["digest"]
    write_json(model.folder / "model.json", content)
    archive = folder / "zip" / "model.zip"
    Model.load(model.folder).export(archive)
    plan.write(folder / "plan" / "plan.json")

    together = folder / "together"
    for number in range(2):
        member = replace(model, folder=together / f"m{number}")
        write_volume(
            member.atlas_path(member.atlases[0]), Volume(np.full(SHAPE, number, np.int16), Grid.from_parts(SHAPE))
        )
        write_tensors(member.weights_path(member.atlases[0]), build_network(model.network, 1, 2).state_dict(), {})
        member.save()
    write_ensemble(together, ("m0", "m1"))
    both = folder / "both" / "ensemble.zip"
    Ensemble.load([together]).export(both)

    def read_model(path: Path) -> Any:
        loaded = Model.load(path.parent if path.suffix == ".json" else path)
        return loaded.summary(), loaded.values, Predictor(loaded)

    def read_ensemble(path: Path) -> Any:
        loaded = Ensemble.load([path.parent if path.suffix == ".json" else path])
        return loaded.summary(), loaded.values, Predictor(loaded)

    return {
        "model.json": Specimen(model.folder / "model.json", read_model),
        "model.zip": Specimen(archive, read_model),
        "ensemble.json": Specimen(together / "ensemble.json", read_ensemble),
        "ensemble.zip": Specimen(both, read_ensemble),
        "plan.json": Specimen(folder / "plan" / "plan.json", Plan.read),
    }
