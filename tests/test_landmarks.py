"""Linear maps from corresponding points, against SimpleITK and exact answers."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import optimize
from scipy.spatial.transform import Rotation

from atlasnet.cli.main import main
from atlasnet.errors import TransformError
from atlasnet.transform import landmark_transform, read_landmarks
from atlasnet.volume import Grid, Volume, write_volume

TURN = Rotation.from_euler("xyz", [20, -35, 10], degrees=True).as_matrix()
SHIFT = np.array([30.0, -5.0, 80.0])


def points(count, seed=0):
    return np.random.default_rng(seed).uniform(-100, 100, (count, 3))


def moved(transform, where):
    return transform.forward(torch.from_numpy(where)).numpy()


@pytest.mark.parametrize("count", [3, 4, 20])
def test_a_rigid_motion_is_found_exactly(count):
    target = points(count)
    source = target @ TURN.T + SHIFT
    found = landmark_transform(target, source, kind="rigid")
    np.testing.assert_allclose(moved(found, target), source, atol=1e-9)
    np.testing.assert_allclose(found.backward(torch.from_numpy(source)).numpy(), target, atol=1e-9)


def test_noisy_rigid_and_similar_points_give_what_simpleitk_gives():
    target = points(12)
    source = target @ TURN.T * 1.2 + SHIFT + np.random.default_rng(1).normal(0, 3, target.shape)
    lists = [[float(v) for v in values.ravel()] for values in (target, source)]
    for kind, theirs in (("rigid", sitk.VersorRigid3DTransform()), ("similarity", sitk.Similarity3DTransform())):
        expected = sitk.LandmarkBasedTransformInitializer(theirs, *lists)
        where = points(5, seed=2)
        mapped = np.array([expected.TransformPoint(p.tolist()) for p in where])
        atol = 1e-6 if kind == "rigid" else 0.5  # ITK scales by the ratio of spreads, which is no least-squares answer
        np.testing.assert_allclose(moved(landmark_transform(target, source, kind=kind), where), mapped, atol=atol)


def test_the_similarity_has_the_least_squared_distance():
    target = points(12)
    source = target @ TURN.T * 1.2 + SHIFT + np.random.default_rng(1).normal(0, 3, target.shape)
    best = ((moved(landmark_transform(target, source, kind="similarity"), target) - source) ** 2).sum()
    linear = TURN * 1.2
    for scale in (0.999, 1.001):
        found = landmark_transform(target, source, kind="similarity").forward
        centre = target.mean(0)
        other = moved(landmark_transform(target, source, kind="similarity"), scale * (target - centre) + centre)
        assert ((other - source) ** 2).sum() > best
    assert abs(np.cbrt(np.linalg.det(found.matrix[:3, :3])) - np.cbrt(np.linalg.det(linear))) < 0.03


def test_points_that_a_mirror_image_would_fit_better_are_turned_and_scaled_with_the_least_squared_distance():
    target = points(6)
    source = target * [1.0, 0.4, -0.7] + SHIFT
    found = landmark_transform(target, source, kind="similarity").forward.matrix
    assert np.linalg.det(found[:3, :3]) > 0

    def distance(values: np.ndarray) -> float:
        turned = abs(values[0]) * target @ Rotation.from_rotvec(values[1:4]).as_matrix().T + values[4:]
        return float(((turned - source) ** 2).sum())

    starts = np.random.default_rng(3).normal(0, 1.5, (8, 3))
    least = min(optimize.minimize(distance, [0.5, *start, *SHIFT]).fun for start in starts)
    assert ((target @ found[:3, :3].T + found[:3, 3] - source) ** 2).sum() == pytest.approx(least, rel=1e-4)


def test_an_affine_map_is_found_from_enough_points_and_not_from_fewer():
    linear = TURN @ np.diag([1.2, 0.8, 1.1]) + 0.05
    target = points(8)
    source = target @ linear.T + SHIFT
    np.testing.assert_allclose(moved(landmark_transform(target, source), target), source, atol=1e-9)
    # With seven points, by themselves, a rigid map: twelve unknowns would follow every slip of the hand.
    few = landmark_transform(target[:7], source[:7]).forward.matrix[:3, :3]
    np.testing.assert_allclose(few @ few.T, np.eye(3), atol=1e-9)


def test_points_in_a_plane_or_on_a_line_are_seen():
    plane = points(10)
    plane[:, 2] = 7
    found = landmark_transform(plane, plane @ TURN.T + SHIFT).forward.matrix[:3, :3]
    np.testing.assert_allclose(found, TURN, atol=1e-9)
    # Nearly in one, in either image, they say nothing of the third direction either.
    slips = plane + np.outer(np.random.default_rng(4).normal(0, 1, 10), [0, 0, 1])
    for target, source in ((slips, slips @ TURN.T), (points(10), plane), (plane, points(10))):
        found = landmark_transform(target, source).forward.matrix[:3, :3]
        np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-9)
    with pytest.raises(TransformError, match="plane"):
        landmark_transform(plane, plane, kind="affine")
    line = np.outer(np.arange(5.0), [1, 2, 3])
    with pytest.raises(TransformError, match="line"):
        landmark_transform(line, line)
    with pytest.raises(TransformError, match="correspond"):
        landmark_transform(plane, plane[:-1])


def test_a_file_of_landmarks_is_read_and_a_wrong_line_named(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("tx,ty,tz,sx,sy,sz\n1,2,3,4,5,6\n\n# a remark\n7,8,9,10,11,12.5\n", encoding="utf-8")
    target, source = read_landmarks(path)
    np.testing.assert_array_equal(target, [[1, 2, 3], [7, 8, 9]])
    np.testing.assert_array_equal(source, [[4, 5, 6], [10, 11, 12.5]])
    # as a spreadsheet writes it, names below a remark; a slip of the pen in the first pair is no line of names
    path.write_text("\ufeff# clicked twice\na,b,c,d,e,f\n1,2,3,4,5,6\n", encoding="utf-8")
    np.testing.assert_array_equal(read_landmarks(path)[0], [[1, 2, 3]])
    path.write_text("\ufeff1,2,3,4,5,6\n", encoding="utf-8")
    np.testing.assert_array_equal(read_landmarks(path)[0], [[1, 2, 3]])
    path.write_text("1,2,3,4,5,6O\n7,8,9,10,11,12\n", encoding="utf-8")
    with pytest.raises(TransformError, match="line 1"):
        read_landmarks(path)
    path.write_text("a,b,c,d,e,f\na,b,c,d,e,f\n1,2,3,4,5,6\n", encoding="utf-8")
    with pytest.raises(TransformError, match="line 2"):
        read_landmarks(path)
    path.write_text("1,2,3,4,5,6\n7,8,9\n", encoding="utf-8")
    with pytest.raises(TransformError, match="line 2"):
        read_landmarks(path)
    with pytest.raises(TransformError, match="cannot be read"):
        read_landmarks(tmp_path / "absent.csv")


@pytest.mark.parametrize("separator", [";", "\t", " "])
@pytest.mark.parametrize("names", [True, False])
def test_landmarks_that_commas_do_not_separate_are_told_so_at_their_first_line(tmp_path, separator, names):
    lines = (["tx ty tz sx sy sz"] if names else []) + ["1 2 3 4 5 6", "7 8 9 10 11 12"]
    (tmp_path / "points.csv").write_text("\n".join(lines).replace(" ", separator), encoding="utf-8")
    with pytest.raises(TransformError, match=r"points\.csv: line 1 .*separated by commas"):
        read_landmarks(tmp_path / "points.csv")


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("line", [1, 2])
def test_a_landmark_that_is_not_finite_is_told_with_its_line(tmp_path, bad, line):
    lines = ["1,2,3,4,5,6", "7,8,9,10,11,12"]
    lines[line - 1] = f"1,{bad},3,4,5,6"
    (tmp_path / "points.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(TransformError, match=rf"points\.csv: line {line} .*finite"):
        read_landmarks(tmp_path / "points.csv")


def test_rows_that_a_spreadsheet_leaves_empty_are_skipped(tmp_path):
    (tmp_path / "points.csv").write_text(",,,,,\n0,2,3,4,5,6\n,,,,,\n , ,,,,\n", encoding="utf-8")
    np.testing.assert_array_equal(read_landmarks(tmp_path / "points.csv")[0], [[0, 2, 3]])


def test_the_command_starts_from_landmarks(tmp_path):
    shape = (20, 24, 28)
    z, y, x = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    image = 100.0 * np.exp(-(((x - 14) / 8) ** 2 + ((y - 10) / 5) ** 2 + ((z - 9) / 4) ** 2))
    grid = Grid.from_parts(shape, (2.0, 2.0, 2.0))
    far = Grid.from_parts(shape, (2.0, 2.0, 2.0), (300.0, -200.0, 50.0))
    write_volume(tmp_path / "target.nii.gz", Volume(image.astype(np.float32)[None], grid))
    write_volume(tmp_path / "source.nii.gz", Volume(image.astype(np.float32)[None], far))
    target = points(4) / 4
    rows = np.hstack([target, target + far.origin])
    np.savetxt(tmp_path / "points.csv", rows, delimiter=",")
    words = ["register", str(tmp_path / "source.nii.gz"), str(tmp_path / "target.nii.gz"), "-o", str(tmp_path / "out")]
    assert main([*words, "--operator", "affine", "--landmarks", str(tmp_path / "points.csv"), "--quiet"]) == 0
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    read = record["provenance"]["input_sha256"]
    assert read["landmarks"] == hashlib.sha256((tmp_path / "points.csv").read_bytes()).hexdigest()
    assert read.keys() == {"source", "target", "landmarks"}
    assert record["similarity_after"]["sad"] > 0.999
