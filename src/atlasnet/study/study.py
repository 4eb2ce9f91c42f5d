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

import numpy as np

from atlasnet.atlas import AtlasSource, choose_atlases, resolve_atlases
from atlasnet.cohort import Cohort, Plan, Subject, take_fingerprint
from atlasnet.cohort.subject import check_same_grid
from atlasnet.errors import CohortError, InputError, RegistrationError
from atlasnet.evaluation import evaluate_subject
from atlasnet.evaluation.table import shortened
from atlasnet.execution import Execution, WorkFolder, digest, file_digest, read_json, write_json
from atlasnet.prediction import Prediction, PredictOptions, Predictor
from atlasnet.registration import Operator, make_operator
from atlasnet.study.certainty import describe
from atlasnet.study.memory import RememberingOperator
from atlasnet.study.methods import METHODS, OVER_FRACTIONS, Method, chosen_methods
from atlasnet.study.propagation import propagate_labels
from atlasnet.study.records import CaseResult, Run, Study, StudyOptions, share_name
from atlasnet.training.fit import DEFAULT_ATLASES, FitOptions, fit, planned_operator
from atlasnet.training.model import Model, class_values
from atlasnet.training.recipe import Augmentation, Recipe
from atlasnet.training.sharing import Sharing
from atlasnet.training.sources import path_digest
from atlasnet.volume import Grid, Volume, canonical, read_labels, write_volume
from atlasnet.volume.io import read_grid

CANVAS = "canvas"
SETTINGS, JOBS = "settings.json", "jobs.json"
# Seeds of an ensemble's further members, far from those of the study's repetitions.
MEMBER_SEED = 1000
# From so many of the atlases, or from all of a method that has no number of them, to the segmentation.
Fuse = Callable[[int | None], Prediction]
Segment = Callable[[Volume], Fuse]


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
        folder: gets ``models``, ``runs`` (a label map and a JSON of every scan), ``work`` and ``plan.json``, which is
            derived from all training subjects and serves every method.
        options: what is compared.
        execution: device, threads, the first seed, progress.

    Raises:
        CohortError: the cohort cannot be trained on, or a test subject has no reference.
        InputError: a test subject is a training subject, or ``folder`` holds another study.
        RegistrationError: no training subject could be mapped onto an atlas.
        Cancelled: on request.
    """
    run = _Study(cohort, tuple(tests), Path(folder), options or StudyOptions(), execution or Execution())
    with WorkFolder(folder).locked():
        return run.result()


class _Study:
    """One call of `run_study`."""

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
        recipe = Recipe.preset(options.preset) if isinstance(options.preset, str) else options.preset
        self.recipe = recipe if options.epochs is None else replace(recipe, epochs=options.epochs)
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
        for test in self.tests:
            if test.channels != len(self.cohort.channels):
                raise CohortError(
                    f"test subject {test.name} has not the channels of the training subjects",
                    path=test.images[0],
                    expected=str(len(self.cohort.channels)),
                    found=str(test.channels),
                )
            if test.labels is not None:
                check_same_grid(read_grid(test.labels), test.read_grid(), test.labels, test.images[0])
        self.files = {s: self._digests(s) for s in (*self.cohort, *self.tests)}
        seen = {self.files[subject][0]: subject.name for subject in self.cohort}
        leaked = [f"{test.name} is {seen[key]}" for test in self.tests if (key := self.files[test][0]) in seen]
        if leaked:
            raise InputError(
                "test subjects are training subjects",
                path=self.cohort.root,
                found=shortened(leaked),
                remedy="name others with --test, or divide the subjects with --subjects and --test-subjects",
            )

    @staticmethod
    def _digests(subject: Subject) -> tuple[str, str]:
        """Of the images and of the reference."""
        return digest([path_digest(path) for path in subject.images]), "" if subject.labels is None else file_digest(
            subject.labels
        )

    def result(self) -> Study:
        self._remember_settings()
        observers = tuple(self._observer(path) for path in self.options.observers)
        plan = self._plan()
        planned_operator(self.options.operator, self.options.operator_settings, plan)
        sources = self._atlases()
        for job in self._jobs():
            self.execution.pause()
            if self._missing(*job, len(sources)):
                method, fraction, seed = job
                share = "" if fraction == 1 else f", {fraction:.0%} of the subjects"
                self.say.note(f"{method.title}, seed {seed}{share}")
                self._run(*job, plan, sources)
            self._remember_job(*job)
        results = [
            self._read(run, test.name)
            for job in self._jobs_done()
            if not self._missing(*job, len(sources))
            for run in self._runs(*job, len(sources))
            for test in self.tests
        ]
        return Study(
            folder=self.folder,
            labels=self.labels,
            cases=tuple(test.name for test in self.tests),
            atlases=tuple(source.name for source in sources),
            results=tuple(results),
            observers=observers,
        )

    def _jobs(self) -> Iterator[tuple[Method, float, int]]:
        """What is trained and tested, the whole cohort first."""
        for fraction in sorted({1.0, *self.options.fractions}, reverse=True):
            for repetition in range(self.options.seeds):
                for method in self.methods:
                    # Carrying labels over draws no random number.
                    once = method.space == "labels" and repetition > 0
                    if not once and (fraction == 1 or method.name in OVER_FRACTIONS):
                        yield method, fraction, self.execution.seed + repetition

    def _remember_job(self, method: Method, fraction: float, seed: int) -> None:
        """Later calls show what earlier ones did."""
        path, job = self.folder / JOBS, [method.name, fraction, seed]
        done = read_json(path) if path.exists() else []
        if job not in done:
            write_json(path, [*done, job])

    def _jobs_done(self) -> list[tuple[Method, float, int]]:
        by_name = {method.name: method for method in METHODS}
        return [(by_name[name], float(fraction), int(seed)) for name, fraction, seed in read_json(self.folder / JOBS)]

    @staticmethod
    def _runs(method: Method, fraction: float, seed: int, atlases: int) -> list[Run]:
        """A network per atlas can be asked with any number of atlases."""
        most = method.atlases(atlases)
        counts = [None] if most is None else range(1, most + 1)
        return [Run(method, fraction, seed, count) for count in counts]

    # What all methods share

    def _plan(self) -> Plan:
        path = self.folder / "plan.json"
        if not path.exists():
            Plan.derive(take_fingerprint(self.cohort, self.say)).write(path)
        return Plan.read(path)

    def _atlases(self) -> list[AtlasSource]:
        wanted = self.options.atlases
        if isinstance(wanted, tuple):
            return resolve_atlases(self.cohort, wanted)
        count = min(DEFAULT_ATLASES if wanted is None else wanted, len(self.cohort))
        path = self.folder / "atlases.json"
        if not path.exists():
            images = {subject.name: lambda s=subject: canonical(s.read_image())[0] for subject in self.cohort}
            write_json(path, choose_atlases(images, count, execution=self.execution))
        return resolve_atlases(self.cohort, read_json(path))

    def _remember_settings(self) -> None:
        """Figures of one table come from one setting; methods, seeds and shares may be added."""
        options = asdict(self.options)
        for name in ("methods", "seeds", "fractions", "observers", "preset", "epochs"):
            options.pop(name)
        settings = {
            "options": options,
            "recipe": self.recipe.to_json(),
            "labels": {**self.cohort.labels, "": self.cohort.ignore_label},
            "seed": self.execution.seed,
            "training": {subject.name: self.files[subject] for subject in self.cohort},
            "tests": {subject.name: self.files[subject] for subject in self.tests},
        }
        path = self.folder / SETTINGS
        before: dict[str, Any] = read_json(path) if path.exists() else settings
        before["options"].setdefault("fusion", "mean")  # what studies did before they could be asked
        changed = [key for key, value in settings.items() if digest(before.get(key)) != digest(value)]
        if changed:
            raise InputError(
                "the folder holds a study with other settings",
                path=path,
                found="another " + ", another ".join(changed),
                remedy="give another folder with -o",
            )
        write_json(path, settings)

    def _canvas(self, plan: Plan) -> Path:
        """A blank image as large as the largest scan: the common frame of networks without registration."""
        path = self.folder / f"{CANVAS}.nii.gz"
        if not path.exists():
            spacing = np.asarray(plan.spacing)
            grids = [canonical(subject.read_grid())[0] for subject in (*self.cohort, *self.tests)]
            # A voxel has a size of its own around the outermost centres.
            extent = np.max(
                [np.ptp(grid.corners(), axis=0) + np.abs(grid.affine[:3, :3]).sum(1) for grid in grids], axis=0
            )
            x, y, z = (int(n) for n in np.maximum(1, np.ceil(extent / spacing - 1e-6)))
            blank = np.zeros((len(self.cohort.channels), z, y, x), dtype=np.uint8)
            write_volume(path, Volume(blank, Grid.from_parts((z, y, x), tuple(spacing))))
        return path

    def _subset(self, fraction: float, seed: int) -> Cohort:
        """A share of the training subjects, at least two; a smaller share is part of a larger one."""
        names = sorted(subject.name for subject in self.cohort)
        if fraction == 1:
            return self.cohort
        order = np.random.default_rng(seed).permutation(names).tolist()
        return self.cohort.select(sorted(order[: max(2, round(fraction * len(names)))]))

    # Training

    def _model(self, method: Method, fraction: float, seed: int, plan: Plan, sources: Sequence[AtlasSource]) -> Model:
        """Train it, or take it as an earlier call left it."""
        cohort = self._subset(fraction, seed)
        recipe = self.recipe if method.augmented else replace(self.recipe, augmentation=Augmentation())
        if method.longer:
            recipe = replace(recipe, epochs=Sharing.of(self.options.sharing).epochs(recipe.epochs, len(sources)))
        known = {subject.name for subject in cohort}
        # An atlas that is no subject of this share is an image from elsewhere.
        atlases = tuple(s.name if s.name in known else str(s.paths[0]) for s in sources)
        operator, settings = self.options.operator, self.options.operator_settings
        if method.space == "own":
            atlases, operator, settings = (str(self._canvas(plan)),), "centre", {}
        name = method.space + ("" if method.augmented else "-unaugmented") + ("-long" if method.longer else "")
        folder = self.folder / "models" / name / share_name(fraction) / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        plan.write(folder / "plan.json")
        return fit(
            cohort,
            folder,
            FitOptions(
                atlases=atlases,
                network=self.options.network,
                allow_module=self.options.allow_module,
                width=self.options.width,
                preset=recipe,
                sharing=self.options.sharing,
                operator=operator,
                operator_settings=settings,
                minimum_quality=0.0 if method.space == "own" else FitOptions.minimum_quality,
            ),
            work=self.work.root,
            execution=replace(self.execution, seed=seed),
        )

    # Testing

    def _missing(self, method: Method, fraction: float, seed: int, atlases: int) -> list[Subject]:
        """The test subjects of which a run of the job has no result."""
        runs = self._runs(method, fraction, seed, atlases)
        return [test for test in self.tests if not all(self._path(run, test.name).exists() for run in runs)]

    def _path(self, run: Run, case: str) -> Path:
        return self.folder / run.folder / f"{case}.json"

    def _read(self, run: Run, case: str) -> CaseResult:
        content = read_json(self._path(run, case))
        return CaseResult(run, case, tuple(content["scores"]), content["details"])

    def _run(self, method: Method, fraction: float, seed: int, plan: Plan, sources: Sequence[AtlasSource]) -> None:
        """Train what the method needs and segment the scans that it has not segmented yet."""
        runs = self._runs(method, fraction, seed, len(sources))
        missing = self._missing(method, fraction, seed, len(sources))
        try:
            if method.space == "labels":
                segment = self._propagation(method, plan, sources)
            else:
                segment = self._networks(method, fraction, seed, plan, sources)
        except RegistrationError as error:
            # With few subjects an atlas may be left without any: the method failed, the study goes on.
            for test in missing:
                for run in runs:
                    self._fail(run, test, error)
            return
        for test in self.say.track(missing, f"segmenting: {method.name}", len(missing)):
            self.execution.pause()
            try:
                fuse = segment(test.read_image())
            except RegistrationError as error:
                for run in runs:
                    self._fail(run, test, error)
                continue
            for run in runs:
                try:
                    self._keep(run, test, fuse(run.atlases))
                except RegistrationError as error:
                    self._fail(run, test, error)

    def _fail(self, run: Run, test: Subject, error: RegistrationError) -> None:
        """A scan that a method cannot segment is a result too."""
        self.say.warn(f"{run.folder}: {test.name}: {error}")
        write_json(self._path(run, test.name), {"scores": [], "details": {}, "error": str(error)})

    def _networks(
        self, method: Method, fraction: float, seed: int, plan: Plan, sources: Sequence[AtlasSource]
    ) -> Segment:
        seeds = [seed]
        if method.members:
            seeds += [seed + MEMBER_SEED * member for member in range(1, len(sources))]
        predictors = []
        for member in seeds:
            model = self._model(method, fraction, member, plan, sources)
            operator: Operator = make_operator(model.operator, **model.operator_settings)
            if method.space == "atlases":
                operator = RememberingOperator(operator, self.work)
            predictors.append(
                Predictor(model, execution=self.execution, allow_module=self.options.allow_module, operator=operator)
            )

        def segment(image: Volume) -> Fuse:
            # Networks on the canvas see a blank atlas, with which no registration agrees.
            quality = 0.0 if method.space == "own" else PredictOptions.minimum_quality
            fit = self.wanted.fusion == "local"
            first, *others = [predictor.ask(image, minimum_quality=quality, fit=fit) for predictor in predictors]
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

        def segment(image: Volume) -> Fuse:
            start = time.perf_counter()
            pairs = [(image, labels) for image, (_, labels) in zip(images, atlases, strict=True)]
            labels, seconds = propagate_labels(
                image, pairs, self.values, operator, local=method.local, execution=self.execution
            )
            record = {"seconds": round(seconds + time.perf_counter() - start, 3)}
            return lambda _: Prediction(labels, record)

        return segment

    def _keep(self, run: Run, test: Subject, prediction: Prediction) -> None:
        """Score a segmentation and write it; the JSON comes last: where it is, the label map is."""
        reference = test.read_labels(prediction.labels.grid)
        scores = self._scores(test, prediction.labels, reference)
        path = self._path(run, test.name)
        write_volume(path.with_suffix(".nii.gz"), prediction.labels)
        details = describe(prediction, reference, self.cohort.ignore_label)
        write_json(path, {"scores": scores, "details": details})

    def _scores(self, test: Subject, labels: Volume, reference: Volume) -> list[dict[str, Any]]:
        """The fields of `LabelScores`, per label."""
        found = evaluate_subject(labels, reference, self.labels, case=test.name, ignore_label=self.cohort.ignore_label)
        return [asdict(row) for row in found.rows]

    def _observer(self, folder: Path) -> tuple[dict[str, Any], ...]:
        """The scores of another person's segmentations."""
        rows: list[dict[str, Any]] = []
        for test in self.tests:
            path = folder / f"{test.name}.nii.gz"
            if path.exists():
                rows += self._scores(test, read_labels(path), test.read_labels())
        if not rows:
            raise InputError(
                "the observer's folder holds no test subject",
                path=folder,
                expected=f"files such as {self.tests[0].name}.nii.gz",
            )
        return tuple(rows)
