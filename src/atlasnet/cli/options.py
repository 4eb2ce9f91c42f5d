"""Options that several verbs share."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasnet.errors import InputError

if TYPE_CHECKING:
    from atlasnet.cohort.spacing import WantedSpacing
    from atlasnet.evaluation import PatchProtocol
    from atlasnet.execution import Execution


# Those of `atlasnet.registration`, named here so that --help need not import it.
OPERATORS = ("mrf", "affine", "centre", "identity", "ants", "elastix", "greedy")
# Those of `atlasnet.prediction.fusion`.
FUSIONS = ("mean", "vote", "weighted", "local", "learnt", "staple")
# Those of `atlasnet.registration.settings`. Of the others in a training, the plan says how fine a registration is.
REGISTRATION_PRESETS = ("fast", "default", "fine", "publication")
TRAINING_PRESETS = ("default", "publication")


def add_fusion_option(parser: argparse.ArgumentParser, *, learnt: bool = True) -> None:
    """``--fusion``: who decides where the atlases differ; without ``learnt`` for models that nobody cross-validates."""
    by_folds = "the same by weights that the model learnt when it was trained with --folds; " if learnt else ""
    parser.add_argument(
        "--fusion",
        default="mean",
        choices=[name for name in FUSIONS if learnt or name != "learnt"],
        help="the mean of the atlases' probabilities; a vote; a vote weighted by the quality of each registration; the "
        f"mean weighted at every voxel by how well the registration fits there; {by_folds}STAPLE (default: mean)",
    )


def add_quality_option(parser: argparse.ArgumentParser, what: str) -> None:
    """``--minimum-quality``: which registrations are used; ``what`` becomes of the others."""
    parser.add_argument(
        "--minimum-quality",
        type=float,
        default=0.05,  # that of `FitOptions` and `PredictOptions`
        metavar="Q",
        help=f"{what} whose registration has a lower quality, from 0 (all are used) to 1 (default: 0.05)",
    )


def add_network_options(parser: argparse.ArgumentParser, *, updates: bool = False) -> None:
    """What is trained and how, and what registers; with ``updates``, a model may decide where they are silent."""
    parser.add_argument(
        "--network",
        default=None,
        metavar="NAME",
        help="unet (default), unet3d, segnet, or module:Class with --allow-module",
    )
    parser.add_argument("--allow-module", action="store_true", help="import the module that --network names")
    parser.add_argument("--width", type=float, metavar="W", help="scale of the network's number of channels")
    parser.add_argument(
        "--preset", default="default", choices=("default", "publication"), help="training recipe (default: default)"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="E",
        help="epochs (default: 60; with --preset publication 18); tuned networks take a quarter",
    )
    parser.add_argument(
        "--sharing",
        choices=("independent", "first", "common", *(("model",) if updates else ())),
        help="train every atlas's network from scratch, or tune them from the first one's, or from one that was "
        "trained on all atlases, in a quarter of the epochs (default: common; independent for --preset publication)"
        + ("; model, the default with --update: tune them from those of the model" if updates else ""),
    )
    parser.add_argument(
        "--loss-weights",
        nargs="+",
        type=_weight,
        default=(),
        metavar="LABEL=FACTOR",
        help="labels, or regions of several values, that count more or less than others (1) in what the networks "
        "learn" + ("; with --update, those of the model unless others are given" if updates else ""),
    )
    parser.add_argument(
        "--registration",
        default=None if updates else "mrf",
        choices=OPERATORS,
        help="registration operator (default: mrf); the last three need their packages",
    )
    parser.add_argument(
        "--registration-preset",
        default="default",
        choices=TRAINING_PRESETS,
        help="publication: the published metrics of the registration, mutual information, cross-correlation and "
        "wavelets, by discrete search alone (default: default)",
    )
    add_metrics_option(parser, "the atlases' references say which tissue is where")


def add_metrics_option(parser: argparse._ActionsContainer, known: str) -> None:
    """``--metrics``: what similarity is; ``known`` says where tissues are known from."""
    parser.add_argument(
        "--metrics",
        type=_list_or_file,
        metavar="NAME[=WEIGHT],... | FILE",
        help="similarity of the registration: mi, ncc, dwt, sad and mind with their weights, as in mi=1,ncc=1,dwt=0.5; "
        f"or a file of learn-metrics, with which {known}",
    )


def _list_or_file(text: str) -> str | Path:
    """A file as a path, by which a log knows what to hide."""
    return Path(text) if Path(text).suffix == ".json" or Path(text).is_file() else text


def _weight(text: str) -> tuple[str, float]:
    """A name and its factor; the name may hold any character."""
    name, _, factor = text.rpartition("=")
    try:
        return name.strip(), float(factor)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no weight; expected something like lesion=3") from None


def loss_weights_from(args: argparse.Namespace) -> dict[str, float]:
    """What ``--loss-weights`` asks for.

    Raises:
        InputError: a name is there twice.
    """
    names = [name for name, _ in args.loss_weights]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError("a label has two weights in the loss", found=twice[0], remedy="name each once")
    return dict(args.loss_weights)


def add_spacing_option(parser: argparse.ArgumentParser) -> None:
    """``--spacing``: the voxels of the networks."""
    parser.add_argument(
        "--spacing",
        nargs="+",
        metavar="MM",
        help="voxels of the grid on which networks work: one length, three (x, y, z), or scan for those of the scans "
        "(default: planned for two CPU cores); time and memory grow with their number",
    )


def spacing_from(args: argparse.Namespace) -> WantedSpacing | None:
    """What ``--spacing`` asks for."""
    from atlasnet.cohort.spacing import wanted_spacing

    return None if args.spacing is None else wanted_spacing(args.spacing)


def metric_settings(metrics: str | Path | None) -> dict[str, Any]:
    """The settings of the registration that ``--metrics`` stands for.

    Raises:
        InputError: it is no list of metrics with their weights, or the file is not one of learnt weights.
    """
    if metrics is None:
        return {}
    if isinstance(metrics, Path):
        from atlasnet.registration import MetricWeights

        return MetricWeights.read(metrics).settings()
    parts = [_metric(part) for part in listed(metrics)]
    if len(dict(parts)) < len(parts):
        raise InputError("a metric is named twice", found=metrics)
    return {"metrics": dict(parts)}


def _metric(text: str) -> tuple[str, float]:
    name, equals, weight = (part.strip() for part in text.partition("="))
    try:
        if name:
            return name, float(weight) if equals else 1.0
        raise ValueError("no name")
    except ValueError as error:
        raise InputError(
            "this is no metric with a weight",
            expected="mi, ncc, dwt, sad and mind, as in mi=1,ncc=0.5, or a .json file",
            found=repr(text),
        ) from error


def registration_from(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the registration that the options of `add_network_options` stand for, as JSON.

    Raises:
        InputError: as `metric_settings`, or the operator takes none of them.
    """
    from atlasnet.registration import preset

    settings = metric_settings(args.metrics)
    fields = preset(args.registration_preset, settings.get("metrics"))
    if "levels" in fields:
        fields["levels"] = [asdict(level) for level in fields["levels"]]
    settings = {**fields, **settings}
    if settings and args.registration not in (None, "mrf"):
        raise InputError(
            f"the registration {args.registration!r} takes neither --metrics nor --registration-preset",
            remedy="leave them out, or use --registration mrf",
        )
    return settings


def listed(text: str) -> list[str]:
    """The entries of a list that commas divide, without the spaces around them.

    Raises:
        InputError: an entry is empty.
    """
    entries = [entry.strip() for entry in text.split(",")]
    if not all(entries):
        raise InputError(
            "an entry of the list is empty", expected="names or numbers that commas divide", found=repr(text)
        )
    return entries


def named_list(text: str) -> tuple[str, list[str] | None]:
    """What is before the first equals sign, and the list behind it, None without one; see `listed`."""
    name, equals, entries = text.partition("=")
    return name.strip(), listed(entries) if equals else None


def add_mask_option(parser: argparse.ArgumentParser, use: str) -> None:
    """``--organ-mask``: where the masks of all cases lie."""
    parser.add_argument(
        "--organ-mask",
        type=Path,
        metavar="DIR",
        help=f"folder with a mask CASE.nii.gz of every case, not zero in the organ: {use}",
    )


def add_patch_options(parser: argparse.ArgumentParser) -> None:
    """The patch protocol."""
    parser.add_argument(
        "--patches",
        metavar="LABEL[:REGION]",
        help="tell diseased from healthy patches too: of a label, in the labels of a region that commas divide "
        "(default: in all that was annotated)",
    )
    parser.add_argument(
        "--patch-size",
        type=int,
        default=32,
        metavar="PIXELS",
        help="side of a patch (default: 32, for 512 x 512)",
    )


def patches_from(args: argparse.Namespace) -> PatchProtocol | None:
    """The protocol that the options describe."""
    from atlasnet.evaluation import PatchProtocol

    return None if args.patches is None else PatchProtocol.parse(args.patches, args.patch_size)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """``--quiet``, ``--json`` and ``--log``: who is told, and how."""
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on standard output")
    parser.add_argument(
        "--log",
        type=Path,
        metavar="FILE",
        help="add to this file, with the time, what is said, without names of cases and paths",
    )


def add_execution_options(parser: argparse.ArgumentParser) -> None:
    """Where and how the work runs, and the output options."""
    group = parser.add_argument_group("where the work runs")
    group.add_argument("--device", default="cpu", metavar="D", help="torch device: cpu, cuda, cuda:1 (default: cpu)")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all that this process may use)")
    group.add_argument("--seed", type=int, default=0, metavar="S", help="origin of every random number (default: 0)")
    group.add_argument(
        "--no-memory-check", action="store_true", help="begin even where, by the estimate, memory does not suffice"
    )
    add_output_options(parser)


def execution_from(args: argparse.Namespace) -> Execution:
    """The `Execution` that the options describe, its device checked."""
    from atlasnet.execution import Execution

    options = {} if args.threads is None else {"threads": args.threads}
    checked = not args.no_memory_check
    execution = Execution(
        device=args.device,
        seed=args.seed,
        reporter=args.reporter,
        cancelled=args.cancelled,
        check_memory=checked,
        **options,
    )
    execution.torch_device()
    return execution


def make_folder(path: Path) -> list[Path]:
    """Create the folder of the output, before any work is done for it; which folders were made, the inmost first.

    Raises:
        InputError: it cannot be created, or nothing can be written there, nor where temporary files lie.
    """
    _require_temporary()
    absent = [folder for folder in (path, *path.parents) if not folder.exists()]
    with _unwritable("the output folder", path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return absent


def remove_empty(made: Iterable[Path]) -> None:
    """Take back what `make_folder` made, as far as nothing lies in it."""
    for folder in made:
        with suppress(OSError):  # whatever lies there is somebody else's
            folder.rmdir()


def require_writable(path: Path, option: str = "-o") -> None:
    """Find out before any work that the file after an option cannot be written; nothing is left of the attempt.

    Raises:
        InputError: the folder in which it would lie, or be made, takes no file, nor does any for temporary ones.
    """
    _require_temporary()
    folder = next((parent for parent in path.absolute().parents if parent.exists()), path)
    with _unwritable("the output", path, option), tempfile.TemporaryFile(dir=folder):
        pass


def require_file(path: Path, suffix: str, read: Callable[[Path], object] | None = None, *, option: str = "-o") -> None:
    """The same of a file that takes the place of no other one.

    Args:
        path: of the file.
        suffix: of such files.
        read: reads them, and raises `InputError` of others; None: any file of that suffix may be replaced.
        option: that names it.

    Raises:
        InputError: it is a folder, or called like other files, there is a file that is none of these, or the folder in
            which it would lie, or be made, takes none.
    """
    if path.is_dir():
        raise InputError("the output is a folder", path=path, expected="the name of a file")
    if path.suffix.lower() != suffix or path.name == "dataset.json":
        other = ", other than dataset.json" if suffix == ".json" else ""
        raise InputError("the output cannot be called so", path=path, expected=f"a name that ends in {suffix}{other}")
    if read is not None and path.exists():
        try:
            read(path)
        except InputError as error:
            raise InputError(
                "the output would take the place of a file of another kind",
                path=path,
                remedy=f"give another name after {option}, or move the file away",
            ) from error
    require_writable(path, option)


def _require_temporary() -> None:
    """Refuse to begin where no temporary file can be written: hours of work would end with that.

    Raises:
        InputError: there is no place for one.
    """
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise InputError(
            "there is no folder for temporary files", found=str(error), remedy="name one with TMPDIR=FOLDER"
        ) from error


@contextmanager
def _unwritable(what: str, path: Path, option: str = "-o") -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise InputError(
            f"{what} cannot be made: a file of that name exists", path=path, remedy=f"name another after {option}"
        ) from error
    except OSError as error:
        raise InputError(
            f"{what} cannot be written", path=path, found=str(error), remedy=f"give another place after {option}"
        ) from error
