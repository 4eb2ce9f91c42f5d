"""From annotated scans to a model: plan, atlases, registration, mapping, one network per atlas.

Every stage leaves its result under a key made of all that it depends on, so that the same call goes on where an earlier
one stopped, and a stage whose input did not change is not done again.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import nn

from atlasnet import __version__
from atlasnet.cohort import Cohort, Plan, take_fingerprint
from atlasnet.cohort.apart import require_apart
from atlasnet.cohort.doubts import cohort_doubts, ct_doubts
from atlasnet.cohort.masks import are_masked, check_masks
from atlasnet.cohort.planning import plan_for
from atlasnet.cohort.spacing import check_spacing
from atlasnet.errors import CohortError, InputError, ModelError
from atlasnet.execution import (
    Execution,
    WorkFolder,
    copy_file,
    digest,
    hold_folder,
    read_json,
    remove_begun,
    write_json,
)
from atlasnet.network import NetworkSpec, Traits, build_network, code_digest
from atlasnet.network.inference import reduced_precision
from atlasnet.registration import WITHOUT_SETTINGS, at_a_time, contextual, make_operator, work_bytes
from atlasnet.training.atlases import AtlasSet
from atlasnet.training.differences import changed_subjects, differences, told
from atlasnet.training.loop import LOG, WEIGHTS, epoch_weights
from atlasnet.training.loss import Objective
from atlasnet.training.memory import mapping_bytes, measuring_bytes
from atlasnet.training.model import PARTS, UNLIKE, Atlas, Model, class_values, log_path, weights_path
from atlasnet.training.networks import AtlasNetworks
from atlasnet.training.options import FitOptions
from atlasnet.training.outliers import training_outliers
from atlasnet.training.pairs import check_tissues, planned_operator, warn_of_unlabelled
from atlasnet.training.place import MODEL, require_no_other
from atlasnet.training.recipe import Recipe, check_epochs
from atlasnet.training.sharing import Sharing
from atlasnet.training.sources import Keyed, cohort_hashes, keyed_subject
from atlasnet.training.store import IGNORED
from atlasnet.training.transformer import MappedCohort, Transformer
from atlasnet.training.typical import NOBODY, measure_typical
from atlasnet.training.update import ATLAS_KEYS, LOSS_WEIGHTS, Update
from atlasnet.volume.names import is_file_name
from atlasnet.wording import counted, size

PLANS = "plans"  # in the work folder
ASKED = "asked"  # in the provenance: options, seed and labels of the training


def fit(
    cohort: Cohort,
    folder: str | Path,
    options: FitOptions | None = None,
    *,
    update: Model | None = None,
    work: str | Path | None = None,
    earlier: str | Path | None = None,
    execution: Execution | None = None,
) -> Model:
    """Train a model on every subject of ``cohort`` and write it into ``folder``.

    Called again with the same arguments after a stop, it goes on; a model that is finished is returned as it is.

    With ``update``, the new model keeps that model's plan, registration, architecture and atlases, and its networks
    start from that model's weights. Maps that the earlier training left in its work folder are used again.

    Args:
        cohort: subjects with references; in an update all of them, those that the model was trained on too.
        folder: of the model; its ``plan.json``, if there is one, is used, else it is derived and written.
        options: what the user chooses.
        update: a finished model that takes in what has been added to the cohort, or atlases; it is left as it is.
        work: folder of intermediate results, ``folder/work`` by default.
        earlier: another one, whose finished pieces are taken over and which is only read; in an update that of its
            model, by default.
        execution: device, threads, seed, progress.

    Raises:
        CohortError: the cohort cannot be trained on.
        InputError: an option cannot be used, an update would change nothing, memory does not suffice, or another
            process works in ``folder`` or ``work``.
        ModelError: ``folder`` holds something else, or a model that was trained differently; ``cohort`` has other
            channels or labels than the model to update.
        RegistrationError: no subject could be mapped onto an atlas.
        Cancelled: on request.
    """
    run = Fitting(cohort, folder, options, update=update, work=work, earlier=earlier, execution=execution)
    with hold_folder(run.folder):
        # Only looked at: a second call would stop the first, which trains folds in that work folder, at its next one.
        if (finished := run.finished()) is not None:
            return finished
        with run.work.locked():
            return run.model()


class Fitting:
    """One call of `fit`; what it is made of tells `atlasnet.training.forecast` what the call would do."""

    def __init__(
        self,
        cohort: Cohort,
        folder: str | Path,
        options: FitOptions | None = None,
        *,
        update: Model | None = None,
        work: str | Path | None = None,
        earlier: str | Path | None = None,
        execution: Execution | None = None,
        frozen: bool = False,  # whether the work folder is only looked at
    ) -> None:
        options = options or FitOptions()
        self.cohort, self.folder = cohort, Path(folder)
        self.execution = Execution.of(execution)
        self.say = self.execution.reporter
        self.update = None if update is None else Update(update, cohort)
        if self.update is not None:
            earlier = earlier or self.update.work
        self.work = WorkFolder(work or self.folder / "work", earlier, frozen=frozen)
        for place in (self.folder, self.work.root):
            require_apart(place, cohort.subjects, cohort.root)
        require_no_other(self.folder, MODEL)
        if self.update is not None:
            self.update.check(self.folder)
            options = self.update.completed(options)
        self.operator = options.operator or "mrf"
        self.segments = cohort.segments or ({} if update is None else update.segment_table)
        self.values = class_values(cohort.labels, cohort.ignore_label)
        self.objective = Objective.of(cohort.labels, cohort.structures, self.values, options.loss_weights)
        self.recipe = Recipe.of(options.preset, options.epochs)
        self.sharing = Sharing.of(options.sharing, self.recipe)
        self.options = replace(options, operator=self.operator, sharing=self.sharing)
        self.atlases = AtlasSet(cohort, options.atlases, self.work, self.execution, self.update, options.atlas_images)
        self._derived: Plan | None = None
        self._check()

    def _check(self) -> None:
        """Find what would fail hours later."""
        unlabelled = [subject.name for subject in self.cohort if subject.labels is None]
        if unlabelled:
            raise CohortError("subjects have no reference", path=self.cohort.root, found=", ".join(unlabelled))
        self.cohort.require_annotated()
        if not 2 <= len(self.values) <= IGNORED:
            raise CohortError(
                "the number of labels cannot be trained",
                path=self.cohort.root,
                expected=f"1 to {IGNORED - 1} labels besides the background",
                found=str(len(self.values) - 1),
            )
        too_long = [subject.name for subject in self.cohort if not is_file_name(subject.name)]
        if too_long:
            raise CohortError(
                "the name of a subject cannot be that of a model's file, which it gets where the subject is an atlas",
                path=self.cohort.root,
                expected="printable characters, no slash, at most 200 bytes",
                found=too_long[0],
                remedy="rename the files of the subject",
            )
        if self.options.time_budget is not None and not self.options.time_budget > 0:
            raise InputError("the time budget must be positive", found=f"{self.options.time_budget:g} s")
        if self.sharing.kind == "model" and self.update is None:
            raise InputError("there is no model whose weights to start from", remedy="name it with --update")
        self.atlases.check()
        check_tissues(make_operator(self.operator, **self.options.operator_settings), self.values)
        if self.options.keep_epochs and self.options.time_budget is not None:
            raise InputError("no epochs can be kept where a time budget decides how many there are")
        if self.options.keep_epochs and self.sharing.kind == "model":
            raise InputError(
                "epochs are kept of networks that are trained from scratch",
                found=f"sharing {self.sharing.kind}",
                remedy="ask for independent networks, or for another sharing",
            )
        check_epochs(self.options.keep_epochs, self.recipe)
        if len(self.cohort) == 1:
            self.say.warn("a single subject: it is its own atlas, and nothing is learnt of how subjects differ")
        check_masks(self.cohort, self.say)
        self.execution.torch_device()

    def finished(self) -> Model | None:
        """The model that lies in the folder already, its codes and colours brought up to date.

        Raises:
            ModelError: it is another one than was asked for.
        """
        if not (self.folder / "model.json").exists():
            return None
        hashes = self.hashes()
        plan = self.plan(hashes)
        model = self.same_model(self.settings(plan, hashes), plan, hashes)
        if model is None:
            return None
        self._remove_begun()
        if model.segment_table != self.segments:
            replace(model, segment_table=self.segments).save()
            self.say.note("the model is finished already; the codes and colours of its labels were brought up to date")
            return Model.load(self.folder)
        self.say.note("the model is finished already; nothing was left to do")
        return model

    def model(self) -> Model:
        """Every stage in order."""
        begin = time.perf_counter()
        hashes = self.hashes()
        changes = None if self.update is None else self.update.changes(hashes, self.atlases.count)
        plan = self.plan(hashes)
        settings = self.settings(plan, hashes)
        self._remove_begun()
        if changes is not None:
            changes.tell(self.say, tuned=self.sharing.kind == "model")
        if self.cohort.annotation:
            self.say.note(self.cohort.annotation)
        spec = self.spec(plan)
        recipe = self.planned_recipe(plan)
        transformer = self.transformer(plan)
        operator = transformer.registrar.operator
        # Only now: options that are refused leave no plan for the next call to take.
        if not self.plan_path.exists():
            self._keep_plan(plan, hashes)
            plan.write(self.plan_path)
        elif self._derived is not None:
            self._keep_plan(self._derived, hashes)
        self.require_memory(transformer)
        subjects = [keyed_subject(subject, hashes[subject.name]) for subject in self.cohort]
        with self.execution.active():
            sources = self.atlases.found(subjects)
            targets = self.atlases.written(sources, subjects, self.folder, labelled=contextual(operator))
            warn_of_unlabelled(operator, targets, self.say)
            if changes is not None:
                pairs = [(s, t) for s in subjects for t in targets if s.key != t.key]
                there = sum(transformer.registrar.place(*pair) is not None for pair in pairs)
                self.say.note(f"{there} of {counted(len(pairs), 'registration')} there already")
            mapped = transformer.map(subjects, targets)
            earlier = NOBODY if self.goes_on is None else self.goes_on.earlier(hashes, self.say)
            measured = measure_typical(transformer, subjects, targets, mapped, earlier)
            called = {value: name for name, value in self.cohort.labels.items()}
            unlike = training_outliers(
                measured, mapped, [t.name for t in targets], [called[value] for value in self.values], earlier
            )
        for text in unlike:
            self.say.warn(text)
        spec = self.planned_spec(plan, spec, mapped[0].cases[0].labels.shape)
        atlases = [
            Atlas(s.name, s.subject, m.quality, m.region, t.labels_key)
            for s, m, t in zip(sources, mapped, targets, strict=True)
        ]
        networks = self.networks([atlas.name for atlas in atlases], mapped, spec)
        if self.options.time_budget is not None:
            recipe = self._within_budget(settings, networks, recipe, begin + self.options.time_budget)
        by_name = {atlas.name: atlas for atlas in atlases}
        tuned = networks.tuned
        for name, folder in networks.train(recipe):
            copy_file(folder / LOG, log_path(self.folder, name))
            if name is not None:
                copy_file(folder / WEIGHTS, weights_path(self.folder, by_name[name]))
            if name in tuned:
                continue
            # A network that is tuned has been the one that it starts from.
            for atlas in tuned if name is None else (name, *tuned):
                for epoch in self.options.keep_epochs:
                    copy_file(epoch_weights(folder, epoch), weights_path(self.folder, by_name[atlas], epoch))
        model = Model(
            folder=self.folder,
            channels=self.cohort.channels,
            labels=self.cohort.labels,
            ignore_label=self.cohort.ignore_label,
            plan=plan,
            operator=operator.name,
            operator_settings=operator.settings(),
            network=spec,
            atlases=tuple(atlases),
            provenance=self._provenance(settings, self.asked(plan), spec, recipe, networks, hashes, targets, unlike),
            regions=self.cohort.regions,
            segment_table=self.segments,
            typical=measured.typical,
            organ_mask=are_masked(self.cohort),
        )
        model.save()
        return Model.load(self.folder)

    def require_memory(self, transformer: Transformer) -> None:
        """Refuse scans that, by their headers, memory does not suffice for.

        Raises:
            InputError: it does not.
        """
        scans = [subject.read_grid() for subject in self.cohort]
        operator, spacing = transformer.registrar.operator, None if transformer.cropped else transformer.plan.spacing
        needed = mapping_bytes(scans, len(self.cohort.channels), self.atlases.count, operator, spacing)
        raised = "registration_spacing" if spacing is None else "spacing"
        remedy = f"crop or resample the largest scans, or raise {raised} in {self.plan_path.name}"
        self.execution.require_memory(needed, remedy, self.cohort.root)
        # What registrations side by side take is no reason to refuse: fewer are made at a time where less is left.
        largest = sorted(scans, key=lambda grid: -grid.voxels)[: self.atlases.count]
        others = at_a_time(operator, largest, self.execution) - 1
        needed += others * max(work_bytes(grid, operator) for grid in largest)
        self.say.note(f"registering and mapping takes up to {size(needed / 2**20)} of memory")

    @property
    def goes_on(self) -> Update | None:
        """The update whose networks keep what they learnt from the model's subjects; None where all start anew."""
        return self.update if self.sharing.kind == "model" else None

    @property
    def plan_path(self) -> Path:
        """Where the plan lies, or will lie."""
        return self.folder / "plan.json"

    def settings(self, plan: Plan, hashes: Mapping[str, Any]) -> str:
        """What a finished model depends on."""
        return digest({"plan": plan.to_json(), "data": hashes, **self.asked(plan)})

    def asked(self, plan: Plan) -> dict[str, Any]:
        """The same but for plan and data."""
        options = asdict(self.options) | {"atlases": self.atlases.identity(), "sharing": asdict(self.sharing)}
        options["atlas_images"] = self.atlases.keys_beside
        for name in ("keep_epochs", "spacing"):  # the model is the same, and the plan says it
            del options[name]
        for name in ("network", "width"):  # and whoever asks for what is planned anyway
            if options[name] == getattr(plan, name):
                options[name] = None
        if options["epochs"] == Recipe.of(self.options.preset).epochs:
            options["epochs"] = None
        for name in ("atlas_images", "loss_weights"):
            if not options[name]:
                del options[name]
        options["allow_module"] = False  # the code itself is asked for below
        depends_on: dict[str, Any] = {
            "options": options,
            "seed": self.execution.seed,
            "labels": self.cohort.labels,
        }
        if self.cohort.regions:
            depends_on["regions"] = self.cohort.regions
        if self.cohort.ignore_label is not None:
            depends_on["ignore_label"] = self.cohort.ignore_label
        if self.update is not None:
            depends_on["update"] = self.update.model.checksum
        network = self.options.network or plan.network
        if (code := code_digest(network, allow_module=self.options.allow_module)) is not None:
            depends_on["code"] = code
        return depends_on

    def planned_recipe(self, plan: Plan) -> Recipe:
        """The recipe, its batches within the plan's."""
        return replace(self.recipe, batch_slices=min(self.recipe.batch_slices, plan.batch_size))

    def transformer(self, plan: Plan) -> Transformer:
        """What maps the subjects onto the atlases."""
        operator = planned_operator(self.operator, self.options.operator_settings, plan)
        # What a network knows of the places where earlier subjects had structures is of use only where it is asked.
        return Transformer(
            plan,
            operator,
            self.values,
            self.options.minimum_quality,
            self.work,
            self.execution,
            cropped=self.operator not in WITHOUT_SETTINGS,  # structures come to one place by registration
            ignore_label=self.cohort.ignore_label,
            regions=None if self.goes_on is None else self.goes_on.regions,
        )

    def networks(self, names: Sequence[str], mapped: Sequence[MappedCohort], spec: NetworkSpec) -> AtlasNetworks:
        """The networks of these atlases."""
        return AtlasNetworks(
            names=names,
            mapped=mapped,
            spec=spec,
            classes=len(self.values),
            objective=self.objective,
            sharing=self.sharing,
            starts=() if self.update is None else self.update.starts(names),
            work=self.work,
            execution=self.execution,
            allow_module=self.options.allow_module,
            keep=self.options.keep_epochs,
        )

    def hashes(self) -> dict[str, dict[str, list[str]]]:
        """SHA-256 of every file, per subject; see `cohort_hashes`."""
        return cohort_hashes(self.cohort, self.say)

    def plan(self, hashes: Mapping[str, Any]) -> Plan:
        """The plan beside the model, or the one that follows from the cohort; in an update that of its model."""
        if self.update is not None:
            if self.options.spacing is not None:
                raise InputError("an updated model keeps its spacing", remedy="train a new model, without an update")
            return self.update.plan(self.plan_path)
        if self.plan_path.exists():
            plan = Plan.read(self.plan_path)
            if plan.channels != self.cohort.channels:
                raise CohortError(
                    "the plan is for other channels",
                    path=self.plan_path,
                    expected=", ".join(self.cohort.channels),
                    found=", ".join(plan.channels),
                    remedy="delete the file to have it derived again",
                )
            if self.options.spacing is not None:
                wanted = self.options.spacing
                check_spacing(plan.spacing, wanted, lambda: self.derived_plan(hashes).spacing, self.plan_path)
            if self._derived_for_others(plan, hashes):
                self.say.warn(
                    f"{self.plan_path} was derived by an earlier call, from other scans or for other options, and is "
                    "used as it is; delete it to have it derived again"
                )
            return plan
        return self.derived_plan(hashes)

    @cached_property
    def _finer(self) -> bool:
        """Whether voxels finer than a scan's are planned."""
        spec = NetworkSpec(self.options.network or Plan.network, self.options.width or Plan.width)
        return self.recipe.finer(self._traits(spec).spatial_dims)

    def _plan_key(self, hashes: Mapping[str, Any]) -> str:
        """What a derived plan follows from."""
        options: dict[str, Any] = {"registered": self.operator not in WITHOUT_SETTINGS, "finer": self._finer}
        if self.options.spacing is not None:
            options["spacing"] = self.options.spacing
        return digest({"data": hashes, "channels": self.cohort.channels, "labels": self.cohort.labels} | options)

    def _keep_plan(self, plan: Plan, hashes: Mapping[str, Any]) -> None:
        """Of a plan that was derived, note from what."""
        key = self._plan_key(hashes)
        if self.update is None and not self.work.finished(PLANS, key, self.say.warn):
            with self.work.making(PLANS, key) as folder:
                plan.write(folder / self.plan_path.name)

    def _derived_for_others(self, plan: Plan, hashes: Mapping[str, Any]) -> bool:
        """Whether nobody but a call with other scans or options made the plan, and it is not what follows from these.

        One that was changed by hand is no longer any that was derived.
        """
        kept = {
            entry.name
            for entry in self.work.root.glob(f"{PLANS}/[!.]*")
            if self.work.finished(PLANS, entry.name, self.say.warn) and Plan.read(entry / self.plan_path.name) == plan
        }
        return bool(kept) and self._plan_key(hashes) not in kept and self.derived_plan(hashes) != plan

    def derived_plan(self, hashes: Mapping[str, Any]) -> Plan:
        """The plan that follows from the cohort, measured where the work folder does not hold it.

        Args:
            hashes: of the cohort, see `hashes`.

        Raises:
            InputError: memory does not suffice to measure it.
        """
        key = self._plan_key(hashes)
        if self._derived is None and self.work.finished(PLANS, key, self.say.warn):
            self._derived = Plan.read(self.work.entry(PLANS, key) / self.plan_path.name)
        if self._derived is None:
            self._derived = self._measured_plan()
        return self._derived

    def _measured_plan(self) -> Plan:
        needed = measuring_bytes([subject.read_grid() for subject in self.cohort], len(self.cohort.channels))
        self.execution.require_memory(needed, "crop or resample the largest scans", self.cohort.root)
        fingerprint = take_fingerprint(self.cohort, self.say)
        for text in (*cohort_doubts(self.cohort, fingerprint), *ct_doubts(self.cohort, fingerprint)):
            self.say.warn(text)
        planned = plan_for(
            self.cohort,
            fingerprint,
            registered=self.operator not in WITHOUT_SETTINGS,
            finer=self._finer,
            spacing=self.options.spacing,
            reporter=self.say,
        )
        if planned.note is not None:
            self.say.note(planned.note)
        if planned.doubt is not None:
            self.say.warn(planned.doubt)
        return planned.plan

    def same_model(self, settings: str, plan: Plan, hashes: Mapping[str, Any]) -> Model | None:
        """The finished model that lies in the folder already.

        Args:
            settings: from `settings`.
            plan: from `plan`, to say how it differs.
            hashes: from `hashes`, likewise.

        Raises:
            ModelError: it is another one than was asked for.
        """
        if not (self.folder / "model.json").exists():
            return None
        try:
            model = Model.load(self.folder)
        except ModelError as error:
            remedy = "delete model.json there: the same command makes the model again from what is kept"
            raise error.told(remedy=remedy) from error
        if model.provenance.get("settings") != settings:
            raise self._other(model, plan, hashes)
        if not all(model.weights_path(a, epoch).is_file() for a in model.atlases for epoch in self.options.keep_epochs):
            return None
        return model

    def _other(self, model: Model, plan: Plan, hashes: Mapping[str, Any]) -> ModelError:
        """The error that the folder holds this model, which is another than was asked for."""
        data = model.provenance.get("data", {})
        found = [*changed_subjects(data, hashes), *differences(model.plan.to_json(), plan.to_json(), "plan")]
        if ASKED in model.provenance:  # models of before do not tell
            before, now = model.provenance[ASKED], json.loads(json.dumps(self.asked(plan)))
            found += differences({**before.pop("options"), **before}, {**now.pop("options"), **now})
        update = f"train a new one that takes them in with -o and --update {self.folder}, "
        return ModelError(
            "the folder holds a finished model that was trained with other data, options or plan",
            path=self.folder,
            found=told(found),
            remedy=f"{update if hashes.keys() - data.keys() else ''}give another folder with -o, or delete its "
            "model.json, and plan.json for a new plan, to train anew from what is cached",
        )

    def _remove_begun(self) -> None:
        """Remove what a training that was killed had begun to write into the folder, which is held."""
        remove_begun([self.folder / "model.json", self.plan_path], below=[self.folder / part for part in PARTS])

    def spec(self, plan: Plan) -> NetworkSpec:
        """The network by name and width, built once so that a wrong one is found now."""
        if self.update is not None:
            spec = self.update.model.network
        else:
            width = plan.width if self.options.width is None else self.options.width
            spec = NetworkSpec(self.options.network or plan.network, width)
        self._built(spec)
        return spec

    def _built(self, spec: NetworkSpec) -> nn.Module:
        """The network with fresh weights."""
        return build_network(spec, len(self.cohort.channels), len(self.values), allow_module=self.options.allow_module)

    def _traits(self, spec: NetworkSpec) -> Traits:
        return Traits.of(self._built(spec), spec.name)

    def planned_spec(self, plan: Plan, spec: NetworkSpec, shape: Sequence[int]) -> NetworkSpec:
        """The spec with the options that depend on the size of the slices of a case (z, y, x)."""
        if self.update is not None:
            return spec
        return NetworkSpec.planned(spec.name, shape[1:], width=spec.width, context=plan.context)

    def _within_budget(self, settings: str, networks: AtlasNetworks, recipe: Recipe, end: float) -> Recipe:
        """The recipe with as many epochs as there is time for until ``end``, as it was decided once."""
        if not self.work.finished("budget", settings, self.say.warn):
            chosen = networks.within(recipe, end)
            with self.work.making("budget", settings) as folder:
                write_json(folder / "recipe.json", chosen.to_json())
        return Recipe.from_json(read_json(self.budget_path(settings)))

    def budget_path(self, settings: str) -> Path:
        """Where the recipe is kept that a time budget allows."""
        return self.work.entry("budget", settings) / "recipe.json"

    def _provenance(
        self,
        settings: str,
        asked: Mapping[str, Any],
        spec: NetworkSpec,
        recipe: Recipe,
        networks: AtlasNetworks,
        hashes: dict[str, Any],
        targets: Sequence[Keyed],
        unlike: Sequence[str],
    ) -> dict[str, Any]:
        device, dims = torch.device(self.execution.device), self._traits(spec).spatial_dims
        record = {
            "settings": settings,
            ASKED: asked,
            "recipe": recipe.to_json(),
            "sharing": asdict(self.sharing) | {"tuned": networks.tuned},
            "seed": self.execution.seed,
            "threads": self.execution.threads,
            "device": self.execution.device,
            "precision": str(reduced_precision(device, dims) or torch.float32).split(".")[-1],
            "data": hashes,
            ATLAS_KEYS: {target.name: target.key for target in targets},
            "versions": {
                "atlasnet": __version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "simpleitk": sitk.Version.VersionString(),
                "python": platform.python_version(),
            },
        }
        if unlike:
            record[UNLIKE] = list(unlike)
        if self.options.loss_weights:
            record[LOSS_WEIGHTS] = dict(self.options.loss_weights)
        if self.update is not None:
            record["update"] = self.update.record(hashes, networks.names)
        return record
