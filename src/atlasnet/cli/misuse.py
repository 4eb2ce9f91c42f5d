"""An error of the command line itself, in the log that it names: no verb has begun that could write it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from atlasnet import __version__
from atlasnet.cli.reporting import check_log
from atlasnet.errors import InputError

_OPTION = re.compile(r"--?[A-Za-z][A-Za-z-]*")


class Misuse(SystemExit):
    """The command line cannot be understood, which has been told.

    Args:
        message: what is wrong.
    """

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


def log_misuse(words: Sequence[str], verb: str, message: str) -> None:
    """Write it into the file after ``--log``, if that can be a log; of what the user typed, only names of options.

    Args:
        words: of the command line.
        verb: among them; empty where there is none.
        message: what is wrong with them.
    """
    named = list(_named(words))
    log = next((Path(value) for option, value in reversed(named) if option == "--log"), None)
    if log is None:
        return
    from atlasnet.execution import LogReporter, SilentReporter, open_log

    others = [Path(value) for option, value in named if option not in ("--log", "-o", "--output")]
    output = [Path(value) for option, value in named if option in ("-o", "--output")]
    try:
        check_log(argparse.Namespace(verb=verb, log=log, inputs=others, output=output))
        with open_log(log) as stream:
            reporter = LogReporter(SilentReporter(), stream)
            reporter.write("begin", f"atlasnet {__version__} {verb}".strip())
            reporter.write("error", _hidden(message, words))
            reporter.write("end", "exit code 2, 0.0 s")
    except InputError:  # one error is told already, and this file is none of ours
        return


def _named(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every word that is no option, and what is joined to one, with the option before it."""
    option = ""
    for word in words:
        if _OPTION.fullmatch(word):
            option = word
        elif word.startswith("--") and "=" in word:
            before, _, behind = word.partition("=")
            yield before, behind
        else:
            yield option, word
            option = ""


def _hidden(message: str, words: Sequence[str]) -> str:
    """The message without what was typed but for names of options: files are often called after patients."""
    values = {value for _, value in _named(words)} | {word for word in words if not _OPTION.fullmatch(word)}
    spellings = {spelling for value in values if value for spelling in (value, repr(value)[1:-1])}
    for spelling in sorted(spellings, key=len, reverse=True):
        message = re.sub(rf"(?<!\w){re.escape(spelling)}(?!\w)", "<value>", message)
    return message
