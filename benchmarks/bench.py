"""What the benchmarks share: the machine's description, commands measured as whole processes, results written at once.

Run as a script it is the launcher of `measure`: a process of a few megabytes that starts the command and writes what
the system says it used. Started from a large process, a command would inherit that process's peak memory (Linux carries
it over `exec`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def arguments(description: str, name: str, *, data: bool = True) -> argparse.ArgumentParser:
    """The options that every benchmark has; ``data`` says whether it reads any."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if data:
        parser.add_argument("data", type=Path, help="folder that holds the data sets (hippocampus, chest-ct, ...)")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / f"{name}.json", help="the result")
    parser.add_argument(
        "--work", type=Path, help="keep models and predictions here (default: a folder removed at the end)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--train-options", default="", metavar="TEXT", help="passed to `atlasnet train`, for quick runs"
    )
    return parser


def named(options: argparse.Namespace, name: str, other: str) -> None:
    """Write to ``other`` where the output is by default ``name``: a result of another kind has a file of its own."""
    if options.output == RESULTS / f"{name}.json":
        options.output = RESULTS / f"{other}.json"


@contextmanager
def work_folder(wanted: Path | None) -> Iterator[Path]:
    """The folder named, or a temporary one."""
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="atlasnet-benchmark-") as folder:
        yield Path(folder)


class Bench:
    """Runs commands of one benchmark and collects its result.

    Args:
        options: parsed `arguments`.
        work: where models and predictions go; with ``options.data`` it is replaced by a word in what is recorded.
    """

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.stages: dict[str, dict[str, Any]] = {}
        self.afresh = not any(work.iterdir())
        self.result: dict[str, Any] = {"machine": machine(), "versions": versions(), "threads": options.threads}
        script = f"benchmarks/{Path(sys.argv[0]).name}"
        self.result |= {"command": self.shown(["python", script, *sys.argv[1:]]), "stages": self.stages}

    def atlasnet(
        self, stage: str, *words: object, limit_gib: float | None = None, exit_code: int = 0
    ) -> dict[str, Any]:
        """Run a verb with this benchmark's seed and threads where the verb takes them; stop where it fails.

        Args:
            stage: what the result is called.
            words: of the command.
            limit_gib: of the address space.
            exit_code: that is wanted.
        """
        command = [*program(), *[str(word) for word in words]]
        if words[0] != "evaluate":
            command += ["--seed", str(self.options.seed), "--threads", str(self.options.threads)]
        text = self.shown(["atlasnet", *command[len(program()) :]])
        if limit_gib is not None:
            kib = int(limit_gib * 2**20)
            command = ["sh", "-c", f'ulimit -v {kib} && exec "$@"', "sh", *command]
            text = f"ulimit -v {kib}; {text}"
        print(f"$ {text}", flush=True)
        usage = measure(command)
        print(
            f"  {usage['seconds']:.1f} s, CPU {usage['cpu_seconds']:.1f} s, peak {usage['peak_gib']:.2f} GiB, "
            f"exit code {usage['exit_code']}",
            flush=True,
        )
        self.stages[stage] = {"command": text, **usage}
        if usage["exit_code"] != exit_code:
            self.write()
            sys.exit(f"{stage}: the exit code is not {exit_code}")
        return self.stages[stage]

    def train_words(self, *words: object) -> list[object]:
        """The words of a training command and what ``--train-options`` adds."""
        return ["train", *words, *shlex.split(self.options.train_options)]

    def seconds(self, *stages: str) -> float:
        """Wall time of the stages together."""
        return float(sum(self.stages[stage]["seconds"] for stage in stages))

    def within(self, seconds: float, limit: float) -> bool | None:
        """Whether a time is below its limit; None where the work folder held some of the work already."""
        return seconds < limit if self.afresh else None

    def write(self) -> None:
        """Write the result as it is now, whole or not at all."""
        from atlasnet.execution import write_json

        write_json(self.options.output, self.result)

    def before(self) -> dict[str, Any] | None:
        """What an earlier call wrote on this machine with these versions, for ``--resume``; None if there is none."""
        if not self.options.resume or not self.options.output.exists():
            return None
        found: dict[str, Any] = json.loads(self.options.output.read_text(encoding="utf-8"))
        if any(found[key] != self.result[key] for key in ("machine", "versions")):
            sys.exit(f"{self.options.output} was made on another machine or by other versions")
        return found

    def shown(self, command: Sequence[str]) -> str:
        """The command line without the folders of this machine."""
        places = {str(self.work): "WORK"}
        if "data" in self.options:
            places[str(self.options.data)] = "DATA"
        shown = []
        for word in command:
            for folder, name in sorted(places.items(), key=lambda item: -len(item[0])):
                if word == folder or word.startswith(folder + os.sep):
                    word = name + word[len(folder) :]
                    break
            else:
                word = Path(word).name if os.path.isabs(word) else word
            shown.append(shlex.quote(word))
        return " ".join(shown)


def measure(command: Sequence[str]) -> dict[str, Any]:
    """Run a command; wall and CPU seconds (children included), peak resident memory in GiB of its largest process."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "usage.json"
        subprocess.run([sys.executable, "-S", __file__, str(report), *command], check=True)
        return dict(json.loads(report.read_text()))


def program() -> list[str]:
    beside = Path(sys.executable).with_name("atlasnet")
    found = str(beside) if beside.exists() else shutil.which("atlasnet")
    if found is None:
        sys.exit("the command atlasnet is not installed: pip install -e .")
    return [found]


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory, system."""
    processor = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Of Python, the libraries that compute, and this package with its commit."""
    from importlib.metadata import version

    found = {"python": platform.python_version()}
    found |= {name: version(name) for name in ("torch", "numpy", "scipy", "SimpleITK", "atlasnet")}
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no", "../src"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    if commit.returncode == 0:
        found["commit"] = commit.stdout.strip() + (" with changes" if changed.stdout.strip() else "")
    return found


def summary_lines(values: Mapping[str, object]) -> str:
    """Figures for a person, one a line."""
    return "\n".join(f"{name}: {value}" for name, value in values.items())


def _launch(report: str, command: Sequence[str]) -> None:
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    scale = 2**30 if sys.platform == "darwin" else 2**20
    Path(report).write_text(
        json.dumps(
            {
                "seconds": round(seconds, 2),
                "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
                "system_seconds": round(usage.ru_stime, 2),
                "peak_gib": round(usage.ru_maxrss / scale, 3),
                "exit_code": os.waitstatus_to_exitcode(status),
            }
        )
    )


if __name__ == "__main__":
    _launch(sys.argv[1], sys.argv[2:])
