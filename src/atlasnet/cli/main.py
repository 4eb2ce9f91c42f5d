"""The command ``atlasnet``: finds the verb, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TextIO

from atlasnet import __version__
from atlasnet.cli.misuse import Misuse, log_misuse
from atlasnet.cli.reporting import run_verb
from atlasnet.cli.signals import ended_by_signals, ending
from atlasnet.errors import AtlasNetError, InputError

# Idle OpenMP threads try a thousand times, which bridges the gaps between the operations of a network, and sleep then:
# beside other busy processes, trying on keeps processors from whom they wait for (benchmarks/busy.py). It must be said
# before the first library that brings OpenMP is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

EXIT_CODES = """exit codes:
  0    done
  1    done, but something is not as it should be: a case failed, a cohort has errors; or the work itself failed
  2    an input or the command line cannot be used
  3    predict --strict refused scans that are not like the training subjects, and nothing else failed
  129  stopped by SIGHUP (a terminal that was closed), as by the user
  130  stopped by the user (Ctrl-C); learn-metrics, train, predict, study and demo go on when the same command is given
       again
  138  stopped by SIGUSR1 (sbatch --signal=USR1@60), as by the user; 140 by SIGUSR2, 152 by SIGXCPU
  143  stopped by SIGTERM (kill, docker stop, scancel), as by the user"""
RESUMED = ("demo", "learn-metrics", "train", "predict", "study")
VERBS = ("demo", "convert", "check", "register", "learn-metrics", "train", "predict", "evaluate", "study", "model")


class _Completion(argparse.Action):
    """Print the code for the shell and leave."""

    def __call__(self, parser: argparse.ArgumentParser, _namespace: Any, shell: Any, _option: Any = None) -> None:
        from argcomplete.shell_integration import shellcode

        print(shellcode(["atlasnet"], shell=shell))
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Tells of an error in one line, as the verbs do; those of its verbs are of this class too."""

    def error(self, message: str) -> NoReturn:
        self._print_message(f"{self.prog}: error: {message}; to mend it: see {self.prog} --help\n", sys.stderr)
        raise Misuse(message)


def parser() -> argparse.ArgumentParser:
    """The whole command line; a verb's heavy imports wait until it runs."""
    top = _Parser(
        prog="atlasnet",
        description="Segment medical volumes from a handful of annotated scans.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"atlasnet {__version__}")
    top.add_argument(
        "--completion",
        action=_Completion,
        choices=("bash", "zsh", "fish"),
        help="print what makes the shell complete this command, to be evaluated by it; see docs/command-line.md",
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name in VERBS:
        module = importlib.import_module(f"atlasnet.cli.{name.replace('-', '_')}")
        sub = verbs.add_parser(
            name, help=module.HELP, description=module.HELP, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (by default those of the process) and return its exit code."""
    _open_what_is_closed()
    _print_whatever_it_is()
    try:
        return _main(arguments)
    except BrokenPipeError:  # the reader of our output, `head` for one, has had enough
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            _let_go(stream)


def _main(arguments: Sequence[str] | None) -> int:
    command = parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what could come next
        import argcomplete

        argcomplete.autocomplete(command)
    try:
        args, unknown = command.parse_known_args(arguments)
        if unknown:
            _Parser(prog=f"{command.prog} {args.verb}").error(f"unrecognized arguments: {' '.join(unknown)}")
    except Misuse as misuse:
        words = sys.argv[1:] if arguments is None else arguments
        log_misuse(words, next((word for word in words if word in VERBS), ""), misuse.message)
        raise
    with ended_by_signals() as asked:
        return _run(args, asked)


def _open_what_is_closed() -> None:
    """Standard streams that were closed before us, as by ``2>&-``, lead nowhere; a result would take their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nowhere, "w" if number else "r", encoding="utf-8", closefd=False))


def _let_go(stream: TextIO) -> None:
    """Of what a stream takes no more, on a full disk or in a closed pipe: Python would end with a code of its own."""
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _print_whatever_it_is() -> None:
    """Letters that standard output has no code for, as in a pipe on Windows, are escaped, as standard error does it."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _require_place() -> None:
    """Refuse to begin in a folder that was removed: libraries that look for it end the process without a reason.

    Raises:
        InputError: it was.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise InputError(
            "the folder in which the command was given is not there any more", remedy="change to another one"
        ) from error


def _run(args: argparse.Namespace, asked: Callable[[], bool]) -> int:
    from atlasnet.execution import say

    try:
        _require_place()
        return run_verb(args, asked)
    except AtlasNetError as error:
        say(f"atlasnet {args.verb}: error: {error}")
        return error.exit_code
    except KeyboardInterrupt as stop:
        code, who = ending(stop)
        goes_on = "the same command goes on from here" if args.verb in RESUMED else "no file was left half written"
        say(f"\natlasnet {args.verb}: stopped by {who}; {goes_on}")
        return code


if __name__ == "__main__":
    sys.exit(main())
