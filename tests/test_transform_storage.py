from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from atlasnet.errors import TransformError
from atlasnet.transform import AffineMap, BSplineMap, DisplacementMap, Transform, compose
from atlasnet.transform.maps import FramedPoints, PointMap
from atlasnet.volume import Grid

GRID = Grid.from_parts((4, 5, 6), (1.1, 1.7, 2.3), (0.1, 0.2, 0.3))


def example() -> Transform:
    rng = np.random.default_rng(0)
    matrix = np.eye(4)
    matrix[:3] += rng.normal(0, 0.1, (3, 4))
    dense = DisplacementMap(torch.from_numpy(rng.standard_normal((3, *GRID.shape))).requires_grad_(), GRID)
    spline = BSplineMap(torch.from_numpy(rng.standard_normal((3, *GRID.shape))), GRID)
    residual = {"target": {"mean": 0.1, "p999": 0.2, "max": 1 / 3}, "source": {"mean": 0.0, "p999": 0.0, "max": 0.0}}
    return Transform(compose(spline, AffineMap(matrix), dense), compose(dense, AffineMap(matrix)), residual)


def test_a_stored_transform_comes_back_bit_for_bit(tmp_path):
    transform = example()
    transform.save(tmp_path / "transform.safetensors")
    back = Transform.load(tmp_path / "transform.safetensors")
    assert back.residual == transform.residual
    for one, two in ((transform.forward, back.forward), (transform.backward, back.backward)):
        assert [type(part) for part in one.parts] == [type(part) for part in two.parts]
        for a, b in zip(one.parts, two.parts, strict=True):
            if isinstance(a, AffineMap):
                assert np.array_equal(a.matrix, b.matrix)
            else:
                numbers = "displacement" if isinstance(a, DisplacementMap) else "coefficients"
                assert torch.equal(getattr(a, numbers), getattr(b, numbers))
                assert np.array_equal(a.grid.affine, b.grid.affine)


def test_the_same_transform_is_always_stored_as_the_same_bytes(tmp_path):
    example().save(tmp_path / "one.safetensors")
    example().save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["transform.h5", "transform.nii.gz", "transform"])
def test_a_name_that_promises_another_format_is_refused(tmp_path, name):
    with pytest.raises(TransformError, match=r"ends in \.safetensors; to mend it: .*write_itk_transform"):
        example().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    example().save(tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()
    broken = tmp_path / "broken.safetensors"
    for length in np.linspace(0, len(content) - 1, 40).astype(int):
        broken.write_bytes(content[:length])
        with pytest.raises(TransformError, match=r"damaged|not a readable|another format"):
            Transform.load(broken)


def test_a_changed_bit_is_noticed_wherever_it_is(tmp_path):
    example().save(tmp_path / "whole.safetensors")
    content = bytearray((tmp_path / "whole.safetensors").read_bytes())
    broken = tmp_path / "broken.safetensors"
    start = 8 + int.from_bytes(content[:8], "little")
    header = content[8:start].decode()
    places = np.linspace(start, len(content) - 1, 40).astype(int).tolist()
    places += [
        8 + header.index(text) + 3 for text in ("0.3333", "bspline", "sha256", "atlasnet transform", "forward.0")
    ]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1
        broken.write_bytes(changed)
        with pytest.raises(TransformError, match=r"damaged|not a readable|another format"):
            Transform.load(broken)


@pytest.mark.parametrize(("there", "instead"), [("[3,4,5,6]", "[3,4,6,5]"), ('"F32"', '"I32"')])
def test_a_field_of_another_shape_or_type_is_noticed(tmp_path: Path, there: str, instead: str) -> None:
    path = tmp_path / "t.safetensors"
    example().save(path)
    path.write_bytes(path.read_bytes().replace(there.encode(), instead.encode(), 1))
    with pytest.raises(TransformError, match="damaged"):
        Transform.load(path)


@pytest.mark.parametrize(
    "maps",
    [
        {},
        {"forward": {"kind": "composite", "parts": []}},
        {name: {"kind": "composite", "parts": []} for name in ("forward", "backward", "sideways")},
        {"forward": {"kind": "composite", "parts": [{"kind": "affine", "tensor": "absent"}]}},
        {"forward": {"kind": "composite"}},
        [],
    ],
)
def test_what_is_whole_and_no_pair_of_maps_is_refused(tmp_path: Path, maps: object) -> None:
    content = {"format": "atlasnet transform 1", "maps": maps, "residual": {}}
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    save_file({}, tmp_path / "t.safetensors", metadata={"atlasnet": json.dumps(content)})
    with pytest.raises(TransformError, match=r"t\.safetensors: this is not a readable transform"):
        Transform.load(tmp_path / "t.safetensors")


def test_a_geometry_that_no_image_has_is_refused_with_the_name_of_the_file(tmp_path):
    transform, path = example(), tmp_path / "flat.safetensors"
    flat = Grid.from_parts(GRID.shape)
    object.__setattr__(flat, "affine", np.diag([1.0, 1, 0, 1]))
    object.__setattr__(transform.forward.parts[0], "grid", flat)
    transform.save(path)
    with pytest.raises(TransformError, match=r"flat.safetensors: this is not a readable.*spacing is not positive"):
        Transform.load(path)


def test_foreign_and_absent_files_are_refused(tmp_path):
    with pytest.raises(TransformError, match="no such file"):
        Transform.load(tmp_path / "absent.safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "network.safetensors")
    with pytest.raises(TransformError, match="not a readable transform"):
        Transform.load(tmp_path / "network.safetensors")
    save_file(
        {"x": torch.zeros(3)},
        tmp_path / "other.safetensors",
        metadata={"atlasnet": '{"format": "atlasnet transform 9"}'},
    )
    with pytest.raises(TransformError, match="another format"):
        Transform.load(tmp_path / "other.safetensors")
    for number, text in enumerate(("[1, 2]", "forward", "[" * 100_000)):
        save_file({"x": torch.zeros(3)}, tmp_path / f"{number}.safetensors", metadata={"atlasnet": text})
        with pytest.raises(TransformError, match="not a readable transform"):
            Transform.load(tmp_path / f"{number}.safetensors")
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps({"forward": 1}))
    with pytest.raises(TransformError, match="not a readable transform"):
        Transform.load(tmp_path / "pickle.safetensors")


def test_a_failed_save_leaves_the_old_file_alone(tmp_path):
    class Unknown(PointMap):
        def advance(self, points: FramedPoints) -> FramedPoints:
            return points

        @property
        def device(self) -> None:
            return None

        def to(self, device: torch.device | str) -> Unknown:
            return self

    path = tmp_path / "transform.safetensors"
    example().save(path)
    before = path.read_bytes()
    with pytest.raises(TransformError, match="Unknown"):
        Transform(Unknown(), Unknown()).save(path)
    assert path.read_bytes() == before


def test_a_stored_map_is_readable_for_whom_other_new_files_are(tmp_path: Path) -> None:
    Transform.identity().save(tmp_path / "t.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "t.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
