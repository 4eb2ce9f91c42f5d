"""The command ``atlasnet``: finds the verb, and turns errors into one line and an exit code.

Exit codes: 0 done; 1 done, but something is not as it should be (problems in a cohort, a case that failed); 2 the
input or the command line cannot be used; 130 stopped by the user.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from atlasnet import __version__
from atlasnet.errors import AtlasNetError

# Idle OpenMP threads spin for a tenth of a millisecond, which bridges the gaps between the operations of a network,
# and sleep then: beside any other busy process, spinning on slows the work many times over. It must be said before the
# first library that brings OpenMP is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "100000")

VERBS = ("demo", "check", "register", "train", "predict", "evaluate", "study", "model")


def parser() -> argparse.ArgumentParser:
    """The whole command line; a verb's heavy imports wait until it runs."""
    top = argparse.ArgumentParser(
        prog="atlasnet", description="Segment medical volumes from a handful of annotated scans."
    )
    top.add_argument("--version", action="version", version=f"atlasnet {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name in VERBS:
        module = importlib.import_module(f"atlasnet.cli.{name}")
        sub = verbs.add_parser(
            name, help=module.HELP, description=module.HELP, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (by default those of the process) and return its exit code."""
    args = parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except AtlasNetError as error:
        print(f"atlasnet {args.verb}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"atlasnet {args.verb}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, `head` for one, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
