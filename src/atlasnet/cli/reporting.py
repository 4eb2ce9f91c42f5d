"""Who is told what a verb does: the terminal, the log that ``--log`` names, and at the end whoever reads the result."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any

from atlasnet import __version__
from atlasnet.cli.signals import ending
from atlasnet.errors import AtlasNetError, InputError, explained

if TYPE_CHECKING:
    from atlasnet.execution import Hidden

# Names of folders and files that say nothing of a person, and words that sentences need.
_COMMON = frozenset(
    "imagesTr labelsTr imagesTs labelsTs images labels cases atlases networks log work data model models dataset plan "
    "scan scans atlas test tests output out in registrations mapped predictions references transform record "
    "report common ensemble dataset.json model.json plan.json".split()
) | frozenset("an as at be by do go if in is it ml mm no of on or so to up us we".split())
_SHORTEST = 3  # characters of a name without letters; a shorter one, such as the 1 of 1.dcm, may be any number
_RESULTS = (".json", ".csv", ".html", ".png", ".label", ".ctbl", ".pt", ".h5", ".tfm")
_FILLED = ("demo", "study", "train")  # make folders in their output, one of them called log
_NEW = ("convert", "model")  # take no folder as their output that is there
_LISTS = ("subjects", "test_subjects")  # options that name a file with a name a line


def run_verb(args: argparse.Namespace, asked: Callable[[], bool] = lambda: False) -> int:
    """Run the verb, told of on the terminal and in the log; its exit code. ``asked`` says whether it shall stop."""
    from atlasnet.execution import LogReporter, SilentReporter, TextReporter, open_log, say, unwritable_log

    args.reporter, args.cancelled = SilentReporter() if args.quiet else TextReporter(), asked
    if args.log is None:
        return _run(args)
    check_log(args)
    with open_log(args.log) as stream:
        args.reporter = log = LogReporter(args.reporter, stream, _hidden(args))
        log.write("begin", f"atlasnet {__version__} {args.verb}")
        if log.failure is not None:
            raise unwritable_log(args.log, log.failure)
        start, end = time.perf_counter(), "exit code 1"
        try:
            code = _run(args)
            end = f"exit code {code}"
            if log.failure is not None:
                say(f"atlasnet {args.verb}: error: {args.log}: the log is not whole: {log.failure}")
                return code or 1
            return code
        except AtlasNetError as error:
            log.write("error", str(error))
            end = f"exit code {error.exit_code}"
            raise
        except KeyboardInterrupt as stop:
            code, who = ending(stop)
            end = f"stopped by {who}, exit code {code}"
            raise
        except BaseException as error:
            log.write("error", type(error).__name__)
            raise
        finally:
            log.write("end", f"{end}, {time.perf_counter() - start:.1f} s")


def _run(args: argparse.Namespace) -> int:
    """Run the verb; what a full disk or memory makes it fail of is an error as any other."""
    # Where the home folder cannot be written it warns of each place that it looks for another one, also with --quiet.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        code = int(args.run(args))
        sys.stdout.flush()  # of a result that cannot be printed the verb's error tells, and its exit code
        return code
    except BrokenPipeError:  # nobody reads on
        raise
    except (OSError, MemoryError, RuntimeError, ImportError) as problem:
        error = explained(problem)
        if error is None:
            raise
        raise error from problem


def tell(args: argparse.Namespace, text: str, result: Any) -> None:
    """Say how it ended: ``text``, or ``result`` as one JSON object with ``--json``, nothing with ``--quiet``."""
    if args.log is not None:
        args.reporter.write("result", text)
    if args.json:
        print(json.dumps(result, allow_nan=False))
    elif not args.quiet:
        print(text)


def check_log(args: argparse.Namespace) -> None:
    """Refuse a log in the place of what is read or written.

    Raises:
        InputError: it would be a scan, a result, in the way of a folder that is made, or among the files of a series.
    """
    from atlasnet.volume.names import DICOM_SUFFIXES, READABLE_SUFFIXES

    log, remedy = args.log.resolve(), "name another file after --log, such as run.log"
    if args.log.name.lower().endswith((*READABLE_SUFFIXES, *DICOM_SUFFIXES, *_RESULTS)):
        raise InputError("a log needs a name that no image and no result has", path=args.log, remedy=remedy)
    named = {name: [*_paths(value)] for name, value in vars(args).items() if name != "log"}
    if any(path.resolve() == log for paths in named.values() for path in paths):
        raise InputError("the log would be what another argument names", path=args.log, remedy=remedy)
    for output in map(Path.resolve, named.get("output", [])):
        if (args.verb in _FILLED and log.parent == output and not log.suffix) or (
            args.verb in _NEW and log.is_relative_to(output)
        ):
            raise InputError("the log would be in the way of what is written there", path=args.log, remedy=remedy)
    read = (path.resolve() for name, paths in named.items() if name not in ("output", "work") for path in paths)
    if any(_is_among_slices(log, folder) for folder in read if log.is_relative_to(folder)):
        raise InputError("the log would lie among the files of a DICOM series", path=args.log, remedy=remedy)


def _is_among_slices(file: Path, folder: Path) -> bool:
    """Whether a file would lie in a DICOM folder: that folder, which it lies in, or one in between."""
    from atlasnet.cohort.layout import PARTS
    from atlasnet.execution import files_below
    from atlasnet.volume.names import image_stem, is_dicom

    between = [parent for parent in file.parents if parent.is_relative_to(folder) and parent.is_dir()]
    try:
        for parent in between:
            cases = any(image_stem(entry) or entry.name in PARTS for entry in parent.iterdir())
            if not cases and any(is_dicom(other) for other in files_below(parent) if other != file):
                return True
    except OSError:
        pass  # the verb says what cannot be read
    return False


def _hidden(args: argparse.Namespace) -> Hidden:
    """What must not stand in the log: the paths of the command line, and the names of files and folders there."""
    from atlasnet.execution import Hidden
    from atlasnet.volume.names import composed

    paths = [(name, path) for name, value in vars(args).items() for path in _paths(value) if name != "log"]
    spoken = {name for _, path in paths for name in _names(path)}
    for option in _LISTS:
        if vars(args).get(option) is not None:
            spoken.update(_listed(vars(args)[option]))
    if vars(args).get("name_from") == "folder":
        above = {Path(os.path.abspath(path)).parent.name for path in args.inputs}
        spoken.update(name for folder in above for name in _spoken(folder))
    folds = vars(args).get("folds")
    # Not a number, but a file, which names subjects too.
    if folds is not None and (Path(folds).suffix or Path(folds).is_file()):
        paths.append(("folds", Path(folds)))
        spoken.update(_spoken(folds), _texts(_content(Path(folds))))
    if vars(args).get("update") is not None:  # it may know subjects that are in no folder here
        spoken.update(_trained_on(args.update))
    atlases = vars(args).get("atlas") or ()  # subjects, or files beside
    spoken.update(name for atlas in atlases for name in _spoken(PurePath(atlas).name))
    names = {*atlases, *filter(_tells, spoken)}
    return Hidden(paths, {spelling for name in names for spelling in (name, composed(name))})


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, str) and PurePath(value).name != value:  # what may be something else than a path too
        yield Path(value)
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item)


def _names(path: Path) -> set[str]:
    """Names by which a case may be called: of the path, of all that is below it, of all that a zip there holds."""
    from atlasnet.execution import walk

    found: list[str] = [path.name, Path(os.path.abspath(path)).name]
    archives = [path]
    if path.is_dir():
        archives = []
        for root, folders, files in walk(path):
            found += folders
            found += files
            archives += [root / name for name in files if name.lower().endswith(".zip")]
            if "dataset.json" in files:
                found += _declared(root / "dataset.json")
    for archive in archives:
        try:
            if archive.is_file() and zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as opened:
                    found += [part for name in opened.namelist() for part in re.split(r"[/\\]", name)]
        except (OSError, zipfile.BadZipFile, ValueError):
            pass  # the verb says what is wrong with it, and names nothing of what is inside
    return {name for full in found for name in _spoken(full)}


def _tells(name: str) -> bool:
    """Whether a name may be a person's."""
    return name not in _COMMON and len(name) > 1 and (len(name) >= _SHORTEST or any(map(str.isalpha, name)))


def _content(path: Path) -> Any:
    """What a JSON file holds; None where it cannot be read."""
    from atlasnet.execution import read_json

    try:
        return read_json(path)
    except (OSError, ValueError):
        return None  # the verb says what is wrong with it, and names nothing of what is inside


def _declared(path: Path) -> Iterator[str]:
    """Names of files that a ``dataset.json`` lists, which need not be there."""
    content = _content(path)
    if isinstance(content, dict):
        for text in _texts([content.get("training"), content.get("test")]):
            yield from re.split(r"[/\\]", text)


def _texts(value: Any) -> Iterator[str]:
    """Every text in lists and objects, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _listed(path: Path) -> list[str]:
    """The subjects that a file names, which need not be there either."""
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError:
        return []  # the verb says what is wrong with it
    return [*map(str.strip, lines)]


def _trained_on(model: Path) -> list[str]:
    """The subjects that a model names as those that it was trained on."""
    from atlasnet.training.model import Model

    try:
        return [*map(str, Model.load(model, verify=False).provenance["data"])]
    except (AtlasNetError, KeyError, TypeError):
        return []  # the verb says what is wrong with it, and names nobody


def _spoken(name: str) -> Iterable[str]:
    """A file's name, and what a message makes of it: without suffixes, without the number of a channel."""
    from atlasnet.volume.names import case_and_channel

    stem = name
    while (shorter := PurePosixPath(stem).stem) != stem:
        stem = shorter
        yield stem
        yield case_and_channel(stem)[0]
    yield case_and_channel(name)[0]
