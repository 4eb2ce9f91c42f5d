"""A U-Net on slices that also sees the neighbouring ones, and one on blocks of slices."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlasnet.errors import InputError

_BASE = 16  # channels of the finest level at width 1
_WIDEST = 256  # at width 1; more adds weights, not accuracy, on the few hundred slices of a small cohort


_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMS: dict[str, dict[int, type[nn.Module]]] = {
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
}


class _Layers(nn.Module):
    """Two convolutions of 3 voxels a side, each with normalisation and leaky ReLU; the first may halve the sides."""

    def __init__(self, channels: int, features: int, *, stride: int, residual: bool, norm: str, dims: int) -> None:
        super().__init__()
        convolution, normalisation = _CONVOLUTION[dims], _NORMS[norm][dims]
        self.first = convolution(channels, features, 3, stride, padding=1, bias=False)
        self.first_norm = normalisation(features, affine=True)
        self.second = convolution(features, features, 3, padding=1, bias=False)
        self.second_norm = normalisation(features, affine=True)
        self.skip = convolution(channels, features, 1, stride, bias=False) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.first_norm(self.first(x)), 0.01, inplace=True)
        y = self.second_norm(self.second(y))
        if self.skip is not None:
            y = y + self.skip(x)
        return F.leaky_relu(y, 0.01, inplace=True)


def widest(depth: int) -> int:
    """Channels of the widest layer of a U-Net of this depth, at width 1."""
    return min(_BASE << depth, _WIDEST)


class UNet(nn.Module):
    """Ronneberger et al., MICCAI 2015, in the form of Isensee et al. (nnU-Net, 2021), on slices with their neighbours.

    (b, channels * (2 * context + 1), y, x) to logits (b, classes, y, x), in three dimensions (b, channels, z, y, x) to
    (b, classes, z, y, x). Strided convolutions go down, transposed ones
    up; channels double at each level.

    Args:
        channels: image channels.
        classes: classes, background included.
        width: factor on the channels of every layer; 16 at the finest level at width 1.
        context: neighbouring slices on each side.
        depth: how often the sides are halved.
        residual: add a 1 x 1 convolution of a block's input to its output (He et al., 2016).
        norm: ``"batch"`` or ``"instance"`` normalisation. nnU-Net takes the latter, on 3-D patches; a single slice may
            hold nothing but background, which it blows up to unit spread, so the intensities' scale is lost. Batch
            statistics keep it: on hippocampi (17 subjects, no registration) Dice 0.845 instead of 0.840, the worst
            subject 0.77 instead of 0.73, in three quarters of the time.
        spatial_dims: 2, or 3 for blocks, without ``context``.

    Raises:
        InputError: an argument is out of its range.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        width: float = 1.0,
        context: int = 1,
        depth: int = 3,
        residual: bool = False,
        norm: str = "batch",
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        if norm not in _NORMS:
            raise InputError("unknown normalisation of the U-Net", expected=" or ".join(_NORMS), found=repr(norm))
        if spatial_dims not in _CONVOLUTION:
            raise InputError("the U-Net has no such dimensions", expected="2 or 3", found=str(spatial_dims))
        if spatial_dims == 3 and context:
            raise InputError("blocks hold the neighbouring slices already", expected="context 0", found=str(context))
        if not 1 <= depth <= 8 or not 0 <= context <= 64:
            raise InputError(
                "the U-Net cannot be built",
                expected="depth from 1 to 8, context from 0 to 64",
                found=f"depth {depth}, context {context}",
            )
        self.spatial_dims, self.context = spatial_dims, int(context)
        self.divisibility = 2**depth
        features = [max(1, round(width * widest(level))) for level in range(depth + 1)]
        convolution, transposed = _CONVOLUTION[spatial_dims], _TRANSPOSED[spatial_dims]
        layers = partial(_Layers, residual=residual, norm=norm, dims=spatial_dims)
        inputs = [channels * (2 * context + 1), *features]
        self.down = nn.ModuleList(
            layers(inputs[level], features[level], stride=2 if level else 1) for level in range(depth + 1)
        )
        self.up = nn.ModuleList(
            transposed(features[level + 1], features[level], 2, 2, bias=False) for level in range(depth)
        )
        self.merge = nn.ModuleList(layers(2 * features[level], features[level], stride=1) for level in range(depth))
        self.classifier = convolution(features[0], classes, 1)
        for module in self.modules():
            if isinstance(module, (convolution, transposed)):
                nn.init.kaiming_normal_(module.weight, 0.01, nonlinearity="leaky_relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (b, classes, [z,] y, x) of (b, inputs, [z,] y, x) whose sides are multiples of ``divisibility``."""
        skips: list[Tensor] = []
        for layers in self.down:
            x = layers(x)  # (b, f * 2**level, y / 2**level, x / 2**level)
            skips.append(x)
        x = skips.pop()
        for level in range(len(self.up) - 1, -1, -1):
            x = torch.cat([self.up[level](x), skips.pop()], 1)
            x = self.merge[level](x)
        logits: Tensor = self.classifier(x)
        return logits


class UNet3D(UNet):
    """The same in three dimensions, for structures that lie in a small region: a block then holds all of it.

    Instance normalisation, because a step sees two blocks, and every block holds structures.

    Args:
        channels: image channels.
        classes: classes, background included.
        width: as for `UNet`.
        depth: as for `UNet`.
        residual: as for `UNet`.

    Raises:
        InputError: an argument is out of its range.
    """

    def __init__(self, channels: int, classes: int, width: float = 1.0, depth: int = 3, residual: bool = False) -> None:
        super().__init__(channels, classes, width, 0, depth, residual, norm="instance", spatial_dims=3)
