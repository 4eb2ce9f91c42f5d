"""Kill a training at random instants and inside each stage, start it again, and compare the bytes of the model.

Trains `--subjects` hippocampi onto `--atlases` atlases once undisturbed, then once for each kill: SIGKILL to the whole
process group, the same command again until it ends by itself.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import bench


def stage_reached(model: Path, atlases: int) -> dict[str, Callable[[], bool]]:
    """For each stage, what on disk says that it is under way; networks are a common one, then one for each atlas."""
    work = model / "work"

    def some(pattern: str, count: int = 1) -> Callable[[], bool]:
        return lambda: len(list(work.glob(pattern))) >= count

    return {
        "fingerprint": lambda: work.is_dir() and not (model / "plan.json").exists(),
        "choice of atlases": lambda: (model / "plan.json").exists() and not list(work.glob("choice/*")),
        "registration": some("registrations/*", 3),
        "mapping": some("mapped/.partial-*"),
        "common network": some("networks/*/checkpoint-*.json"),
        "writing a checkpoint": some("networks/*/.checkpoint-*"),
        "first tuning": some("networks/*", 2),
        "last tuning": some("networks/*", 1 + atlases),
        "model": lambda: bool(list((model / "networks").glob("*.safetensors"))),
    }


def fingerprints(model: Path) -> dict[str, str]:
    """SHA-256 of every safetensors file of the finished model, by relative path."""
    files = [*model.glob("networks/*.safetensors"), *(model / "work").glob("registrations/*/*.safetensors")]
    return {path.relative_to(model).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> None:
    parser = bench.arguments(__doc__ or "", "kill_resume")
    parser.add_argument("--kills", type=int, default=20, help="random instants (default: 20)")
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--atlases", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    with bench.work_folder(options.work) as work:
        run = bench.Bench(options, work)
        data = options.data / "hippocampus"
        names = (data / "train17.txt").read_text().split()[: options.subjects]
        (work / "subjects.txt").write_text("\n".join(names) + "\n")

        def words_for(model: Path) -> list[str]:
            words = ["train", data, "--subjects", work / "subjects.txt", "-o", model, "--atlases", options.atlases]
            words += [
                "--epochs",
                options.epochs,
                "--width",
                0.25,
                "--seed",
                options.seed,
                "--threads",
                options.threads,
                "--quiet",
            ]
            return [str(word) for word in words]

        def command(model: Path) -> list[str]:
            return [*bench.program(), *words_for(model)]

        shown = run.shown(["atlasnet", *words_for(work / "MODEL")])
        print("$", shown, flush=True)
        start = time.perf_counter()
        subprocess.run(command(work / "undisturbed"), check=True)
        duration = time.perf_counter() - start
        expected = fingerprints(work / "undisturbed")
        print(f"undisturbed: {duration:.1f} s, {len(expected)} safetensors files", flush=True)
        generator = random.Random(options.seed)
        trials: list[tuple[str, float | None]] = [
            ("random instant", generator.uniform(0, duration)) for _ in range(options.kills)
        ]
        trials += [(stage, None) for stage in stage_reached(work, options.atlases)]
        rows = []
        for name, instant in trials:
            model = work / "killed"
            shutil.rmtree(model, ignore_errors=True)
            process = subprocess.Popen(command(model), start_new_session=True)
            start = time.perf_counter()
            reached = stage_reached(model, options.atlases).get(name)
            while process.poll() is None:
                if reached() if reached else time.perf_counter() - start >= (instant or 0):
                    break
                time.sleep(0.001)
            killed = process.poll() is None
            if killed:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            after = time.perf_counter() - start
            subprocess.run(command(model), check=True)
            equal = fingerprints(model) == expected
            rows.append({"kill": name, "after_s": round(after, 3), "killed": killed, "same_bytes": equal})
            print(rows[-1], flush=True)
        run.result |= {
            "command": shown,
            "undisturbed_s": round(duration, 1),
            "files": len(expected),
            "kills": rows,
            "all_same_bytes": all(row["same_bytes"] for row in rows),
        }
        run.write()


if __name__ == "__main__":
    main()
