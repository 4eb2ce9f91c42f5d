"""``atlasnet learn-metrics``: weights of the similarity metrics by tissue class, from annotated scans."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasnet.cli.options import (
    REGISTRATION_PRESETS,
    add_execution_options,
    execution_from,
    listed,
    make_folder,
    named_list,
    require_file,
)
from atlasnet.cli.reporting import tell
from atlasnet.errors import InputError, require_folder

if TYPE_CHECKING:
    from atlasnet.registration import MetricWeights
    from atlasnet.registration.learning import LearnSettings

HELP = "learn how much each similarity metric counts in each tissue, for register and train"
METRICS = "mi,ncc,dwt,sad"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of annotated scans (see: atlasnet check)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the weights, a JSON file")
    parser.add_argument("--subjects", type=Path, metavar="FILE", help="learn from these only, one name a line")
    parser.add_argument(
        "--class",
        dest="groups",
        action="append",
        metavar="NAME=LABEL,...",
        help="labels that make one class; repeat it; all others, the background too, are the class other (default: "
        "every label is a class)",
    )
    parser.add_argument(
        "--metrics", default=METRICS, metavar="NAME,...", help=f"of mi, ncc, dwt, sad and mind (default: {METRICS})"
    )
    parser.add_argument("--pairs", type=int, default=20, metavar="N", help="pairs to learn from (default: 20)")
    parser.add_argument(
        "--judging-pairs",
        type=int,
        default=8,
        metavar="N",
        help="pairs of a quarter of the subjects, which are not learnt from, that choose among the iterations; of one "
        "subject with the others where there are fewer than 8 (default: 8)",
    )
    parser.add_argument("--figure", type=Path, metavar="FILE", help="also draw the weights, as SVG")
    parser.add_argument("--work", type=Path, metavar="DIR", help="work folder (default: beside the output, *_work)")
    group = parser.add_argument_group("the registration")
    group.add_argument(
        "--preset", choices=REGISTRATION_PRESETS, default="default", help="as for register (default: default)"
    )
    group.add_argument("--spacing", type=float, metavar="MM", help="voxel size at which to register (default: by size)")
    group.add_argument("--alpha", type=float, metavar="A", help="weight of the smoothness at the start (default: 0.1)")
    group = parser.add_argument_group("the learning")
    group.add_argument("--cost", type=float, metavar="C", help="of the pairs against equal weights (default: 30000)")
    group.add_argument(
        "--iterations", type=int, metavar="N", help="of imputing and cutting planes, at most (default: 3)"
    )
    add_execution_options(parser)


def run(args: argparse.Namespace) -> int:
    """Learn, write, and say what was learnt."""
    require_folder(args.data)
    from atlasnet.cohort import Cohort
    from atlasnet.execution import made_alone
    from atlasnet.registration import MetricWeights
    from atlasnet.registration.learning import learn_metrics
    from atlasnet.training.subjects import read_names

    require_file(args.output, ".json", MetricWeights.read)
    if args.figure is not None:
        require_file(args.figure, ".svg", option="--figure")
    execution, settings = execution_from(args), _settings(args)
    cohort = Cohort.read(args.data, reporter=args.reporter)
    if args.subjects is not None:
        cohort = cohort.select(read_names(args.subjects))
    work = args.work or args.output.with_name(f"{args.output.stem}_work")
    make_folder(args.output.parent)
    with made_alone(args.output, *([] if args.figure is None else [args.figure])):
        weights = learn_metrics(cohort, work, settings, execution=execution)
        weights.write(args.output)
        result: dict[str, Any] = {"weights": str(args.output), **weights.settings(), **_brief(weights)}
        if args.figure is not None:
            from atlasnet.report import write_weights_figure

            write_weights_figure(args.figure, weights)
            result["figure"] = str(args.figure)
    tell(args, _text(args.output, weights), result)
    return 0


def _settings(args: argparse.Namespace) -> LearnSettings:
    """What the options say.

    Raises:
        InputError: a value that makes no sense.
    """
    from atlasnet.registration import preset
    from atlasnet.registration.learning import LearnSettings, SVMSettings

    registration = preset(args.preset)
    registration.pop("metrics", None)
    registration |= {name: v for name in ("spacing", "alpha") if (v := getattr(args, name)) is not None}
    svm = {name: v for name in ("cost", "iterations") if (v := getattr(args, name)) is not None}
    return LearnSettings(
        metrics=tuple(listed(args.metrics)),
        pairs=args.pairs,
        judging=args.judging_pairs,
        groups=None if args.groups is None else _groups(args.groups),
        registration=registration,
        svm=SVMSettings(**svm),
    )


def _groups(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    groups: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, labels = named_list(text)
        try:
            values = tuple(int(label) for label in labels or ())
        except ValueError:
            values = ()
        if not (name and values):
            raise InputError("this is no class with labels", expected="as in lungs=1,2", found=text)
        if name in groups:
            raise InputError("a class is given twice", found=name, remedy=f"give its labels at once: {name}=1,2")
        groups[name] = values
    return groups


def _brief(weights: MetricWeights) -> dict[str, Any]:
    """What the record of the learning ends in."""
    found: Mapping[str, Any] = weights.provenance
    rows = found["iterations"]
    return {
        "chosen": found["chosen"],
        "iterations": len(rows) - 1,
        "judging_dice_before": rows[0]["judging_dice"],
        "judging_dice": rows[found["chosen"]]["judging_dice"],
    }


def _text(path: Path, weights: MetricWeights) -> str:
    brief = _brief(weights)
    metrics = list(weights.average)
    rows = [("", *metrics), *((one.name, *(f"{one.weights[m]:.3f}" for m in metrics)) for one in weights.classes)]
    rows.append(("average", *(f"{weights.average[m]:.3f}" for m in metrics)))
    width = max(len(row[0]) for row in rows)
    table = [f"{row[0]:<{width}}  " + "  ".join(f"{cell:>6}" for cell in row[1:]) for row in rows]
    lines = [f"{path}: weights of iteration {brief['chosen']} of {brief['iterations']}, smoothness {weights.alpha:.4g}"]
    if brief["judging_dice"] is not None:
        before, after = brief["judging_dice_before"]["mean"], brief["judging_dice"]["mean"]
        lines.append(f"Dice of the judging pairs {before:.4f} with equal weights, {after:.4f} with these")
        if brief["chosen"] == 0:
            lines.append("nothing that was learnt did better there: these are equal weights")
    return "\n".join([*lines, *table])
