"""The publication's experiments on any cohort: every method trained, every test subject segmented and scored.

Nothing is done twice: models, registrations and the result of every scan are kept under the study's folder, so that the
same call goes on after a stop, and a call that asks for more seeds, methods or shares of the data adds them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from atlasnet.atlas import AtlasSource, choose_atlases, resolve_atlases
from atlasnet.cohort import Cohort, Plan, Subject
from atlasnet.cohort.masks import are_masked, within
from atlasnet.errors import AtlasNetError, RegistrationError, VolumeError
from atlasnet.evaluation import evaluate_subject
from atlasnet.evaluation.table import unannotated
from atlasnet.execution import Execution, NamingReporter, WorkFolder, remove_begun, write_json
from atlasnet.prediction import Prediction, PredictOptions, Predictor
from atlasnet.registration import Operator, make_operator
from atlasnet.study.canvas import write_canvas
from atlasnet.study.certainty import describe
from atlasnet.study.how import how
from atlasnet.study.memory import RememberingOperator
from atlasnet.study.methods import Method
from atlasnet.study.patches import with_patches
from atlasnet.study.propagation import propagate_labels
from atlasnet.study.records import CaseResult, Run, Study, StudyOptions
from atlasnet.study.request import ATLASES, OUTPUTS, PLAN, SETTINGS, StudyRequest
from atlasnet.study.shares import share_of_slices, share_of_subjects
from atlasnet.study.software import as_text, decisive, distinct, versions
from atlasnet.study.subjects import observer_files
from atlasnet.training.atlases import atlas_count, chosen_names
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.pairs import planned_operator
from atlasnet.training.recipe import Augmentation
from atlasnet.volume import Volume, canonical, read_labels

CANVAS = "canvas"
FILLED = ("runs", "references", "figures")  # folders, but for those that trainings fill
# From so many of the atlases, or from all of a method that has no number of them, to the segmentation.
Fuse = Callable[[int | None], Prediction]
Segment = Callable[[Volume, Volume | None, Execution], Fuse]  # of a scan, within its organ mask


def run_study(
    cohort: Cohort,
    tests: Sequence[Subject],
    folder: str | Path,
    options: StudyOptions | None = None,
    *,
    execution: Execution | None = None,
) -> Study:
    """Train every method on ``cohort``, segment and score ``tests``.

    Args:
        cohort: training subjects with references.
        tests: other subjects with references.
        folder: gets ``models``, ``runs`` (a label map and a JSON of every scan), ``references`` (those with a share of
            the slices), ``work`` and ``plan.json``, derived from all training subjects, for every method.
        options: what is compared.
        execution: device, threads, the first seed, progress.

    Raises:
        CohortError: the cohort cannot be trained on, or a test subject has no reference.
        InputError: a test subject is a training subject, or ``folder`` holds another study.
        RegistrationError: no training subject could be mapped onto an atlas.
        Cancelled: on request.
    """
    run = StudyRun(cohort, tuple(tests), Path(folder), options or StudyOptions(), Execution.of(execution))
    with WorkFolder(folder).locked():
        return run.result()


class StudyRun(StudyRequest):
    """Does what is asked."""

    def result(self) -> Study:
        """Everything in order."""
        settings, plan = self.checked()
        names = (SETTINGS, PLAN, ATLASES, f"{CANVAS}.nii.gz", *OUTPUTS)
        remove_begun([self.folder / name for name in names], below=[self.folder / part for part in FILLED])
        observers = tuple(self._observer(path) for path in self.options.observers)
        write_json(self.folder / SETTINGS, settings)
        if not (self.folder / PLAN).exists():
            plan.write(self.folder / PLAN)
        sources = self._atlases()
        others = [one for one in self.earlier if one != versions()]
        for job in self.jobs():
            self.execution.pause()
            if unfinished := self.unfinished(job, len(sources)):
                if others:
                    self.say.warn(
                        f"results of {as_text(others)} are in the folder, and those that are missing are made by "
                        f"{as_text([versions()])}: one table will hold both, and say which is which"
                    )
                    others.clear()
                self.say.note(f"{job.method.title}, {job.details}")
                self._run(job, unfinished, plan, sources)
        study = Study(
            folder=self.folder,
            labels=self.labels,
            regions=self.cohort.regions,
            cases=tuple(test.name for test in self.tests),
            atlases=tuple(source.name for source in sources),
            training=len(self.cohort),
            recipe=self.recipe,
            sharing=self.sharing.kind,
            results=tuple(self._results(len(sources))),
            observers=observers,
            organ_mask=are_masked(self.tests),
            how=how(self, settings, plan),
            unannotated=unannotated(self.cohort.structures, {test.name: test.hidden for test in self.tests}),
        )
        if self.options.patches is None:
            return study
        return with_patches(
            study,
            self.tests,
            self.options.patches,
            observers=self.options.observers,
            ignore_label=self.cohort.ignore_label,
            execution=self.execution,
        )

    def _results(self, atlases: int) -> list[CaseResult]:
        """What this call and those before it found, but for jobs that are not finished."""
        results: list[CaseResult] = []
        for job in self.kept.jobs():
            found = [self.kept.result(run, test.name) for run in job.with_atlases(atlases) for test in self.tests]
            whole = [result for result in found if result is not None]
            results += whole if len(whole) == len(found) else ()
            if len(whole) < len(found):
                self.say.warn(
                    f"{job.method.name}, {job.details}, of an earlier call is on no page: {len(found) - len(whole)} of "
                    f"{len(found)} results are missing; ask for it again"
                )
        return results

    def _atlases(self) -> list[AtlasSource]:
        wanted = self.options.atlases
        if isinstance(wanted, tuple):
            return resolve_atlases(self.cohort, wanted)
        path = self.folder / ATLASES
        if path.exists():
            everyone = [subject.name for subject in self.cohort]
            names = chosen_names(path, everyone, len(everyone)) or ()
        else:
            names = self._chosen(wanted)
        self.check_atlases(names)
        if not path.exists():
            write_json(path, names)
        return resolve_atlases(self.cohort, names)

    def _chosen(self, wanted: int | None) -> tuple[str, ...]:
        """The names of as many training subjects as are wanted, which span the cohort."""
        count = atlas_count(wanted, len(self.cohort))
        # Label propagation carries the atlases' labels over: those that have all of them come first.
        whole = [subject.name for subject in self.cohort if not subject.hidden]
        fewer = len(whole) < count
        among = self.cohort if fewer else self.cohort.select(whole)
        images = {subject.name: lambda s=subject: canonical(s.read_image())[0] for subject in among}
        return tuple(choose_atlases(images, count, included=whole if fewer else (), execution=self.execution))

    def _share(self, job: Run, plan: Plan) -> Cohort:
        """The training data of a job."""
        if job.fraction_of == "subjects":
            return share_of_subjects(self.cohort, job.fraction, job.seed)
        folder = self.folder / "references" / job.share / f"seed{job.seed}"
        return share_of_slices(self.cohort, job.fraction, job.seed, plan.slice_axis, folder)

    def _model(self, job: Run, plan: Plan, sources: Sequence[AtlasSource]) -> Model:
        """Train it, or take it as an earlier call left it."""
        method, cohort = job.method, self._share(job, plan)
        recipe = self.recipe if method.augmented else replace(self.recipe, augmentation=Augmentation())
        recipe = recipe.with_epochs(self.lengthened(method, recipe.epochs, len(sources)))
        kept = self.options.curve_epochs if job.fraction == 1 else ()
        known = {subject.name for subject in cohort}
        # An atlas that is no subject of this share is an image from elsewhere.
        atlases = tuple(s.name if s.name in known else str(s.paths[0]) for s in sources)
        operator, settings = self.options.operator, self.options.operator_settings
        if method.space == "own":
            canvas = self.folder / f"{CANVAS}.nii.gz"
            write_canvas(canvas, (*self.cohort, *self.tests), plan.spacing)
            atlases, operator, settings = (str(canvas),), "centre", {}
        folder = self.folder / job.model
        plan.write(folder / PLAN)
        return fit(
            cohort,
            folder,
            FitOptions(
                atlases=atlases,
                network=self.options.network,
                allow_module=self.options.allow_module,
                width=self.options.width,
                preset=recipe,
                sharing=self.sharing,
                operator=operator,
                operator_settings=settings,
                loss_weights=self.options.loss_weights,
                minimum_quality=0.0 if method.space == "own" else FitOptions.minimum_quality,
                keep_epochs=tuple(self.lengthened(method, epoch, len(sources)) for epoch in kept),
            ),
            work=self.work.root,
            execution=replace(self.execution, seed=job.seed),
        )

    def _run(self, job: Run, tests: Sequence[Subject], plan: Plan, sources: Sequence[AtlasSource]) -> None:
        """Train what the method needs and segment the scans."""
        runs = job.with_atlases(len(sources))
        try:
            if job.method.seeded:
                segment, trained = self._networks(job, plan, sources)
            else:
                segment, trained = self._propagation(job.method, plan, sources), []
        except RegistrationError as error:
            # With few subjects an atlas may be left without any: the method failed, the study goes on.
            for test in tests:
                for run in runs:
                    self._fail(run, test, error)
            return
        made_by = distinct([*trained, versions()])
        for test in self.say.track(tests, f"segmenting: {job.method.name}", len(tests)):
            self.execution.pause()
            try:
                image = test.read_image()
                naming = replace(self.execution, reporter=NamingReporter(self.say, test.name))
                fuse = segment(image, test.read_mask(image.grid), naming)
            except (RegistrationError, VolumeError) as error:
                for run in runs:
                    self._fail(run, test, error)
                continue
            for run in runs:
                try:
                    self._keep(run, test, fuse(run.atlases), made_by)
                except (RegistrationError, VolumeError) as error:
                    self._fail(run, test, error)

    def _fail(self, run: Run, test: Subject, error: AtlasNetError) -> None:
        """A scan that a method cannot segment is a result too."""
        self.say.warn(f"{run.folder}: {test.name}: {error}")
        self.kept.fail(run, test.name, error)

    def _networks(self, job: Run, plan: Plan, sources: Sequence[AtlasSource]) -> tuple[Segment, list[dict[str, str]]]:
        """What segments, and the versions that trained it."""
        method, wanted = job.method, PredictOptions(fusion=self.options.fusion, agreement=True)
        epoch = None if job.epoch is None else self.lengthened(method, job.epoch, len(sources))
        predictors, trained = [], []
        for member in self.members(job, len(sources)):
            model = self._model(member, plan, sources)
            trained.append(decisive(model.provenance.get("versions", {})))
            operator: Operator = make_operator(model.operator, **model.operator_settings)
            if method.space == "atlases":
                operator = RememberingOperator(operator, self.work)
            predictors.append(
                Predictor(
                    model,
                    execution=self.execution,
                    allow_module=self.options.allow_module,
                    operator=operator,
                    epoch=epoch,
                )
            )

        def segment(image: Volume, mask: Volume | None, execution: Execution) -> Fuse:
            naming = [predictor.reporting_to(execution.reporter) for predictor in predictors]
            for predictor in naming:
                predictor.require_memory(image.grid, wanted)
            # Networks on the canvas see a blank atlas, with which no registration agrees.
            quality = 0.0 if method.space == "own" else PredictOptions.minimum_quality
            first, *others = [p.ask(image, minimum_quality=quality, fit=wanted.by_voxel, mask=mask) for p in naming]
            answers = first.and_those_of(others)

            def fuse(atlases: int | None) -> Prediction:
                return naming[0].fuse(answers if atlases is None else answers.first(atlases), wanted)

            return fuse

        return segment, trained

    def _propagation(self, method: Method, plan: Plan, sources: Sequence[AtlasSource]) -> Segment:
        subjects = [self.cohort[str(source.subject)] for source in sources]
        # The very registrations of AtlasNet, whichever of the two comes first.
        atlases = [(canonical(s.read())[0], of.read_labels()) for s, of in zip(sources, subjects, strict=True)]
        operator = RememberingOperator(
            planned_operator(self.options.operator, self.options.operator_settings, plan), self.work
        )

        def segment(image: Volume, mask: Volume | None, execution: Execution) -> Fuse:
            start = time.perf_counter()
            labels, seconds = propagate_labels(
                image,
                atlases,
                self.values,
                operator,
                hidden=[subject.hidden for subject in subjects],
                local=method.local,
                execution=execution,
            )
            if mask is not None:
                labels = within(labels, mask)
            record = {"seconds": round(seconds + time.perf_counter() - start, 3)}
            return lambda _: Prediction(labels, record)

        return segment

    def _keep(self, run: Run, test: Subject, prediction: Prediction, made_by: tuple[dict[str, str], ...]) -> None:
        """Score a segmentation and write it."""
        grid = prediction.labels.grid
        reference, mask = test.read_labels(grid), test.read_mask(grid)
        scores = self._scores(test, prediction.labels, reference, mask)
        details = describe(prediction, reference, self.cohort.ignore_label, mask, test.hidden)
        self.kept.write(CaseResult(run, test.name, tuple(scores), details, made_by), prediction.labels)

    def _scores(self, test: Subject, labels: Volume, reference: Volume, mask: Volume | None) -> list[dict[str, Any]]:
        """The fields of `LabelScores`, per structure that was annotated."""
        found = evaluate_subject(
            labels,
            reference,
            self.cohort.structures,
            case=test.name,
            ignore_label=self.cohort.ignore_label,
            hidden=test.hidden,
            mask=mask,
        )
        return [asdict(row) for row in found.rows]

    def _observer(self, folder: Path) -> tuple[dict[str, Any], ...]:
        """The scores of another person's segmentations."""
        rows: list[dict[str, Any]] = []
        tests = {test.name: test for test in self.tests}
        for name, path in observer_files(folder, self.tests).items():
            test = tests[name]
            reference = test.read_labels()
            rows += self._scores(test, read_labels(path), reference, test.read_mask(reference.grid))
        return tuple(rows)
