"""``atlasnet demo``: the whole method on a phantom cohort, beside one plain network trained on as many slices."""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasnet.cli.options import add_execution_options, execution_from, make_folder
from atlasnet.cli.reporting import tell
from atlasnet.errors import InputError
from atlasnet.wording import counted

if TYPE_CHECKING:
    from atlasnet.cohort import Cohort
    from atlasnet.estimator import AtlasNet
    from atlasnet.evaluation import Table
    from atlasnet.execution import Execution

HELP = "run every stage on a phantom cohort of chest CT with interstitial disease, with tables and pictures"

SHAPE = (32, 64, 64)  # voxels (z, y, x) of a phantom
TRAINING, TESTING = 6, 3  # subjects
ATLASES = 3
WIDTH = 0.25  # of SegNet
EPOCHS = 16  # of every network: the plain one sees as many slices as each of the atlases'
BATCH = 4  # slices: many small steps instead of few large ones, because there are two minutes for all four networks
LEARNING_RATE = 6e-3
METHODS = ("AtlasNet", "plain SegNet")
COHORT, MADE = "cohort", ("atlasnet", "plain", "predictions", "pictures")  # in the folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"), metavar="DIR", help="default: demo")
    add_execution_options(parser)


def run(args: argparse.Namespace) -> int:
    """Make the cohort, train, predict, evaluate, draw; what an earlier run finished is used again."""
    from atlasnet.cohort import Cohort, Plan, take_fingerprint
    from atlasnet.cohort.phantom import write_phantom_cohort
    from atlasnet.estimator import AtlasNet
    from atlasnet.evaluation import evaluate_folder
    from atlasnet.training.recipe import Recipe

    start = time.perf_counter()
    execution, folder = execution_from(args), args.output
    _check_place(folder)
    make_folder(folder)
    say = execution.reporter
    say.note(f"1/5 phantom cohort: {TRAINING} subjects to train on, {TESTING} to test on, {SHAPE} voxels (z, y, x)")
    data = write_phantom_cohort(
        folder / COHORT, TRAINING, shape=SHAPE, test_subjects=TESTING, seed=args.seed, reporter=say
    )
    cohort = Cohort.read(data)
    # Both see the voxels of the phantoms, so that the plain network's subjects are as they are.
    plan = Plan.derive(take_fingerprint(cohort, say), finer=False)
    for model in (folder / "atlasnet", folder / "plain"):
        make_folder(model)
        plan.write(model / "plan.json")
    say.note(f"2/5 AtlasNet: {ATLASES} atlases, a SegNet for each, {EPOCHS} epochs")
    recipe = replace(Recipe.preset("default"), epochs=EPOCHS, passes=0, batch_slices=BATCH, learning_rate=LEARNING_RATE)
    # In so few epochs a network tuned from a common one learns less than one that has all of them for itself.
    net = AtlasNet(
        atlases=ATLASES, network="segnet", width=WIDTH, preset=recipe, sharing="independent", execution=execution
    )
    net.fit(cohort, folder / "atlasnet")
    say.note(f"3/5 one plain SegNet on the subjects as they are, {EPOCHS} epochs: as many slices")
    # The phantoms share one grid, so the identity onto any of them leaves every subject as it is.
    plain = AtlasNet(
        atlases=[cohort.subjects[0].name],
        network="segnet",
        width=WIDTH,
        preset=recipe,
        registration="identity",
        execution=execution,
    ).fit(cohort, folder / "plain")
    say.note("4/5 predicting and evaluating the test subjects")
    tables = {}
    for name, method in zip(METHODS, (net, plain), strict=True):
        predictions = folder / "predictions" / name.replace(" ", "-").lower()
        _predict(method, data, predictions, execution)
        tables[name] = evaluate_folder(predictions, data / "labelsTs", execution=execution)
        tables[name].write(predictions.with_suffix(".json"))
    say.note("5/5 drawing")
    pictures = _draw(net, cohort, folder, tables, execution)
    _report(args, tables, pictures, time.perf_counter() - start)
    return 0


def _check_place(folder: Path) -> None:
    """Refuse a folder in which something else lies where models, predictions and pictures of the demo would.

    Raises:
        InputError: it does.
    """
    others = [folder / name for name in MADE if (folder / name).exists()]
    if others and not (folder / COHORT).exists():
        raise InputError(
            "the demo would take the place of what is of no demo",
            path=others[0],
            remedy="give another folder with -o",
        )


def _predict(method: AtlasNet, data: Path, predictions: Path, execution: Execution) -> None:
    """Segment the test subjects, all of them anew: the models may have changed."""
    from atlasnet.prediction import find_cases
    from atlasnet.volume import write_labels, write_volume

    shutil.rmtree(predictions, ignore_errors=True)
    cases = find_cases([data / "imagesTs"], 1)
    for case in execution.reporter.track(cases, f"segmenting for {predictions.name}", len(cases)):
        prediction = method.predict(case.read_image(), agreement=True)
        write_labels(predictions / f"{case.name}.nii.gz", prediction.labels)
        if prediction.agreement is not None:
            write_volume(predictions / f"{case.name}_agreement.nii.gz", prediction.agreement)


def _draw(net: AtlasNet, cohort: Cohort, folder: Path, tables: dict[str, Table], execution: Execution) -> list[Path]:
    """The way of the first test subject through the method, every test subject's labels, and the scores."""
    from atlasnet.registration import make_operator, register_images
    from atlasnet.report import comparison_figure, overlay, stages_figure
    from atlasnet.volume import read_labels, read_volume

    model, data, pictures = net.model, cohort.root, folder / "pictures"
    if model is None:
        return []
    written = []
    for row, case in enumerate(tables[METHODS[0]].cases):
        image = read_volume(data / "imagesTs" / f"{case}_0000.nii.gz")
        reference = read_labels(data / "labelsTs" / f"{case}.nii.gz")
        labels = {
            name: read_labels(folder / "predictions" / name.replace(" ", "-").lower() / f"{case}.nii.gz")
            for name in METHODS
        }
        if row == 0:
            atlas = model.atlas_image(model.atlases[0])
            operator = make_operator(model.operator, **model.operator_settings)
            transform = register_images(image, atlas, operator=operator, execution=execution).transform
            written.append(
                stages_figure(
                    pictures / "stages.png",
                    source=image,
                    atlas=atlas,
                    mapped=transform.warp(image, atlas.grid),
                    mapped_reference=transform.warp(reference, atlas.grid, interpolation="label"),
                    prediction=labels[METHODS[0]],
                    reference=reference,
                    agreement=read_volume(folder / "predictions" / "atlasnet" / f"{case}_agreement.nii.gz"),
                    names=cohort.labels,
                    title=f"{case} through {model.atlases[0].name}, one of {counted(len(model.atlases), 'atlas')}",
                )
            )
        for name in METHODS:
            path = pictures / f"{case}-{name.replace(' ', '-').lower()}.png"
            written.append(overlay(path, image, labels[name], reference, names=cohort.labels, title=f"{case}, {name}"))
    scores = {name: _dice(table) for name, table in tables.items()}
    written.append(comparison_figure(pictures / "dice.png", scores, title="Dice of the test subjects"))
    return written


def _dice(table: Table) -> dict[str, dict[str, float]]:
    """Label to case to Dice."""
    scores: dict[str, dict[str, float]] = {}
    for row in table.rows:
        scores.setdefault(row.label, {})[row.case] = row.dice
    return scores


def _report(args: argparse.Namespace, tables: dict[str, Table], pictures: list[Path], seconds: float) -> None:
    """The summary, for a person or a machine."""
    summaries: dict[str, Any] = {name: table.summary() for name, table in tables.items()}
    result = {"summary": summaries, "pictures": [str(p) for p in pictures], "seconds": round(seconds, 1)}
    lines = [
        "",
        f"mean over {TESTING} test subjects (worst)",
        f"{'':10}{'':14}{'Dice':>16}{'sensitivity':>13}{'precision':>11}{'HD95, mm':>10}",
    ]
    for label in summaries[METHODS[0]]["labels"]:
        for name, summary in summaries.items():
            scores = summary["labels"][label]
            dice, others = scores["dice"], [scores[key]["mean"] for key in ("sensitivity", "precision", "hd95_mm")]
            shown = ["-" if value is None else f"{value:.3f}" for value in others]
            cells = f"{dice['mean']:.3f} ({dice['worst']:.3f})"
            lines.append(f"{label:10}{name:14}{cells:>16}{shown[0]:>13}{shown[1]:>11}{shown[2]:>10}")
    lines += [
        "",
        f"every score: {args.output / 'predictions'}/*.csv",
        f"pictures: {args.output / 'pictures'}: {', '.join(path.name for path in pictures)}",
        f"{seconds:.0f} seconds",
    ]
    tell(args, "\n".join(lines), result)
