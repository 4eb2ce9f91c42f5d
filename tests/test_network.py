"""Architectures, their registry, and what they declare."""

from __future__ import annotations

import copy
import linecache
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from atlasnet.errors import InputError, ModelError
from atlasnet.network import (
    NetworkSpec,
    SegNet,
    Traits,
    UNet,
    UNet3D,
    build_network,
    code_digest,
    load_weights,
    register_network,
)
from atlasnet.network.weights import load_network, tensor_channels_last, write_tensors

RESIDUAL = {"residual": True}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class Thresholds(nn.Module):
    """A complete user's network."""

    spatial_dims, context, divisibility = 2, 1, 1

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels * 3, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Undeclared(Thresholds):
    divisibility = None


class Shrinking(Thresholds):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[..., ::2, ::2]


class WrongChannels(Thresholds):
    context = 2


class ContextIn3D(Thresholds):
    spatial_dims = 3


def test_segnet_has_the_published_number_of_parameters() -> None:
    assert parameters(SegNet(1, 2)) == 29_443_010


def test_segnet_has_13_convolutions_on_each_side() -> None:
    network = SegNet(1, 2, width=0.1)
    encoder = [m for m in network.encoder.modules() if isinstance(m, nn.Conv2d)]
    decoder = [m for m in network.decoder.modules() if isinstance(m, nn.Conv2d)]
    assert (len(encoder), len(decoder) + 1) == (13, 13)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 25


def test_segnet_classifier_takes_64_channels_to_the_classes() -> None:
    assert SegNet(1, 3).classifier.weight.shape == (3, 64, 3, 3)


def test_segnet_of_half_the_width_has_about_a_quarter_of_the_parameters() -> None:
    assert parameters(SegNet(1, 2, width=0.5)) / parameters(SegNet(1, 2)) == pytest.approx(0.25, abs=0.01)


def test_segnet_computes_what_its_layers_say() -> None:
    """Convolutions with their biases, and pooling undone, by torch's own functions; values and gradients."""
    torch.manual_seed(0)
    network = SegNet(1, 3, width=0.1).double()
    image, kept = torch.randn(2, 1, 64, 96, dtype=torch.float64), copy.deepcopy(network.state_dict())
    x, where = image, []
    for stage in network.encoder:
        for layer in stage:
            x = layer[2](layer[1](layer[0](x)))
        x, indices = nn.functional.max_pool2d(x, 2, return_indices=True)
        where.append(indices)
    for stage in network.decoder:
        x = nn.functional.max_unpool2d(x, where.pop(), [2, 2])
        for layer in stage:
            x = layer[2](layer[1](layer[0](x)))
    wanted = network.classifier(x)
    wanted.square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    learnt = {name: value.clone() for name, value in network.state_dict().items()}
    network.zero_grad()
    network.load_state_dict(kept)
    found = network(tensor_channels_last(image))
    found.square().sum().backward()
    assert torch.allclose(found, wanted, rtol=1e-9)
    for name, parameter in network.named_parameters():
        if parameter.grad is None:  # a bias that the normalisation takes away
            assert name.endswith("0.bias")
            assert torch.allclose(
                gradients[name], torch.zeros(()).double(), atol=1e-9 * float(wanted.detach().square().sum())
            )
        else:
            assert torch.allclose(
                parameter.grad, gradients[name], rtol=1e-6, atol=1e-8 * float(gradients[name].abs().max())
            )
    assert all(torch.allclose(value, learnt[name]) for name, value in network.state_dict().items())
    network.eval()
    assert torch.allclose(network(image), network(tensor_channels_last(image)))


def test_a_layer_of_a_segnet_whose_weights_have_a_bias_is_the_same_and_goes_on_learning() -> None:
    """As those have that were trained with it: what it gives in inference follows what it gives in training."""
    torch.manual_seed(0)
    before, image = SegNet(1, 3, width=0.1).encoder[0][0].eval(), torch.randn(4, 1, 64, 64)
    for tensor in (before[0].bias, before[1].running_mean):
        nn.init.normal_(tensor, std=3.0)
    layer = SegNet(1, 3, width=0.1).encoder[0][0]
    layer.load_state_dict(before.state_dict())
    with torch.no_grad():
        assert torch.allclose(layer.eval()(image), before(image), atol=1e-5)
        layer.train()
        for _ in range(200):
            learnt = layer(image)
        assert torch.allclose(layer.eval()(image), learnt, atol=1e-3)


def test_an_image_of_one_channel_is_laid_out_channels_last_to_all_that_follows() -> None:
    image = torch.randn(2, 1, 8, 12)
    laid = tensor_channels_last(image)
    assert torch.equal(laid, image)
    assert laid.stride() == torch.empty(laid.shape, memory_format=torch.channels_last).stride()
    answer = nn.Conv2d(1, 4, 3, padding=1).to(memory_format=torch.channels_last)(laid)
    assert answer.is_contiguous(memory_format=torch.channels_last)
    assert not answer.is_contiguous()


def test_segnet_keeps_the_sides() -> None:
    assert SegNet(2, 5, width=0.1)(torch.zeros(2, 2, 64, 96)).shape == (2, 5, 64, 96)


def test_unet_takes_the_neighbouring_slices_as_channels() -> None:
    network = UNet(2, 3, context=2, depth=2)
    assert network(torch.zeros(1, 10, 16, 24)).shape == (1, 3, 16, 24)
    assert Traits.of(network) == Traits(spatial_dims=2, context=2, divisibility=4)


@pytest.mark.parametrize("option", [{"residual": True}, {"norm": "batch"}, {"norm": "instance"}])
def test_every_option_of_the_unet_builds_a_network_whose_weights_all_learn(option: dict[str, object]) -> None:
    network = UNet(1, 2, width=0.5, depth=2, **option)
    network(torch.randn(2, 3, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(("dims", "norm"), [(2, {}), (2, {"norm": "instance"}), (3, {"norm": "instance"})])
def test_a_unet_computes_what_that_of_monai_does_with_its_weights(dims: int, norm: dict[str, str]) -> None:
    torch.manual_seed(0)
    ours = UNet(2, 3, 0.5, context=0, depth=2, spatial_dims=dims, **norm)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.2)
    normalisation = (norm.get("norm", "batch"), {"affine": True})
    theirs = DynUNet(dims, 2, 3, [3] * 3, [1, 2, 2], [2, 2], [8, 16, 32], norm_name=normalisation)
    names = {"down.0": "input_block", "down.1": "downsamples.0", "down.2": "bottleneck"}
    names |= {"merge.1": "upsamples.0.conv_block", "merge.0": "upsamples.1.conv_block"}
    names |= {"up.1": "upsamples.0.transp_conv.conv", "up.0": "upsamples.1.transp_conv.conv"}
    names |= {"classifier": "output_block.conv.conv", ".first.": ".conv1.conv.", ".second.": ".conv2.conv."}
    names |= {"first_norm": "norm1", "second_norm": "norm2"}
    weights = ours.state_dict()
    for name, other in names.items():
        weights = {key.replace(name, other): value for key, value in weights.items()}
    assert not theirs.load_state_dict(weights, strict=False).unexpected_keys
    assert parameters(theirs) == parameters(ours)
    image = torch.randn(2, 2, *[8, 12, 16][-dims:])
    torch.testing.assert_close(ours(image), theirs(image))


@pytest.mark.parametrize(("name", "width"), [("segnet", 0.25), ("unet", 1.0)])
def test_weights_begin_as_he_et_al_propose(name: str, width: float) -> None:
    """A deviation of the square root of 2 over the number of values that are summed: the signal keeps its size."""
    network = build_network(NetworkSpec(name, width), 1, 2)
    large = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 4000]
    assert large
    for weight in large:
        assert float(weight.detach().std()) == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.1)


def test_channels_of_a_unet_double_up_to_256() -> None:
    assert [layers.second.out_channels for layers in UNet(1, 2, depth=5).down] == [16, 32, 64, 128, 256, 256]


def test_a_block_in_three_dimensions_is_normalised_by_itself() -> None:
    network, blocks = UNet3D(1, 2, width=0.5, depth=1), torch.randn(2, 1, 4, 8, 8)
    torch.testing.assert_close(network(blocks)[:1], network(blocks[:1]))


@pytest.mark.parametrize("name", ["unet", "unet3d", "segnet"])
def test_sides_may_be_any_multiple_of_what_a_network_declares(name: str) -> None:
    network = build_network(NetworkSpec(name, 0.1), 1, 2)
    traits = Traits.of(network)
    sides = [3 * traits.divisibility] * traits.spatial_dims
    assert network(torch.randn(2, traits.input_channels(1), *sides)).shape == (2, 2, *sides)


@pytest.mark.parametrize(("side", "divisibility"), [(8, 2), (35, 8), (128, 32), (512, 32)])
def test_a_planned_unet_leaves_four_pixels_at_its_coarsest_level(side: int, divisibility: int) -> None:
    network = build_network(NetworkSpec.planned("unet", (3, 512, side)), 1, 2)
    assert network.divisibility == divisibility


def test_a_unet_in_three_dimensions_takes_blocks() -> None:
    network = build_network(NetworkSpec.planned("unet3d", (20, 40, 36), width=0.5), 2, 3)
    assert Traits.of(network) == Traits(spatial_dims=3, context=0, divisibility=4)
    answer = network(torch.randn(2, 2, 8, 16, 12))
    assert answer.shape == (2, 3, 8, 16, 12)
    answer.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_unet_in_three_dimensions_sees_along_all_axes_alike() -> None:
    network = UNet3D(1, 2, width=0.5, depth=2)
    turned = UNet3D(1, 2, width=0.5, depth=2)
    weights = network.state_dict()
    turned.load_state_dict({name: w.movedim(2, 4) if w.ndim == 5 else w for name, w in weights.items()})
    block = torch.randn(1, 1, 8, 16, 12)
    with torch.no_grad():
        torch.testing.assert_close(turned(block.movedim(2, 4)), network(block).movedim(2, 4), rtol=1e-3, atol=1e-4)


def test_a_unet_has_two_or_three_dimensions() -> None:
    with pytest.raises(InputError, match=r"2 or 3.*found 4"):
        UNet(1, 2, spatial_dims=4)
    with pytest.raises(InputError, match=r"context 0.*found 1"):
        UNet(1, 2, spatial_dims=3, context=1)


def test_the_same_seed_gives_the_same_weights() -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(build_network(NetworkSpec("unet", 0.5), 1, 2).state_dict())
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])


def test_a_spec_survives_json() -> None:
    spec = NetworkSpec("unet", 0.5, {"depth": 2})
    assert NetworkSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("value", [{}, {"name": 3, "width": 1, "options": {}}, None, {"name": "unet", "width": 1}])
def test_an_incomplete_description_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="description"):
        NetworkSpec.from_json(value)  # type: ignore[arg-type]  # what a damaged file holds


@pytest.mark.parametrize("width", [0, -1, float("nan"), float("inf")])
def test_a_width_that_is_not_positive_is_refused(width: float) -> None:
    with pytest.raises(InputError, match="width"):
        NetworkSpec("unet", width)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"resnet.*segnet.*unet"):
        build_network(NetworkSpec("resnet"), 1, 2)


def test_a_registered_network_is_built_by_name() -> None:
    register_network("thresholds", Thresholds)
    assert isinstance(build_network(NetworkSpec("thresholds"), 2, 3), Thresholds)


def test_a_name_cannot_be_registered_twice() -> None:
    with pytest.raises(InputError, match="exists already"):
        register_network("unet", Thresholds)
    register_network("one's own", Thresholds)
    register_network("one's own", Thresholds)
    with pytest.raises(InputError, match="exists already"):
        register_network("one's own", Shrinking)


def run_cell(text: str) -> Any:
    """The class ``Net`` that a cell of a notebook defines, whose text IPython keeps where it has no file."""
    name = f"<cell {hash(text)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    found = {"nn": nn, "__name__": "notebook"}
    exec(compile(text, name, "exec"), found)
    return found["Net"]


def test_a_cell_that_is_run_again_replaces_its_network_and_its_text_is_what_counts() -> None:
    text = "class Net(nn.Module):\n    def __init__(self, channels, classes):\n        super().__init__()\n"
    digests = []
    for cell in (text, text, text + "        self.layer = nn.Conv2d(channels, classes, 1)\n"):
        register_network("of a cell", run_cell(cell))
        digests.append(code_digest("of a cell"))
    assert None not in digests
    assert (digests[0] == digests[1], digests[1] == digests[2]) == (True, False)


def test_a_class_is_no_name() -> None:
    with pytest.raises(InputError, match=r"by its name; found .*Thresholds.*register_network"):
        code_digest(Thresholds)  # type: ignore[arg-type]  # what is tested


def test_an_import_path_is_not_followed_without_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "untrusted_network.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = NetworkSpec.from_json({"name": "untrusted_network:Net", "width": 1, "options": {}})
    with pytest.raises(InputError, match="--allow-module"):
        build_network(spec, 1, 2)
    assert "untrusted_network" not in sys.modules


def test_an_import_path_is_followed_with_leave() -> None:
    network = build_network(NetworkSpec(f"{__name__}:Thresholds"), 1, 2, allow_module=True)
    assert isinstance(network, nn.Module)


@pytest.mark.parametrize("name", ["no_such_module:Net", f"{__name__}:NoSuchClass", "torch:float32"])
def test_an_import_path_that_leads_nowhere_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot be"):
        build_network(NetworkSpec(name), 1, 2, allow_module=True)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Undeclared, "does not declare divisibility"),
        (Shrinking, "answers an input"),
        (WrongChannels, "fails on an input"),
        (ContextIn3D, "is 3-D and declares neighbouring"),
    ],
)
def test_a_network_that_breaks_the_contract_is_refused(network: type[nn.Module], message: str) -> None:
    register_network(network.__name__, network)
    for name in (f"{__name__}:{network.__name__}", network.__name__):
        with pytest.raises(InputError, match=message):
            build_network(NetworkSpec(name), 1, 2, allow_module=True)


def test_a_width_for_a_network_without_one_is_refused() -> None:
    with pytest.raises(InputError, match="has no width"):
        build_network(NetworkSpec(f"{__name__}:Thresholds", 2.0), 1, 2, allow_module=True)


def test_weights_come_back_as_they_were_written(tmp_path: Path) -> None:
    written, read = UNet(1, 2, depth=2), UNet(1, 2, depth=2)
    write_tensors(tmp_path / "w.safetensors", written.state_dict(), {})
    load_weights(tmp_path / "w.safetensors", read)
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in written.state_dict().items())


@pytest.mark.parametrize(("written", "wanted"), [({}, {"classes": 3}), ({}, RESIDUAL), (RESIDUAL, {})])
def test_weights_of_another_architecture_are_refused(
    tmp_path: Path, written: dict[str, Any], wanted: dict[str, Any]
) -> None:
    whole = {"classes": 2, "depth": 2}
    write_tensors(tmp_path / "w.safetensors", UNet(1, **whole | written).state_dict(), {})
    with pytest.raises(ModelError, match="another network"):
        load_weights(tmp_path / "w.safetensors", UNet(1, **whole | wanted))


@pytest.mark.parametrize(
    "spec", [NetworkSpec(), NetworkSpec(options={"depth": 1}), NetworkSpec("unet3d", 0.5), NetworkSpec("segnet", 0.1)]
)
def test_no_network_is_refused_its_own_weights(tmp_path: Path, spec: NetworkSpec) -> None:
    written = build_network(spec, 1, 2).state_dict()
    write_tensors(tmp_path / "w.safetensors", written, {})
    read = load_network(spec, 1, 2, tmp_path / "w.safetensors")
    assert not read.training
    assert all(torch.equal(value, written[name]) for name, value in read.state_dict().items())


def test_a_network_much_larger_than_its_weights_is_not_built(tmp_path: Path) -> None:
    write_tensors(tmp_path / "w.safetensors", UNet(1, 2, depth=2).state_dict(), {})
    with pytest.raises(ModelError, match=r"another network.*at least"):
        load_network(NetworkSpec("unet", 8, {"depth": 2}), 1, 2, tmp_path / "w.safetensors")


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        load_weights(path, UNet(1, 2))
