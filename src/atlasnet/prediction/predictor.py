"""Transformer, network, de-transformer, fusion: one scan in, its labels out, on the scan's own grid."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from atlasnet.errors import InputError, ModelError, RegistrationError, VolumeError
from atlasnet.execution import Execution, Stages, WitnessReporter
from atlasnet.network import load_network, probabilities
from atlasnet.prediction.answers import Answer, Answers, MappedAnswer
from atlasnet.prediction.fusion import METHODS, Agreement, fuse_slab, own_choice
from atlasnet.prediction.postprocess import postprocess
from atlasnet.prediction.staple import Patterns, Performance
from atlasnet.registration import Operator, local_weight, make_operator
from atlasnet.training.mapping import from_slices, map_image, prepare, to_slices, working_grid
from atlasnet.training.model import Atlas, Model
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume, canonical
from atlasnet.volume.sampling import slabs

SLAB_VOXELS = 2**20  # voxels of the scan that are mapped back and fused at a time, times classes
# Networks say how sure they are, so that the fit decides less between them than between carried labels, where the power
# is 2. Of 0.5, 1 and 2 the best on 24 hippocampi on which no network was trained.
FIT_POWER = 0.5


@dataclass(frozen=True)
class PredictOptions:
    """What to give and how to fuse.

    Args:
        fusion: ``"mean"``, ``"vote"``, ``"weighted"``, ``"local"`` or ``"staple"`` (see `atlasnet.prediction.fusion`).
        probabilities: whether the fused class probabilities are wanted.
        agreement: whether the agreement and entropy maps are wanted.
        largest_component: keep the largest connected component of each label.
        minimum_size_ml: drop connected components that are smaller, in millilitres.
        minimum_quality: an atlas onto which the registration's quality is lower is not asked.
    """

    fusion: str = "mean"
    probabilities: bool = False
    agreement: bool = False
    largest_component: bool = False
    minimum_size_ml: float = 0.0
    minimum_quality: float = 0.05

    def __post_init__(self) -> None:
        if self.fusion not in METHODS:
            raise InputError(f"no fusion is called {self.fusion!r}", expected=", ".join(METHODS))
        if self.minimum_size_ml < 0:
            raise InputError("the minimum size must not be negative", found=str(self.minimum_size_ml))


@dataclass(frozen=True)
class Prediction:
    """What became of one scan, all on its own grid.

    Args:
        labels: (1, z, y, x) in the cohort's label values.
        record: registration quality per atlas, agreement, volumes in ml, seconds and peak memory by stage, warnings;
            JSON-able.
        probabilities: (classes, z, y, x) float32, or None when not wanted.
        agreement: (1, z, y, x) float32, the share of atlases that voted for the result, 0 where no atlas reached.
        entropy: (1, z, y, x) float32, of the mean probabilities, 0 to 1.
        to_atlases: by the name of each atlas that was asked, the map that takes points of the scan into it.
    """

    labels: Volume
    record: dict[str, Any]
    probabilities: Volume | None = None
    agreement: Volume | None = None
    entropy: Volume | None = None
    to_atlases: Mapping[str, Transform] = field(default_factory=dict)

    def summary(self) -> str:
        """One line: the volume of each label and how far the atlases agreed."""
        volumes = ", ".join(f"{name} {ml:.4g} ml" for name, ml in self.record["volumes_ml"].items())
        agreement = self.record["agreement"]["foreground"]
        return f"{volumes}; " + ("nothing found" if agreement is None else f"agreement {agreement:.3f}")


@dataclass
class _Fused:
    """The whole scan, canonical orientation; maps that nobody wants are None."""

    labels: NDArray[np.int64]  # (z, y, x) class indices
    agreement: Agreement
    performance: Performance | None
    probabilities: NDArray[np.float32] | None  # (classes, z, y, x)
    share: NDArray[np.float32] | None  # (1, z, y, x)
    entropy: NDArray[np.float32] | None  # (1, z, y, x)


def _operator(model: Model) -> Operator:
    """The operator that registered the training subjects.

    Raises:
        ModelError: there is none of this name and with these settings, or its package is not installed.
    """
    try:
        return make_operator(model.operator, **model.operator_settings)
    except InputError as error:
        raise ModelError(f"the model's registration cannot be used: {error}", path=model.folder) from error


class Predictor:
    """A model ready to segment one scan after the other.

    Args:
        model: the trained model.
        execution: device, threads and seed.
        allow_module: whether the code that the model's network names may be imported.
        operator: registers instead of the model's own operator, for example the same one with a memory.
        epoch: take the weights after this epoch of the training, which was told to keep them, not those at its end.

    Raises:
        ModelError: the weights are not there, or do not fit the network.
        InputError: the network is code and ``allow_module`` is not set.
    """

    def __init__(
        self,
        model: Model,
        *,
        execution: Execution | None = None,
        allow_module: bool = False,
        operator: Operator | None = None,
        epoch: int | None = None,
    ) -> None:
        self.model = model
        self.execution = execution or Execution()
        with model.named():
            self.operator = operator or _operator(model)
        self.device = self.execution.torch_device()
        self._seen: dict[str, NDArray[Any]] = {}
        self.networks = []
        with model.named():
            self.atlases = [canonical(model.atlas_image(atlas))[0] for atlas in model.atlases]
            for atlas in model.atlases:
                weights = model.weights_path(atlas, epoch)
                channels, classes = len(model.channels), len(model.values)
                network = load_network(model.network, channels, classes, weights, allow_module=allow_module)
                self.networks.append(network.to(self.device))
            for atlas, image in zip(model.atlases, self.atlases, strict=True):
                self._check_region(atlas, image)

    def predict(self, image: Volume, options: PredictOptions | None = None) -> Prediction:
        """Segment one scan.

        Args:
            image: (c, z, y, x), c the model's channels, in any orientation and spacing.
            options: fusion, outputs, post-processing.

        Raises:
            VolumeError: the number of channels is not the model's.
            RegistrationError: the scan could not be mapped onto any atlas.
        """
        options = options or PredictOptions()
        answers = self.ask(image, minimum_quality=options.minimum_quality, fit=options.fusion == "local")
        return self.fuse(answers, options)

    def ask(
        self, image: Volume, *, minimum_quality: float = PredictOptions.minimum_quality, fit: bool = False
    ) -> Answers:
        """Register, warp and classify: what each atlas says of a scan.

        Args:
            image: as for `predict`.
            minimum_quality: see `PredictOptions`.
            fit: whether to measure how well every registration fits at every voxel, which the fusion ``local`` needs.

        Raises:
            VolumeError: the number of channels is not the model's.
            RegistrationError: the scan could not be mapped onto any atlas.
        """
        if image.channels != len(self.model.channels):
            raise VolumeError(
                "the scan has not the channels of the model",
                expected=f"{len(self.model.channels)}: {', '.join(self.model.channels)}",
                found=str(image.channels),
            )
        watch, witness = Stages(), WitnessReporter(self.execution.reporter)
        with self.execution.active():
            source, orientation = canonical(image)
            execution = replace(self.execution, reporter=witness)
            atlases = self._ask(source, minimum_quality, fit, watch, execution)
        return Answers(image.grid, source.grid, orientation, tuple(atlases), watch, tuple(witness.warnings))

    def fuse(self, answers: Answers, options: PredictOptions | None = None) -> Prediction:
        """Map back what the atlases said, fuse it, and describe the result.

        Args:
            answers: from `ask`, at least one of them an opinion.
            options: fusion, outputs, post-processing.

        Raises:
            RegistrationError: no atlas has an opinion.
            InputError: the fusion is ``local`` and the fit was not asked for.
        """
        options = options or PredictOptions()
        watch = answers.stages.copy()
        given = [answer for answer, _ in answers.atlases if answer is not None]
        if not given:
            raise RegistrationError("none of these atlases was asked: the scan could not be mapped onto them")
        with self.execution.active():
            with watch("fusion"):
                fused = self._fuse(answers.source, given, options)
            with watch("postprocessing"):
                indices = postprocess(
                    fused.labels,
                    answers.source,
                    largest_component=options.largest_component,
                    minimum_size_mm3=1000 * options.minimum_size_ml,
                )
        labels = label_values(self.model.values)[indices][None]

        def own(array: NDArray[Any] | None) -> Volume | None:
            return None if array is None else Volume(answers.orientation.restore(array), answers.image)

        voxel_ml = float(np.prod(answers.source.spacing)) / 1000
        record = {
            "fusion": options.fusion,
            "atlases": self._atlas_records(answers, fused.performance),
            "agreement": fused.agreement.summary(self._names()),
            "uncovered_voxels": fused.agreement.uncovered,
            "volumes_ml": {
                name: round(int((indices == index).sum()) * voxel_ml, 4)
                for index, name in enumerate(self._names())
                if index
            },
            "warnings": list(answers.warnings),
            **watch.to_json(),
        }
        return Prediction(
            labels=Volume(answers.orientation.restore(labels), answers.image),
            record=record,
            probabilities=own(fused.probabilities),
            agreement=own(fused.share),
            entropy=own(fused.entropy),
            to_atlases={record["name"]: answer.to_atlas for answer, record in answers.atlases if answer is not None},
        )

    def _names(self) -> list[str]:
        """Class names in the order of the class indices."""
        by_value = {value: name for name, value in self.model.labels.items()}
        return [by_value.get(value, str(value)) for value in self.model.values]

    def _ask(
        self, source: Volume, minimum_quality: float, fit: bool, watch: Stages, execution: Execution
    ) -> list[tuple[Answer | None, dict[str, Any]]]:
        """Each atlas's probabilities in its own space, and what the record says of each."""
        with watch("mapping"):
            prepared = prepare(source, self.model.plan)
        found: list[tuple[Answer | None, dict[str, Any]]] = []
        for atlas, image, network in zip(self.model.atlases, self.atlases, self.networks, strict=True):
            execution.pause()
            try:
                with watch("registration"):
                    (registration,) = self.operator.register(source, [image], execution=execution)
            except RegistrationError as error:
                found.append((None, {"name": atlas.name, "quality": 0.0, "used": False, "error": str(error)}))
                execution.reporter.warn(f"atlas {atlas.name} is not asked: {error}")
                continue
            quality = float(registration.record["quality"])
            used = quality >= minimum_quality
            record = {**_brief(atlas, registration.record), "used": used}
            if not used:
                found.append((None, record))
                execution.reporter.warn(
                    f"atlas {atlas.name} is not asked: registration quality {quality:.3f} is below {minimum_quality:g}"
                )
                continue
            begin = time.perf_counter()
            with watch("mapping"):
                grid = working_grid(image.grid, self.model.plan)
                mapped = map_image(prepared, registration.transform, grid)
            with watch("network"):
                halves = self._classified(atlas, network, mapped)
            weight = None
            if fit:
                with watch("mapping"):
                    own = self._as_networks_see(atlas, image, grid)
                    weight = torch.from_numpy(local_weight(own, mapped.array, FIT_POWER))
            record["seconds_network"] = round(time.perf_counter() - begin, 3)
            answer = Answer(torch.from_numpy(halves), grid, registration.transform.inverse, quality, weight)
            found.append((answer, record))
        if all(answer is None for answer, _ in found):
            raise RegistrationError(
                "the scan could not be mapped onto any atlas of the model: "
                + ", ".join(f"{r['name']} {r['quality']:.3f}" for _, r in found)
                + f"; a registration quality of at least {minimum_quality:g} is needed. "
                "Check that the scan shows the same part of the body in the same modality as the training scans"
            )
        return found

    def _classified(self, atlas: Atlas, network: nn.Module, mapped: Volume) -> NDArray[np.float16]:
        """The class probabilities (classes, z, y, x) of a scan in the atlas's space."""
        axis, region = self.model.plan.slice_axis, atlas.region
        slices = to_slices(mapped.array, axis)
        if region is None:
            said = probabilities(network, slices, device=self.device)
        else:
            said = probabilities(network, region.crop(slices), device=self.device)
            said = region.paste(said.astype(np.float16), slices.shape[1:])
        return np.ascontiguousarray(from_slices(said, axis), dtype=np.float16)

    def _check_region(self, atlas: Atlas, image: Volume) -> None:
        """Whether the region lies in the grid of its network.

        Raises:
            ModelError: it does not.
        """
        grid = working_grid(image.grid, self.model.plan)
        blank = np.broadcast_to(np.zeros(1, np.uint8), (1, *grid.shape))
        slices = to_slices(blank, self.model.plan.slice_axis).shape[1:]
        if atlas.region is not None and not atlas.region.fits(slices):
            raise ModelError(
                f"the region of atlas {atlas.name} does not lie in its image",
                path=self.model.folder / "model.json",
                expected="at most " + " x ".join(map(str, slices)),
                found=str(atlas.region.to_json()),
                remedy="copy the model again",
            )

    def _as_networks_see(self, atlas: Atlas, image: Volume, grid: Grid) -> NDArray[Any]:
        """The atlas's own image (c, z, y, x) as a scan that is the atlas is mapped; kept for the next scan."""
        if atlas.name not in self._seen:
            self._seen[atlas.name] = map_image(prepare(image, self.model.plan), Transform.identity(), grid).array
        return self._seen[atlas.name]

    def _fuse(self, grid: Grid, answers: list[Answer], wanted: PredictOptions) -> _Fused:
        """Map the atlases' probabilities back and fuse them, one slab of the scan at a time."""
        classes = len(self.model.values)
        atlases = [MappedAnswer(answer, grid, local=wanted.fusion == "local", device=self.device) for answer in answers]
        ranges = slabs(grid.shape, SLAB_VOXELS // classes)
        fused = _Fused(
            labels=np.empty(grid.shape, dtype=np.min_scalar_type(classes)),
            agreement=Agreement(len(answers), classes),
            performance=self._performance(atlases, ranges) if wanted.fusion == "staple" else None,
            probabilities=np.empty((classes, *grid.shape), dtype=np.float32) if wanted.probabilities else None,
            share=np.empty((1, *grid.shape), dtype=np.float32) if wanted.agreement else None,
            entropy=np.empty((1, *grid.shape), dtype=np.float32) if wanted.agreement else None,
        )
        for z0, z1 in ranges:
            self.execution.pause()
            slab = fuse_slab((atlas.slab(z0, z1) for atlas in atlases), wanted.fusion, fused.performance)
            fused.agreement.add(slab)
            fused.labels[z0:z1] = slab.labels.cpu().numpy()
            if fused.probabilities is not None:
                fused.probabilities[:, z0:z1] = slab.probabilities.cpu().numpy()
            if fused.share is not None and fused.entropy is not None:
                fused.share[0, z0:z1] = slab.share.cpu().numpy()
                fused.entropy[0, z0:z1] = slab.entropy.cpu().numpy()
        return fused

    def _performance(self, atlases: list[MappedAnswer], ranges: list[tuple[int, int]]) -> Performance:
        """How the atlases err, from a first pass over the slabs: holding all choices would take memory, not time."""
        patterns = Patterns(len(atlases))
        for z0, z1 in ranges:
            self.execution.pause()
            patterns.add([own_choice(*atlas.slab(z0, z1)[:2]) for atlas in atlases])
        return patterns.performance(len(self.model.values))

    def _atlas_records(self, answers: Answers, performance: Performance | None) -> list[dict[str, Any]]:
        """What the record says of every atlas, with its estimated sensitivity per label where that decided."""
        records = [dict(record) for _, record in answers.atlases]
        if performance is not None:
            asked = [record for (answer, _), record in zip(answers.atlases, records, strict=True) if answer is not None]
            for atlas, record in enumerate(asked):
                record["sensitivity"] = {
                    name: performance.sensitivity(atlas, label) for label, name in enumerate(self._names()) if label
                }
        return records


def label_values(values: Sequence[int]) -> NDArray[Any]:
    """Label values by class index in the smallest integer type that holds them all."""
    array = np.array(values)
    for dtype in (np.uint8, np.int16, np.uint16, np.int32):
        if np.array_equal(array.astype(dtype), array):
            return array.astype(dtype)
    return array


def _brief(atlas: Atlas, record: dict[str, Any]) -> dict[str, Any]:
    """What a prediction's record keeps of a registration's."""
    kept = ("quality", "similarity_before", "similarity_after", "jacobian_min", "folded_share", "inverse_residual_mm")
    seconds = {"seconds": record.get("seconds", 0.0)}
    return {"name": atlas.name, **seconds, **{key: record[key] for key in kept if key in record}}
