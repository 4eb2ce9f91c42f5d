"""Training subjects and atlases that are not like the others are told before anything is learnt from them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlasnet.cli.main import main
from atlasnet.cohort import Cohort
from atlasnet.report import write_training_report
from atlasnet.training.evidence import SHARES
from atlasnet.training.model import Model
from atlasnet.training.outliers import REFERENCE, disagreements, outlying, training_outliers
from atlasnet.training.store import IGNORED, MappedCase
from atlasnet.training.transformer import MappedCohort
from atlasnet.training.typical import Earlier, Kind, Measured, Typical
from atlasnet.volume import read_labels, write_labels, write_volume
from synthetic import write_cohort

Change = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
LOW = Kind("low", high=False, logarithmic=False, precision=0.001, harmless=100.0)


def test_of_numbers_that_are_alike_hardly_one_in_a_hundred_sets_is_told() -> None:
    random = np.random.default_rng(0)
    told = 0
    for _ in range(1500):
        numbers = dict(enumerate(random.normal(0.8, 0.05, 12)))
        told += bool(outlying(LOW, numbers, 0.01 / 12))
    assert told / 1500 < 0.02


def test_errors_do_not_hide_each_other() -> None:
    numbers = dict(enumerate(np.random.default_rng(1).normal(0.8, 0.05, 12)))
    wrong = {20: 0.1, 21: 0.12, 22: 0.3}
    alone = LOW.usual([*numbers.values(), 0.1, 0.12], 0.01 / 15)
    assert alone is not None
    assert alone[1] < 0.1  # beside two others the third would not be told
    found = outlying(LOW, numbers | wrong, 0.01 / 15)
    assert found.keys() == wrong.keys()
    assert all(value == wrong[name] < limit for name, (value, limit) in found.items())
    assert outlying(LOW, {}, 0.01) == outlying(LOW, {"a": 0.0, "b": 1.0, "c": 1.0}, 0.01) == {}


def test_the_disagreement_is_one_minus_the_dice_with_most_of_the_others() -> None:
    random = np.random.default_rng(2)
    base = random.integers(0, 4, (6, 7, 8))
    arrays = [np.where(random.random(base.shape) < 0.2, random.integers(0, 4, base.shape), base) for _ in range(5)]
    arrays[1][:2] = IGNORED
    cases = [
        MappedCase(f"s{i}", np.zeros((1, *base.shape), np.float16), array.astype(np.uint8), ((3, 0),) if i == 4 else ())
        for i, array in enumerate(arrays)
    ]
    found = disagreements([MappedCohort("a", tuple(cases), {}), MappedCohort("b", tuple(cases[:3]), {})], 5)
    assert found.keys() == {1, 2, 3}  # nobody has the last class
    for value, of_subjects in found.items():
        expected: dict[str, list[float]] = {}
        for group in (range(5), range(3)):
            members = [i for i in group if not (value == 3 and i == 4)]
            for i in members:
                others = np.stack([arrays[j] for j in members if j != i])
                most = 2 * (others == value).sum(0) > (others != IGNORED).sum(0)
                valid, own = arrays[i] != IGNORED, arrays[i] == value
                dice = 2 * (own & most & valid).sum() / (own.sum() + (most & valid).sum())
                expected.setdefault(f"s{i}", []).append(1 - dice)
        assert of_subjects == pytest.approx({name: np.mean(numbers) for name, numbers in expected.items()})


def swapped(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.select([labels == 2, labels == 4], [4, 2], 0).astype(np.uint8)


def shifted(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.roll(labels, 8, 2)


def train(folder: Path, changes: dict[str, Change], noisy: Sequence[str] = ()) -> Model:
    """A model of eight subjects, some of whose references or scans are changed."""
    cohort = Cohort.read(write_cohort(folder / "data", range(8)))
    for name, change in changes.items():
        path = cohort[name].labels
        assert path is not None
        labels = read_labels(path)
        write_labels(path, labels.replace(change(labels.array)))
    for name in noisy:
        scan = cohort[name].read_image()
        noise = np.random.default_rng(3).normal(0, 150, scan.array.shape).astype(np.float32)
        write_volume(cohort[name].images[0], scan.replace(scan.array + noise))
    words = ["train", str(cohort.root), "-o", str(folder / "model"), "--work", str(folder.parent / "work"), "--json"]
    assert (
        main(
            [*words, "--registration", "affine", "--atlas", "s0", "--epochs", "1", "--width", "0.25", "--threads", "1"]
        )
        == 0
    )
    return Model.load(folder / "model")


@pytest.mark.usefixtures("brief")
def test_wrong_references_and_scans_are_told_before_networks_learn_them_and_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = train(tmp_path / "right", {})
    said = capsys.readouterr()
    assert model.unlike == ()
    assert "unlike" not in model.provenance
    assert "unlike" not in said.err
    assert json.loads(said.out)["unlike"] == []
    model = train(tmp_path / "wrong", {"s5": swapped, "s0": shifted}, noisy=["s6"])
    said = capsys.readouterr()
    told = {text.split()[0]: text for text in model.unlike}
    assert told.keys() == {"s0", "s5", "s6"}
    assert told["s5"].startswith("s5 is unlike the other training subjects: the Dice of its reference with")
    assert re.search(r" is 0\.0\d in shell, 0\.0\d in core, usual are 0\.\d\d, 0\.\d\d or more \(labels", told["s5"])
    assert "neighbouring voxels differ by" in told["s6"]
    assert json.loads(said.out)["unlike"] == list(model.unlike)
    for text in model.unlike:
        assert said.err.index(f"warning: {text}") < said.err.index("training s0")
    page = write_training_report(tmp_path / "report.html", model, []).read_text(encoding="utf-8")
    assert "s5 is unlike the other training subjects: the Dice of its reference" in page


def test_dice_above_three_quarters_is_never_told() -> None:
    assert outlying(REFERENCE, {"a": 0.24, **{f"s{i}": 0.01 for i in range(12)}}, 0.001) == {}
    assert outlying(REFERENCE, {"a": 0.5, **{f"s{i}": 0.01 for i in range(12)}}, 0.001).keys() == {"a"}


def measured(quality: dict[str, float], numbers: dict[str, dict[str, float]]) -> Measured:
    return Measured(Typical(np.zeros((1, len(SHARES))), {}, quality, {}), numbers, {})


def test_an_atlas_that_the_subjects_hardly_fit_is_told() -> None:
    quality = {"a": 0.5, "b": 0.52, "c": 0.49, "knee": 0.06, "d": 0.51, "e": 0.47}
    (told,) = training_outliers(measured(quality, {}), [], [*quality], ["background"])
    assert told.startswith("atlas knee is unlike the others: the subjects fit it with a quality of 0.06, usual are 0.3")
    assert training_outliers(measured(quality | {"knee": 0.45}, {}), [], [*quality], ["background"]) == []


def test_new_subjects_of_an_update_are_compared_with_those_that_the_model_knows() -> None:
    record = Typical(np.zeros((1, len(SHARES))), {}, {}, {"noise": (0.19, 0.2, 0.2, 0.21, 2.5)})
    new = measured({}, {"s8": {"noise": 3.0}, "s9": {"noise": 0.2}})
    (told,) = training_outliers(new, [], [], ["background"], Earlier(record, frozenset()))
    assert told.startswith("s8 is unlike the other training subjects: neighbouring voxels differ by 3.00")
