"""Names and colours of labels for ITK-SNAP and 3D Slicer, read back by the rules of their readers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from atlasnet.cohort.segments import PALETTE, Segment, label_segments
from atlasnet.execution import SilentReporter
from atlasnet.prediction import write_label_tables

LABELS = {"background": 0, "left lung": 4, "tumour": 2, "foie à droite": 300}
TABLE = {"left lung": {"colour": "#80ae80"}}


def itk_snap(path: Path) -> dict[int, tuple[str, tuple[int, int, int], float, bool, bool]]:
    """As `ColorLabelTable::LoadFromFile`: seven numbers, then what stands between quotation marks; 0 is never read."""
    found = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line and not line.startswith("#"):
            value, red, green, blue, alpha, seen, mesh = line.split()[:7]
            assert 0 <= int(value) < 2**16  # an unsigned short, whose overflow fails the whole file
            after = line.partition('"')[2]
            name = after.partition('"')[0][: len(line) - 1]
            assert name
            colour = (int(red), int(green), int(blue))
            found[int(value)] = (name, colour, float(alpha), seen != "0", mesh != "0")
    assert found.pop(0)[2:] == (0.0, False, False)
    return found


def slicer(path: Path) -> dict[int, tuple[str, tuple[float, ...]]]:
    """As `vtkMRMLColorTableStorageNode::ReadDataInternal`: words between white space, lines of at most 1023 bytes."""
    lines = path.read_bytes().split(b"\n")
    assert lines[0].startswith(b"# Color table file")
    assert all(len(line) < 1024 for line in lines)
    rows = [line.decode().split() for line in lines if line and not line.startswith(b"#")]
    found = {int(value): (name.strip("'"), tuple(map(float, rgba))) for value, name, *rgba in rows}
    assert max(found) <= 32768
    assert re.fullmatch(rb"# (\d+) values", lines[1]).group(1) == str(len(found)).encode()
    assert found.pop(0)[1] == (0, 0, 0, 0)
    assert all(name for name, _ in found.values())
    return found


def test_both_viewers_read_every_label_with_its_name_and_colour(tmp_path: Path) -> None:
    segments = label_segments(LABELS, TABLE)
    write_label_tables(tmp_path / "seg", label_segments(LABELS, {}))  # what lies there and differs is replaced
    written = write_label_tables(tmp_path / "seg", segments)
    assert [path.name for path in written] == ["seg.label", "seg.ctbl"]
    assert itk_snap(written[0]) == {
        2: ("tumour", segments[0].rgb, 1.0, True, True),
        4: ("left lung", (0x80, 0xAE, 0x80), 1.0, True, True),
        300: ("foie à droite", segments[2].rgb, 1.0, True, True),
    }
    assert slicer(written[1]) == {
        2: ("tumour", (*segments[0].rgb, 255)),
        4: ("left_lung", (0x80, 0xAE, 0x80, 255)),
        300: ("foie_à_droite", (*segments[2].rgb, 255)),
    }
    assert segments[0].colour == PALETTE[0]


@pytest.mark.parametrize("name", ['a "quoted" one', "a\nline\tand\x00more", "", "  ", "'", "# no comment", "語" * 900])
def test_no_name_breaks_a_file(tmp_path: Path, name: str) -> None:
    (other,) = label_segments({"other": 9}, {})
    code = (other.category, other.kind, None)
    written = write_label_tables(tmp_path / "seg", [Segment(name, 3, *code, "#010203"), other])
    for found in (itk_snap(written[0]), slicer(written[1])):
        assert set(found) == {3, 9}
        assert found[3][1][:3] == (1, 2, 3)
        assert found[9][0] == "other"
        assert ("quoted" in found[3][0]) == ("quoted" in name)


def test_labels_that_a_viewer_has_no_room_for_are_left_out_and_named(tmp_path: Path) -> None:
    reporter = SilentReporter()
    values = {"negative": -1, "small": 1, "last": 32_768, "large": 32_769, "larger": 65_534, "huge": 65_535}
    segments = label_segments(values, {})
    snap, table = write_label_tables(tmp_path / "seg", segments, reporter=reporter)
    assert set(itk_snap(snap)) == {1, 32_768, 32_769, 65_534}
    assert set(slicer(table)) == {1, 32_768}
    first, second = reporter.warnings
    assert "seg.label is without negative (-1), huge (65535)" in first
    assert "seg.ctbl is without negative (-1), large (32769), larger (65534), huge (65535)" in second
