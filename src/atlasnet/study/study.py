"""The publication's experiments on any cohort: every method trained, every test subject segmented and scored.

Nothing is done twice: models, registrations and the result of every scan are kept under the study's folder, so that the
same call goes on after a stop, and a call that asks for more seeds, methods or shares of the data adds them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from atlasnet.atlas import AtlasSource, choose_atlases, resolve_atlases
from atlasnet.cohort import Cohort, Plan, Subject, take_fingerprint
from atlasnet.cohort.masks import are_masked, check_masks, within
from atlasnet.cohort.subject import check_same_grid
from atlasnet.errors import AtlasNetError, CohortError, InputError, RegistrationError, VolumeError
from atlasnet.evaluation import evaluate_subject
from atlasnet.execution import Execution, WorkFolder, digest, read_json, reading_back, write_json
from atlasnet.network import NetworkSpec, build_network
from atlasnet.prediction import Prediction, PredictOptions, Predictor
from atlasnet.registration import WITHOUT_SETTINGS, Operator, make_operator
from atlasnet.study.canvas import write_canvas
from atlasnet.study.certainty import describe
from atlasnet.study.memory import RememberingOperator
from atlasnet.study.methods import METHODS, OVER_FRACTIONS, Method, chosen_methods
from atlasnet.study.page import CASES, CURVES, PAGE, SUMMARY, TABLE
from atlasnet.study.patches import with_patches
from atlasnet.study.propagation import propagate_labels
from atlasnet.study.records import CaseResult, Run, Study, StudyOptions
from atlasnet.study.shares import check_shares, share_of_slices, share_of_subjects
from atlasnet.study.subjects import check_test_subjects, observer_files, subject_digests
from atlasnet.training.atlases import atlas_count
from atlasnet.training.fit import fit
from atlasnet.training.model import Model, class_values
from atlasnet.training.options import FitOptions
from atlasnet.training.pairs import planned_operator
from atlasnet.training.recipe import Augmentation, check_epochs
from atlasnet.volume import Volume, canonical, read_labels, write_labels

CANVAS = "canvas"
SETTINGS, JOBS, ATLASES, PLAN = "settings.json", "jobs.json", "atlases.json", "plan.json"
# Seeds of an ensemble's further members, far from those of the study's repetitions.
MEMBER_SEED = 1000
# From so many of the atlases, or from all of a method that has no number of them, to the segmentation.
Fuse = Callable[[int | None], Prediction]
Segment = Callable[[Volume, Volume | None], Fuse]  # of a scan, within its organ mask


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
    run = StudyRun(cohort, tuple(tests), Path(folder), options or StudyOptions(), execution or Execution())
    with WorkFolder(folder).locked():
        return run.result()


class StudyRun:
    """One call of `run_study`; what it is made of tells `atlasnet.study.forecast` what the call would do."""

    def __init__(
        self, cohort: Cohort, tests: tuple[Subject, ...], folder: Path, options: StudyOptions, execution: Execution
    ) -> None:
        self.cohort, self.tests, self.folder = cohort, tests, folder
        self.options, self.execution, self.say = options, execution, execution.reporter
        self.work = WorkFolder(folder / "work")
        self.methods = chosen_methods(options.methods)
        self.wanted = PredictOptions(fusion=options.fusion, agreement=True)
        self.labels = {name: value for name, value in cohort.labels.items() if value != 0}
        self.values = class_values(cohort.labels, cohort.ignore_label)
        self.recipe, self.sharing = options.recipe(), options.shared()
        self._check()

    def _check(self) -> None:
        """What would spoil the figures or fail hours later."""
        if not self.tests:
            raise CohortError("there are no test subjects")
        unlabelled = [subject.name for subject in (*self.cohort, *self.tests) if subject.labels is None]
        if unlabelled:
            raise CohortError("subjects have no reference", found=", ".join(unlabelled))
        if isinstance(self.options.atlases, tuple):
            outside = sorted(set(self.options.atlases) - {subject.name for subject in self.cohort})
            if outside:
                raise InputError(
                    "the atlases of a study must be training subjects, because label propagation needs their labels",
                    found=", ".join(outside),
                )
        if self.options.fraction_of == "subjects":
            check_shares(self.options.fractions, len(self.cohort))
        check_epochs(self.options.curve_epochs, self.recipe)
        if self.options.patches is not None:
            self.options.patches.values(self.labels)
        make_operator(self.options.operator, **self.options.operator_settings)
        width = NetworkSpec.width if self.options.width is None else self.options.width
        spec = NetworkSpec(self.options.network or NetworkSpec.name, width)
        build_network(spec, len(self.cohort.channels), len(self.values), allow_module=self.options.allow_module)
        check_masks((*self.cohort, *self.tests), self.say)
        check_test_subjects(self.cohort, self.tests)
        self.files = {s: subject_digests(s) for s in (*self.cohort, *self.tests)}

    def result(self) -> Study:
        """Everything in order."""
        settings = self.checked_settings()
        observers = tuple(self._observer(path) for path in self.options.observers)
        write_json(self.folder / SETTINGS, settings)
        plan = self.plan()
        if not (self.folder / PLAN).exists():
            plan.write(self.folder / PLAN)
        planned_operator(self.options.operator, self.options.operator_settings, plan)
        sources = self._atlases()
        for job in self.jobs():
            self.execution.pause()
            if self.unfinished(job, len(sources)):
                self.say.note(f"{job.method.title}, {job.details}")
                self._run(job, plan, sources)
            self._remember_job(job)
        results = [
            self._read(run, test.name)
            for job in self._jobs_done()
            if not self.missing(job, len(sources))
            for run in job.with_atlases(len(sources))
            for test in self.tests
        ]
        study = Study(
            folder=self.folder,
            labels=self.labels,
            cases=tuple(test.name for test in self.tests),
            atlases=tuple(source.name for source in sources),
            training=len(self.cohort),
            recipe=self.recipe,
            sharing=self.sharing.kind,
            results=tuple(results),
            observers=observers,
            organ_mask=are_masked(self.tests),
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

    def jobs(self) -> Iterator[Run]:
        """What is trained and tested, for all numbers of atlases; the whole cohort first."""
        epochs = sorted({epoch for epoch in self.options.curve_epochs if epoch < self.recipe.epochs})
        for fraction in sorted({1.0, *self.options.fractions}, reverse=True):
            for repetition in range(self.options.seeds):
                for method in self.methods:
                    # Carrying labels over draws no random number.
                    once = method.space == "labels" and repetition > 0
                    if not once and (fraction == 1 or method.name in OVER_FRACTIONS):
                        job = Run(method, fraction, self.execution.seed + repetition)
                        yield job if fraction == 1 else replace(job, fraction_of=self.options.fraction_of)
                        if fraction == 1 and method.space != "labels":
                            yield from (replace(job, epoch=epoch) for epoch in epochs)

    def _remember_job(self, job: Run) -> None:
        """Later calls show what earlier ones did."""
        done = self._jobs_done()
        if job not in done:
            every = [[j.method.name, j.fraction, j.seed, j.fraction_of, j.epoch] for j in (*done, job)]
            write_json(self.folder / JOBS, every)

    def _jobs_done(self) -> list[Run]:
        by_name = {method.name: method for method in METHODS}
        with reading_back(self.folder / JOBS):
            done = read_json(self.folder / JOBS) if (self.folder / JOBS).exists() else []
            return [Run(by_name[name], float(share), int(seed), None, *rest) for name, share, seed, *rest in done]

    # What all methods share

    def derived_plan(self) -> Plan:
        """The plan that follows from the training subjects."""
        registered = self.options.operator not in WITHOUT_SETTINGS
        return Plan.derive(take_fingerprint(self.cohort, self.say), registered=registered, finer=self.recipe.finer)

    def plan(self) -> Plan:
        """The plan beside the study, or the one that follows from the training subjects.

        Raises:
            InputError: networks of the study were trained by another one.
        """
        path = self.folder / PLAN
        if not path.exists():
            return self.derived_plan()
        plan = Plan.read(path)
        for place in sorted((self.folder / "models").glob(f"*/*/*/{PLAN}")):
            if Plan.read(place) != plan:
                raise InputError(
                    "the plan of the study is another one than that by which networks were trained",
                    path=path,
                    expected=f"that of {place}",
                    remedy="put it back, or give another folder with -o: figures of one table come from one plan",
                )
        return plan

    def _atlases(self) -> list[AtlasSource]:
        wanted = self.options.atlases
        if isinstance(wanted, tuple):
            return resolve_atlases(self.cohort, wanted)
        path = self.folder / ATLASES
        if not path.exists():
            images = {subject.name: lambda s=subject: canonical(s.read_image())[0] for subject in self.cohort}
            write_json(path, choose_atlases(images, atlas_count(wanted, len(images)), execution=self.execution))
        with reading_back(path):
            names = [str(name) for name in read_json(path)]
        return resolve_atlases(self.cohort, names)

    def checked_settings(self) -> dict[str, Any]:
        """Figures of one table come from one setting; what is named here may be added."""
        options = asdict(self.options)
        added = ("methods", "seeds", "fractions", "fraction_of", "curve_epochs", "observers", "patches")
        for name in (*added, "preset", "epochs"):
            options.pop(name)
        settings = {
            "options": options | {"sharing": asdict(self.sharing)},
            "recipe": self.recipe.to_json(),
            "labels": {**self.cohort.labels, "": self.cohort.ignore_label},
            "seed": self.execution.seed,
            "training": {subject.name: self.files[subject] for subject in self.cohort},
            "tests": {subject.name: self.files[subject] for subject in self.tests},
        }
        path = self.folder / SETTINGS
        with reading_back(path):
            before: Any = read_json(path) if path.exists() else settings
        self._check_folder(before)
        with reading_back(path):
            before["options"].setdefault("fusion", "mean")  # what studies did before they could be asked
            changed = [key for key, value in settings.items() if digest(before.get(key)) != digest(value)]
        if changed:
            raise InputError(
                "the folder holds a study with other settings",
                path=path,
                found="another " + ", another ".join(changed),
                remedy="give another folder with -o",
            )
        return settings

    def _check_folder(self, settings: Any) -> None:
        """Find out that files lie where those of a study belong, and are of none, such as these ``settings``."""
        path = self.folder / SETTINGS
        if path.exists():
            foreign = [] if isinstance(settings, dict) and {"options", "tests"} & set(settings) else [path]
        else:
            begun = any((self.folder / name).exists() for name in (JOBS, PLAN))
            outputs = [] if begun else [self.folder / name for name in (PAGE, SUMMARY, TABLE, CASES, CURVES)]
            foreign = [file for file in outputs if file.exists()]
        if foreign:
            raise InputError(
                "a file lies where one of the study belongs, and is of no study",
                path=foreign[0],
                remedy="give another folder with -o, or move the file away",
            )

    # Training

    def _share(self, job: Run, plan: Plan) -> Cohort:
        """The training data of a job."""
        if job.fraction_of == "subjects":
            return share_of_subjects(self.cohort, job.fraction, job.seed)
        folder = self.folder / "references" / job.share / f"seed{job.seed}"
        return share_of_slices(self.cohort, job.fraction, job.seed, plan.slice_axis, folder)

    def members(self, job: Run, atlases: int) -> list[Run]:
        """The trainings of a job, several for an ensemble."""
        return [replace(job, seed=job.seed + MEMBER_SEED * m) for m in range(atlases if job.method.members else 1)]

    def lengthened(self, method: Method, epochs: int, atlases: int) -> int:
        """Epochs that a network of the method has had when each of AtlasNet's has had ``epochs``."""
        return self.sharing.epochs(epochs, atlases) if method.longer else epochs

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
                minimum_quality=0.0 if method.space == "own" else FitOptions.minimum_quality,
                keep_epochs=tuple(self.lengthened(method, epoch, len(sources)) for epoch in kept),
            ),
            work=self.work.root,
            execution=replace(self.execution, seed=job.seed),
        )

    # Testing

    def missing(self, job: Run, atlases: int) -> list[Subject]:
        """The test subjects of which a run of the job has no result."""
        runs = job.with_atlases(atlases)
        return [test for test in self.tests if not all(self._path(run, test.name).exists() for run in runs)]

    def unfinished(self, job: Run, atlases: int) -> list[Subject]:
        """Those, and the ones to do again: a scan that failed may have been out of reach, a label map may be gone."""
        runs = job.with_atlases(atlases)
        return [test for test in self.tests if not all(self._is_segmented(run, test.name) for run in runs)]

    def _is_segmented(self, run: Run, case: str) -> bool:
        path = self._path(run, case)
        if not path.exists() or not path.with_suffix(".nii.gz").exists():
            return False
        with reading_back(path):
            return "error" not in read_json(path)

    def _path(self, run: Run, case: str) -> Path:
        return self.folder / run.folder / f"{case}.json"

    def _read(self, run: Run, case: str) -> CaseResult:
        with reading_back(self._path(run, case)):
            content = read_json(self._path(run, case))
            return CaseResult(run, case, tuple(content["scores"]), content["details"])

    def _run(self, job: Run, plan: Plan, sources: Sequence[AtlasSource]) -> None:
        """Train what the method needs and segment the scans that it has not segmented yet."""
        runs, missing = job.with_atlases(len(sources)), self.unfinished(job, len(sources))
        try:
            if job.method.space == "labels":
                segment = self._propagation(job.method, plan, sources)
            else:
                segment = self._networks(job, plan, sources)
        except RegistrationError as error:
            # With few subjects an atlas may be left without any: the method failed, the study goes on.
            for test in missing:
                for run in runs:
                    self._fail(run, test, error)
            return
        for test in self.say.track(missing, f"segmenting: {job.method.name}", len(missing)):
            self.execution.pause()
            try:
                image = test.read_image()
                fuse = segment(image, test.read_mask(image.grid))
            except (RegistrationError, VolumeError) as error:
                for run in runs:
                    self._fail(run, test, error)
                continue
            for run in runs:
                try:
                    self._keep(run, test, fuse(run.atlases))
                except (RegistrationError, VolumeError) as error:
                    self._fail(run, test, error)

    def _fail(self, run: Run, test: Subject, error: AtlasNetError) -> None:
        """A scan that a method cannot segment is a result too."""
        self.say.warn(f"{run.folder}: {test.name}: {error}")
        write_json(self._path(run, test.name), {"scores": [], "details": {}, "error": str(error)})

    def _networks(self, job: Run, plan: Plan, sources: Sequence[AtlasSource]) -> Segment:
        method = job.method
        epoch = None if job.epoch is None else self.lengthened(method, job.epoch, len(sources))
        predictors = []
        for member in self.members(job, len(sources)):
            model = self._model(member, plan, sources)
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

        def segment(image: Volume, mask: Volume | None) -> Fuse:
            for predictor in predictors:
                predictor.require_memory(image.grid, self.wanted)
            # Networks on the canvas see a blank atlas, with which no registration agrees.
            quality = 0.0 if method.space == "own" else PredictOptions.minimum_quality
            first, *others = [
                p.ask(image, minimum_quality=quality, fit=self.wanted.by_voxel, mask=mask) for p in predictors
            ]
            answers = first.and_those_of(others)

            def fuse(atlases: int | None) -> Prediction:
                return predictors[0].fuse(answers if atlases is None else answers.first(atlases), self.wanted)

            return fuse

        return segment

    def _propagation(self, method: Method, plan: Plan, sources: Sequence[AtlasSource]) -> Segment:
        atlases = [(source.read(), self.cohort[str(source.subject)].read_labels()) for source in sources]
        # The very registrations of AtlasNet, whichever of the two comes first.
        images = [canonical(image)[0] for image, _ in atlases]
        operator = RememberingOperator(
            planned_operator(self.options.operator, self.options.operator_settings, plan), self.work
        )

        def segment(image: Volume, mask: Volume | None) -> Fuse:
            start = time.perf_counter()
            pairs = [(image, labels) for image, (_, labels) in zip(images, atlases, strict=True)]
            labels, seconds = propagate_labels(
                image, pairs, self.values, operator, local=method.local, execution=self.execution
            )
            if mask is not None:
                labels = within(labels, mask)
            record = {"seconds": round(seconds + time.perf_counter() - start, 3)}
            return lambda _: Prediction(labels, record)

        return segment

    def _keep(self, run: Run, test: Subject, prediction: Prediction) -> None:
        """Score a segmentation and write it; the JSON comes last: where it is, the label map is."""
        grid = prediction.labels.grid
        reference, mask = test.read_labels(grid), test.read_mask(grid)
        scores = self._scores(test, prediction.labels, reference)
        path = self._path(run, test.name)
        write_labels(path.with_suffix(".nii.gz"), prediction.labels)
        details = describe(prediction, reference, self.cohort.ignore_label, mask)
        write_json(path, {"scores": scores, "details": details})

    def _scores(self, test: Subject, labels: Volume, reference: Volume) -> list[dict[str, Any]]:
        """The fields of `LabelScores`, per label."""
        ignore, mask = self.cohort.ignore_label, test.read_mask(reference.grid)
        found = evaluate_subject(labels, reference, self.labels, case=test.name, ignore_label=ignore, mask=mask)
        return [asdict(row) for row in found.rows]

    def _observer(self, folder: Path) -> tuple[dict[str, Any], ...]:
        """The scores of another person's segmentations."""
        rows: list[dict[str, Any]] = []
        tests = {test.name: test for test in self.tests}
        for name, path in observer_files(folder, self.tests).items():
            reference, seen = tests[name].read_labels(), read_labels(path)
            check_same_grid(seen.grid, reference.grid, path, tests[name].labels or path)
            rows += self._scores(tests[name], seen, reference)
        return tuple(rows)
