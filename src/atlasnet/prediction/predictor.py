"""Transformer, network, de-transformer, fusion: one scan in, its labels out, on the scan's own grid."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from atlasnet.errors import InputError, ModelError, RegistrationError, VolumeError
from atlasnet.execution import Execution, Stages, WitnessReporter
from atlasnet.network import load_network, probabilities
from atlasnet.prediction.answers import Answer, Answers, MappedAnswer
from atlasnet.prediction.fusion import Agreement, fuse_slab, own_choice
from atlasnet.prediction.postprocess import postprocess
from atlasnet.prediction.prediction import Prediction, PredictOptions
from atlasnet.prediction.record import atlas_records, brief, volumes
from atlasnet.prediction.staple import Patterns, Performance
from atlasnet.prediction.verdict import UNUSUAL, Verdict, judge, require_verdict
from atlasnet.registration import Operator, Registration, local_weight, make_operator
from atlasnet.training.mapping import from_slices, map_image, prepare, to_slices, working_grid
from atlasnet.training.model import Atlas, Model
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume, canonical
from atlasnet.volume.sampling import slabs

SLAB_VOXELS = 2**20  # voxels of the scan that are mapped back and fused at a time, times classes
# Networks say how sure they are, so that the fit decides less between them than between carried labels, where the power
# is 2. Of 0.5, 1 and 2 the best on 24 hippocampi on which no network was trained.
FIT_POWER = 0.5


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
            ModelError: no scan can be judged with the model, and ``strict`` wants it.
            UnusualInputError: the scan is not like the training subjects, and ``strict`` is set.
            RegistrationError: the scan could not be mapped onto any atlas.
        """
        options = options or PredictOptions()
        answers = self.ask(
            image,
            minimum_quality=options.minimum_quality,
            fit=options.fusion == "local",
            judged=True,
            strict=options.strict,
        )
        return self.fuse(answers, options)

    def verdict(self, image: Volume) -> Verdict:
        """Whether a scan is like the training subjects; it is registered, and no network runs.

        Args:
            image: as for `predict`.

        Raises:
            VolumeError: the number of channels is not the model's.
        """
        self._check_channels(image)
        with self.execution.active():
            source, _ = canonical(image)
            registrations = self._register(source, Stages(), self.execution)
            prepared = prepare(source, self.model.plan)
            return judge(self.model, source, prepared, registrations, self.atlases, self.execution)

    def ask(
        self,
        image: Volume,
        *,
        minimum_quality: float = PredictOptions.minimum_quality,
        fit: bool = False,
        judged: bool = False,
        strict: bool = False,
    ) -> Answers:
        """Register, warp and classify: what each atlas says of a scan.

        Args:
            image: as for `predict`.
            minimum_quality: see `PredictOptions`.
            fit: whether to measure how well every registration fits at every voxel, which the fusion ``local`` needs.
            judged: whether to say, before the networks run, if the scan is like the training subjects.
            strict: see `PredictOptions`; needs ``judged``.

        Raises:
            VolumeError: the number of channels is not the model's.
            ModelError: no scan can be judged with the model, and ``strict`` wants it.
            UnusualInputError: the scan is not like the training subjects, and ``strict`` is set.
            RegistrationError: the scan could not be mapped onto any atlas.
        """
        self._check_channels(image)
        if strict:
            require_verdict(self.model)
        watch, witness = Stages(), WitnessReporter(self.execution.reporter)
        with self.execution.active():
            source, orientation = canonical(image)
            execution = replace(self.execution, reporter=witness)
            with watch("mapping"):
                prepared = prepare(source, self.model.plan)
            registrations = self._register(source, watch, execution)
            verdict = None
            if judged:
                with watch("verdict"):
                    verdict = judge(self.model, source, prepared, registrations, self.atlases, execution)
                if verdict.result == UNUSUAL and strict:
                    raise verdict.refusal()
                if verdict.result == UNUSUAL:
                    execution.reporter.warn(str(verdict.refusal()))
            atlases = self._ask(prepared, registrations, minimum_quality, fit, watch, execution)
        warnings = tuple(witness.warnings)
        return Answers(image.grid, source.grid, orientation, tuple(atlases), watch, warnings, verdict)

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

        names = self._names()
        record = {
            "verdict": None if answers.verdict is None else answers.verdict.to_json(),
            "fusion": options.fusion,
            "atlases": atlas_records(answers, fused.performance, names),
            "agreement": fused.agreement.summary(names),
            "uncovered_voxels": fused.agreement.uncovered,
            **volumes(indices, fused.agreement, names, answers.source),
            "warnings": list(answers.warnings),
            **watch.to_json(),
        }
        estimate = self.model.dice_estimate
        record["estimated_dice"] = None if estimate is None else estimate.of(record)
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

    def _check_channels(self, image: Volume) -> None:
        if image.channels != len(self.model.channels):
            raise VolumeError(
                "the scan has not the channels of the model",
                expected=f"{len(self.model.channels)}: {', '.join(self.model.channels)}",
                found=str(image.channels),
            )

    def _register(self, source: Volume, watch: Stages, execution: Execution) -> list[Registration | RegistrationError]:
        """The scan's map onto each atlas, or why there is none."""
        found: list[Registration | RegistrationError] = []
        for image in self.atlases:
            execution.pause()
            try:
                with watch("registration"):
                    (registration,) = self.operator.register(source, [image], execution=execution)
                found.append(registration)
            except RegistrationError as error:
                found.append(error)
        return found

    def _ask(
        self,
        prepared: Volume,
        registrations: Sequence[Registration | RegistrationError],
        minimum_quality: float,
        fit: bool,
        watch: Stages,
        execution: Execution,
    ) -> list[tuple[Answer | None, dict[str, Any]]]:
        """Each atlas's probabilities in its own space, and what the record says of each."""
        found: list[tuple[Answer | None, dict[str, Any]]] = []
        for atlas, image, network, registration in zip(
            self.model.atlases, self.atlases, self.networks, registrations, strict=True
        ):
            execution.pause()
            if isinstance(registration, RegistrationError):
                found.append((None, {"name": atlas.name, "quality": 0.0, "used": False, "error": str(registration)}))
                execution.reporter.warn(f"atlas {atlas.name} is not asked: {registration}")
                continue
            quality = float(registration.record["quality"])
            used = quality >= minimum_quality
            record = {**brief(atlas, registration.record), "used": used}
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


def label_values(values: Sequence[int]) -> NDArray[Any]:
    """Label values by class index in the smallest integer type that holds them all."""
    array = np.array(values)
    for dtype in (np.uint8, np.int16, np.uint16, np.int32):
        if np.array_equal(array.astype(dtype), array):
            return array.astype(dtype)
    return array
