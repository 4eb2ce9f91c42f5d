"""The table of codes and colours in ``dataset.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atlasnet.cohort import Cohort
from atlasnet.cohort.segments import PALETTE, UNSPECIFIED, label_segments
from atlasnet.errors import CohortError
from atlasnet.execution import read_json, write_json
from synthetic import write_cohort

LUNG = ["39607008", "SCT", "Lung"]
STRUCTURE = ["123037004", "SCT", "Anatomical Structure"]


def test_labels_come_in_the_order_of_their_values_with_colours_that_differ() -> None:
    described = label_segments({"background": 0, "core": 4, "shell": 2}, {})
    assert [(segment.name, segment.value) for segment in described] == [("shell", 2), ("core", 4)]
    assert [segment.colour for segment in described] == list(PALETTE[:2])
    assert described[0].category == described[0].kind == UNSPECIFIED


def test_codes_may_be_as_long_as_dicom_allows() -> None:
    longest = ["1" * 16, "S" * 16, "L" * 64]
    (core,) = label_segments({"core": 1}, {"core": {"type": longest, "category": STRUCTURE, "modifier": longest}})
    assert [*core.kind] == [*(core.modifier or ())] == longest


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"liver": {}}, "labels that there are not; found 'liver'"),
        ({"background": {}}, "labels that there are not"),
        ([], "not an object"),
        ({"core": {"color": "#ffffff"}}, "not understood"),
        ({"core": {"colour": "red"}}, "#rrggbb"),
        ({"core": {"type": LUNG}}, "both a category and a type"),
        ({"core": {"category": STRUCTURE}}, "both a category and a type"),
        ({"core": {"type": LUNG, "category": STRUCTURE[:2]}}, "value, scheme and meaning"),
        ({"core": {"type": ["1" * 17, "SCT", "Lung"], "category": STRUCTURE}}, "value, scheme and meaning"),
        ({"core": {"type": ["1", "S" * 17, "Lung"], "category": STRUCTURE}}, "value, scheme and meaning"),
        ({"core": {"type": ["1", "SCT", "L" * 65], "category": STRUCTURE}}, "value, scheme and meaning"),
        ({"core": {"type": ["1", "", "Lung"], "category": STRUCTURE}}, "value, scheme and meaning"),
    ],
)
def test_a_table_that_is_not_understood_is_refused_with_the_file(tmp_path: Path, table: Any, problem: str) -> None:
    file = write_cohort(tmp_path, [0]) / "dataset.json"
    write_json(file, {**read_json(file), "segments": table})
    with pytest.raises(CohortError, match=problem) as refusal:
        Cohort.read(tmp_path)
    assert refusal.value.path == file
