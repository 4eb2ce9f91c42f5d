"""Numbers and lists as people read them."""

from __future__ import annotations

import pytest

from atlasnet.wording import counted


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
