"""`AtlasNet`: the method as one object, for scripts and notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from atlasnet.atlas import scans_beside
from atlasnet.cohort import Cohort, Subject, masked, with_masks
from atlasnet.cohort.doubts import header_doubts, modality_doubts
from atlasnet.cohort.spacing import WantedSpacing
from atlasnet.errors import CohortError, InputError, ModelError
from atlasnet.evaluation import Table, beside_table, evaluate_cohort
from atlasnet.execution import Execution, made_alone, plain
from atlasnet.prediction import (
    Batch,
    Ensemble,
    Prediction,
    PredictOptions,
    Predictor,
    find_case,
    find_cases,
    predict_cases,
    unread,
    warn_of_unread,
)
from atlasnet.study import CROSS_VALIDATION, CrossValidation, plan_folds, read_folds, read_test_subjects, validate_model
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.training.sharing import Sharing
from atlasnet.training.sources import cohort_hashes
from atlasnet.volume import Volume, read_labels
from atlasnet.volume.kept import kept_open
from atlasnet.volume.names import image_stem
from atlasnet.volume.volume import require_volume
from atlasnet.wording import shortened


class AtlasNet:
    """Train on a cohort, segment scans, evaluate, look at it all, save and load.

        net = AtlasNet(atlases=3).fit("data/", "model/", folds=5)
        net.report()
        prediction = net.predict("ct.nii.gz")
        write_labels("seg.nii.gz", prediction.labels)
        net.predict_all(["scans/"], "out/", report=True)
        table = net.evaluate("test/", "scored/")

    Args:
        atlases: how many to choose among the subjects (None: 6, or all of fewer), or names of subjects or image files.
            In an update, how many in all, or those to be added.
        atlas_images: scans among which they are chosen too, beside the subjects: a folder, or image files; nobody need
            have annotated them.
        network: ``"unet"``, ``"unet3d"``, ``"segnet"``, a name given to `atlasnet.network.register_network`, or
            ``"module:Class"`` with ``allow_module``; None takes the plan's.
        width: factor on the network's channels; None takes the plan's.
        spacing: of the grid on which networks work, (x, y, z) mm, or ``"scan"`` for that of the scans; None plans it.
        preset: training recipe, ``"default"`` or ``"publication"``, or a recipe of one's own.
        epochs: of every network that is trained from scratch; None takes the recipe's.
        sharing: ``"independent"``, ``"first"`` or ``"common"``, or a `atlasnet.training.sharing.Sharing` of one's own:
            what the networks of several atlases have in common; None takes the recipe's, in an update ``"model"``.
        registration: ``"mrf"`` (the default), ``"affine"``, ``"centre"``, ``"identity"``, or ``"ants"``, ``"elastix"``,
            ``"greedy"`` with their packages.
        registration_settings: of that operator, over what the plan says; see `atlasnet.registration.MRFSettings`.
        loss_weights: by name of a label or a region, how much it counts in the loss, 1 where nothing is said.
        minimum_quality: a subject whose registration onto an atlas has a lower quality, 0 to 1, does not train its
            network; that of a prediction is an option of `predict`.
        time_budget: seconds that a training may take, for as many epochs as fit.
        allow_module: whether the code that ``network`` names may be imported.
        execution: device, threads, seed, progress: ``Execution(device="cuda", reporter=TextReporter())``, say.
    """

    def __init__(
        self,
        *,
        atlases: int | str | Path | Sequence[str | Path] | None = None,
        atlas_images: str | Path | Sequence[str | Path] = (),
        network: str | None = None,
        width: float | None = None,
        spacing: WantedSpacing | None = None,
        preset: str | Recipe = "default",
        epochs: int | None = None,
        sharing: str | Sharing | None = None,
        registration: str | None = None,
        registration_settings: dict[str, Any] | None = None,
        loss_weights: dict[str, float] | None = None,
        minimum_quality: float = FitOptions.minimum_quality,
        time_budget: float | None = None,
        allow_module: bool = False,
        execution: Execution | None = None,
    ) -> None:
        self.options = FitOptions(
            atlases=_named(atlases),
            network=network,
            allow_module=allow_module,
            width=width,
            spacing=spacing,
            preset=preset,
            epochs=epochs,
            sharing=sharing,
            operator=registration,
            operator_settings=registration_settings or {},
            loss_weights=loss_weights or {},
            minimum_quality=minimum_quality,
            time_budget=time_budget,
        )
        self.atlas_images = atlas_images
        self.execution = Execution.of(execution)
        self.model: Model | None = None
        self.cross_validation: CrossValidation | None = None
        self._trained: tuple[Cohort, Path] | None = None  # with its work folder
        self._ensemble: Ensemble | None = None
        self._predictor: Predictor | None = None

    def __repr__(self) -> str:
        if self.model is not None:
            return f"AtlasNet({self.model!r})"
        if self._ensemble is not None:
            return f"AtlasNet({self._ensemble!r})"
        chosen = {"atlases": self.options.atlases, "network": self.options.network, "epochs": self.options.epochs}
        said = [f"{name}={value!r}" for name, value in chosen.items() if value is not None]
        return f"AtlasNet({', '.join([*said, 'not trained'])})"

    def fit(
        self,
        cohort: Cohort | str | Path,
        folder: str | Path,
        *,
        update: Model | str | Path | None = None,
        folds: bool | int | str | Path | Sequence[Sequence[str]] | None = None,
        ensemble: bool = False,
        work: str | Path | None = None,
    ) -> AtlasNet:
        """Train on every subject of ``cohort`` and write the model into ``folder``; see `atlasnet.training.fit.fit`.

            AtlasNet().fit("data/", "newer/", update="model/")  # data/ has got more subjects

        Called again with the same arguments after a stop, it goes on.

        Args:
            cohort: subjects with references, or their folder; `Cohort.select` and `atlasnet.cohort.with_masks` give
                part of it, or organ masks.
            folder: of the model.
            update: a finished model to start from.
            folds: cross-validate as well, into ``folder/cross_validation``: how many folds; true: 5, or one per subject
                with fewer than 10; or groups of names, or a JSON file of them. The result is in ``cross_validation``,
                and what it has learnt in the model.
            ensemble: keep the models of the folds to segment together: ``AtlasNet.load(folder / "cross_validation")``.
            work: folder of intermediate results, ``folder/work`` by default.

        Raises:
            CohortError: the cohort cannot be trained on.
            InputError: an option or the folds cannot be used, memory does not suffice, or another process works there.
            ModelError: ``folder`` holds a finished model that was trained differently.
            RegistrationError: no subject could be mapped onto an atlas.
            Cancelled: on request.
        """
        if not isinstance(cohort, Cohort):
            cohort = Cohort.read(cohort, reporter=self.execution.reporter)
        if not (update is None or isinstance(update, Model)):
            update = Model.load(update)
        beside = self.atlas_images
        images = scans_beside(cohort, beside) if isinstance(beside, (str, Path)) else tuple(map(str, beside))
        self.options = replace(self.options, atlas_images=images)
        folder, execution = Path(folder), self.execution
        work = Path(work or folder / "work")
        wanted = not (folds is None or folds is False)
        if wanted and update is not None:
            raise InputError(
                "a model that is updated has seen the subjects that would be left out",
                remedy="cross-validate without update",
            )
        if ensemble and not wanted:
            raise InputError("there are no models to make an ensemble of", remedy="ask for folds")
        if isinstance(folds, (str, Path)):
            folds = read_folds(folds)
        divided = None
        if wanted:  # what is wrong with the folds is said before hours of training
            asked = None if folds is True else plain(folds)
            divided = plan_folds(cohort, folder / CROSS_VALIDATION, self.options, asked, execution)
        model = fit(cohort, folder, self.options, update=update, work=work, execution=execution)
        found = None
        if divided is not None:
            model, found = validate_model(
                model, cohort, self.options, divided, ensemble=ensemble, work=work, execution=execution
            )
        self.model, self.cross_validation, self._trained = model, found, (cohort, work)
        self._ensemble = self._predictor = None
        return self

    def report(self, path: str | Path | None = None) -> Path:
        """Write the page of the training: atlases, registrations, curves, and the cross-validation if there was one.

        Args:
            path: of the page, ``report.html`` in the model's folder by default.

        Returns:
            Where it lies. Of a model that was loaded, it is without registrations: they are in its work folder.

        Raises:
            ModelError: nothing was fitted, or several models were loaded.
        """
        from atlasnet.report import write_training_report
        from atlasnet.training.registered import registered_pairs

        if self.model is None:
            raise ModelError("there is no model to report on", remedy="call fit, or load a single one")
        pairs = []
        if self._trained is not None:
            pairs = registered_pairs(self.model, *self._trained, named=self.options.named)
        return write_training_report(
            Path(path or self.model.folder / "report.html"),
            self.model,
            pairs,
            cross_validation=None if self.cross_validation is None else self.cross_validation.as_json(),
            execution=self.execution,
        )

    def predict(
        self,
        image: Volume | str | Path | Sequence[str | Path],
        *,
        mask: Volume | str | Path | None = None,
        series: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Prediction:
        """Segment one scan.

        Args:
            image: (c, z, y, x) in any orientation, or a file (of several channels, one of CASE_0000 and so on), or a
                DICOM folder, file or zip; or a list of one of these for each channel.
            mask: (1, z, y, x) on its grid, or a file: the organ, outside of which the result is background.
            series: the one to take out of a DICOM folder or zip, by number, UID or description, as `read_volume` takes
                it; of several channels one for each, in the order of the model's.
            options: fields of `atlasnet.prediction.PredictOptions`, ``fusion="vote"`` or ``probabilities=True`` say.

        Raises:
            ModelError: nothing was fitted or loaded, or the model needs a mask.
            VolumeError: the scan or the mask cannot be used.
            InputError: there is no such option, the path is that of no scan or of several, or memory does not suffice;
                see `Execution.check_memory`.
            UnusualInputError: it is not like the training subjects, and ``strict=True`` was given.
            RegistrationError: it cannot be mapped onto any atlas.
        """
        predictor, chosen = self._ready(), _wanted(options)
        if not isinstance(image, (list, tuple)):
            require_volume(image, path=True)
        if mask is not None:
            require_volume(mask, "the mask", path=True)
        left_open: list[str] = []
        against: list[str] = []
        if not isinstance(image, Volume):
            channels = predictor.ensemble.channels
            case = find_case(image, len(channels), series)
            with kept_open():
                predictor.require_memory(case.read_grid(), chosen, case.images[0])
                image = case.read_image()
                left_open = [text for _, text in header_doubts(case, channels)]
                against = [text for _, text in modality_doubts(case, channels)]
        else:
            predictor.require_memory(image.grid, chosen)
        if not (mask is None or isinstance(mask, Volume)):
            mask = read_labels(mask)
        for text in left_open:
            self.execution.reporter.warn(text)
        prediction = predictor.predict(image, chosen, mask=mask, against=against)
        prediction.record["warnings"][:0] = left_open
        return prediction

    def predict_all(
        self,
        inputs: str | Path | Cohort | Sequence[str | Path],
        folder: str | Path,
        *,
        masks: str | Path | None = None,
        series: str | Sequence[str] | None = None,
        images: str | Sequence[str] = (),
        name_from: str = "file",
        suffix: str = ".nii.gz",
        dicom_seg: bool = False,
        rtstruct: bool = False,
        report: bool = False,
        overwrite: bool = False,
        **options: Any,
    ) -> Batch:
        """Segment scans into a folder as ``atlasnet predict`` does: CASE.nii.gz and its run record CASE.json each.

        What is there of the same model, input and options is kept. A case that fails does not stop the others.

        Args:
            inputs: files, folders of cases, DICOM folders, files and zips; or a cohort.
            folder: of the results.
            masks: folder with the organ mask CASE.nii.gz of each case.
            series: the one to take out of each DICOM folder or zip; see `predict`.
            images: of inputs each of which is the folder of one case, a pattern of the image of each channel.
            name_from: what cases are called after, their file or, with ``"folder"``, the folder in which it lies.
            suffix: of the label maps; ``".seg.nrrd"`` is a segmentation of 3D Slicer, with names and colours.
            dicom_seg: also write CASE_seg.dcm, a DICOM segmentation; and so for the next.
            rtstruct: CASE_rtstruct.dcm, a DICOM structure set.
            report: CASE_report.html, and report.html with a row for each case.
            overwrite: segment every case anew.
            options: fields of `atlasnet.prediction.PredictOptions`; with ``probabilities`` and ``agreement``, these
                maps are written too.

        Raises:
            ModelError: nothing was fitted or loaded, or the model needs masks.
            InputError: there is no such option, no input is a scan, one is absent, a result cannot be written there, or
                would take the place of one.
            Cancelled: on request; the same call goes on.
        """
        from atlasnet.prediction.dicom import require_dicom, require_writers
        from atlasnet.report import PredictionReport, write_beside_cases

        predictor, folder, chosen = self._ready(), Path(folder), _wanted(options)
        if image_stem(folder) is not None and not folder.is_dir():
            raise InputError(
                "this is the name of a file, and not of a folder of results",
                path=folder,
                remedy="name a folder; write_labels writes the labels that predict returns into a file",
            )
        cases: Sequence[Subject]
        if isinstance(inputs, Cohort):
            if series is not None or images:
                raise InputError("the images of a cohort's scans are known", found=f"series {series}, images {images}")
            if name_from != "file":
                raise InputError("the subjects of a cohort have names", found=f"name_from {name_from}")
            cases = inputs.subjects
        else:
            paths = [inputs] if isinstance(inputs, (str, Path)) else [*inputs]
            channels = len(predictor.ensemble.channels)
            cases = find_cases(paths, channels, series, images=images, name_from=name_from)
            warn_of_unread(unread(paths, cases, picked=bool(images)), self.execution.reporter)
        if dicom_seg or rtstruct:
            require_writers()
            require_dicom(cases)
        if masks is not None:
            cases = masked(cases, masks)
        batch = predict_cases(
            predictor,
            cases,
            {case.name: folder / f"{case.name}{suffix}" for case in cases},
            chosen,
            dicom_seg=dicom_seg,
            rtstruct=rtstruct,
            report=PredictionReport(predictor) if report else None,
            overwrite=overwrite,
        )
        write_beside_cases(folder, batch, predictor.ensemble, report=report, reporter=self.execution.reporter)
        return batch

    def evaluate(
        self,
        cohort: Cohort | str | Path,
        folder: str | Path,
        *,
        masks: str | Path | None = None,
        report: bool = False,
        **options: Any,
    ) -> Table:
        """Segment a cohort that was not trained on, and compare with its references.

        `atlasnet.evaluation.evaluate_folder` compares any label maps, slice by slice and patch by patch too.

        Args:
            cohort: subjects with references, or their folder: its ``imagesTs`` and ``labelsTs`` where it has both.
            folder: gets what `predict_all` writes, ``table.json`` and ``table.csv``.
            masks: folder with the organ mask CASE.nii.gz of each subject, outside of which nothing is scored.
            report: also write the pages of the cases, and ``table.html``.
            options: of `predict_all`.

        Returns:
            The scores; subjects that could not be segmented are missing in it.

        Raises:
            CohortError: the cohort cannot be read, or has other labels than the model.
            InputError: a scan of the cohort was trained on.
            ModelError: nothing was fitted or loaded.
            AtlasNetError: no subject could be segmented: why the first could not.
        """
        from atlasnet.report import write_evaluation_report

        folder = Path(folder)
        if not isinstance(cohort, Cohort):
            root, cohort = Path(cohort), Cohort.read(cohort)
            if (root / "imagesTs").is_dir() and (root / "labelsTs").is_dir():
                cohort = replace(cohort, subjects=read_test_subjects(root, cohort))
        if masks is not None:
            cohort = with_masks(cohort, masks)
        ours = self._models().models[0].structures
        theirs = cohort.structures
        if ours != theirs:
            raise CohortError(
                "the cohort has not the labels of the model", path=cohort.root, expected=str(ours), found=str(theirs)
            )
        self._require_unseen(cohort)
        batch = self.predict_all(cohort, folder, report=report, **options)
        problems = {**batch.failed, **batch.refused}
        if problems and not (batch.written or batch.kept):
            raise next(iter(problems.values()))
        table = evaluate_cohort(cohort, {**batch.written, **batch.kept}, execution=self.execution)
        path = folder / "table.json"
        with made_alone(path, *beside_table(path)):
            table.write(path)
            if report:
                write_evaluation_report(path.with_suffix(".html"), table.as_json())
        return table

    def _require_unseen(self, cohort: Cohort) -> None:
        """Refuse subjects whose scans were trained on: their scores would be too good."""
        known = self._models().seen
        scans = {name: tuple(of["images"]) for name, of in cohort_hashes(cohort, self.execution.reporter).items()}
        seen = [name for name, images in scans.items() if images in known]
        if seen:
            raise InputError(
                "subjects to be evaluated were trained on",
                path=cohort.root,
                found=shortened(seen),
                remedy="leave them out (Cohort.select); fit(..., folds=5) cross-validates on the training subjects",
            )

    def save(self, path: str | Path) -> None:
        """Write the model, or several with which scans are segmented, to a zip (by its suffix) or a new folder.

        Only what prediction needs is written, and the logs.

        Raises:
            InputError: the folder exists.
            ModelError: nothing was fitted or loaded.
        """
        models, path = self._models(), Path(path)
        (models.export if path.suffix == ".zip" else models.copy)(path)

    @classmethod
    def load(
        cls, path: str | Path, *more: str | Path, allow_module: bool = False, execution: Execution | None = None
    ) -> AtlasNet:
        """Read folders and zips of models; several segment together, see `atlasnet.prediction.Ensemble`.

        Raises:
            ModelError: one is not there, not finished, or damaged, or they do not fit each other.
        """
        net = cls(allow_module=allow_module, execution=execution)
        net._ensemble = Ensemble.load([path, *more])
        if len(net._ensemble) == 1:
            net.model = net._ensemble.models[0]
        return net

    def _ready(self) -> Predictor:
        models = self._models()
        if self._predictor is None:
            self._predictor = Predictor(models, execution=self.execution, allow_module=self.options.allow_module)
        return self._predictor

    def _models(self) -> Ensemble:
        if self._ensemble is not None:
            return self._ensemble
        if self.model is None:
            raise ModelError("there is no model yet", remedy="call fit, or AtlasNet.load")
        return Ensemble.of(self.model)


def _wanted(options: dict[str, Any]) -> PredictOptions:
    """The options of a prediction by name; an unknown one is answered with those that there are."""
    known = [field.name for field in fields(PredictOptions)]
    if unknown := sorted(set(options) - set(known)):
        raise InputError("a prediction has no such option", expected=", ".join(known), found=", ".join(unknown))
    return PredictOptions(**options)


def _named(atlases: int | str | Path | Sequence[str | Path] | None) -> int | tuple[str, ...] | None:
    """Atlases as `FitOptions` takes them; one name alone is that of one atlas."""
    if isinstance(atlases, (str, Path)):
        return (str(atlases),)
    return tuple(str(atlas) for atlas in atlases) if isinstance(atlases, Iterable) else atlases
