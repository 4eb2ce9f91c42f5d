"""Files that are either whole or absent, and names that depend on content."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from atlasnet.errors import InputError
from atlasnet.execution.folders import walk
from atlasnet.execution.locks import hold

_OTHER_FILES = 256  # libraries, logs, what is read and written meanwhile
_SCANNED = (0.1, 0.4, 1.5)  # seconds between attempts

LARGEST_JSON = 32 * 2**20  # bytes; as Python's objects a file may need twenty times its size
_REMAINS = re.compile(r"\.(?P<target>.+)\.[a-z0-9_]{8}", re.DOTALL)  # as `tempfile` names folders
_PLAIN = "plain"  # in such a folder for a moment
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``target`` that replaces ``target`` when the block ends without an exception.

    The temporary name keeps the suffixes of ``target``, because image writers choose their format by them. The parent
    folder is created. After an exception, or a kill, ``target`` is what it was before.

        with atomic_path("out/labels.nii.gz") as path:
            write(path)

    Raises:
        OSError: a disk is full, for instance; it names ``target`` where whoever raised it named no file.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with errors_named(target), _folder_beside(target) as folder:
        temporary = folder / target.name
        yield temporary
        with open(temporary, "r+b") as stream:  # Windows flushes what may be written only
            os.fsync(stream.fileno())
        move(temporary, target)
    _sync_folder(target.parent)


@contextmanager
def errors_named(target: Path) -> Iterator[None]:
    """Inside the block, an `OSError` that names no file, as those of NumPy and of full disks, names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or str(target) in str(error):
            raise
        if error.errno is None:  # such as NumPy's
            raise OSError(f"{target}: {error}") from error
        raise OSError(error.errno, error.strerror, str(target)) from error


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """A temporary folder with the permissions of any new one: whom they let may remove what a kill leaves of it."""
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
        folder = Path(name)
        plain = folder / _PLAIN
        plain.mkdir()
        mode = stat.S_IMODE(plain.stat().st_mode)
        plain.rmdir()
        with suppress(OSError):  # some file systems know no permissions
            folder.chmod(mode)
        yield folder


def remains_in(folder: Path) -> dict[Path, list[Path]]:
    """What processes that were killed, or still run, have in `atomic_path` in a folder, by the file it was to become.

    Whoever removes any of it must hold a lock without which nobody writes that file.
    """
    found: dict[Path, list[Path]] = {}
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        named = _REMAINS.fullmatch(entry.name)
        if named is not None and entry.is_dir() and not entry.is_symlink():
            found.setdefault(folder / named["target"], []).append(entry)
    return found


def remove_begun(targets: Iterable[Path], *, below: Iterable[Path] = ()) -> None:
    """Remove what processes that were killed had begun to write; none may be at it any more.

    Args:
        targets: files or folders that they may have begun.
        below: folders in which, at any depth, they may have begun any file.
    """
    wanted = set(targets)
    found = [left for place in {target.parent for target in wanted} for left in remains_in(place).items()]
    remains = [(target, begun) for target, begun in found if target in wanted]
    remains += [left for folder in below for place, _, _ in walk(folder) for left in remains_in(place).items()]
    for target, some in remains:
        for begun in some:
            with suppress(OSError):  # what is closed to us is left
                if {entry.name for entry in begun.iterdir()} <= {target.name, _PLAIN}:  # not a `.data.original`
                    shutil.rmtree(begun)


def require_absent(folder: Path) -> None:
    """Refuse a folder that is there where a new one is to be made.

    Raises:
        InputError: it is.
    """
    if folder.exists() or folder.is_symlink():  # a link that leads nowhere is no folder to be made
        raise InputError("the folder exists already", path=folder, remedy="name a new one")


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """Give an empty folder beside ``target`` that becomes ``target`` when the block ends without an exception.

    Raises:
        InputError: ``target`` exists, or another process is making it.
    """
    target = Path(target)
    require_absent(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with made_alone(target):
        require_absent(target)  # whoever held it until now has made it
        with _folder_beside(target) as folder:
            temporary = folder / target.name
            temporary.mkdir()
            yield temporary
            move(temporary, target)
        _sync_folder(target.parent)


@contextmanager
def made_alone(target: Path, *beside: Path) -> Iterator[None]:
    """Let no other process make ``target`` meanwhile, and remove what one that was killed had begun to make of it.

    Args:
        target: a file or a folder.
        beside: what is made together with it.

    Raises:
        InputError: another process is making it, or nothing can be written beside it.
    """
    lock = target.with_name(f".{target.name}.lock")
    with hold(lock, place=target, busy="another process is making this", remedy="give another place with -o"):
        remove_begun([target, *beside])
        yield


def move(source: Path, target: Path) -> None:
    """Give a file or a folder another name; a file that has it goes.

    On Windows, where a scanner for viruses holds what was just written open for a moment, it is tried again for two
    seconds.

    Raises:
        OSError: it cannot be done, for one because another program holds one of them open.
    """
    rename = os.rename if source.is_dir() else os.replace
    for pause in _SCANNED if sys.platform == "win32" else ():
        try:
            return rename(source, target)
        except PermissionError:
            time.sleep(pause)
    return rename(source, target)


def copy_file(source: str | Path, target: str | Path) -> None:
    """Put the bytes of ``source`` at ``target``, atomically."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; systems that cannot open a folder do not need it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as `json_text`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8", newline="\n")


def json_text(value: Any) -> str:
    """``value`` as indented JSON with a stable key order. NaN is refused: it is not JSON."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def read_json(path: str | Path, *, largest: int = LARGEST_JSON) -> Any:
    """Read a JSON file; raises ``OSError`` or ``ValueError`` for the caller to explain.

    NaN and infinity, halves of characters, nesting beyond Python's depth and files larger than ``largest`` are refused.
    """
    path = Path(path)
    if path.stat().st_size > largest:
        raise ValueError(f"the file is larger than {largest} bytes")
    text = path.read_text(encoding="utf-8-sig")  # some editors of Windows begin with a byte order mark
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("the values are nested too deeply") from error
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()  # fails on a half that has no other half
    return value


@contextmanager
def reading_back(path: str | Path) -> Iterator[None]:
    """What goes wrong inside while ``path``, which an earlier call wrote, is read and understood becomes one error.

    Raises:
        InputError: the file cannot be read, or does not hold what was written.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "what an earlier call wrote cannot be used: the file is damaged",
            path=path,
            found=f"{type(error).__name__}: {error}",
            remedy="delete the file; the same command makes it again",
        ) from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def digest(value: Any) -> str:
    """A short hash of a JSON-serialisable value, the same in every process: the key of a cached artefact."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def allow_open_files(count: int) -> None:
    """Let this process hold so many more files open; a memory map of one counts.

    Raises:
        InputError: the system does not let it.
    """
    try:
        import resource
    except ImportError:  # Windows does not count them
        return
    wanted = count + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:
        raise InputError(
            "the system lets a process open too few files",
            expected=f"{wanted}",
            found=f"{soft}, and no more than {hard} can be asked for",
            remedy=f"raise the limit (ulimit -n {wanted}), or take fewer atlases or subjects",
        ) from error


def file_digest(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
