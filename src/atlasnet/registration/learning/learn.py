"""From a cohort with labels to metric weights: pairs, problems, iterations, the judgement on other pairs.

Every stage leaves its result in the work folder under a key made of all that it depends on, so that the same call goes
on where an earlier one stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasnet import __version__
from atlasnet.cohort import Cohort, Subject
from atlasnet.errors import CohortError, InputError, RegistrationError
from atlasnet.execution import Execution, WorkFolder, digest, read_json, write_json
from atlasnet.registration.affine import prealign
from atlasnet.registration.context import TissueClass
from atlasnet.registration.learning.draw import Pair, draw_pairs, label_classes
from atlasnet.registration.learning.observe import observe
from atlasnet.registration.learning.problem import Found, Problem
from atlasnet.registration.learning.programme import SVMSettings
from atlasnet.registration.learning.svm import Iteration, improved, started
from atlasnet.registration.metric_weights import MetricWeights
from atlasnet.registration.mrf import MRFOperator
from atlasnet.registration.settings import MRFSettings
from atlasnet.transform import Transform
from atlasnet.volume import Volume, canonical
from atlasnet.wording import shortened

Float = NDArray[np.float64]
REVISION = 6  # counts up when the same input would give other weights


@dataclass(frozen=True)
class LearnSettings:
    """What a user may choose.

    Args:
        metrics: whose weights are learnt, at least two.
        pairs: to learn from, at most.
        judging: pairs of other subjects, at most, on which every iteration's weights are judged.
        groups: the labels of each class, by name; see `label_classes`.
        registration: fields of `MRFSettings` besides ``metrics`` and ``classes``; ``alpha`` is where learning starts.
        svm: how the weights are found.

    Raises:
        InputError: a value that makes no sense.
    """

    metrics: tuple[str, ...] = ("mi", "ncc", "dwt", "sad")
    pairs: int = 20
    judging: int = 8
    groups: Mapping[str, tuple[int, ...]] | None = None
    registration: Mapping[str, Any] = field(default_factory=dict)
    svm: SVMSettings = field(default_factory=SVMSettings)

    def __post_init__(self) -> None:
        if len(set(self.metrics)) < max(2, len(self.metrics)):
            raise InputError(
                "weights are learnt of several metrics", expected="two different ones", found=", ".join(self.metrics)
            )
        if self.pairs < 1:
            raise InputError(
                "there is no pair to learn from",
                expected="1 pair or more",
                found=str(self.pairs),
                remedy="give another number with --pairs (pairs in Python), or leave it out for 20",
            )
        if self.judging < 0:
            raise InputError(
                "the number of judging pairs must not be negative",
                found=str(self.judging),
                remedy="give 0 with --judging-pairs (judging in Python) to judge by none",
            )
        taken = sorted({"metrics", "classes"} & set(self.registration))
        if taken or self.start({"background": [0]}).truncation is not None:
            raise InputError(
                "this setting of the registration cannot be chosen where weights are learnt",
                found=", ".join(taken) or "truncation, with which the energy is not linear in its weights",
            )

    def start(self, classes: Mapping[str, Sequence[int]]) -> MRFSettings:
        """The registration with equal weights."""
        weights = {name: 1 / len(self.metrics) for name in self.metrics}
        tissue = tuple(TissueClass(name, tuple(labels), weights) for name, labels in classes.items())
        return MRFSettings(**{**self.registration, "metrics": weights, "classes": tissue})


def learn_metrics(
    cohort: Cohort, work: str | Path, settings: LearnSettings | None = None, *, execution: Execution | None = None
) -> MetricWeights:
    """Learn the weights of the metrics by tissue class from pairs of annotated subjects.

    Called again with the same arguments after a stop, it goes on.

    Args:
        cohort: subjects with references; those in whom not all labels were annotated are left out.
        work: folder of intermediate results.
        settings: what the user chooses.
        execution: device, threads, seed, progress.

    Returns:
        The weights of the iteration that judging pairs like best, of the last one without such pairs. ``provenance``
        holds ``subjects`` (hashes of their files), ``pairs``, ``judging_pairs``, ``settings``, ``seed``, ``points``
        (the share of the control points of each class), ``chosen`` and ``iterations``: of each, 0 being the start, its
        ``objective`` and that of the weights before over the same labellings, ``gap``, ``loss``, weights, and
        ``judging_dice`` by class with its ``mean``.

    Raises:
        CohortError: fewer than two subjects, or one without a reference.
        InputError: a setting cannot be used.
        RegistrationError: no pair can be learnt from.
        Cancelled: on request.
    """
    run = Learning(cohort, Path(work), settings or LearnSettings(), Execution.of(execution))
    with run.work.locked(), run.execution.active():
        return run.weights()


class Learning:
    """One call of `learn_metrics`."""

    def __init__(self, cohort: Cohort, work: Path, settings: LearnSettings, execution: Execution) -> None:
        unlabelled = [subject.name for subject in cohort if subject.labels is None]
        if unlabelled:
            raise CohortError("subjects have no reference", path=cohort.root, found=", ".join(unlabelled))
        whole = [subject.name for subject in cohort if not subject.hidden]
        if len(whole) < len(cohort):
            if len(whole) < 2:
                raise CohortError(
                    "weights are learnt from subjects in whom all labels were annotated",
                    path=cohort.root,
                    expected="two at least",
                    found=shortened(whole) or "none",
                )
            left_out = shortened([*cohort.hidden])
            execution.reporter.warn(f"not all labels were annotated in these, which are not learnt from: {left_out}")
            cohort = cohort.select(whole)
        self.cohort, self.settings, self.execution = cohort, settings, execution
        self.ignored = cohort.ignore_label
        self.work, self.say = WorkFolder(work), execution.reporter
        self.classes = label_classes(cohort.labels, settings.groups)
        if not any(0 not in labels for labels in self.classes.values()):
            raise CohortError("no class holds a structure", path=cohort.root, expected="a class without the label 0")
        self.start = settings.start(self.classes)
        names = [subject.name for subject in cohort]
        generator = np.random.default_rng(execution.seed)
        self.pairs, self.judging = draw_pairs(names, settings.pairs, settings.judging, generator)
        self._images: dict[str, tuple[Volume, Volume]] = {}

    @cached_property
    def hashes(self) -> dict[str, list[str]]:
        """SHA-256 of every image and reference of the subjects of the pairs."""
        used = {name for pair in (*self.pairs, *self.judging) for name in pair}
        hashes = {subject.name: subject.hashes() for subject in self.cohort if subject.name in used}
        return {name: [*of["images"], *of["labels"]] for name, of in hashes.items()}

    def weights(self) -> MetricWeights:
        """Every stage in order."""
        keys = [key for pair in self._tracked(self.pairs, "registering pairs") if (key := self._problems(pair))]
        examples = [
            _Stored(path, len(self.classes), self.start, self.settings.metrics)
            for key in keys
            for path in sorted(self.work.entry("problems", key).glob("*.safetensors"))
        ]
        if not examples:
            raise RegistrationError("no pair can be learnt from: none shows a structure where the registration looks")
        points = self._points(keys)
        self.judging = [pair for pair in self.judging if self._aligned(pair)]
        rows, found = [], []
        for state in self._iterations(keys, examples):
            found.append(self._weights(state, points))
            judged = self._judged(found[-1])
            rows.append(_row(state, found[-1], judged))
            self.say.note(_line(len(rows) - 1, rows[-1]))
        chosen = len(rows) - 1
        if self.judging:
            chosen = max(range(len(rows)), key=lambda number: (rows[number]["judging_dice"]["mean"], -number))
        return replace(
            found[chosen],
            provenance={
                "atlasnet": __version__,
                "seed": self.execution.seed,
                "settings": asdict(self.settings),
                "subjects": self.hashes,
                "pairs": [list(pair) for pair in self.pairs],
                "judging_pairs": [list(pair) for pair in self.judging],
                "points": dict(zip(self.classes, (round(float(share), 6) for share in points), strict=True)),
                "chosen": chosen,
                "iterations": rows,
            },
        )

    def _tracked(self, pairs: Sequence[Pair], what: str) -> Any:
        for pair in self.say.track(pairs, what, len(pairs)):
            self.execution.pause()
            yield pair

    def _read(self, name: str) -> tuple[Volume, Volume]:
        """Image and labels, canonical orientation; those of a few subjects are kept."""
        if name not in self._images:
            while len(self._images) > 3:
                del self._images[next(iter(self._images))]
            subject: Subject = self.cohort[name]
            image = subject.read_image()
            self._images[name] = canonical(image)[0], canonical(subject.read_labels(image.grid))[0]
        return self._images[name]

    def _key(self, pair: Pair, **more: Any) -> str:
        return digest({"revision": REVISION, "files": [self.hashes[name] for name in pair], **more})

    def _start(self, pair: Pair) -> Transform:
        """The affine alignment of a pair."""
        if not self.start.affine:
            return Transform.identity()
        key = self._key(pair, affine=asdict(self.start.affine_settings))
        if not self.work.finished("starts", key, self.say.warn):
            (source, _), (target, _) = self._read(pair[0]), self._read(pair[1])
            aligned = prealign(source, target, settings=self.start.affine_settings, execution=self.execution)
            with self.work.making("starts", key) as folder:
                aligned.save(folder / "transform.safetensors")
        return Transform.load(self.work.entry("starts", key) / "transform.safetensors")

    def _aligned(self, pair: Pair) -> bool:
        """Whether a pair has an affine alignment; of one that has none, the reporter is warned."""
        try:
            self._start(pair)
        except RegistrationError as error:
            self.say.warn(f"{pair[0]} onto {pair[1]} is left out: {error}")
            return False
        return True

    def _problems(self, pair: Pair) -> str | None:
        """The key under which the problems of a pair lie; None where it cannot be registered."""
        # The costs are kept in the order of the metrics, which a digest of the settings does not know.
        key = self._key(pair, settings=self.start.as_json(), metrics=list(self.settings.metrics), ignore=self.ignored)
        if not self.work.finished("problems", key, self.say.warn):
            if not self._aligned(pair):
                return None
            start = self._start(pair)
            images = (*self._read(pair[0]), *self._read(pair[1]))
            met = observe(*images, start, self.settings.metrics, self.start, self.execution)
            with self.work.making("problems", key) as folder:
                for number, problem in enumerate(met):
                    problem.save(folder / f"{number:02d}.safetensors")
                counts = [_counts(problem) for problem in met]
                write_json(folder / "points.json", [[float(n) for n in row] for row in counts])
        return key

    def _points(self, keys: Sequence[str]) -> Float:
        """The share of the control points of each class, every problem counting alike."""
        rows = [row for key in keys for row in read_json(self.work.entry("problems", key) / "points.json")]
        shares: Float = np.mean(rows, axis=0)
        for name, share in zip(self.classes, shares, strict=True):
            if share == 0:
                self.say.warn(f"the class {name} prevails at no control point: its weights are the mean of the others")
        return shares

    def _iterations(self, keys: Sequence[str], examples: Sequence[_Stored]) -> Any:
        """The start and every iteration, kept ones first."""
        dimension, svm = len(self.classes) * len(self.settings.metrics) + 1, self.settings.svm
        fixed = {name: value for name, value in asdict(svm).items() if name != "iterations"}
        key = digest({"revision": REVISION, "problems": list(keys), "svm": fixed})
        state: Iteration | None = None
        for number in range(svm.iterations + 1):
            own = f"{key}-{number}"
            if not self.work.finished("iterations", own, self.say.warn):
                what = "meeting labellings" if state is None else f"learning, iteration {number}"
                self.say.note(what)
                made = (
                    started(examples, dimension, svm, self.execution.pause)
                    if state is None
                    else improved(state, examples, svm, self.execution.pause)
                )
                with self.work.making("iterations", own) as folder:
                    write_json(folder / "iteration.json", made.to_json())
            state = Iteration.from_json(read_json(self.work.entry("iterations", own) / "iteration.json"))
            yield state
            if number and state.converged(svm):
                break

    def _weights(self, state: Iteration, points: Float) -> MetricWeights:
        """Multiples of the start as weights whose class-free average sums to 1."""
        metrics = self.settings.metrics
        table = state.weights[:-1].reshape(len(self.classes), -1) / len(metrics)
        average = points @ table
        total = float(average.sum())
        if not total > 0:
            raise RegistrationError("learning left no metric any weight; lower the cost, or learn from more pairs")
        classes = tuple(
            TissueClass(name, tuple(labels), _named(metrics, row / total))
            for (name, labels), row in zip(self.classes.items(), table, strict=True)
        )
        alpha = float(state.weights[-1]) * self.start.alpha / total
        return MetricWeights(classes, _named(metrics, average / total), alpha)

    def _judged(self, weights: MetricWeights) -> dict[str, float] | None:
        """Mean Dice of each structure over the judging pairs, and the mean of these."""
        if not self.judging:
            return None
        options = MRFSettings(**{**self.settings.registration, **weights.settings()})
        scores: dict[str, list[float]] = {}
        for pair in self._tracked(self.judging, "judging"):
            key = self._key(pair, judged=options.as_json(), classes=self.classes, ignore=self.ignored)
            if not self.work.finished("judged", key, self.say.warn):
                dice = self._dice(pair, options)
                with self.work.making("judged", key) as folder:
                    write_json(folder / "dice.json", dice)
            for name, value in read_json(self.work.entry("judged", key) / "dice.json").items():
                scores.setdefault(name, []).append(value)
        means = {name: round(float(np.mean(values)), 6) for name, values in scores.items()}
        return means | {"mean": round(float(np.mean(list(means.values()))), 6)}

    def _dice(self, pair: Pair, options: MRFSettings) -> dict[str, float]:
        """Dice of each structure that either image shows, after a registration."""
        (source, labels), (target, reference) = self._read(pair[0]), self._read(pair[1])
        (made,) = MRFOperator(options).register(
            source, [target], initial=[self._start(pair)], source_labels=labels, execution=self.execution
        )
        carried = made.transform.warp(labels, target.grid, interpolation="label").array
        annotated = (reference.array != self.ignored) & (carried != self.ignored)
        found = {}
        for name, values in self.classes.items():
            here, there = (np.isin(array, values) & annotated for array in (reference.array, carried))
            if 0 not in values and (here.any() or there.any()):
                found[name] = 2 * float((here & there).sum()) / float(here.sum() + there.sum())
        return found


@dataclass(frozen=True)
class _Stored:
    """A problem on disk, in multiples of the weights at the start."""

    path: Path
    classes: int
    start: MRFSettings
    metrics: tuple[str, ...]

    def infer(self, weights: Float, factor: float) -> Found:
        unit = np.append(np.full(self.classes * len(self.metrics), 1 / len(self.metrics)), self.start.alpha)
        problem = Problem.load(
            self.path, count=self.classes, iterations=self.start.iterations, damping=self.start.damping
        )
        _, found = problem.infer(weights * unit, factor)
        return Found(found.features * unit, found.loss)


def _counts(problem: Problem) -> Float:
    """The share of the control points of each class, of those that have one."""
    known = (problem.costs != 0).flatten(0, 3).any(0).numpy()
    counts = np.bincount(problem.classes.numpy()[known], minlength=problem.count)
    return np.asarray(counts / max(counts.sum(), 1))


def _named(metrics: Sequence[str], row: Float) -> dict[str, float]:
    return {name: round(float(value), 9) for name, value in zip(metrics, row, strict=True)}


def _row(state: Iteration, weights: MetricWeights, judged: dict[str, float] | None) -> dict[str, Any]:
    """What the record says of an iteration."""
    names = ("objective_before", "objective", "gap", "rounds", "loss")
    content = state.to_json()
    return {name: content[name] for name in names} | {
        "alpha": weights.alpha,
        "weights": {one.name: dict(one.weights) for one in weights.classes},
        "judging_dice": judged,
    }


def _line(number: int, row: Mapping[str, Any]) -> str:
    """An iteration for a person."""
    judged = row["judging_dice"]
    dice = "" if judged is None else f", Dice of the judging pairs {judged['mean']:.4f}"
    what = "equal weights" if number == 0 else f"iteration {number}"
    return f"{what}: objective {row['objective']:.4g}, gap {row['gap']:.2g}, loss {row['loss']:.4f}{dice}"
