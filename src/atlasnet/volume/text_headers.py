"""What a MetaImage or NRRD file says of itself, checked before ITK reads it.

ITK's parsers of these headers write past the ends of their buffers on some that are damaged, and set aside memory for
whatever size a header claims. So a header reaches them only if every field in it is one of the format's, once, and
of the form that it must have, and if all the voxels that it promises are there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from atlasnet.errors import VolumeError
from atlasnet.volume.headers import check_deflated, check_size, check_spacing, damaged, truncated

_LONGEST_LINE = 1 << 16
_LONGEST_NAME, _LONGEST_VALUE = 200, 1000
_LONGEST_HEADER = 1 << 20
_NUMBER = r"[-+]?(?:\d{1,30}\.?\d{0,30}|\.\d{1,30})(?:[eE][-+]?\d{1,3})?"
_WHOLE = r"-?\d{1,18}"
_META_WHOLE = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8}
_META_WIDTH = {**_META_WHOLE, **{f"U{name}": width for name, width in _META_WHOLE.items()}, "FLOAT": 4, "DOUBLE": 8}
_NRRD_WIDTH = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
    "float": 4,
}
_NRRD_SPACES = (
    "right-anterior-superior|RAS|left-anterior-superior|LAS|left-posterior-superior|LPS|right-anterior-superior-time|"
    "RAST|left-anterior-superior-time|LAST|left-posterior-superior-time|LPST|"
)
_NRRD_OTHER_SPACES = (
    "scanner-xyz|3D-right-handed|3D-left-handed|scanner-xyz-time|3D-right-handed-time|3D-left-handed-time"
)
_MM = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "")


def _listed(entry: str, count: int) -> str:
    """A pattern of ``count`` entries between blanks."""
    return rf"{entry}(?:\s+{entry}){{{count - 1}}}" if count > 0 else "(?!)"


# What the voxels are to be multiplied with and what is to be added, which ITK does not do, and what changes nothing.
_META_SCALING = {"ElementToIntensityFunctionSlope": 1.0, "ElementToIntensityFunctionOffset": 0.0}
# The form of each field of a MetaImage, given the number of axes. Fields that it does not name are a user's own.
_META_FIELDS: Mapping[str, Callable[[int], str]] = {
    "ObjectType": lambda n: "Image",
    "ObjectSubType": lambda n: r"[\w ]{1,40}",
    "NDims": lambda n: r"\d",
    **dict.fromkeys(("BinaryData", "CompressedData"), lambda n: "true|false|1|0"),
    **dict.fromkeys(("BinaryDataByteOrderMSB", "ElementByteOrderMSB"), lambda n: "true|false|1|0"),
    "CompressedDataSize": lambda n: r"\d{1,18}",
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), lambda n: _listed(_NUMBER, n * n)),
    **dict.fromkeys(("Offset", "Position", "Origin", "CenterOfRotation"), lambda n: _listed(_NUMBER, n)),
    "AnatomicalOrientation": lambda n: r"[A-Za-z?]{1,8}",
    **dict.fromkeys(("ElementSpacing", "ElementSize"), lambda n: _listed(_NUMBER, n)),
    "DimSize": lambda n: _listed(r"\d{1,9}", n),
    "HeaderSize": lambda n: _WHOLE,
    "Modality": lambda n: r"\w{1,40}",
    "SequenceID": lambda n: _listed(_NUMBER, n),
    **dict.fromkeys(("ElementMin", "ElementMax"), lambda n: _NUMBER),
    "ElementNumberOfChannels": lambda n: r"[1-9]\d{0,5}",
    "ElementType": lambda n: r"MET_\w{1,30}",
    "ElementNBits": lambda n: r"\d{1,3}",
    **dict.fromkeys(("ID", "ParentID"), lambda n: _WHOLE),
    "Color": lambda n: _listed(_NUMBER, 4),
    "CompressionLevel": lambda n: _WHOLE,
    "DistanceUnits": lambda n: r"\??|[A-Za-z\u00b5]{1,20}",
    **dict.fromkeys(_META_SCALING, lambda n: _NUMBER),
}
# What places an image. ITK takes such a matrix apart, and never comes to an end where a product overflows.
_PLACING = {
    *("TransformMatrix", "Rotation", "Orientation", "Offset", "Position", "Origin", "CenterOfRotation"),
    *("space directions", "space origin", "measurement frame"),
}
_FARTHEST = 1e9  # mm
_META_DEPENDENT = [name for name, form in _META_FIELDS.items() if form(2) != form(3)]
_VECTOR = rf"\(\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{0,3}}\s*\)"
_QUOTED = r'"[^"\\]*"'
_NUMBER_OR_NAN = rf"(?:{_NUMBER}|[Nn][Aa][Nn])"
# The form of each field of an NRRD, given the number of axes. There are no others.
_NRRD_FIELDS: Mapping[str, Callable[[int], str]] = {
    "content": lambda n: ".*",
    "number": lambda n: r"\d{1,18}",
    "type": lambda n: "|".join(_NRRD_WIDTH),
    "dimension": lambda n: "[1-5]",
    "space": lambda n: _NRRD_SPACES + _NRRD_OTHER_SPACES,
    "space dimension": lambda n: "[1-4]",
    "sizes": lambda n: _listed(r"\d{1,9}", n),
    **dict.fromkeys(("spacings", "thicknesses", "axis mins", "axis maxs"), lambda n: _listed(_NUMBER_OR_NAN, n)),
    "centerings": lambda n: _listed(r"(?:cell|node|none|\?\?\?)", n),
    "kinds": lambda n: _listed(r"[\w?-]{1,40}", n),
    **dict.fromkeys(("labels", "units"), lambda n: _listed(_QUOTED, n)),
    "space units": lambda n: rf"{_QUOTED}(?:\s+{_QUOTED}){{0,3}}",
    "space origin": lambda n: _VECTOR,
    "space directions": lambda n: _listed(rf"(?:{_VECTOR}|none)", n),
    "measurement frame": lambda n: rf"{_VECTOR}(?:\s+{_VECTOR}){{0,3}}",
    **dict.fromkeys(("min", "max", "old min", "old max"), lambda n: _NUMBER_OR_NAN),
    "encoding": lambda n: "raw|txt|text|ascii|hex|gz|gzip|bz2|bzip2",
    "endian": lambda n: "little|big",
    "line skip": lambda n: r"\d{1,9}",
    "byte skip": lambda n: r"-1|\d{1,15}",
    "sample units": lambda n: ".*",
    "data file": lambda n: ".+",
}
_NRRD_SYNONYMS = {
    "axismins": "axis mins",
    "axismaxs": "axis maxs",
    "centers": "centerings",
    "oldmin": "old min",
    "oldmax": "old max",
    "lineskip": "line skip",
    "byteskip": "byte skip",
    "sampleunits": "sample units",
    "datafile": "data file",
}


def metaimage_voxels(path: Path) -> Path | None:
    """The file beside a MetaImage's header that holds its voxels, None where they follow the header.

    Raises:
        VolumeError: not MetaImage, or there is no such file.
    """
    data = _metaimage_fields(path)[0]["ElementDataFile"]
    return None if data.upper() == "LOCAL" else _beside(path, data)


def nrrd_voxels(path: Path) -> Path | None:
    """The file beside an NRRD's header that holds its voxels, None where they follow the header.

    Raises:
        VolumeError: not NRRD, or there is no such file.
    """
    data = _nrrd_fields(path)[0].get("data file")
    return None if data is None else _beside(path, data)


def _metaimage_fields(path: Path) -> tuple[dict[str, str], int]:
    """The fields of a MetaImage's header, and where it ends."""
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        while "ElementDataFile" not in fields:
            line = stream.readline(4096)
            name, separator, value = line.partition(b"=")
            key = name.decode("latin-1").strip()
            if not separator or b"\0" in line or stream.tell() > _LONGEST_HEADER:
                raise VolumeError("this is not a MetaImage header, or it is cut off", path=path, found=repr(line[:40]))
            if key in fields:
                _refuse(path, key, "one such field", "two")
            fields[key] = value.decode("utf-8", "replace").strip()
        return fields, stream.tell()


def check_metaimage(path: Path, voxels: bool = True) -> None:
    """Check a MetaImage's header and, with ``voxels``, that all of them are there.

    Raises:
        VolumeError: not MetaImage, truncated, damaged, empty, made of several files, a spacing is not positive, lengths
            are not in mm, intensities are to be scaled, or there are more voxels than the header says.
    """
    fields, start = _metaimage_fields(path)
    axes = int(fields["NDims"]) if re.fullmatch("[1-5]", fields.get("NDims", "")) else 0
    if not axes:
        _refuse(path, "NDims", "1 to 5", fields.get("NDims", "none"))
    _check_forms(path, fields, _META_FIELDS, axes)
    first = next(name for name in fields if name == "NDims" or name in _META_DEPENDENT)
    if first != "NDims":
        _refuse(path, "NDims", "it before the fields that depend on it", f"it after {first}")
    if "DimSize" not in fields:
        _refuse(path, "DimSize", f"{axes} sizes", "none")
    sizes = [int(word) for word in fields["DimSize"].split()]
    check_size(path, sizes)
    for field in ("ElementSpacing", "ElementSize"):
        if field in fields:
            check_spacing(path, [float(word) for word in fields[field].split()][:3])
    _check_millimetres(path, "DistanceUnits", [fields.get("DistanceUnits", "").strip("?")])
    for field, neutral in _META_SCALING.items():
        if float(fields.get(field, neutral)) != neutral:
            raise VolumeError(
                "the intensities are to be scaled, and voxels are read as they are stored",
                path=path,
                expected=f"{field} {neutral:g}",
                found=fields[field],
                remedy="store the scaled values, without this field",
            )
    data = fields["ElementDataFile"]
    if data.split()[0:1] == ["LIST"] or "%" in data:
        raise VolumeError(
            "a MetaImage spread over several files is not supported", path=path, remedy="save it as one file"
        )
    kind = fields.get("ElementType", "").upper().removeprefix("MET_")
    width = _META_WIDTH.get(kind)
    if width is None:
        raise VolumeError("the type of the voxels is not supported", path=path, found=fields.get("ElementType", "none"))
    if not voxels:
        return
    values = math.prod(sizes) * int(fields.get("ElementNumberOfChannels", "1"))
    local, skipped = data.upper() == "LOCAL", int(fields.get("HeaderSize", "0"))
    if local and 0 < skipped < start:  # ITK would take the header's own text for voxels
        _refuse(path, "HeaderSize", f"{start} bytes at least", str(skipped))
    file, offset = (path, max(start, skipped)) if local else (_beside(path, data), max(0, skipped))
    if _is_true(fields.get("CompressedData", "False")):
        if skipped < 0:  # "the voxels are what is last"; ITK would look for as many bytes as there are unpacked
            _refuse(path, "HeaderSize", "where the compressed voxels begin", str(skipped))
        taken = check_deflated(path, file, offset, values * width)
        # Without it ITK finds no voxels, says so on the console only, and returns whatever is in its memory.
        stated = int(fields.get("CompressedDataSize", 0))
        if not taken <= stated <= file.stat().st_size - offset:
            _refuse(path, "CompressedDataSize", f"{taken} bytes", str(stated))
    elif int(fields.get("CompressedDataSize", 0)):
        _refuse(path, "CompressedDataSize", "none, as the voxels are not compressed", fields["CompressedDataSize"])
    elif not _is_true(fields.get("BinaryData", "True")):
        _check_digits(path, file, offset, values)
    else:
        # Of a file beside the header, HeaderSize -1 says that the voxels are what is last.
        _check_length(path, file, offset, values * width, exact=local or skipped >= 0)


def _nrrd_fields(path: Path) -> tuple[dict[str, str], int]:
    """The fields of an NRRD's header, and where it ends."""
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        if not re.fullmatch(rb"NRRD000[1-5]\r?\n", stream.readline(64)):
            raise VolumeError("this is not an NRRD file", path=path, expected="a first line NRRD0001 to NRRD0005")
        while line := stream.readline(_LONGEST_LINE).rstrip(b"\r\n"):
            if b"\0" in line or len(line) > _LONGEST_LINE - 2 or stream.tell() > _LONGEST_HEADER:
                raise VolumeError("this is not an NRRD header, or it is cut off", path=path, found=repr(line[:40]))
            name, separator, value = line.decode("utf-8", "replace").partition(": ")
            if name.startswith("#") or ":=" in name:  # a comment, or a key and value of the user's own
                continue
            key = _NRRD_SYNONYMS.get(name.lower(), name.lower())
            if not separator or key not in _NRRD_FIELDS:
                raise VolumeError("the NRRD header has a line that is no field", path=path, found=repr(line[:80]))
            if key in fields:
                _refuse(path, key, "one such field", "two")
            fields[key] = value.strip()
        return fields, stream.tell()


def check_nrrd(path: Path, voxels: bool = True) -> None:
    """Check an NRRD's header and, with ``voxels``, that all of them are there.

    Raises:
        VolumeError: not NRRD, truncated, damaged, empty, made of several files, in a space that is not the patient's,
            a spacing is not positive, lengths are not in mm, or there are more voxels than the header says.
    """
    fields, start = _nrrd_fields(path)
    for key in ("dimension", "type", "sizes", "encoding"):
        if key not in fields:
            _refuse(path, key, "a field of this name", "none")
    axes = int(fields["dimension"]) if re.fullmatch("[1-5]", fields["dimension"]) else 0
    if not axes:
        _refuse(path, "dimension", "1 to 5", fields["dimension"])
    _check_forms(path, fields, _NRRD_FIELDS, axes)
    sizes = [int(word) for word in fields["sizes"].split()]
    check_size(path, sizes)
    _check_nrrd_geometry(path, fields, axes)
    if "data file" in fields and (fields["data file"].startswith("LIST") or "%" in fields["data file"]):
        raise VolumeError("an NRRD spread over several files is not supported", path=path, remedy="save it as one file")
    if voxels:
        _check_nrrd_voxels(path, fields, start, math.prod(sizes))


def _check_nrrd_geometry(path: Path, fields: Mapping[str, str], axes: int) -> None:
    """Refuse what ITK would take for a place in the patient, in mm, and is not."""
    if re.fullmatch(_NRRD_OTHER_SPACES, fields.get("space", ""), re.IGNORECASE):
        raise VolumeError(
            "the NRRD header does not say how the image lies in the patient",
            path=path,
            expected="space left-posterior-superior, right-anterior-superior or left-anterior-superior",
            found=fields["space"],
            remedy="export the image again in one of these",
        )
    units = re.findall(_QUOTED, fields.get("space units", ""))
    _check_millimetres(path, "space units", [unit.strip('"') for unit in units[:3]])
    kinds = fields.get("kinds", " ".join(["domain"] * axes)).lower().split()
    in_space = {"domain", "space"} if axes > 3 else {"domain", "space", "none", "???"}
    # Of four axes whose kinds are not said, the first three are in space, as ITK has it.
    each = [unit.strip('"') for unit in re.findall(_QUOTED, fields.get("units", ""))]
    _check_millimetres(path, "units", [unit for unit, kind in zip(each, kinds, strict=False) if kind in in_space][:3])
    if "spacings" in fields:
        spacings = list(map(float, fields["spacings"].split()))
        # An axis of channels or of time may have none. For one in space, ITK would make up 1 mm.
        check_spacing(
            path, [s for s, kind in zip(spacings, kinds, strict=True) if kind in in_space or not math.isnan(s)]
        )


def _check_millimetres(path: Path, field: str, units: Sequence[str]) -> None:
    """Refuse another unit of length: ITK reads every length as mm."""
    if any(unit.lower() not in _MM for unit in units):
        raise VolumeError(
            "lengths are not in millimetres",
            path=path,
            expected=f"{field} mm",
            found=" ".join(units),
            remedy="convert the header's lengths, or export the image again in mm",
        )


def _check_nrrd_voxels(path: Path, fields: Mapping[str, str], start: int, values: int) -> None:
    file, offset = (_beside(path, fields["data file"]), 0) if "data file" in fields else (path, start)
    width, encoding = _NRRD_WIDTH[fields["type"].lower()], fields["encoding"].lower()
    if encoding in ("gz", "gzip"):
        check_deflated(path, file, offset, values * width)
    elif encoding == "raw":
        skipped, lines = int(fields.get("byte skip", "0")), int(fields.get("line skip", "0"))
        # Lines that are passed over have any length, and -1 says that the voxels are what is last.
        exact = skipped >= 0 and lines == 0
        _check_length(path, file, offset + max(0, skipped), values * width, exact=exact)
    elif encoding == "hex":
        _check_length(path, file, offset, 2 * values * width)
    elif encoding in ("txt", "text", "ascii"):
        _check_digits(path, file, offset, values)
    else:
        raise VolumeError(
            "the voxels are compressed in a way that is not read", path=path, expected="gzip", found=encoding
        )


def _check_forms(path: Path, fields: Mapping[str, str], forms: Mapping[str, Callable[[int], str]], axes: int) -> None:
    """Whether every field has the form that the format gives it, and a length that ITK bears."""
    for name, value in fields.items():
        if len(name) > _LONGEST_NAME or len(value) > _LONGEST_VALUE:
            _refuse(
                path,
                name[:40],
                f"a name of up to {_LONGEST_NAME} and a value of up to {_LONGEST_VALUE} characters",
                f"{len(name + value)}",
            )
        if name in forms and not re.fullmatch(forms[name](axes), value, re.ASCII | re.IGNORECASE):
            _refuse(path, name, f"what the format has there, with {axes} axes", repr(value[:80]))
        if name in _PLACING and not all(abs(float(word)) < _FARTHEST for word in re.findall(_NUMBER, value)):
            _refuse(path, name, f"numbers below {_FARTHEST:g}", repr(value[:80]))


def _check_length(path: Path, file: Path, offset: int, expected: int, *, exact: bool = False) -> None:
    found = max(0, file.stat().st_size - offset)
    if found < expected:
        raise truncated(path, expected, found)
    if exact and found > expected:
        raise VolumeError(
            "there are more voxels than the header says",
            path=path,
            expected=f"{expected} bytes",
            found=f"{found} bytes" if file == path else f"{found} bytes in {file.name}",
            remedy="correct sizes, type, channels or bytes to pass over in the header, or export the image again",
        )


def _check_digits(path: Path, file: Path, offset: int, expected: int) -> None:
    """Whether there are ``expected`` numbers from ``offset`` on, and nothing else."""
    found, inside = 0, False
    with file.open("rb") as stream:
        stream.seek(offset)
        while chunk := stream.read(1 << 20):
            if other := re.search(rb"[^0-9eE+.,\s-]", chunk):
                raise damaged(path, f"{other[0]!r} among the numbers")
            # A number that the last chunk began goes on in this one.
            found += len(re.findall(rb"[^\s,]+", chunk)) - (inside and re.match(rb"[^\s,]", chunk) is not None)
            inside = re.search(rb"[^\s,]\Z", chunk) is not None
    if found < expected:
        raise VolumeError("the file is truncated", path=path, expected=f"{expected} numbers", found=f"{found} numbers")


def _beside(path: Path, name: str) -> Path:
    """The file with the voxels that a header names, relative to itself."""
    file = path.parent / name
    if not file.is_file():
        raise VolumeError("the file with the voxels is missing", path=path, expected=str(file))
    return file


def _is_true(text: str) -> bool:
    return text[:1] in ("T", "t", "1")


def _refuse(path: Path, name: str, expected: str, found: str) -> NoReturn:
    raise VolumeError(f"the header's {name} cannot be read", path=path, expected=expected, found=found)
