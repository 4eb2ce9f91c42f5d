"""``atlasnet demo``: seconds, memory, and the scores of the method beside one plain network.

    python benchmarks/demo.py

Wanted: under 3 minutes on 2 cores, and AtlasNet above the plain network.
"""

from __future__ import annotations

import json

from bench import Bench, arguments, summary_lines, work_folder


def main() -> None:
    options = arguments(__doc__ or "", "demo", data=False).parse_args()
    with work_folder(options.work) as work:
        bench = Bench(options, work)
        usage = bench.atlasnet("demo", "demo", "-o", work / "demo")
        dice: dict[str, dict[str, float]] = {}
        for method in ("atlasnet", "plain-segnet"):
            labels = json.loads((work / "demo" / "predictions" / f"{method}.json").read_text())["summary"]["labels"]
            dice[method] = {label: scores["dice"]["mean"] for label, scores in labels.items()}
        better = all(dice["atlasnet"][label] > value for label, value in dice["plain-segnet"].items())
        wanted = {"under_3_minutes": bench.within(usage["seconds"], 180), "above_the_plain_network": better}
        bench.result |= {"dice": dice, "wanted": wanted}
        bench.write()
        print(summary_lines({**dice, **wanted}))


if __name__ == "__main__":
    main()
