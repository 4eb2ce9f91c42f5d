"""The study on 17 training subjects of the Decathlon's hippocampus task.

    python benchmarks/study.py DATA                      # 30 other subjects of imagesTr: to choose recipes by
    python benchmarks/study.py DATA --tests release      # the 60 subjects of imagesTs: once for a release

What else is asked of `atlasnet study` stands in ``--study-options``; ``--beside RESULT`` adds the paired difference of
AtlasNet's Dice, subject by subject, to that of a result of the same tests with other options; where AtlasNet is not one
of the methods, how far that of the result is ahead of each of them. With ``--work``, a study that was stopped goes on
and one that is finished is read; the seconds of the stage are then those of the last call.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import Bench, arguments, named, summary_lines, work_folder

from atlasnet.study.methods import MAIN
from atlasnet.study.statistics import compare, tail_difference

DEVELOPMENT = 30  # of every second subject of imagesTr that is not trained on, in the order of the names


def main() -> None:
    parser = arguments(__doc__ or "", "study_development")
    parser.add_argument("--tests", choices=("development", "release"), default="development")
    parser.add_argument("--study-options", default="--atlases 3 --seeds 1", metavar="TEXT", help="for `atlasnet study`")
    parser.add_argument("--note", default="", help="what a reader of the result should know of the machine's state")
    parser.add_argument("--beside", type=Path, metavar="RESULT", help="an earlier result of this script")
    options = parser.parse_args()
    named(options, "study_development", f"study_{options.tests}")
    data = options.data / "hippocampus"
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        words: list[object] = [data, "--subjects", data / "train17.txt", "-o", work / "study"]
        if options.tests == "development":
            words += ["--test-subjects", listed(work / "tests.txt", development(data))]
        bench.atlasnet("study", "study", *words, *shlex.split(options.study_options))
        found = json.loads((work / "study" / "study.json").read_text(encoding="utf-8"))
        bench.result |= {"note": options.note, "study": found}
        if options.beside is not None:
            before = json.loads(options.beside.read_text(encoding="utf-8"))["study"]["subjects"][MAIN]
            bench.result |= {"beside": options.beside.name}
            if MAIN in found["subjects"]:
                bench.result |= {"this_minus_beside": gain(found["subjects"][MAIN], before)}
            else:
                rivals = {name: (before, dice) for name, dice in found["subjects"].items()}
                bench.result |= {
                    "beside_minus_this": {name: asdict(row) for name, row in compare(rivals).items()},
                    "worst_tenth": {name: tail_difference(*both) for name, both in rivals.items()},
                }
        print(summary_lines({row["title"]: round(row["mean_dice"], 4) for row in found["methods"].values()}))
        bench.write()


def gain(this: Mapping[str, float], beside: Mapping[str, float]) -> dict[str, Any]:
    """The paired difference of two methods' Dice of the same subjects."""
    return asdict(compare({"beside": (this, beside)})["beside"])


def listed(path: Path, names: list[str]) -> Path:
    """The file, with a name a line."""
    path.write_text("\n".join(names) + "\n", encoding="utf-8")
    return path


def development(data: Path) -> list[str]:
    """The subjects on which recipes are compared."""
    return not_trained_on(data)[::2][:DEVELOPMENT]


def chosen_by_none(data: Path) -> list[str]:
    """The other subjects of imagesTr that are not trained on: nothing is chosen by them."""
    return sorted(set(not_trained_on(data)) - set(development(data)))


def not_trained_on(data: Path) -> list[str]:
    """The subjects of imagesTr but the 17, in the order of their names."""
    names = {path.name.removesuffix(".nii.gz") for path in (data / "labelsTr").glob("*.nii.gz")}
    return sorted(names - set(the_17(data)))


def the_17(data: Path) -> list[str]:
    """The training subjects, in the order of their names."""
    return sorted((data / "train17.txt").read_text(encoding="utf-8").split())


if __name__ == "__main__":
    main()
