"""On another device than the CPU: no step mixes tensors of two devices, and the results are those of the CPU.

Everywhere `OtherDevice` keeps torch's rules about devices for tensors in host memory; where there is a GPU, it is asked
too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from atlasnet.cli.main import main
from atlasnet.cohort import Cohort
from atlasnet.cohort.structures import Hidden
from atlasnet.errors import AtlasNetError, InputError, explained
from atlasnet.execution import Execution
from atlasnet.network import NetworkSpec
from atlasnet.prediction import Prediction, PredictOptions, Predictor
from atlasnet.prediction.answers import Answers
from atlasnet.prediction.fusion import METHODS
from atlasnet.registration import make_operator, register_images
from atlasnet.registration.label_space import LabelSpace
from atlasnet.registration.propagation import Smoothness, propagate
from atlasnet.registration.refinement import refine
from atlasnet.registration.similarity import Supports
from atlasnet.training.fit import fit
from atlasnet.training.fusion_weights import FusionWeights
from atlasnet.training.loop import LOG, train_network
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.training.store import MappedCase
from atlasnet.transform import corner_jacobians, repair
from atlasnet.volume import Grid, Volume, write_volume
from other_device import DEVICE, OtherDevice, is_there
from synthetic import subject, write_cohort

HERE, THERE = Execution(threads=1), Execution(threads=1, device=str(DEVICE))
GPU = Execution(threads=1, device="cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
OPTIONS = FitOptions(atlases=1, width=0.25, epochs=1)
# Means over supports are taken of more labels at once than on the CPU, and round otherwise.
ROUNDING_MM = 1e-2


@dataclass(frozen=True)
class Place:
    """A device that is not the CPU, inside what it exists, and which share of labels may be others on it."""

    execution: Execution
    active: Callable[[], AbstractContextManager[object]]
    differing: float


each_device = pytest.mark.parametrize(
    "there",
    [
        pytest.param(Place(THERE, OtherDevice, 1e-3), id="other"),
        pytest.param(Place(GPU, nullcontext, 2e-2), id="gpu", marks=needs_gpu),
    ],
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    cohort = Cohort.read(write_cohort(tmp_path_factory.mktemp("cohort"), range(2)))
    fitted = fit(cohort, tmp_path_factory.mktemp("model") / "m", OPTIONS, execution=HERE)
    return replace(fitted, fusion_weights=FusionWeights(0.3, 0.5, 0.6))


def deformed(image: Volume, seed: int = 0) -> Volume:
    """The image under a smooth displacement of a few voxels."""
    random, shape = np.random.default_rng(seed), image.array.shape[1:]
    places = [
        axis + 30 * ndimage.gaussian_filter(random.normal(size=shape), 4)
        for axis in np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    ]
    return image.replace(ndimage.map_coordinates(image.array[0], places, order=1, mode="nearest")[None])


def trained(spec: NetworkSpec, folder: Path, execution: Execution, *, hidden: Hidden = (), **options: bool) -> bytes:
    """The weights after a few steps on two small cases, in one of which nobody annotated the ``hidden`` classes."""
    random = np.random.default_rng(0)
    shape = (6, 40, 36)
    images, labels = random.normal(size=(2, 1, *shape)).astype(np.float16), random.integers(0, 3, (2, *shape), "u1")
    for index, stands in hidden:
        labels[1][labels[1] == index] = stands
    cases = [MappedCase(*case) for case in zip("ab", images, labels, ((), hidden), strict=True)]
    recipe = replace(Recipe.preset("default", epochs=2), iterations=3, passes=0.0, batch_slices=4)
    return train_network(cases, spec, recipe, 3, folder, execution, **options).read_bytes()


def test_a_tensor_on_the_device_neither_meets_one_of_the_cpu_nor_becomes_an_array() -> None:
    with OtherDevice() as device:
        there, here = torch.ones(3, device=DEVICE), torch.ones(3)
        assert there.device == DEVICE
        assert here.device == torch.device("cpu")
        assert is_there((there + 1)[1:].square())
        assert not is_there(there.cpu())
        with pytest.raises(RuntimeError, match="two devices"):
            there + here
        with pytest.raises(TypeError, match="NumPy"):
            there.numpy()
        assert float(there.sum()) == 3
        assert device.waits == {"cpu": 1, "__float__": 1}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"metrics": {"mi": 1, "ncc": 1, "dwt": 1, "sad": 1, "mind": 1}, "truncation": 1.0},
        {"symmetric": True, "affine": False},
    ],
    ids=["default", "every metric", "symmetric"],
)
@each_device
def test_a_registration_finds_the_map_of_the_cpu(settings: dict[str, object], there: Place) -> None:
    target, labels = subject(2)
    source, seen = deformed(target), labels.replace(np.ones_like(labels.array))
    seen.array[:, :3] = 0
    operator = make_operator("mrf", **settings)
    wanted = register_images(source, target, operator=operator, source_mask=seen, execution=HERE)
    with there.active():
        found = register_images(source, target, operator=operator, source_mask=seen, execution=there.execution)
        assert found.transform.forward.device == torch.device("cpu")
        assert found.transform.backward.device == torch.device("cpu")
    ours, theirs = (result.transform.displacement(target.grid) for result in (found, wanted))
    assert float((ours - theirs).abs().max()) < ROUNDING_MM
    for name in ("quality", "jacobian_min", "max_displacement_mm"):
        assert found.record[name] == pytest.approx(wanted.record[name], abs=ROUNDING_MM)


@each_device
def test_a_map_is_measured_slab_by_slab_as_it_is_whole(monkeypatch: pytest.MonkeyPatch, there: Place) -> None:
    target, _ = subject(2)
    source = deformed(target)
    operator = make_operator("mrf", affine=False)
    wanted = register_images(source, target, operator=operator, execution=HERE).record
    monkeypatch.setattr("atlasnet.transform.extremes.AT_ONCE", 3 * target.array[0, 0].size)
    with there.active():
        found = register_images(source, target, operator=operator, execution=there.execution).record
    for name in ("jacobian_min", "folded_share", "max_displacement_mm"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-3)


def test_belief_propagation_waits_for_the_device_at_its_end_only() -> None:
    space = LabelSpace((1, 2, 1))
    with OtherDevice() as device:
        unary = torch.rand((*space.shape, 4, 5, 6), device=DEVICE)
        smoothness = Smoothness(torch.zeros((3, 4, 5, 6), device=DEVICE), ((0.1, 0.1, 0.1),) * 3)
        device.waits.clear()
        propagate(unary, smoothness, space, iterations=5)
        of_five = dict(device.waits)
        device.waits.clear()
        propagate(unary, smoothness, space, iterations=10)
    assert device.waits == of_five


def test_the_rounds_of_conjugate_gradients_do_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, counts = (4, 5, 6), []
    for rounds in (5, 10):
        monkeypatch.setattr("atlasnet.registration.refinement.ROUNDS", rounds)
        with OtherDevice() as device:
            images = torch.rand((2, 1, *shape), device=DEVICE)
            seen = torch.ones(shape, dtype=torch.bool, device=DEVICE)
            supports = Supports(tuple(torch.eye(n, device=DEVICE) for n in shape))
            smoothness = Smoothness(torch.zeros((3, *shape), device=DEVICE), ((0.1, 0.1, 0.1),) * 3)
            device.waits.clear()
            refine(images[0], images[1], seen, supports, smoothness)
        counts.append(dict(device.waits))
    assert counts[0] == counts[1]


def test_a_field_is_mended_without_leaving_the_device() -> None:
    grid, random = Grid.from_parts((9, 10, 11)), np.random.default_rng(0)
    for strength in (0.0, 3.0):
        folding = torch.from_numpy(strength * random.normal(size=(3, *grid.shape)).astype(np.float32))
        with OtherDevice() as device:
            mended, record = repair(folding.to(DEVICE), grid)
            assert is_there(mended)
            assert "cpu" not in device.waits
            assert float(corner_jacobians(mended, grid, outside=True).min()) > 0.05
        assert (record.changed > 0) == (strength > 0)


def test_an_array_is_moved_to_the_device_once() -> None:
    array = np.arange(24, dtype=">u2").reshape(2, 3, 4)
    with OtherDevice():
        keeping = THERE.keeping(array)
        first = keeping.tensor(array)
        assert is_there(first)
        assert keeping.keeping().tensor(array) is first
        assert keeping.tensor(array[:, ::-1]) is not first
        assert THERE.tensor(array) is not first
    assert torch.equal(first, torch.arange(24).reshape(2, 3, 4).float())
    assert HERE.keeping(array) is HERE


@pytest.mark.parametrize(("network", "hidden"), [("unet", ()), ("segnet", ()), ("unet3d", ()), ("unet", ((2, 0),))])
def test_a_training_gives_the_weights_of_the_cpu(
    tmp_path: Path, network: str, hidden: Hidden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # the other device computes in float32
    spec = NetworkSpec.planned(network, (6, 40, 36), width=0.25)
    wanted = trained(spec, tmp_path / "here", HERE, hidden=hidden)
    with OtherDevice():
        assert trained(spec, tmp_path / "there", THERE, hidden=hidden) == wanted


@needs_gpu
@pytest.mark.parametrize("network", ["unet", "segnet", "unet3d"])
def test_a_training_on_a_gpu_learns_as_that_of_the_cpu(tmp_path: Path, network: str) -> None:
    spec, losses = NetworkSpec.planned(network, (6, 40, 36), width=0.25), []
    for execution in (HERE, GPU):
        folder = tmp_path / execution.device
        trained(spec, folder, execution)
        losses.append(np.loadtxt(folder / LOG, delimiter=",", skiprows=1)[:, 1])
    assert np.allclose(*losses, rtol=0.05)


@needs_gpu
def test_a_training_on_a_gpu_gives_the_same_weights_again(tmp_path: Path) -> None:
    spec = NetworkSpec.planned("unet", (6, 40, 36), width=0.25)
    assert trained(spec, tmp_path / "a", GPU) == trained(spec, tmp_path / "b", GPU)


@needs_gpu
def test_the_command_line_trains_and_predicts_on_a_gpu(tmp_path: Path) -> None:
    cohort, scan = write_cohort(tmp_path / "cohort", range(2)), tmp_path / "scan.nii.gz"
    write_volume(scan, subject(100)[0])
    place = ["--device", "cuda", "--threads", "1"]
    words = ["train", str(cohort), "-o", str(tmp_path / "m"), "--atlases", "1", "--width", "0.25", "--epochs", "1"]
    assert main([*words, *place]) == 0
    assert main(["predict", str(scan), "-m", str(tmp_path / "m"), "-o", str(tmp_path / "out"), *place]) == 0
    record = json.loads((tmp_path / "out" / "scan.json").read_text(encoding="utf-8"))
    assert record["provenance"]["device"] == "cuda"
    assert all(value > 0 for value in record["peak_gpu_memory_mib"].values())


@needs_gpu
def test_a_gpu_without_enough_memory_is_told_in_words(tmp_path: Path) -> None:
    spec, allowed = NetworkSpec.planned("segnet", (6, 40, 36)), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 2**26) / allowed)
    try:
        with pytest.raises(AtlasNetError, match=r"memory of the GPU"):
            trained(spec, tmp_path, GPU)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


class Greedy(nn.Module):
    """Asks for more than a GPU has."""

    spatial_dims, context, divisibility = 2, 0, 4

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        found: Tensor = self.layer(x)
        return found


def test_a_training_that_a_gpu_has_no_memory_for_says_what_to_lower(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"memory of the GPU.*Tried to allocate 20\.00 GiB.*lower batch_size"):
        trained(NetworkSpec(f"{__name__}:Greedy"), tmp_path, replace(HERE, check_memory=False), allow_module=True)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 20.00 GiB.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_what_a_gpu_says_of_too_little_memory_is_told_as_that(text: str) -> None:
    assert isinstance(explained(RuntimeError(text)), AtlasNetError)


def test_products_are_taken_in_full_precision_whatever_the_process_has_chosen() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with HERE.active():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@each_device
def test_a_prediction_finds_the_labels_of_the_cpu(model: Model, there: Place) -> None:
    image, options = subject(100)[0], PredictOptions(agreement=True, probabilities=True)
    wanted = Predictor(model, execution=HERE).predict(image, options)
    with there.active():
        require_alike(Predictor(model, execution=there.execution).predict(image, options), wanted, there)


@pytest.fixture(scope="module")
def ask(model: Model) -> Callable[[Place], tuple[Answers, Answers]]:
    """What the atlas says of a scan on the CPU and on a device, asked once for every fusion."""

    @cache
    def asked(there: Place) -> tuple[Answers, Answers]:
        image = subject(100)[0]
        here = Predictor(model, execution=HERE).ask(image, fit=True)
        with there.active():
            return here, Predictor(model, execution=there.execution).ask(image, fit=True)

    return asked


@pytest.mark.parametrize("fusion", METHODS)
@each_device
def test_a_fusion_finds_the_labels_of_the_cpu(
    model: Model, ask: Callable[[Place], tuple[Answers, Answers]], fusion: str, there: Place
) -> None:
    options = PredictOptions(fusion=fusion, agreement=True, probabilities=True)
    ours, theirs = ask(there)
    wanted = Predictor(model, execution=HERE).fuse(ours, options)
    with there.active():
        require_alike(Predictor(model, execution=there.execution).fuse(theirs, options), wanted, there)


def require_alike(found: Prediction, wanted: Prediction, there: Place) -> None:
    assert np.mean(found.labels.array != wanted.labels.array) < there.differing
    assert found.probabilities is not None
    assert wanted.probabilities is not None
    assert np.abs(found.probabilities.array - wanted.probabilities.array).mean() < there.differing


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_in_small_on_a_cpu(tmp_path: Path) -> None:
    script, out = Path(__file__).parents[1] / "benchmarks" / "gpu.py", tmp_path / "gpu.json"
    words = [sys.executable, str(script), "--smoke", "--device", "cpu", "--threads", "1", "-o", str(out)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["device"] == {"name": "cpu"}
    assert found["registration"]["same_map_again"]
    assert found["registration"]["from_the_cpu_mm"]["everywhere"]["max"] == 0
    assert found["registration"]["profile"]["total"]["operations"] > 0
    assert all(value > 0 for value in found["median"].values())
    assert "wanted" not in found
