"""Damage done to files on purpose: specimen and number decide every byte of a case."""

from __future__ import annotations

import copy
import gzip
import io
import json
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

Random = np.random.Generator

# NIfTI-1's fields that say where and how large things are: name, offset, struct format.
NIFTI_FIELDS = (
    *((f"dim{i}", 40 + 2 * i, "h") for i in range(8)),
    ("datatype", 70, "h"),
    ("bitpix", 72, "h"),
    *((f"pixdim{i}", 76 + 4 * i, "f") for i in range(8)),
    ("vox_offset", 108, "f"),
    ("scl_slope", 112, "f"),
    ("scl_inter", 116, "f"),
    ("qform_code", 252, "h"),
    ("sform_code", 254, "h"),
    *((f"quatern{i}", 256 + 4 * i, "f") for i in range(6)),
    *((f"srow{i}", 280 + 4 * i, "f") for i in range(12)),
)
_SHORTS = (-32768, -1, 0, 1, 2, 7, 8, 64, 1792, 32767)
_FLOATS = (float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e-38, 1e38, 3.4e38, 0.5)
_PATTERNS = tuple(
    struct.pack(order + form, value)
    for order in "<>"
    for form, value in (
        ("I", 0xFFFFFFFF), ("i", 2**31 - 1), ("q", 2**63 - 1), ("Q", 2**40), ("h", -1), ("i", 0),
        ("f", float("nan")), ("f", float("inf")), ("d", float("nan")), ("d", 1e300),
    )
)  # fmt: skip
_WORDS = (
    "nan", "inf", "-inf", "-1", "0", "1e308", "1e-300", "0.5", "65536", "2147483648", "99999999999999999999", "", "x",
    "1 2", "\u00b2", "9" * 5000, "y" * 900, "../../outside", "True", "%d", "LIST", "\x00",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 0.5, -0.0, 1e308, 2**31, 2**63, 10**400, float("nan"), float("inf"), "", "0", "nan",
    "../../outside", "/outside", "a\x00b", "\ud800", "a" * 5000, [], {}, [[]], [None], [1, 2], {"": None}, {"x": {}},
    "module:Class", "os:system",
)  # fmt: skip
_DEEP = "\x01deep\x01"  # stands for a value that `json.dumps` could not write
ATTACKS = (
    "../outside", "a/../../outside", "/outside", "..\\outside", "C:outside", "./../outside", "a/..", "..", "",
    "model.json/x", "\x00", "n" * 300, "networks", "model.json", "atlases/../../outside", "caf\u00e9/\u202e",
)  # fmt: skip


def randomness(name: str, number: int) -> Random:
    """The generator of case ``number`` of the specimen ``name``."""
    return np.random.default_rng([zlib.crc32(name.encode()), number])


def damaged(name: str, content: bytes, number: int) -> bytes:
    """What case ``number`` makes of the file ``name``."""
    random = randomness(name, number)
    special = next((way for suffixes, way in _WAYS if name.endswith(suffixes)), None)
    if special is None or random.random() < 0.4:
        return damaged_bytes(content, random)
    return special(content, random)


def damaged_bytes(content: bytes, random: Random) -> bytes:
    """Bits flipped, numbers made absurd, bytes swapped, cut out or doubled, the end cut off; half of it early on."""
    data = bytearray(content)
    if not data:
        return b"\0"
    near = len(data) if random.random() < 0.5 else min(len(data), 400)
    at = int(random.integers(near))
    way = random.integers(9)
    if way == 0:
        for place in random.integers(0, near, random.integers(1, 30)):
            data[place] ^= 1 << int(random.integers(8))
    elif way == 1:
        pattern = _chosen(_PATTERNS, random)
        data[at : at + len(pattern)] = pattern
    elif way == 2:
        width = int(random.choice([2, 4, 8]))
        at -= at % width
        data[at : at + width] = data[at : at + width][::-1]
    elif way == 3:
        del data[at : at + int(random.integers(1, 64))]
    elif way == 4:
        data[at:at] = random.bytes(int(random.integers(1, 64)))
    elif way == 5:
        data[at:at] = data[at : at + int(random.integers(1, 4096))]
    elif way == 6:
        data[at : at + 256] = b"\0" * 256
    elif way == 7:
        return bytes(data[: int(random.choice([0, 1, at, len(data) - 1]))])
    else:
        return random.bytes(len(data))
    return bytes(data)


def damaged_nifti(content: bytes, random: Random) -> bytes:
    """Fields of the header made absurd, or all of it stored in the other byte order; compressed again if it was."""
    compressed = content[:2] == b"\x1f\x8b"
    data = bytearray(gzip.decompress(content) if compressed else content)
    if random.random() < 0.1:
        data = bytearray(damaged_bytes(bytes(data), random))
    else:
        for _ in range(random.integers(1, 4)):
            _, offset, form = NIFTI_FIELDS[int(random.integers(len(NIFTI_FIELDS)))]
            value = _chosen(_SHORTS if form == "h" else _FLOATS, random)
            struct.pack_into(f"{random.choice(['<', '<', '<', '>'])}{form}", data, offset, value)
    return gzip.compress(bytes(data), 1, mtime=0) if compressed else bytes(data)


def damaged_text_header(content: bytes, random: Random) -> bytes:
    """Words of the header replaced, lines of it lost, doubled or exchanged."""
    head, separator, rest = content.partition(b"\n\n" if content.startswith(b"NRRD") else b"LOCAL\n")
    lines = (head + separator.rstrip(b"\n") if separator == b"LOCAL\n" else head).decode("latin-1").split("\n")
    at = int(random.integers(len(lines)))
    way = random.integers(6)
    if way < 3:
        words = re.split(r"([ ,()=:]+)", lines[at])
        words[2 * int(random.integers((len(words) + 1) // 2))] = _chosen(_WORDS, random)
        lines[at] = "".join(words)
    elif way == 3:
        del lines[at]
    elif way == 4:
        lines.insert(int(random.integers(len(lines))), lines[at])
    else:
        other = int(random.integers(len(lines)))
        lines[at], lines[other] = lines[other], lines[at]
    ending = b"\n\n" if separator == b"\n\n" else b"\n" if separator else b""
    return "\n".join(lines).encode("utf-8", "surrogatepass") + ending + rest


def damaged_json(content: bytes, random: Random) -> bytes:
    """Values replaced by others of any type, keys lost, added or renamed, nesting beyond any depth."""
    tree = json.loads(content)
    if random.random() < 0.05:
        tree = copy.deepcopy(_chosen((*_VALUES, _DEEP), random))
    for _ in range(random.integers(1, 3)):
        _change(tree, random)
    deep = random.choice(["[", '{"a":'])
    depth = int(random.choice([200, 100_000]))
    nested = deep * depth + "1" + ("]" if deep == "[" else "}") * depth
    return json.dumps(tree, indent=1).replace(json.dumps(_DEEP), nested).encode()


def damaged_safetensors(content: bytes, random: Random) -> bytes:
    """The JSON header changed, with its length stated rightly."""
    length = int.from_bytes(content[:8], "little")
    header = damaged_json(content[8 : 8 + length], random)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def damaged_zip(content: bytes, random: Random) -> bytes:
    """Entries lost, doubled, renamed to places outside, made links, blown up, or damaged behind a right checksum."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    at = int(random.integers(len(entries)))
    name, data = entries[at]
    method = int(random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
    link = False
    way = random.integers(7)
    if way == 0:
        del entries[at]
    elif way == 1:
        entries.insert(at, (_chosen(ATTACKS, random), data))
    elif way == 2:
        entries[at] = (_chosen(ATTACKS, random), data)
    elif way == 3:
        entries[at], link = (name, _chosen((b"/etc/hostname", b"../../outside", b"."), random)), True
    elif way == 4:
        entries[at], method = (name, b"\0" * 2**24), zipfile.ZIP_DEFLATED
    elif way == 5:
        entries[at] = (name, damaged(name, data, int(random.integers(2**31))))
    else:
        entries.append((name, damaged_bytes(data, random)))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two entries of one name, which is what is wanted
        for number, (entry, inside) in enumerate(entries):
            info = zipfile.ZipInfo(entry)
            info.external_attr = (0o120777 if link and number == at else 0o100644) << 16
            info.compress_type = method
            with archive.open(info, "w", force_zip64=bool(random.random() < 0.1)) as target:
                target.write(inside)
    made = stream.getvalue()
    return _lying_zip(made, random) if random.random() < 0.2 else made


def _lying_zip(content: bytes, random: Random) -> bytes:
    """A size or an offset in the zip's directory made absurd."""
    data = bytearray(content)
    places = [match.start() for match in re.finditer(b"PK\x01\x02", content)]
    place = _chosen(places or [0], random) + _chosen((10, 12, 16, 20, 24, 28, 30, 42), random)
    data[place : place + 4] = _chosen((b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x40"), random)
    return bytes(data)


def _change(tree: Any, random: Random) -> None:
    """Change one place of a tree of objects and lists."""
    places = list(_places(tree))
    if not places:
        return
    parent, key = places[int(random.integers(len(places)))]
    value = copy.deepcopy(_chosen((*_VALUES, _DEEP), random))
    way = random.integers(6)
    if way < 3:
        parent[key] = value
    elif way == 3:
        del parent[key]
    elif isinstance(parent, dict):
        parent[_chosen(("", "x", "0", "../outside", "\ud800", "format"), random)] = (
            value if way == 4 else parent.pop(key)
        )
    elif way == 4:
        parent.append(value)
    else:
        parent.insert(0, copy.deepcopy(parent[key]))


def _places(tree: Any) -> Any:
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def _chosen(values: Any, random: Random) -> Any:
    return values[int(random.integers(len(values)))]


_WAYS: tuple[tuple[tuple[str, ...], Callable[[bytes, Random], bytes]], ...] = (
    ((".nii", ".nii.gz"), damaged_nifti),
    ((".nrrd", ".nhdr", ".mha", ".mhd", ".csv", ".txt"), damaged_text_header),
    ((".json",), damaged_json),
    ((".safetensors",), damaged_safetensors),
    ((".zip",), damaged_zip),
)
