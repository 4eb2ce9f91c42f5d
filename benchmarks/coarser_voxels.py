"""What voxels coarser than the scans' cost, beside what `atlasnet check` says that they keep: hippocampi at 1 to 4 mm.

    python benchmarks/coarser_voxels.py DATA

Two atlases, one seed, the 17 training subjects and the 30 by which recipes are chosen. What is kept is of the training
subjects, who are all that is known before anything is trained.
"""

from __future__ import annotations

import json

from bench import Bench, arguments, summary_lines, work_folder
from study import development, listed

from atlasnet.cohort.check import check_cohort
from atlasnet.study.methods import MAIN
from atlasnet.training.subjects import read_names

SPACINGS = (1.0, 1.5, 2.0, 3.0, 4.0)
STUDY = ("--only", MAIN, "--atlases", 2, "--seeds", 1)


def main() -> None:
    parser = arguments(__doc__ or "", "coarser_voxels")
    parser.add_argument("--note", default="", help="what a reader of the result should know of the machine's state")
    options = parser.parse_args()
    data = options.data / "hippocampus"
    with work_folder(options.work) as work:
        bench, tests = Bench(options, work), listed(work / "tests.txt", development(data))
        trained = data / "train17.txt"
        subjects = ("--subjects", trained, "--test-subjects", tests)
        found = {}
        for spacing in SPACINGS:
            name, folder = f"{spacing:g} mm", work / f"{spacing:g}"
            bench.atlasnet(name, "study", data, *subjects, "-o", folder, *STUDY, "--spacing", spacing)
            study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
            planned = check_cohort(data, spacing=(spacing,) * 3, subjects=read_names(trained)).planned
            kept = {} if planned is None or planned.kept is None else planned.kept.dice
            labels = study["methods"][MAIN]["labels"]
            found[name] = {
                "dice": {label: round(scores["dice"], 4) for label, scores in labels.items()},
                "kept": {label: values[0] for label, values in kept.items()},
                "subjects": study["subjects"][MAIN],
            }
            bench.result |= {"note": options.note, "spacings": found}
            bench.write()
        print(summary_lines({name: {"dice": row["dice"], "kept": row["kept"]} for name, row in found.items()}))


if __name__ == "__main__":
    main()
