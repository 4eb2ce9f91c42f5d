"""Numbers and lists as people read them."""

from __future__ import annotations

import pytest

from atlasnet.wording import counted, in_lines, size


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (1, "atlas", "1 atlas"),
        (2, "atlas", "2 atlases"),
        (0, "subject", "0 subjects"),
        (1, "class", "1 class"),
        (3, "case", "3 cases"),
        (2, "patch", "2 patches"),
        (0, "epoch", "0 epochs"),
        (1, "epoch", "1 epoch"),
    ],
)
def test_a_number_of_things_is_singular_for_one_only(number: int, noun: str, said: str) -> None:
    assert counted(number, noun) == said


@pytest.mark.parametrize(
    ("mib", "said"),
    [
        (0, "0 KiB"),
        (0.0001, "1 KiB"),
        (0.02, "21 KiB"),
        (1, "1.0 MiB"),
        (9.94, "9.9 MiB"),
        (640, "640 MiB"),
        (1536, "1.5 GiB"),
    ],
)
def test_a_size_that_is_something_is_never_called_none(mib: float, said: str) -> None:
    assert size(mib) == said


def test_of_many_texts_some_have_a_line_each() -> None:
    assert in_lines(["a", "b"], 2) == "a\nb"
    assert in_lines(["a", "b", "c", "d"], 2) == "a\nb\n... and 2 more"
