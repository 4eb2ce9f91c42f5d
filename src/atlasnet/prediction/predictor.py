"""Transformer, network, de-transformer, fusion: one scan in, its labels out, on the scan's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort import Subject
from atlasnet.cohort.structures import Hidden
from atlasnet.errors import InputError, RegistrationError, VolumeError
from atlasnet.execution import Execution, Reporter, WitnessReporter, memory_held
from atlasnet.prediction.answers import Answer, Answers, MappedAnswer
from atlasnet.prediction.ensemble import Ensemble
from atlasnet.prediction.fusion import Agreement, fuse_models, fuse_slab, own_choice
from atlasnet.prediction.fusion_samples import fusion_samples
from atlasnet.prediction.member import Asked, Made, Member
from atlasnet.prediction.memory import prediction_bytes
from atlasnet.prediction.open_voxels import OpenVoxels, may_leave_out
from atlasnet.prediction.postprocess import postprocess
from atlasnet.prediction.prediction import Prediction, PredictOptions
from atlasnet.prediction.record import atlas_records, doubts, organ_ml, volumes
from atlasnet.prediction.scan import Scan
from atlasnet.prediction.staple import Patterns, Performance
from atlasnet.prediction.verdict import UNUSUAL, Verdict, joined
from atlasnet.registration import Operator
from atlasnet.training.fusion_weights import FusionSamples, FusionWeights
from atlasnet.training.model import Model
from atlasnet.volume import Grid, Volume
from atlasnet.volume.sampling import slabs

SLAB_VOXELS = 2**20  # voxels of the scan that are mapped back and fused at a time, times classes
SLAB_VOXELS_ON_GPU = 2**24

# Networks say how sure they are, so that the fit decides less between them than between carried labels, where the power
# is 2. Of 0.5, 1 and 2 the best on 24 hippocampi on which no network was trained.
LOCAL = FusionWeights(fit=0.5)


@dataclass
class _Fused:
    """The whole scan, canonical orientation; maps that nobody wants are None."""

    labels: NDArray[np.int64]  # (z, y, x) class indices
    agreement: Agreement
    performance: Performance | None
    probabilities: NDArray[np.float32] | None  # (classes, z, y, x)
    share: NDArray[np.float32] | None  # (1, z, y, x)
    entropy: NDArray[np.float32] | None  # (1, z, y, x)
    confidence: NDArray[np.float32] | None  # (1, z, y, x)


class Predictor:
    """One or several models ready to segment one scan after the other.

    Every model fuses what its atlases say; what the models say is fused by the mean. A scan is registered onto an atlas
    that several models share once.

    Args:
        models: the trained model, or several that segment together.
        execution: device, threads and seed.
        allow_module: whether the code that a model's network names may be imported.
        operator: registers instead of the models' own operators, for example the same one with a memory.
        epoch: take the weights after this epoch of the training, which was told to keep them, not those at its end.

    Raises:
        ModelError: the weights are not there, or do not fit the network.
        InputError: a network is code and ``allow_module`` is not set.
    """

    def __init__(
        self,
        models: Model | Ensemble,
        *,
        execution: Execution | None = None,
        allow_module: bool = False,
        operator: Operator | None = None,
        epoch: int | None = None,
    ) -> None:
        self.ensemble = Ensemble.of(models)
        self.execution, self.allow_module = Execution.of(execution), allow_module
        self.device = self.execution.torch_device()
        self.members = [
            Member(
                model,
                number=number,
                names=[self.ensemble.atlas_name(number, atlas.name) for atlas in model.atlases],
                execution=self.execution,
                allow_module=allow_module,
                operator=operator,
                epoch=epoch,
            )
            for number, model in enumerate(self.ensemble.models)
        ]

    @property
    def atlases(self) -> dict[str, Volume]:
        """The atlases, (c, z, y, x) in canonical orientation, by their names in records."""
        return {name: image for m in self.members for name, image in zip(m.names, m.images, strict=True)}

    def reporting_to(self, reporter: Reporter) -> Predictor:
        """The same predictor, with the same networks in memory, which tells another reporter."""
        other = copy(self)
        other.execution = replace(self.execution, reporter=reporter)
        return other

    def predict(
        self,
        image: Volume,
        options: PredictOptions | None = None,
        *,
        mask: Volume | None = None,
        against: Sequence[str] = (),
    ) -> Prediction:
        """Segment one scan.

        Args:
            image: (c, z, y, x), c the models' channels, in any orientation and spacing.
            options: fusion, outputs, post-processing.
            mask: (1, z, y, x) on the image's grid, the organ: where it is zero, the result is background. A model that
                was trained within organ masks needs it; any other takes it.
            against: what speaks against the scan beforehand, see `atlasnet.cohort.doubts.modality_doubts`: reasons of
                the verdict.

        Raises:
            VolumeError: the number of channels is not the models', or the mask is empty or lies on another grid.
            InputError: there are several models, and the fusion is not the mean.
            ModelError: no scan can be judged with a model, and ``strict`` wants it; a model needs a mask; or it has
                learnt no weights, and the fusion is ``learnt``.
            UnusualInputError: the scan is not like the training subjects, and ``strict`` is set.
            RegistrationError: the scan could not be mapped onto any atlas.
        """
        options = options or PredictOptions()
        self.ensemble.check(options)
        answers = self.ask(
            image,
            minimum_quality=options.minimum_quality,
            fit=options.by_voxel,
            judged=True,
            strict=options.strict,
            mask=mask,
            against=against,
        )
        prediction = self.fuse(answers, options)
        for text in doubts(prediction.record["agreement"]):
            self.execution.reporter.warn(text)
        return prediction

    def require_memory(self, scan: Grid, options: PredictOptions, path: Path | None = None) -> int:
        """Refuse a scan that, by its size, memory does not suffice for; it need not have been read.

        Args:
            scan: its grid.
            options: what is asked for.
            path: where it lies.

        Returns:
            The most memory that the process should need, bytes.

        Raises:
            InputError: memory does not suffice.
        """
        needed = prediction_bytes(self.members, scan, options)
        remedy = "crop or resample the scan" + (", leave out --probabilities" if options.probabilities else "")
        self.execution.require_memory(needed, remedy, path)
        return memory_held() + needed

    def verdict(self, image: Volume) -> Verdict:
        """Whether a scan is like the training subjects; it is registered, and no network runs.

        Args:
            image: as for `predict`.

        Raises:
            VolumeError: the number of channels is not the models'.
        """
        self._check_channels(image)
        with self.execution.active():
            scan = Scan(image, self.execution)
            return self._judge(scan, self._register(scan))

    def ask(
        self,
        image: Volume,
        *,
        minimum_quality: float = PredictOptions.minimum_quality,
        fit: bool = False,
        judged: bool = False,
        strict: bool = False,
        mask: Volume | None = None,
        against: Sequence[str] = (),
    ) -> Answers:
        """Register, warp and classify: what each atlas says of a scan.

        Args:
            image: as for `predict`.
            minimum_quality: see `PredictOptions`.
            fit: whether to keep how well every registration fits at every voxel, which the fusions ``local`` and
                ``learnt`` need.
            judged: whether to say, before the networks run, if the scan is like the training subjects.
            strict: see `PredictOptions`; needs ``judged``.
            mask: as for `predict`; it is used by `fuse`.
            against: as for `predict`.

        Raises:
            VolumeError: the number of channels is not the models', or the mask is empty or lies on another grid.
            ModelError: no scan can be judged with a model, and ``strict`` wants it; or a model needs a mask.
            UnusualInputError: the scan is not like the training subjects, and ``strict`` is set.
            RegistrationError: the scan could not be mapped onto any atlas.
        """
        self._check_channels(image)
        self.ensemble.check(PredictOptions(strict=strict))
        self._check_mask(image, mask)
        witness = WitnessReporter(self.execution.reporter)
        execution = replace(self.execution, reporter=witness)
        with self.execution.active():
            scan = Scan(image, execution)
            made = self._register(scan)
            verdict = None
            if judged:
                verdict = self._judge(scan, made).against(against)
                if verdict.result == UNUSUAL and strict:
                    raise verdict.refusal()
                if verdict.result == UNUSUAL:
                    witness.warn(str(verdict.refusal()))
            found: list[Asked] = []
            for member, own in zip(self.members, made, strict=True):
                found += member.ask(scan, own, minimum_quality, fit)
        if all(answer is None for answer, _ in found):
            raise RegistrationError(
                "the scan could not be mapped onto any atlas of the model: "
                + ", ".join(f"{r['name']} {r['quality']:.3f}" for _, r in found)
                + f"; a registration quality of at least {minimum_quality:g} is needed. "
                "Check that the scan shows the same part of the body in the same modality as the training scans; if it "
                "does, ask for less with --minimum-quality (minimum_quality in Python)"
            )
        return Answers(
            image=image.grid,
            source=scan.source.grid,
            orientation=scan.orientation,
            atlases=tuple(found),
            stages=scan.stages,
            warnings=tuple(witness.warnings),
            verdict=verdict,
            mask=None if mask is None else scan.orientation.apply(mask.array)[0] != 0,
        )

    def fuse(self, answers: Answers, options: PredictOptions | None = None) -> Prediction:
        """Map back what the atlases said, fuse it, and describe the result.

        Args:
            answers: from `ask`, at least one of them an opinion.
            options: fusion, outputs, post-processing.

        Raises:
            RegistrationError: no atlas has an opinion.
            InputError: the fusion is ``local`` or ``learnt`` and the fit was not asked for; or it is not the mean, and
                there are several models.
            ModelError: the fusion is ``learnt``, and the model has learnt no weights.
        """
        options = options or PredictOptions()
        self.ensemble.check(replace(options, strict=False))
        watch = answers.stages.copy()
        given = [answer for answer, _ in answers.atlases if answer is not None]
        if not given:
            raise RegistrationError("none of these atlases was asked: the scan could not be mapped onto them")
        with self.execution.active():
            with watch("fusion"):
                fused = self._fuse(answers, given, options)
            with watch("postprocessing"):
                indices = postprocess(
                    fused.labels,
                    answers.source,
                    largest_component=options.largest_component,
                    minimum_size_mm3=1000 * options.minimum_size_ml,
                    structures=self.ensemble.structures.values(),
                )
        labels = label_values(self.ensemble.values)[indices][None]

        def own(array: NDArray[Any] | None) -> Volume | None:
            return None if array is None else Volume(answers.orientation.restore(array), answers.image)

        structures = self.ensemble.structures
        agreement = fused.agreement.summary()
        record = {
            "verdict": None if answers.verdict is None else answers.verdict.to_json(),
            "fusion": options.fusion,
            "atlases": atlas_records(answers, fused.performance, self.ensemble.class_names),
            "agreement": agreement,
            "organ_mask_ml": None if answers.mask is None else organ_ml(answers.mask, answers.source),
            "uncovered_voxels": fused.agreement.uncovered,
            **volumes(indices, fused.agreement, structures, answers.source),
            "warnings": [*answers.warnings, *doubts(agreement)],
            **watch.to_json(),
        }
        # What a model has learnt from its own results holds for no ensemble.
        estimate = self.ensemble.models[0].dice_estimate if len(self.ensemble) == 1 else None
        record["estimated_dice"] = None if estimate is None else estimate.of(record)
        return Prediction(
            labels=Volume(answers.orientation.restore(labels), answers.image),
            record=record,
            probabilities=own(fused.probabilities),
            agreement=own(fused.share),
            entropy=own(fused.entropy),
            confidence=own(fused.confidence),
            to_atlases={record["name"]: answer.to_atlas for answer, record in answers.atlases if answer is not None},
        )

    def fusion_samples(self, answers: Answers, reference: Volume, hidden: Hidden = ()) -> FusionSamples:
        """What the atlases of a single model said where it matters, beside the truth: to learn their weights from.

        Args:
            answers: from `ask` with ``fit``.
            reference: (1, z, y, x) label values on the image's grid.
            hidden: what nobody annotated, see `Subject`.

        Raises:
            InputError: the fit was not asked for, or there are several models.
        """
        if len(self.ensemble) > 1:
            raise InputError("weights are learnt for the atlases of one model", found=f"{len(self.ensemble)} models")
        with self.execution.active():
            return fusion_samples(
                answers,
                reference,
                self.ensemble.values,
                hidden=hidden,
                seed=self.execution.seed,
                device=self.device,
                slab_voxels=self._slab_voxels,
                pause=self.execution.pause,
            )

    @property
    def _slab_voxels(self) -> int:
        """Voxels of a scan that are mapped back at a time."""
        at_once = SLAB_VOXELS if self.device.type == "cpu" else SLAB_VOXELS_ON_GPU
        return at_once // len(self.ensemble.values)

    def _check_channels(self, image: Volume) -> None:
        channels = self.ensemble.channels
        if image.channels != len(channels):
            raise VolumeError(
                "the scan has not the channels of the model",
                expected=f"{len(channels)}: {', '.join(channels)}",
                found=str(image.channels),
            )

    def _register(self, scan: Scan) -> list[Made]:
        """The scan mapped onto the atlases of every model, or why it is not.

        Raises:
            VolumeError: no registration can do anything with the scan; it is told of the scan and the model.
        """
        try:
            return [member.register(scan) for member in self.members]
        except VolumeError as error:
            here, there = scan.source.grid, self.members[0].images[0].grid
            if _extent(here) != _extent(there):
                raise VolumeError(
                    "the scan does not extend as the model's training scans do",
                    expected=_extent(there),
                    found=_extent(here),
                    remedy="give the whole volume, or a model of such scans",
                ) from error
            low, high = float(scan.source.array.min()), float(scan.source.array.max())
            if low == high:
                raise VolumeError(
                    "the scan shows nothing: it is constant",
                    expected="different intensities",
                    found=f"{low:g} everywhere",
                ) from error
            raise error.told(problem=error.problem.replace("the source", "the scan")) from error

    def _check_mask(self, image: Volume, mask: Volume | None) -> None:
        if mask is None:
            # A volume in memory has no name of its own.
            self.ensemble.check_masks([Subject("the scan", ())])
        elif mask.channels != 1 or not mask.grid.matches(image.grid) or not mask.array.any():
            raise VolumeError(
                "the organ mask cannot be used",
                expected=f"one channel that is not zero in the organ, on {image.grid!r}",
                found=repr(mask) if mask.array.any() else "zeros only: it is empty",
            )

    def _judge(self, scan: Scan, made: Sequence[Made]) -> Verdict:
        """The verdict of all models together on a scan that was registered."""
        verdicts = [member.judge(scan, own) for member, own in zip(self.members, made, strict=True)]
        return verdicts[0] if len(verdicts) == 1 else joined(verdicts)

    def _fuse(self, asked: Answers, answers: list[Answer], wanted: PredictOptions) -> _Fused:
        """Map the atlases' probabilities back and fuse them, one slab of the scan at a time."""
        grid, classes, decision = asked.source, len(self.ensemble.values), self.ensemble.decision
        models = [[i for i, a in enumerate(answers) if a.model == m] for m in sorted({a.model for a in answers})]
        weights = LOCAL if wanted.fusion == "local" else None
        if wanted.fusion == "learnt":
            weights = self.ensemble.models[0].fusion_weights
        atlases = [MappedAnswer(a, grid, weights=weights, device=self.device, mask=asked.mask) for a in answers]
        ranges = slabs(grid.shape, self._slab_voxels)
        # What is asked for of every voxel is not known where no atlas is asked about all classes.
        left_out = not (wanted.probabilities or wanted.agreement) and may_leave_out(decision, weights)
        fused = _Fused(
            labels=np.empty(grid.shape, dtype=np.min_scalar_type(classes)),
            agreement=Agreement(len(answers), self.ensemble.structures),
            performance=self._performance(atlases, ranges, left_out) if wanted.fusion == "staple" else None,
            probabilities=np.empty((classes, *grid.shape), dtype=np.float32) if wanted.probabilities else None,
            share=np.empty((1, *grid.shape), dtype=np.float32) if wanted.agreement else None,
            entropy=np.empty((1, *grid.shape), dtype=np.float32) if wanted.agreement else None,
            confidence=np.empty((1, *grid.shape), dtype=np.float32) if wanted.agreement else None,
        )
        for z0, z1 in ranges:
            self.execution.pause()
            if left_out:
                seen = OpenVoxels(atlases, z0, z1, self._slab_voxels)
                slab = seen.fused(models, wanted.fusion, fused.performance, decision)
            else:
                said = [
                    fuse_slab((atlases[i].slab(z0, z1) for i in own), wanted.fusion, fused.performance, decision)
                    for own in models
                ]
                slab = fuse_models(said, decision)
            fused.agreement.add(slab)
            fused.labels[z0:z1] = slab.labels.cpu().numpy()
            if fused.probabilities is not None:
                fused.probabilities[:, z0:z1] = slab.probabilities.cpu().numpy()
            if fused.share is not None and fused.entropy is not None:
                fused.share[0, z0:z1] = slab.share.cpu().numpy()
                fused.entropy[0, z0:z1] = slab.entropy.cpu().numpy()
            if fused.confidence is not None:
                chosen = slab.probabilities.gather(0, slab.labels[None].long())[0]
                fused.confidence[0, z0:z1] = chosen.cpu().numpy()
        return fused

    def _performance(self, atlases: list[MappedAnswer], ranges: list[tuple[int, int]], left_out: bool) -> Performance:
        """How the atlases err, from a first pass over the slabs: holding all choices would take memory, not time."""
        patterns, decision = Patterns(len(atlases)), self.ensemble.decision
        for z0, z1 in ranges:
            self.execution.pause()
            if left_out:  # patterns are those of voxels at which something is seen
                for choices in OpenVoxels(atlases, z0, z1, self._slab_voxels).choices(decision):
                    patterns.add(choices)
            else:
                patterns.add([own_choice(*atlas.slab(z0, z1)[:2], decision) for atlas in atlases])
        return patterns.performance(len(self.ensemble.values))


def label_values(values: Sequence[int]) -> NDArray[Any]:
    """Label values by class index in the smallest integer type that holds them all."""
    array = np.array(values)
    for dtype in (np.uint8, np.int16, np.uint16, np.int32):
        if np.array_equal(array.astype(dtype), array):
            return array.astype(dtype)
    return array


def _extent(grid: Grid) -> str:
    """Along which of the canonical axes there is more than one voxel, in words."""
    axes = "".join(name for name, size in zip("xyz", grid.size, strict=True) if size > 1)
    return "several slices" if len(axes) == 3 else f"a single slice ({axes})" if len(axes) == 2 else "a line of voxels"
