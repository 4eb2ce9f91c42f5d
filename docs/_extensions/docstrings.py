"""Docstrings as this project writes them, in the reference.

Names become links where the reference has them, and text where it has not but they exist. Sphinx knows an object by the
place where the reference documents it, `atlasnet.volume.Volume`; docstrings and types name it as their module does,
`Volume` or `atlasnet.volume.volume.Volume`. A name that is nowhere stays a warning, which fails the build: it has
outlived what it named.

Indented lines are examples, a bar is an absolute value, and what a property or ``Returns:`` says begins with no type:
the annotation has it.
"""

from __future__ import annotations

import builtins
import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any, cast

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment

_MISSING = object()
_COLON = "\ue000"  # stands for a colon while napoleon, which would take it for the end of a type, reads the docstring


@cache
def modules() -> dict[str, ModuleType]:
    """Every module of the package."""
    import atlasnet

    found = pkgutil.walk_packages(atlasnet.__path__, "atlasnet.")
    return {"atlasnet": atlasnet} | {info.name: importlib.import_module(info.name) for info in found}


def before_napoleon(_app: Sphinx, what: str, _name: str, _value: Any, _options: Any, lines: list[str]) -> None:
    """Mark the examples, the bars and the colons."""
    found: list[str] = []
    returned = False
    for line in lines:
        indented = line.startswith(" ")
        last = next((text for text in reversed(found) if text.strip()), "")
        if indented and found and not found[-1].strip() and last and not last.startswith(" ") and last[-2:] != "::":
            found += ["::", ""]
        returned = line.rstrip() == "Returns:" or (returned and (indented or not line.strip()))
        parts = re.split("(`+[^`]*`+)", line)
        line = "".join(part if part.startswith("`") else part.replace("|", r"\|") for part in parts)
        found.append(line.replace(":", _COLON) if what == "property" or (returned and indented) else line)
    lines[:] = found


def after_napoleon(_app: Sphinx, _what: str, _name: str, _value: Any, _options: Any, lines: list[str]) -> None:
    """The colons again."""
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.TextElement) -> nodes.Node | None:
    """Sphinx asks this about every name that it does not find."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].lstrip(".")
    domain = cast(PythonDomain, env.domains["py"])
    for value, path in meanings(name, node.get("py:module") or "atlasnet", node.get("py:class")):
        for place in (path, *documented(value, domain)):
            if place in domain.objects:
                entry = domain.objects[place]
                uri = app.builder.get_relative_uri(node["refdoc"], entry.docname) + f"#{entry.node_id}"
                return nodes.reference("", "", shown, internal=True, refuri=uri, reftitle=place)
        return shown
    return shown if foreign(name) else None


def meanings(name: str, module: str, owner: str | None) -> Iterator[tuple[Any, str]]:
    """What ``name`` can mean there, nearest first: in its class, its room, the errors, the package."""
    room = ".".join(module.split(".")[:2])
    near = [m for key, m in modules().items() if key == room or key.startswith(room + ".")]
    spaces: list[Any] = [*near, modules()["atlasnet.errors"], modules()["atlasnet"]]
    if owner is not None:
        spaces = [value for value in (walk(space, owner) for space in near) if value is not _MISSING] + spaces
    for space in spaces:
        if (value := walk(space, name)) is not _MISSING:
            yield value, f"{module}.{owner}.{name}" if owner else f"{module}.{name}"
    for length in range(name.count(".") + 1, 0, -1):
        parts = name.split(".")
        if (home := modules().get(".".join(parts[:length]))) is not None:
            value = walk(home, ".".join(parts[length:])) if length < len(parts) else home
            if value is not _MISSING:
                yield value, name


def walk(space: Any, path: str) -> Any:
    """The attribute at a dotted path, dataclass fields without a default included."""
    for part in path.split("."):
        if part in getattr(space, "__dataclass_fields__", {}) or part in getattr(space, "__annotations__", {}):
            return getattr(space, part, None)
        space = getattr(space, part, _MISSING)
    return space


def documented(value: Any, domain: PythonDomain) -> Iterator[str]:
    """Where the reference may have this object: its own path, and that path below each room."""
    home, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if isinstance(value, ModuleType):
        yield value.__name__
    if isinstance(home, str) and isinstance(name, str):
        while home:
            yield f"{home}.{name}"
            home = home.rpartition(".")[0]


def foreign(name: str) -> bool:
    """Whether the name is another package's, which the site does not document."""
    first = name.split(".")[0]
    if hasattr(builtins, first) or first in {"typing", "np", "collections"}:
        return True
    if first == "atlasnet" or "." not in name:
        return False
    try:
        importlib.import_module(first)
    except ImportError:
        return False
    return True


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's entry point."""
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
