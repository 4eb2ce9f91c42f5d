"""The patch protocol, against counting patch by patch."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from atlasnet.cli.main import main
from atlasnet.errors import InputError, VolumeError
from atlasnet.evaluation import PatchCounts, PatchProtocol, classify_patches, region_mask
from atlasnet.execution import write_json
from atlasnet.volume import Grid, Volume, write_volume

LUNG, DISEASE, IGNORE = 1, 2, 9
LABELS = {"background": 0, "lung": LUNG, "disease": DISEASE, "vessel": 3}


def volume(array: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 5)) -> Volume:
    return Volume(array.astype(np.uint8), Grid.from_parts(array.shape, spacing))


def blobs(seed: int, shape: tuple[int, int, int] = (4, 40, 37)) -> np.ndarray:
    """Rectangles of lung with rectangles of disease in them."""
    random = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype=np.uint8)
    for plane in labels:
        for value, count in ((LUNG, 3), (DISEASE, 5)):
            for _ in range(count):
                y, x = random.integers(0, 30, 2)
                h, w = random.integers(6, 22, 2)
                if value == LUNG:
                    plane[y : y + h, x : x + w] = LUNG
                else:
                    part = plane[y : y + h, x : x + w]
                    part[part > 0] = DISEASE
    return labels


def counted(found: np.ndarray, truth: np.ndarray, region: np.ndarray, size: int, share: float) -> PatchCounts:
    """Pixel by pixel, patch by patch, slices along z."""
    result = {"diseased": 0, "diseased_right": 0, "healthy": 0, "healthy_right": 0}
    for z in range(len(truth)):
        places = [(y, x) for y in range(truth.shape[1]) for x in range(truth.shape[2]) if region[z, y, x]]
        if not places:
            continue
        top, left = min(y for y, _ in places), min(x for _, x in places)
        for y0 in range(top, truth.shape[1] - size + 1, size):
            for x0 in range(left, truth.shape[2] - size + 1, size):
                ill = well = lit = 0
                for y in range(y0, y0 + size):
                    for x in range(x0, x0 + size):
                        if region[z, y, x]:
                            ill += int(truth[z, y, x] == DISEASE)
                            well += int(truth[z, y, x] != DISEASE)
                            lit += int(found[z, y, x] == DISEASE)
                positive = lit / (ill + well) >= 0.5 if ill + well else False
                for kind, number, right in (("diseased", ill, positive), ("healthy", well, not positive)):
                    if 100 * number >= round(100 * share) * size * size:
                        result[kind] += 1
                        result[f"{kind}_right"] += int(right)
    return PatchCounts(**result)


@pytest.mark.parametrize(("size", "share"), [(4, 0.8), (5, 0.8), (3, 1.0), (7, 0.6)])
def test_patches_are_those_of_counting(size: int, share: float) -> None:
    total = PatchCounts()
    for seed in range(6):
        truth, found = blobs(seed), blobs(seed + 100)
        found[truth > 0] = np.where(np.random.default_rng(seed).random((truth > 0).sum()) < 0.6, truth[truth > 0], LUNG)
        region = truth > 0
        ours = classify_patches(volume(found), volume(truth), DISEASE, region, size=size, share=share)
        assert ours == counted(found, truth, region, size, share)
        total += ours
    assert min(total.diseased, total.healthy) > 10
    assert 0 < total.diseased_right < total.diseased


def test_a_perfect_prediction_is_right_everywhere() -> None:
    truth = volume(blobs(1))
    counts = classify_patches(truth, truth, DISEASE, region_mask(truth, (LUNG,)), size=4)
    assert counts.mean_accuracy == 1
    assert counts.diseased_right == counts.diseased > 0
    nothing = truth.replace(np.zeros_like(truth.array))
    missed = classify_patches(nothing, truth, DISEASE, region_mask(truth, (LUNG,)), size=4)
    assert (missed.diseased_right, missed.healthy_right) == (0, missed.healthy)
    assert missed.mean_accuracy == 0.5


def test_the_published_patch_is_diseased_from_820_pixels_on() -> None:
    for pixels, expected in ((820, 1), (819, 0)):
        plane = np.zeros((1, 32, 32), dtype=np.uint8)
        plane.reshape(-1)[:pixels] = DISEASE
        labels = volume(plane)
        region = np.ones(plane.shape, dtype=bool)
        assert classify_patches(labels, labels, DISEASE, region) == PatchCounts(expected, expected)


def test_the_place_of_the_field_of_view_does_not_matter() -> None:
    truth, found = blobs(3), blobs(4)
    wide = [np.pad(a, ((0, 0), (5, 9), (3, 8))) for a in (found, truth)]
    # Patches beyond the image are not whole; as far from the region, both images end.
    small = [np.pad(a, ((0, 0), (0, 9), (0, 8))) for a in (found, truth)]
    ours, theirs = (
        classify_patches(volume(f), volume(t), DISEASE, t > 0, size=5) for f, t in (tuple(wide), tuple(small))
    )
    assert ours == theirs


def test_what_nobody_annotated_is_in_no_patch() -> None:
    truth = blobs(5)
    truth[:2] = IGNORE
    truth[3, :, 12:] = IGNORE
    found = blobs(6)
    reference = volume(truth)
    region = region_mask(reference, (), IGNORE)
    assert not region[truth == IGNORE].any()
    ours = classify_patches(volume(found), reference, DISEASE, region, size=4, ignore_label=IGNORE)
    assert ours == counted(found, truth, region, 4, 0.8)
    everywhere = np.ones(truth.shape, dtype=bool)
    assert classify_patches(volume(found), reference, DISEASE, everywhere, size=4, ignore_label=IGNORE) == ours


def test_slices_run_across_the_thickest_axis() -> None:
    truth, found = blobs(7), blobs(8)
    turned = [volume(np.moveaxis(a, 0, 2), (5, 1, 1)) for a in (found, truth)]
    region = np.moveaxis(truth > 0, 0, 2)
    ours = classify_patches(*turned, DISEASE, region, size=4)
    assert ours == counted(found, truth, truth > 0, 4, 0.8)


def test_accuracy_needs_patches_of_both_kinds() -> None:
    assert PatchCounts(4, 3, 0, 0).mean_accuracy is None
    assert PatchCounts(4, 3, 10, 5).mean_accuracy == pytest.approx(0.625)
    assert PatchCounts(1, 1, 2, 1) + PatchCounts(3, 2, 8, 4) == PatchCounts(4, 3, 10, 5)


def test_maps_on_other_grids_are_refused() -> None:
    truth = blobs(1)
    with pytest.raises(VolumeError, match="different grids"):
        classify_patches(volume(truth[1:]), volume(truth), DISEASE, truth > 0)


def test_the_words_of_the_option_are_labels() -> None:
    protocol = PatchProtocol.parse("disease:lung,vessel", 16)
    assert protocol == PatchProtocol("disease", ("lung", "vessel"), 16)
    assert protocol.values(LABELS) == (2, (1, 3))
    assert PatchProtocol.parse("disease").region == ()
    assert PatchProtocol.parse(" disease : lung, vessel ", 16) == protocol
    with pytest.raises(InputError, match="has no name"):
        PatchProtocol.parse("disease:lung,,vessel")
    with pytest.raises(InputError, match="no such label"):
        PatchProtocol.parse("disease:liver").values(LABELS)
    with pytest.raises(InputError, match="pixel"):
        PatchProtocol.parse("disease", 0)
    with pytest.raises(InputError, match="share"):
        PatchProtocol("disease", share=0.5)


def test_evaluate_writes_the_patches_of_every_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {}
    for seed in (1, 2):
        truth, found = blobs(seed), blobs(seed + 10)
        write_volume(tmp_path / "references" / f"c{seed}.nii.gz", volume(truth))
        write_volume(tmp_path / "predictions" / f"c{seed}.nii.gz", volume(found))
        expected[f"c{seed}"] = counted(found, truth, truth > 0, 4, 0.8)
    labels = {name: LABELS[name] for name in ("background", "lung", "disease")}
    write_json(tmp_path / "references" / "dataset.json", {"labels": labels})
    words = ["evaluate", str(tmp_path / "predictions"), str(tmp_path / "references"), "-o", str(tmp_path / "t.json")]
    assert main([*words, "--patches", "disease:lung", "--patch-size", "4"]) == 0
    together = expected["c1"] + expected["c2"]
    assert f"mean accuracy {together.mean_accuracy:.3f}" in capsys.readouterr().out
    content = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))["patches"]
    assert content["all"] == together.as_json()
    with (tmp_path / "t.patches.csv").open(newline="", encoding="utf-8") as stream:
        rows = {row["case"]: row for row in csv.DictReader(stream)}
    for case, counts in expected.items():
        assert content["subjects"][case] == counts.as_json()
        assert int(rows[case]["diseased"]) == counts.diseased
    assert main([*words, "--patches", "liver"]) != 0
    assert "no such label" in capsys.readouterr().err
