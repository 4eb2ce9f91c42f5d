"""Voxels finer than the scan's, as the plan has them of small scans, beside the scan's own: AtlasNet on phantoms.

    python benchmarks/finer_voxels.py

10 phantom chests with interstitial disease train two atlases' networks of half the channels, 16 others test them; the
default recipe, one seed, the same registrations. Wanted: Dice with finer voxels not behind.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

from bench import Bench, arguments, summary_lines, work_folder

from atlasnet.cohort import Cohort, Plan, take_fingerprint
from atlasnet.cohort.phantom import write_phantom_cohort
from atlasnet.study.methods import MAIN
from atlasnet.study.statistics import compare

TRAINING, TESTS, SHAPE = 10, 16, (32, 64, 64)
STUDY = ("--only", MAIN, "--atlases", 2, "--seeds", 1, "--width", 0.5)


def main() -> None:
    parser = arguments(__doc__ or "", "finer_voxels", data=False)
    parser.add_argument("--note", default="", help="what a reader of the result should know of the machine's state")
    options = parser.parse_args()
    with work_folder(options.work) as work:
        bench, data = Bench(options, work), work / "phantoms"
        write_phantom_cohort(data, TRAINING, test_subjects=TESTS, shape=SHAPE, seed=options.seed)
        fingerprint = take_fingerprint(Cohort.read(data))
        plans = {
            "the scans' own voxels": Plan.derive(fingerprint, finer=False),
            "finer voxels": Plan.derive(fingerprint),
        }
        found = {}
        for number, (name, plan) in enumerate(plans.items()):
            folder = work / f"study{number}"
            folder.mkdir(exist_ok=True)
            plan.write(folder / "plan.json")
            if number and not (folder / "work").exists():
                shutil.copytree(work / "study0" / "work" / "registrations", folder / "work" / "registrations")
            bench.atlasnet(name, "study", data, "-o", folder, *STUDY)
            found[name] = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        own, finer = (study["subjects"][MAIN] for study in found.values())
        gain = compare({"finer voxels": (finer, own)})["finer voxels"]
        voxels = {name: plan.spacing for name, plan in plans.items()}
        dice = {name: study["methods"][MAIN]["mean_dice"] for name, study in found.items()}
        wanted = {"not_behind": gain.mean >= 0}
        bench.result |= {"note": options.note, "spacing_mm": voxels, "dice": dice, "finer_minus_own": asdict(gain)}
        bench.result |= {"wanted": wanted, "studies": found}
        bench.write()
        print(summary_lines({**{name: round(value, 4) for name, value in dice.items()}, **wanted}))


if __name__ == "__main__":
    main()
