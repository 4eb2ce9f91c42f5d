"""The publication's study on synthetic chests with interstitial lung disease: `atlasnet study` with its own recipe.

    python benchmarks/phantom_study.py

The methods of the publication that use all or part of the subjects, and label propagation; ``--study-options`` asks for
others.

17 subjects to train on and 29 to test on as in the publication (Vakalopoulou et al., MICCAI 2018), phantoms of
128 x 128 x 48 voxels, SegNet with a quarter of its channels, everything else as published; the whole cohort and 30 % of
it. Wanted: done within 90 minutes on 2 cores, and AtlasNet with 30 % of the subjects at least as good as one augmented
network with all. With ``--work``, a study that was stopped goes on; no time is judged then.
"""

from __future__ import annotations

import json
import shlex

from bench import Bench, arguments, summary_lines, work_folder

TRAINING, TESTS = 17, 29
LIMIT_MINUTES = 90


def main() -> None:
    parser = arguments(__doc__ or "", "phantom_study", data=False)
    parser.add_argument("--subjects", type=int, nargs=2, default=(TRAINING, TESTS), metavar=("TRAINING", "TESTS"))
    parser.add_argument("--shape", type=int, nargs=3, default=(48, 128, 128), metavar=("Z", "Y", "X"))
    parser.add_argument(
        "--study-options",
        default="--preset publication --network segnet --width 0.25 --atlases 6 --seeds 1 --fractions 0.3 1.0 "
        "--only plain augmented propagation atlasnet",
        metavar="TEXT",
        help="for `atlasnet study`",
    )
    parser.add_argument("--note", default="", help="what a reader of the result should know of the machine's state")
    options = parser.parse_args()
    with work_folder(options.work) as work:
        from atlasnet.cohort.phantom import write_phantom_cohort

        bench = Bench(options, work)
        training, tests = options.subjects
        write_phantom_cohort(
            work / "phantoms", training, test_subjects=tests, shape=tuple(options.shape), seed=options.seed
        )
        words = ["study", work / "phantoms", "-o", work / "study", *shlex.split(options.study_options)]
        bench.atlasnet("study", *words)
        found = json.loads((work / "study" / "study.json").read_text(encoding="utf-8"))
        minutes = bench.seconds("study") / 60
        rows = {row["title"]: row for row in found["methods"].values()}
        wanted = {f"within_{LIMIT_MINUTES}_minutes": bench.within(minutes, LIMIT_MINUTES)}
        shares = found["over_fractions"]
        if {"atlasnet", "augmented"} <= set(shares):
            part, whole = shares["atlasnet"][0], shares["augmented"][-1]
            wanted[f"with_{part['x']:.0%}_as_good_as_one_network_with_all"] = part["dice"] >= whole["dice"]
        bench.result |= {"note": options.note, "minutes": round(minutes, 1), "wanted": wanted, "study": found}
        bench.write()
        print(summary_lines({**{title: round(row["mean_dice"], 4) for title, row in rows.items()}, **wanted}))


if __name__ == "__main__":
    main()
