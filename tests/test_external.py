"""ANTs, elastix and greedy as operators: real registrations where their packages are installed."""

import json
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
import torch
from scipy import ndimage

from atlasnet.errors import InputError, RegistrationError, VolumeError
from atlasnet.execution import Execution
from atlasnet.registration import make_operator, register_images
from atlasnet.registration.external_arguments import check_arguments
from atlasnet.registration.external_packages import EXTERNAL
from atlasnet.transform import DisplacementMap, Transform
from atlasnet.volume import Grid, Volume

ONE = Execution(threads=1)
# Oblique axes and anisotropic voxels: an adapter that swaps axes or forgets the direction fails.
DIRECTION = np.linalg.qr(np.array([[0.9, 0.3, -0.1], [-0.3, 0.9, 0.2], [0.1, -0.2, 0.95]]))[0]


def is_installed(package):
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


installed = [
    pytest.param(
        name, marks=pytest.mark.skipif(not is_installed(operator.package), reason=f"{operator.package} not installed")
    )
    for name, operator in EXTERNAL.items()
]


@pytest.fixture(scope="module")
def pair():
    """A textured ball and itself displaced by a smooth field of up to 5 mm: source, target, truth."""
    shape = (36, 40, 44)
    direction = DIRECTION * np.sign(np.linalg.det(DIRECTION))
    grid = Grid.from_parts(shape, (1.5, 1.5, 2.0), (10.0, -20.0, 30.0), direction)
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    ball = 1 / (1 + np.exp((np.sqrt(x**2 + y**2 + z**2) - 0.7) * 20))
    texture = ndimage.gaussian_filter(rng.standard_normal(shape), 2)
    image = 1000 * ball * (1 + 0.4 * texture / texture.std())
    field = np.stack([ndimage.gaussian_filter(rng.standard_normal(shape), 8) for _ in range(3)])
    field = torch.from_numpy((5 * field / np.abs(field).max()).astype(np.float32))
    source = Volume(image.astype(np.float32)[None], grid)
    target = Transform.from_displacement(DisplacementMap(field, grid)).warp(source, grid)
    return source, target, field, ball > 0.5


@pytest.mark.parametrize("name", installed)
def test_a_known_deformation_is_recovered_in_both_directions(name, pair):
    source, target, truth, inside = pair
    result = register_images(source, target, operator=make_operator(name, affine=False), execution=ONE)
    found = result.transform.displacement(target.grid)
    before = truth.norm(dim=0).numpy()[inside].mean()
    assert (found - truth).norm(dim=0).numpy()[inside].mean() < 0.5 * before
    record = result.record
    assert record["operator"] == name
    assert record["jacobian_min"] > 0
    assert record["inverse_residual_mm"]["mean"] < 0.1
    assert record["similarity_after"]["ncc"] > record["similarity_before"]["ncc"]


@pytest.mark.parametrize("name", installed)
def test_a_plane_is_registered_as_an_image_of_two_axes(name):
    grid = Grid.from_parts((1, 72, 64), (2.0, 1.5, 4.0), (10.0, -20.0, 30.0), DIRECTION)
    rng = np.random.default_rng(1)
    texture = ndimage.gaussian_filter(rng.standard_normal(grid.shape), (0, 3, 3))
    image = (1000 + 300 * texture / texture.std()).astype(np.float32)
    # 4 mm along x and 3 mm along y of the plane, which is oblique.
    shift = np.zeros((3, *grid.shape), dtype=np.float32)
    shift += (grid.direction @ (4.0, 3.0, 0.0))[:, None, None, None]
    source = Volume(image[None], grid)
    target = Transform.from_displacement(DisplacementMap(torch.from_numpy(shift), grid)).warp(source, grid)
    result = register_images(source, target, operator=make_operator(name, affine=False), execution=ONE)
    inside = (slice(None), slice(None), slice(12, -12), slice(12, -12))
    found = result.transform.displacement(target.grid).numpy()
    assert np.linalg.norm(found - shift, axis=0)[inside[1:]].mean() < 1.5
    np.testing.assert_allclose(np.tensordot(grid.direction[:, 2], found, 1), 0, atol=1e-4)


@pytest.mark.parametrize("name", installed)
def test_hippocampi_are_registered_and_only_the_record_is_printed(name, data_folder, tmp_path):
    """Of images this small, elastix's erosion of masks leaves nothing."""
    images = [data_folder / f"hippocampus/imagesTr/hippocampus_{n}_0000.nii.gz" for n in ("024", "025")]
    labels = [data_folder / f"hippocampus/labelsTr/hippocampus_{n}.nii.gz" for n in ("024", "025")]
    words = [*images, "-o", tmp_path, "--source-labels", labels[0], "--target-labels", labels[1]]
    words += ["--operator", name, "--json", "--quiet", "--threads", "1"]
    call = [sys.executable, "-m", "atlasnet.cli.main", "register", *map(str, words)]
    printed = subprocess.run(call, check=True, capture_output=True, text=True)
    assert printed.stderr == ""
    assert [region["dice"] > 0.6 for region in json.loads(printed.stdout)["regions"].values()] == [True, True]


@pytest.mark.parametrize("name", installed)
def test_one_seed_gives_one_map(name, pair):
    few = {
        "greedy": {"-m": ["NCC", "2x2x2"], "-n": "10x5"},
        "ants": {"reg_iterations": [5, 0]},
        "elastix": {"MaximumNumberOfIterations": 5},
    }
    operator = make_operator(name, affine=False, arguments=few[name])
    first, again = (register_images(*pair[:2], operator=operator, execution=ONE).transform for _ in range(2))
    grid = pair[1].grid
    np.testing.assert_array_equal(first.displacement(grid), again.displacement(grid))


@pytest.mark.parametrize("name", installed)
def test_what_a_package_fails_of_is_told_in_its_words(name, pair):
    impossible, said = {
        "greedy": ({"-z": "", "-wncc-mask-dilate": "", "-n": "5x5x5x5x5x5x5x5x5x5"}, ""),
        "ants": ({"syn_metric": "nonsense"}, "Registration failed"),
        "elastix": ({"GridSpacingSchedule": [1, 2]}, "Invalid GridSpacingSchedule"),
    }[name]
    operator = make_operator(name, affine=False, arguments=impossible)
    with pytest.raises(RegistrationError, match=f"found no map: .*{said}"):
        register_images(*pair[:2], operator=operator, execution=ONE)


@pytest.mark.parametrize("name", installed)
def test_settings_make_the_operator_again_and_several_channels_are_refused(name, pair):
    operator = make_operator(name, spacing=3.0, arguments={})
    assert make_operator(name, **operator.settings()).settings() == operator.settings()
    two = Volume(np.concatenate([pair[0].array] * 2), pair[0].grid)
    with pytest.raises(VolumeError, match="one channel"):
        register_images(two, two, operator=operator, execution=ONE)


@pytest.fixture
def only_there(tmp_path, monkeypatch):
    """Make a package and its module the ones that are found; what is in the module is given."""

    def put(package, module, text):
        about = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info" / "METADATA"
        about.parent.mkdir()
        about.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (tmp_path / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, module, raising=False)

    yield put
    for operator in EXTERNAL.values():
        if str(tmp_path) in str(getattr(sys.modules.get(operator.module), "__file__", "")):
            del sys.modules[operator.module]


@pytest.mark.parametrize("name", sorted(EXTERNAL))
def test_a_module_of_that_name_from_another_package_is_not_taken_for_it(name, only_there):
    operator = EXTERNAL[name]
    if is_installed(operator.package):
        pytest.skip(f"{operator.package} is installed")
    only_there("something-else", operator.module, "")
    with pytest.raises(InputError, match=rf"needs the package {operator.package}.*pip install '\.\[{name}\]'"):
        make_operator(name)


@pytest.mark.parametrize("name", sorted(EXTERNAL))
def test_a_package_that_lacks_what_it_needs_is_named_with_what_it_lacks(name, only_there):
    operator = EXTERNAL[name]
    only_there(operator.package, operator.module, "import something_that_nobody_installed")
    with pytest.raises(InputError, match=rf"something_that_nobody_installed.*pip install '\.\[{name}\]'"):
        make_operator(name)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("greedy", {"-o": "/x"}),
        ("greedy", {"-m": "NCC 2x2x2 -oinv /x"}),
        ("greedy", {"-rf": "fixed -rm moving /tmp/x.nii.gz -r"}),
        ("greedy", {"-n": "2x1x0\n-rj x"}),
        ("greedy", {"-rc": "x"}),
        ("greedy", {"-dump-prefix": "x"}),
        ("greedy", {"-it": "matrix.txt"}),
        ("ants", {"outprefix": "/x"}),
        ("ants", {"initial_transform": "/x.mat"}),
        ("ants", {"write_composite_transform": True}),
        ("ants", {"syn_metric": "mattes[/x"}),
        ("elastix", {"ResultImageName": "../x"}),
        ("elastix", {"InitialTransformParameterFileName": "x"}),
        ("elastix", {"Metric": "../x"}),
    ],
)
def test_arguments_that_may_name_files_are_refused(name: str, arguments: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"may not be told|cannot be used"):
        make_operator(name, arguments=arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (
            "greedy",
            {"-m": ["WNCC", "2x2x2"], "-n": "10x5x0", "-e": "0.5x.25", "-s": "2vox 0.5vox", "-bg": "NaN", "-sv": ""},
        ),
        (
            "ants",
            {"type_of_transform": "antsRegistrationSyN[so]", "reg_iterations": [9, 5, 0], "smoothing_in_mm": True},
        ),
        (
            "elastix",
            {"Metric": ["AdvancedMattesMutualInformation", "TransformBendingEnergyPenalty"], "SP_a": 1e-3},
        ),
    ],
)
def test_what_the_packages_document_of_metrics_steps_and_iterations_is_taken(name, arguments) -> None:
    check_arguments(name, arguments)
