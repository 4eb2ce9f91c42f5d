"""SegNet: an encoder as VGG16's, a mirrored decoder, pooling indices carried across."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
WIDEST = 512  # channels at width 1


class _Layer(nn.Sequential):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__(nn.Conv2d(channels, features, 3, padding=1), nn.BatchNorm2d(features), nn.ReLU(inplace=True))
        self.register_load_state_dict_pre_hook(_without_bias)  # type: ignore[no-untyped-call]  # as torch leaves it

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, y, x) to (b, features, y, x)."""
        convolution, normalisation, rectifier = self
        weight, bias = cast(Tensor, convolution.weight), cast(Tensor, convolution.bias)
        # In training the normalisation takes a bias away again, which so stays at 0: a GPU need not add it, nor sum a
        # gradient that is rounding alone.
        found: Tensor = rectifier(normalisation(F.conv2d(x, weight, None if self.training else bias, padding=1)))
        return found


def _without_bias(layer: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The same layer, in weights that are loaded, with a bias of 0: the running mean takes it away beforehand.

    Weights that were trained with a bias would else have another mean in training than in inference.
    """
    bias, mean = f"{prefix}0.bias", f"{prefix}1.running_mean"
    if bias in state and mean in state:
        state[mean], state[bias] = state[mean] - state[bias], torch.zeros_like(state[bias])


def _rows(x: Tensor) -> Tensor:
    """(b, f, y, x), channels last, as (b, y * x, f) without a copy."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _unpool(x: Tensor, indices: Tensor) -> Tensor:
    """Values (b, f, y, x) back at their indices in slices twice as large, channels last.

    `torch.nn.functional.max_unpool2d` would lay both out anew on a GPU.
    """
    batch, features, height, width = x.shape
    larger = x.new_zeros(batch, 4 * height * width, features).scatter_(1, _rows(indices), _rows(x))
    return larger.view(batch, 2 * height, 2 * width, features).permute(0, 3, 1, 2)


class SegNet(nn.Module):
    """Badrinarayanan, Kendall, Cipolla, "SegNet", PAMI 2017: (b, channels, y, x) to logits (b, classes, y, x).

    13 convolutions of VGG16 as encoder, 13 mirrored ones as decoder, each but the last followed by batch normalisation
    and ReLU; 2 x 2 max pooling whose indices place the values again in the decoder; the last convolution takes 64
    channels to the classes. 29,443,010 parameters at 1 channel, 2 classes and width 1. Its authors start the encoder
    from VGG16's weights; here all weights start as He et al. (2015) propose, since no photographs are needed then.

    Args:
        channels: image channels.
        classes: classes, background included.
        width: factor on the channels of every layer.
    """

    spatial_dims = 2
    context = 0
    divisibility = 32

    def __init__(self, channels: int, classes: int, width: float = 1.0) -> None:
        super().__init__()
        stages = [[max(1, round(width * n)) for n in stage] for stage in _STAGES]
        self.encoder = nn.ModuleList()
        before = channels
        for stage in stages:
            self.encoder.append(nn.Sequential(*(_Layer(a, b) for a, b in zip([before, *stage], stage, strict=False))))
            before = stage[-1]
        self.decoder = nn.ModuleList()
        for level in range(len(stages) - 1, -1, -1):
            stage = stages[level]
            after = [*stage[:-1], stages[level - 1][-1]] if level else stage[:-1]
            self.decoder.append(nn.Sequential(*(_Layer(a, b) for a, b in zip(stage, after, strict=False))))
        self.classifier = nn.Conv2d(stages[0][0], classes, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (b, classes, y, x) of images (b, channels, y, x) whose sides are multiples of 32."""
        where: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)  # (b, f, y, x)
            x, indices = F.max_pool2d(x, 2, return_indices=True)  # (b, f, y/2, x/2)
            where.append(indices)
        for stage in self.decoder:
            x = _unpool(x, where.pop())
            x = stage(x)
        logits: Tensor = self.classifier(x)
        return logits
