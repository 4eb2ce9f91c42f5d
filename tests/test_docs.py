"""What README and the documentation site show can be done: their code runs, their options exist, the site builds.

The blocks of a page run in order, in one temporary folder that holds what the pages speak of: ``data/`` and
``other/`` (cohorts of small ellipsoids), ``new_ct.nii.gz``, ``scans/``, ``export/`` and so on, and, unless the page
trains it, ``model/``. They run as they stand. Three things only are not what a reader has: both training recipes are
cut down to one epoch of a few steps, there is one thread, and ``atlasnet`` runs in the process of the tests. A block
after a comment ``<!-- not run: REASON -->`` is parsed and listed, as a skipped test, but not run.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt

import atlasnet
import dicoms
from atlasnet.cli.main import main, parser
from atlasnet.cohort import Cohort
from atlasnet.network import registry
from atlasnet.registration.settings import DEFAULT_LEVELS
from atlasnet.training.fit import fit
from atlasnet.training.options import FitOptions
from atlasnet.volume import write_volume
from code_blocks import PAGES, ROOT, SHELL, Block, blocks, calls, options
from synthetic import shorten_presets, subject, write_study_cohort

BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [(block, call) for block in BLOCKS for command in block.commands for call in calls(command)]
SKIPPED = [block for block in BLOCKS if block.not_run is not None]
RUN = sorted({block.page for block in BLOCKS if block.not_run is None})
# Those with many trainings take minutes together.
LONG = {
    f"docs/{name}.md" for name in ("start", "gpu", "metrics", "own-network", "own-registration", "resuming", "study")
}


def cut_down(patch: pytest.MonkeyPatch) -> None:
    """Train for one epoch of four steps, on one thread."""
    shorten_presets(patch, epochs=1)
    patch.setattr(os, "sched_getaffinity", lambda _process: {0}, raising=False)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that a page may find in its folder."""
    folder = tmp_path_factory.mktemp("shelf")
    data = write_study_cohort(folder / "data", range(3), ["t0", "t1"])
    write_study_cohort(folder / "other", range(20, 23), ["t0", "t1"])
    for name in ("predictions", "references", "reader1", "reader2"):
        shutil.copytree(data / "labelsTs", folder / name)
    for seed, name in enumerate(("new_ct", "a", "b", "scans/first", "scans/second"), start=100):
        write_volume(folder / f"{name}.nii.gz", subject(seed)[0])
    image = subject(110)[0]
    for series, step in (("3", 1), ("4", 2)):
        made = dicoms.slices(
            np.rint(image.array[0, ::step]).astype(np.int16), spacing=image.grid.spacing.tolist(), series=series
        )
        dicoms.save(folder / "export" / series, made)
    with pytest.MonkeyPatch.context() as patch:
        cut_down(patch)
        fit(Cohort.read(data), folder / "model", FitOptions(atlases=1, width=0.25, operator="affine"))
    return folder


@pytest.fixture
def desk(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own to work in; what a page changes for the process is taken back."""
    shutil.copytree(shelf, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    cut_down(monkeypatch)
    return tmp_path / "desk"


@pytest.mark.parametrize("page", [pytest.param(p, marks=pytest.mark.slow if p in LONG else ()) for p in RUN])
def test_the_blocks_of_a_page_run(page: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page == "docs/study.md":  # shares of three subjects would be the same ones
        for name in ("data", "other"):
            write_study_cohort(desk / name, range(6), ["t0", "t1"])
    run = [block for block in BLOCKS if block.page == page and block.not_run is None]
    lines = [call for block in run for command in block.commands for call in calls(command)]
    if any(call[0] == "train" and call[call.index("-o") + 1] == "model/" for call in lines):
        shutil.rmtree(desk / "model")
    before, names = set(sys.modules), {"__name__": "page"}
    try:
        for block in run:
            if block.language in SHELL:
                for command in block.commands:
                    run_command(block, command, monkeypatch)
            else:
                exec(compile(block.text, str(block), "exec"), names)
    finally:
        for name in set(sys.modules) - before:
            if (desk / f"{name}.py").exists():
                del sys.modules[name]


def run_command(block: Block, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if command.startswith("atlasnet "):
        (call,) = calls(command)
        assert main(call) == 0, f"{block}: {command}"
    elif command.startswith("export "):
        name, _, value = command.removeprefix("export ").partition("=")
        monkeypatch.setenv(name, value)
        if name == "PYTHONPATH":
            monkeypatch.syspath_prepend(str(Path(value).resolve()))
    else:
        subprocess.run(["bash", "-euc", command], check=True)


@pytest.mark.parametrize("block", SKIPPED, ids=str)
def test_a_block_that_is_not_run_says_why(block: Block) -> None:
    pytest.skip(block.not_run or "")


@pytest.mark.parametrize(("block", "call"), COMMANDS, ids=lambda value: str(value) if isinstance(value, Block) else "")
def test_the_command_line_understands_what_a_page_shows(block: Block, call: list[str]) -> None:
    try:
        parser().parse_args(call)
    except SystemExit as stopped:
        if stopped.code != 0:
            pytest.fail(f"{block}: atlasnet {' '.join(call)}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_that_a_page_names_exist(page: Path) -> None:
    assert options(page) <= all_options(parser())


def test_options_that_messages_name_exist() -> None:
    said = {
        (path.name, option)
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", node.value)
    }
    others = {"--signal", "--cpus"}  # of sbatch and docker, in docstrings
    assert [found for found in sorted(said) if found[1] not in all_options(parser()) | others] == []


def all_options(command: argparse.ArgumentParser) -> set[str]:
    found: set[str] = set()
    for action in command._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found = found.union(*(all_options(sub) for sub in action.choices.values()))
    return found


def test_the_table_of_levels_is_that_of_the_settings() -> None:
    text = (ROOT / "docs" / "registration.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^ +\|.*[0-9].*\|$", text, re.M)]
    expected = [
        [
            f"{level.factor:g}",
            f"{level.factor * level.support:.2g}",
            f"{level.factor * level.radius:g}" if level.radius else "",
            str((2 * level.radius + 1) ** 3) if level.radius else "none",
            str(level.refinements),
        ]
        for level in DEFAULT_LEVELS
    ]
    assert rows == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_is_plain_markdown_whose_links_lead_to_files(page: Path) -> None:
    """A code forge shows it as it is: what only Sphinx understands stands in comments."""
    tokens = MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
    inline = [child for token in tokens for child in token.children or ()]
    texts = [child.content for child in inline if child.type == "text"]
    assert not [text for text in texts if re.search(r"\{[a-z:]+\}$|^:::|^\([a-z-]+\)=$", text)]
    assert not [token.info for token in tokens if token.type == "fence" and token.info.startswith("{")]
    links = [str(child.attrs["href"]) for child in inline if child.type == "link_open"]
    links += [str(child.attrs["src"]) for child in inline if child.type == "image"]
    local = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_limits_are_those_of_the_readme() -> None:
    readme, page = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/limits.md"))
    assert page.startswith("# Limits\n\n" + readme.partition("## Limits\n")[2].strip() + "\n")


def test_the_reference_has_every_room_and_every_public_name() -> None:
    api = ROOT / "docs" / "api"
    package = Path(atlasnet.__file__).parent
    rooms = {path.parent.name for path in package.glob("*/__init__.py")} - {"cli"}
    assert {page.stem for page in api.glob("*.md")} == rooms | {"errors", "index"}
    face = (api / "index.md").read_text(encoding="utf-8")
    assert {name for name in atlasnet.__all__ if f"`{name}`" not in face} == {"__version__"}


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-q", "-E", "-d", tmp_path / "trees"]
    subprocess.run([*command, "-b", "html", ROOT / "docs", tmp_path / "site"], check=True)
    pages = {page: page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html")}
    assert len(pages) >= len(PAGES) - 1
    loads = re.compile(r"<(?:script|img|iframe)\b[^>]*\bsrc=[\"'](?:https?:)?//|<link\b[^>]*\bhref=[\"'](?:https?:)?//")
    assert [str(page) for page, text in pages.items() if loads.search(text)] == []
    styles = [path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.css")]
    assert not [style for style in styles if re.search(r"@import|url\([\"']?(?:https?:)?//", style)]
    verbs = (tmp_path / "site" / "verbs.html").read_text(encoding="utf-8")
    plain = re.sub(r"<[^>]+>", "", verbs)
    top = {"-h", "--help", "--version", "--completion"}
    assert [option for option in sorted(all_options(parser()) - top) if option not in plain] == []
