"""The rooms of the package are passed in one direction, and the command line starts light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import atlasnet

PACKAGE = Path(atlasnet.__file__).parent
ROOMS = (
    "execution volume transform cohort registration atlas network training prediction evaluation report study cli"
).split()
FACE = {"__init__", "model", "estimator"}  # modules at the top: they may use every room but the command line


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a module imports, wherever in the module the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "atlasnet":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("atlasnet.")}
        elif isinstance(node, ast.ImportFrom) and node.level > 0:
            pytest.fail(f"{path.name} has a relative import; write atlasnet.… so that the room is seen")
    return found


@pytest.mark.parametrize("room", [room for room in ROOMS if (PACKAGE / room).is_dir()])
def test_a_room_imports_only_rooms_above_it(room: str) -> None:
    light = {"errors", "wording", "__version__"}
    allowed = set(ROOMS[: ROOMS.index(room) + 1]) | light | (FACE if room == "cli" else set())
    for path in sorted((PACKAGE / room).rglob("*.py")):
        assert imported_rooms(path) <= allowed, path.relative_to(PACKAGE)


def test_every_folder_of_the_package_is_a_known_room() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and not p.name.startswith("__")}
    assert folders <= set(ROOMS)


def loaded_modules(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_the_package_runs_as_a_module() -> None:
    words = [sys.executable, "-m", "atlasnet", "--version"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.startswith("atlasnet ")


def test_help_loads_nothing_heavy() -> None:
    code = "from atlasnet.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert not loaded_modules(code) & {"torch", "numpy", "scipy", "SimpleITK", "matplotlib", "tqdm"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_modules("import atlasnet") & {"torch", "numpy", "scipy", "SimpleITK", "matplotlib", "tqdm"}


def test_a_registration_without_labels_loads_nothing_of_the_conversion_of_cohorts() -> None:
    code = "from atlasnet.cli.register_inputs import labels_on\nassert labels_on(None, None) is None"
    assert not loaded_modules(code) & {"atlasnet.cohort.conversion", "matplotlib", "pydicom"}
