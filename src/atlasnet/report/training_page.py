"""A training on one page: atlases, registrations with the worst on top, curves, cross-validation."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlasnet.cohort.structures import regions_shown, shown
from atlasnet.execution import Execution, reading_back
from atlasnet.report.curves import Point, curve_figure, svg
from atlasnet.report.display import window
from atlasnet.report.evaluation_page import add_scores
from atlasnet.report.page import NO_DEVICE, Cell, Page, number
from atlasnet.report.pair import Panel, add_panels, add_scale, pair_panels
from atlasnet.report.quality import REGISTRATION_HEAD, registration_cells
from atlasnet.report.stack import add_stacks, image_layer, stacks
from atlasnet.training.model import Model, log_path
from atlasnet.training.networks import COMMON
from atlasnet.training.options import FitOptions
from atlasnet.training.registered import RegisteredPair
from atlasnet.volume import Volume, canonical
from atlasnet.wording import counted, lengths, shortened

PAIR_BYTES = 5 * 2**20  # all pictures of registrations together, before base64 makes a third more of them
ATLAS_BYTES = 3 * 2**20  # likewise of the atlases
PAIR_EDGE = 192  # pixels of the longer edge of a picture of a registration
_SHOWN = 3  # pairs that are unfolded from the start


def write_training_report(
    path: Path,
    model: Model,
    pairs: Sequence[RegisteredPair],
    *,
    cross_validation: Mapping[str, Any] | None = None,
    execution: Execution | None = None,
) -> Path:
    """Write the page of a training.

    Args:
        path: of the page.
        model: that was trained.
        pairs: from `atlasnet.training.registered.registered_pairs`.
        cross_validation: from `atlasnet.study.cross_validation.CrossValidation.as_json`, if there was one.
        execution: its reporter and its cancellation are used.
    """
    execution = Execution.of(execution)
    page = Page("Training")
    atlases = {atlas.name: canonical(model.atlas_image(atlas))[0] for atlas in model.atlases}
    logs = _logs(model)
    found = _warnings(pairs, logs, model.provenance.get("sharing", {}).get("tuned", ()))
    none = "No warnings of subjects, registrations and networks; those of the cohort, atlasnet check gives."
    page.warnings([*(f"{text}." for text in model.unlike), *found], none)
    _summary(page, model, logs)
    _atlases(page, model, atlases)
    _curves(page, logs)
    if cross_validation is not None:
        page.heading("Cross-validation")
        said = f"Each subject by a model that has not seen it, in {counted(len(cross_validation['folds']), 'fold')}."
        if cross_validation.get("never_left_out"):
            rest = shortened(cross_validation["never_left_out"])
            said += f" Trained on in every fold, and without a score: {rest}."
        if (every := cross_validation.get("over_labels")) is not None:
            said += f" Mean Dice over the labels: {number(every['dice'])}, worst tenth {number(every['worst_tenth'])}."
        page.text(said)
        for caution in cross_validation.get("cautions", ()):
            page.text(caution)
        add_scores(page, cross_validation)
    _registrations(page, model, pairs, atlases, execution)
    page.text(NO_DEVICE, small=True)
    return page.write(path)


def _warnings(pairs: Sequence[RegisteredPair], logs: Mapping[str | None, _Log], tuned: Collection[str]) -> list[str]:
    found = [
        f"{pair.subject.name} does not fit atlas {pair.atlas.name}: registration quality {pair.quality:.3f}."
        for pair in pairs
        if pair.quality < FitOptions.minimum_quality
    ]
    found += [
        f"The map of {pair.subject.name} onto {pair.atlas.name} folds {100 * pair.record['folded_share']:.3g} % of it."
        for pair in pairs
        if pair.record.get("folded_share", 0) > 0
    ]
    for name, log in logs.items():
        # A network that starts from another's weights has little left to learn.
        if name not in tuned and len(log.losses) > 1 and log.losses[-1].y >= log.losses[0].y:
            found.append(f"The network of {name or COMMON} has not learnt: its loss did not fall.")
    return found


def _summary(page: Page, model: Model, logs: Mapping[str | None, _Log]) -> None:
    told = model.summary()
    names = {segment.name: segment.colour for segment in model.segments}
    labels: list[list[str | Cell]] = [[Cell(n, names.get(n, "")), str(v)] for n, v in model.labels.items()]
    labels += [[Cell(f"{name} (region)"), values] for name, values in regions_shown(model.regions).items()]
    head = ["label", "value"]
    if annotated := told["annotated_in"]:
        head.append("annotated in")
        counts = {shown(model.structures[name]): counted(n, "training subject") for name, n in annotated.items()}
        labels = [[*row, counts.get(str(row[1]), "")] for row in labels]
    page.table(head, labels)
    recipe = model.provenance["recipe"]
    waiting = []
    if seconds := sum(log.seconds for log in logs.values()):
        share = sum(log.waited for log in logs.values()) / seconds
        waiting = [["networks waited for slices", f"{100 * share:.1f} % of their time"]]
    rows = [
        ["training subjects", str(told["training_subjects"])],
        ["channels", ", ".join(model.channels)],
        ["network", f"{model.network.name}, width {model.network.width:g}"],
        ["epochs", str(recipe["epochs"])],
        *waiting,
        ["voxels of the networks, mm", lengths(model.plan.spacing)],
        ["registration", model.operator],
        ["seed", str(model.provenance["seed"])],
        ["model", told["checksum"]],
        ["made with", ", ".join(f"{name} {version}" for name, version in told["versions"].items())],
    ]
    page.table(["what", "which"], rows, words=["which"])


def _extent(mm: Sequence[float] | None) -> str:
    return "all of it" if mm is None else lengths(mm)


def _atlases(page: Page, model: Model, images: Mapping[str, Volume]) -> None:
    page.heading(counted(len(model.atlases), "atlas"))
    page.text("Quality: of the registrations of the other training subjects onto the atlas.")
    rows = [
        [
            atlas.name,
            "training subject" if atlas.subject is not None else "image from elsewhere",
            *(number(atlas.quality.get(key)) for key in ("minimum", "median", "maximum")),
            _extent(model.seen_mm(atlas)),
        ]
        for atlas in sorted(model.atlases, key=lambda atlas: atlas.quality.get("minimum", 0.0))
    ]
    columns = ["atlas", "is a", "lowest quality", "median", "highest", "network sees, mm"]
    page.table(columns, rows, words=["is a", "network sees, mm"])
    for name, image in images.items():
        layers = [image_layer(image, window(image, model.channels[0]), caption="atlas")]
        with page.fold(f"Atlas {name}"):
            add_stacks(page, stacks(image.grid, layers, limit=ATLAS_BYTES // len(images)), layers, name)


@dataclass(frozen=True)
class _Log:
    """The epochs of a network.

    Args:
        losses: epoch and loss.
        seconds: of the epochs of which it is known how long the network waited for its slices.
        waited: seconds of them.
    """

    losses: list[Point]
    seconds: float
    waited: float


def _logs(model: Model) -> dict[str | None, _Log]:
    """That of every network by its atlas, None for the common one, as far as the model has them."""
    shared = model.provenance.get("sharing", {})
    # A common one's log is of an earlier training in the same folder where the model says nothing of it.
    names = [
        *([None] if shared.get("kind") == "common" and shared.get("tuned") else []),
        *(a.name for a in model.atlases),
    ]
    found: dict[str | None, _Log] = {}
    for name in names:
        path = log_path(model.folder, name)
        if path.is_file():
            with reading_back(path), open(path, newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
                losses = [Point(float(row["epoch"]), float(row["loss"])) for row in rows]
                timed = [(float(row["seconds"]), float(row["waiting"])) for row in rows if row.get("waiting")]
                found[name] = _Log(losses, sum(s for s, _ in timed), sum(s * share for s, share in timed))
    return found


def _curves(page: Page, logs: Mapping[str | None, _Log]) -> None:
    if not logs:
        return
    said = "Training loss of every atlas's network."
    curves = {str(name): log.losses for name, log in logs.items() if name is not None}
    common = logs[None].losses if None in logs else []
    if common:
        said = "Training loss of one network on all atlases, and of every atlas's, which goes on from it."
        end = common[-1].x
        tuned = {f"{name}, tuned": [Point(end + p.x, p.y) for p in log] for name, log in curves.items()}
        curves = {COMMON: common, **tuned}
    page.heading("Loss")
    page.svg(svg(curve_figure(curves, x="epoch", y="loss")), said)


def _registrations(
    page: Page, model: Model, pairs: Sequence[RegisteredPair], atlases: Mapping[str, Volume], execution: Execution
) -> None:
    page.heading("Registrations")
    if not pairs:
        page.text("The work folder does not hold them any more; the table of the atlases says how good they were.")
        return
    page.text(f"{counted(len(pairs), 'pair')} of a subject and an atlas, the one of the lowest quality first.")
    rows = [[pair.subject.name, pair.atlas.name, *registration_cells(pair.record)] for pair in pairs]
    page.table(["subject", "atlas", *REGISTRATION_HEAD], rows, words=["atlas"])
    add_scale(page)
    drawn = used = 0
    for place, pair in enumerate(execution.reporter.track(pairs, "drawing registrations", len(pairs))):
        execution.pause()
        panels = _panels(model, pair, atlases[pair.atlas.name])
        used += sum(len(panel.picture) for panel in panels)
        if used > PAIR_BYTES:
            break
        drawn += 1
        title = f"{pair.subject.name} onto {pair.atlas.name}: quality {number(pair.quality)}"
        with page.fold(title, shown=place < _SHOWN):
            add_panels(page, panels)
    if drawn < len(pairs):
        page.text(
            f"To keep the page small, the pictures of the {len(pairs) - drawn} best pairs are left out.", small=True
        )


def _panels(model: Model, pair: RegisteredPair, atlas: Volume) -> list[Panel]:
    return pair_panels(
        atlas,
        pair.subject.read_image(),
        pair.transform(),
        modality=model.channels[0],
        names=(pair.atlas.name, pair.subject.name),
        edge=PAIR_EDGE,
    )
