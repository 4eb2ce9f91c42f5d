"""Which pairs of subjects weights are learnt from, and which classes their labels make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from atlasnet.errors import CohortError, InputError

Pair = tuple[str, str]  # source, target
# One subject of so many is spared, and the weights are judged on pairs of those. Of fewer than two such it is one, and
# his pairs are with the subjects that are learnt from.
SPARED = 4
# With fewer subjects none is spared.
LEAST_TO_SPARE = 3
# The class of all labels that no class names.
OTHER = "other"


def draw_pairs(
    names: Sequence[str], learning: int, judging: int, generator: np.random.Generator
) -> tuple[list[Pair], list[Pair]]:
    """Ordered pairs in which every subject is a source and a target about equally often.

    Args:
        names: of the subjects.
        learning: how many pairs to learn from, at most.
        judging: how many pairs to judge by, at most; with two subjects there are none.
        generator: decides the order.

    Returns:
        The pairs to learn from, and those to judge by. From 8 subjects on no subject is in both; of fewer, one is in
        all that judge and in none to learn from.

    Raises:
        CohortError: fewer than two subjects.
    """
    if len(names) < 2:
        raise CohortError("a pair needs two subjects", expected="at least 2 subjects", found=str(len(names)))
    order = [names[int(number)] for number in generator.permutation(len(names))]
    if len(order) < LEAST_TO_SPARE or not judging:
        return _cycled(order, learning), []
    spared = max(1, len(order) // SPARED)
    rest = order[spared:]
    judged = _cycled(order[:spared], judging)
    if spared == 1:
        judged = [pair for other in rest for pair in ((other, order[0]), (order[0], other))][:judging]
    return _cycled(rest, learning), judged


def _cycled(names: Sequence[str], count: int) -> list[Pair]:
    steps = range(1, len(names))
    return [(name, names[(i + step) % len(names)]) for step in steps for i, name in enumerate(names)][:count]


def label_classes(labels: Mapping[str, int], groups: Mapping[str, Sequence[int]] | None = None) -> dict[str, list[int]]:
    """The label values of each class.

    Args:
        labels: name to value, the background 0 included.
        groups: classes by name; labels in none of them make up the class ``other``. None: each label is a class.

    Raises:
        InputError: a group names a value that is no label, or that another has.
    """
    if groups is None:
        return {name: [value] for name, value in sorted(labels.items(), key=lambda item: item[1])}
    named = [value for values in groups.values() for value in values]
    unknown = sorted(set(named) - set(labels.values()))
    if unknown or len(set(named)) < len(named) or OTHER in groups:
        raise InputError(
            "the classes cannot be used",
            expected=f"each of the labels {', '.join(map(str, sorted(labels.values())))} in one class at most, "
            f"and none called {OTHER!r}",
            found="; ".join(f"{name}={','.join(map(str, values))}" for name, values in groups.items()),
        )
    rest = sorted(set(labels.values()) - set(named))
    return ({OTHER: rest} if rest else {}) | {name: list(values) for name, values in groups.items()}
