"""What a call of a study asks for, and whether it can be done; what is found here, a dry run finds too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from atlasnet.cohort import Cohort, Plan, Subject, take_fingerprint
from atlasnet.cohort.apart import require_apart
from atlasnet.cohort.masks import check_masks
from atlasnet.cohort.spacing import check_spacing
from atlasnet.cohort.structures import annotated_structures
from atlasnet.errors import CohortError, InputError
from atlasnet.execution import Execution, WorkFolder, read_json, reading_back
from atlasnet.network import NetworkSpec, Traits, build_network
from atlasnet.registration import WITHOUT_SETTINGS, make_operator
from atlasnet.study.kept import KeptResults
from atlasnet.study.methods import OVER_FRACTIONS, Method, chosen_methods
from atlasnet.study.page import CASES, CURVES, LESS_DATA, PAGE, SUMMARY, TABLE
from atlasnet.study.records import Run, StudyOptions
from atlasnet.study.shares import check_shares, check_shares_of_slices, share_of_subjects
from atlasnet.study.software import Versions, decisive, today, versions
from atlasnet.study.subjects import check_observer, check_test_subjects, subject_digests
from atlasnet.training.differences import changed_subjects, differences, told
from atlasnet.training.model import class_values
from atlasnet.training.pairs import check_tissues, planned_operator
from atlasnet.training.place import STUDY, require_no_other
from atlasnet.training.recipe import check_epochs
from atlasnet.volume.names import composed
from atlasnet.wording import shortened

SETTINGS, ATLASES, PLAN = "settings.json", "atlases.json", "plan.json"
OUTPUTS = (PAGE, SUMMARY, TABLE, CASES, CURVES, LESS_DATA)
# Seeds of an ensemble's further members, far from those of the study's repetitions.
MEMBER_SEED = 1000


class StudyRequest:
    """One call of `atlasnet.study.run_study`, checked; it does nothing and writes nothing.

    Args:
        cohort: training subjects with references.
        tests: other subjects with references.
        folder: of the study.
        options: what is compared.
        execution: device, threads, the first seed, progress.

    Raises:
        CohortError: the cohort cannot be trained on, or a test subject has no reference.
        InputError: an option cannot be used, or a test subject is a training subject.
    """

    def __init__(
        self, cohort: Cohort, tests: tuple[Subject, ...], folder: Path, options: StudyOptions, execution: Execution
    ) -> None:
        self.cohort, self.tests, self.folder = cohort, tests, folder
        self.options, self.execution, self.say = options, execution, execution.reporter
        self.work = WorkFolder(folder / "work")
        self.methods = chosen_methods(options.methods)
        self.kept = KeptResults(folder, self.say)
        self.labels = {name: value for name, value in cohort.labels.items() if value != 0}
        self.values = class_values(cohort.labels, cohort.ignore_label)
        self.recipe, self.sharing = options.recipe(), options.shared()
        self.earlier: list[Versions] = []  # versions that worked on the study; an empty one where nobody recorded it
        self._check()

    def _check(self) -> None:
        """What would spoil the figures or fail hours later."""
        if not self.tests:
            raise CohortError("there are no test subjects")
        require_apart(self.folder, self.cohort.subjects, self.cohort.root)
        require_apart(self.folder, self.tests)
        unlabelled = [subject.name for subject in (*self.cohort, *self.tests) if subject.labels is None]
        if unlabelled:
            raise CohortError("subjects have no reference", found=", ".join(unlabelled))
        self.cohort.require_annotated(what="those to train on")
        structures = self.cohort.structures
        unscored = [test.name for test in self.tests if not annotated_structures(structures, test.hidden)]
        if unscored:
            raise CohortError("nothing that is scored was annotated in test subjects", found=shortened(unscored))
        if isinstance(self.options.atlases, tuple):
            outside = sorted({*map(composed, self.options.atlases)} - {subject.name for subject in self.cohort})
            if outside:
                raise InputError(
                    "the atlases of a study must be training subjects, because label propagation needs their labels",
                    found=", ".join(outside),
                )
            self.check_atlases(self.options.atlases)
        if self.options.fraction_of == "subjects":
            check_shares(self.options.fractions, len(self.cohort))
            for fraction in self.options.fractions:
                for repetition in range(self.options.seeds):
                    share = share_of_subjects(self.cohort, fraction, self.execution.seed + repetition)
                    share.require_annotated(what=f"a share of {fraction:g}, seed {self.execution.seed + repetition},")
        check_epochs(self.options.curve_epochs, self.recipe)
        patches = self.options.patches
        if patches is not None and not any(patches.annotated(self.labels, test.hidden) for test in self.tests):
            raise InputError("the labels of the patches were annotated in no test subject")
        make_operator(self.options.operator, **self.options.operator_settings)
        width = NetworkSpec.width if self.options.width is None else self.options.width
        spec = NetworkSpec(self.options.network or NetworkSpec.name, width)
        network = build_network(
            spec, len(self.cohort.channels), len(self.values), allow_module=self.options.allow_module
        )
        self._spatial_dims = Traits.of(network, spec.name).spatial_dims
        check_masks((*self.cohort, *self.tests), self.say)
        check_test_subjects(self.cohort, self.tests)
        for observer in self.options.observers:
            check_observer(observer, self.tests)
        self.files = {s: subject_digests(s) for s in (*self.cohort, *self.tests)}

    def check_atlases(self, names: Sequence[str]) -> None:
        """Whether labels can be carried over from these atlases, where a method does that.

        Raises:
            InputError: some label was annotated in none of them.
        """
        if not any(method.space == "labels" for method in self.methods):
            return
        counts = self.cohort.annotated_in([self.cohort[name] for name in names])
        if absent := [name for name, count in counts.items() if count == 0 and name in self.labels]:
            raise InputError(
                f"in no atlas was annotated: {', '.join(absent)}; label propagation carries over what atlases have",
                found=", ".join(names),
                remedy="name atlases that have them with --atlas, or leave propagation out of --only",
            )

    def jobs(self) -> Iterator[Run]:
        """What is trained and tested, for all numbers of atlases; the whole cohort first."""
        epochs = sorted({epoch for epoch in self.options.curve_epochs if epoch < self.recipe.epochs})
        for fraction in sorted({1.0, *self.options.fractions}, reverse=True):
            for repetition in range(self.options.seeds):
                for method in self.methods:
                    if (method.seeded or repetition == 0) and (fraction == 1 or method.name in OVER_FRACTIONS):
                        job = Run(method, fraction, self.execution.seed + repetition)
                        yield job if fraction == 1 else replace(job, fraction_of=self.options.fraction_of)
                        if fraction == 1 and method.seeded:
                            yield from (replace(job, epoch=epoch) for epoch in epochs)

    def members(self, job: Run, atlases: int) -> list[Run]:
        """The trainings of a job, several for an ensemble."""
        return [replace(job, seed=job.seed + MEMBER_SEED * m) for m in range(atlases if job.method.members else 1)]

    def lengthened(self, method: Method, epochs: int, atlases: int) -> int:
        """Epochs that a network of the method has had when each of AtlasNet's has had ``epochs``."""
        return self.sharing.epochs(epochs, atlases) if method.longer else epochs

    def checked(self) -> tuple[dict[str, Any], Plan]:
        """The settings and the plan of the study, after all that is refused before any work.

        Raises:
            InputError: the folder holds another study, networks of it were trained by another plan, or the plan and the
                options do not go together.
        """
        settings = self.checked_settings()
        plan = self.plan()
        check_tissues(planned_operator(self.options.operator, self.options.operator_settings, plan), self.values)
        if self.options.fraction_of == "slices":
            check_shares_of_slices(self.options.fractions, self.cohort, plan.slice_axis)
        return settings, plan

    def derived_plan(self) -> Plan:
        """The plan that follows from the training subjects."""
        return Plan.derive(
            take_fingerprint(self.cohort, self.say),
            registered=self.options.operator not in WITHOUT_SETTINGS,
            finer=self.recipe.finer(self._spatial_dims),
            spacing=self.options.spacing,
        )

    def plan(self) -> Plan:
        """The plan beside the study, or the one that follows from the training subjects.

        Raises:
            InputError: networks of the study were trained by another one, or it has another spacing than was asked for.
        """
        path = self.folder / PLAN
        if not path.exists():
            return self.derived_plan()
        plan = Plan.read(path)
        if self.options.spacing is not None:
            check_spacing(plan.spacing, self.options.spacing, lambda: self.derived_plan().spacing, path)
        for place in sorted((self.folder / "models").glob(f"*/*/*/{PLAN}")):
            if Plan.read(place) != plan:
                raise InputError(
                    "the plan of the study is another one than that by which networks were trained",
                    path=path,
                    expected=f"that of {place}",
                    remedy="put it back, or give another folder with -o: figures of one table come from one plan",
                )
        return plan

    def checked_settings(self) -> dict[str, Any]:
        """Figures of one table come from one setting; what is named here may be added.

        Returns:
            What is written into `SETTINGS`, with when the study was begun and by which versions.
        """
        options = asdict(self.options) | {"allow_module": False}  # which network it is says enough
        added = ("methods", "seeds", "fractions", "fraction_of", "curve_epochs", "observers", "patches")
        for name in (*added, "preset", "epochs", "spacing"):  # the recipe and the plan say the last three
            options.pop(name)
        if not options["loss_weights"]:  # nor had studies that could not say them
            del options["loss_weights"]
        settings = {
            "options": options | {"sharing": asdict(self.sharing)},
            "recipe": self.recipe.to_json(),
            "labels": {**self.cohort.labels, "": self.cohort.ignore_label, **self.cohort.regions},
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
            before["options"]["allow_module"] = False
            changed = _changed(*(json.loads(json.dumps(each)) for each in (before, settings)))
        if changed:
            raise InputError(
                "the folder holds a study with other settings",
                path=path,
                found=told(changed),
                remedy="give another folder with -o",
            )
        return settings | self._recorded(path)

    def _recorded(self, path: Path) -> dict[str, Any]:
        """When the study was ``begun``, and which versions of the ``software`` worked on it, from when on."""
        known: dict[str, Any] = {"begun": None if path.exists() else today(), "software": []}
        with reading_back(path):
            before = read_json(path) if path.exists() else {}
            known |= {name: before[name] for name in known if name in before}
            self.earlier = [decisive(one) for one in known["software"]] or ([{}] if before else [])
        if versions() not in self.earlier:
            known["software"] = [*known["software"], {"from": today(), **versions()}]
        return known

    def _check_folder(self, settings: Any) -> None:
        """Find out that files in the folder, such as these ``settings``, are those of something else than a study."""
        path = self.folder / SETTINGS
        if path.exists():
            foreign = [] if isinstance(settings, dict) and {"options", "tests"} & set(settings) else [path]
        else:
            begun = (self.folder / PLAN).exists()
            outputs = [self.folder / name for name in OUTPUTS]
            foreign = [file for file in outputs if file.exists() and not begun]
            require_no_other(self.folder, STUDY)
        if foreign:
            raise InputError(
                "a file lies where one of the study belongs, and is of no study",
                path=foreign[0],
                remedy="give another folder with -o, or move the file away",
            )

    def unfinished(self, job: Run, atlases: int) -> list[Subject]:
        """The test subjects that some run of the job has still to segment, or to try again."""
        runs = job.with_atlases(atlases)
        unfinished = []
        for test in self.tests:
            results = [self.kept.result(run, test.name) for run in runs]
            if not all(result is not None and result.scores for result in results):
                unfinished.append(test)
        return unfinished


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How the settings of two studies differ."""
    subjects = ("training", "tests")
    found = [f"{name}: {text}" for name in subjects for text in changed_subjects(before.get(name) or {}, now[name])]
    rest = [name for name in now if name not in (*subjects, "options")]
    found += differences(before.get("options"), now["options"])
    return found + differences({name: before.get(name) for name in rest}, {name: now[name] for name in rest})
