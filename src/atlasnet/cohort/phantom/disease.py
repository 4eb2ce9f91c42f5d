"""Interstitial lung disease: basal and subpleural ground glass with reticulation and an irregular border."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort.phantom.build import DISEASE, REACH, Build, stream
from atlasnet.cohort.phantom.lattice import Lattice
from atlasnet.cohort.phantom.thorax import Thorax

Array = NDArray[np.floating]

LINE = 1.1  # mm, thickness of the reticular lines


@dataclass(frozen=True)
class Disease:
    """Where one subject's lung is diseased, and how it looks there.

    Args:
        extent: how far it has spread, see `Build`.
        patches, border, frays: random fields at three scales that make its outline irregular.
        net: two random fields whose zero surfaces are the reticular lines.
        glass: HU that ground glass adds.
        lines: HU of the reticular lines.
    """

    extent: float
    patches: Lattice
    border: Lattice
    frays: Lattice
    net: Lattice
    glass: float
    lines: float

    @classmethod
    def draw(cls, build: Build) -> Disease:
        """Draw the disease of one subject."""
        rng = stream(build.seed, DISEASE)
        return cls(
            extent=build.extent,
            patches=Lattice.random(rng, 30.0, REACH),
            border=Lattice.random(rng, 12.0, REACH),
            frays=Lattice.random(rng, 5.0, REACH),
            net=Lattice.random(rng, 5.0, REACH, fields=2),
            glass=float(rng.uniform(170, 270)),
            lines=float(rng.uniform(-260, -100)),
        )

    def score(self, frame: Thorax, axes: tuple[Array, Array, Array]) -> Array:
        """Positive where the lung is diseased; ``axes`` are the world coordinates (z, y, x) of the block in mm."""
        z = frame.points.z
        # Depth under the pleura that faces the ribs or the diaphragm; the side towards the heart is spared.
        depth = np.minimum(-frame.cavity, frame.dome)
        base = np.clip((np.float32(-30) - z) / np.float32(85), -0.9, 1.1)
        irregular = (
            0.45 * self.patches.on_axes(*axes)[0]
            + 0.32 * self.border.on_axes(*axes)[0]
            + 0.16 * self.frays.on_axes(*axes)[0]
        )
        return np.asarray(
            self.extent + 0.85 * base + 0.3 * frame.depth - depth / np.float32(15) + irregular, np.float32
        )

    def apply(self, hu: Array, score: Array, axes: tuple[Array, Array, Array], edge: float) -> None:
        """Turn healthy parenchyma ``hu`` into diseased, in place."""
        # The mask ends where the score is zero; nothing of the disease shows beyond it.
        share = np.clip(score / np.float32(0.12), 0, 1)
        # Fibrosis is densest under the pleura, where the score is highest.
        hu += share * np.float32(self.glass) * (np.float32(0.8) + np.float32(0.25) * np.clip(score, 0, 1.5))
        gap = np.abs(self.net.on_axes(*axes)).min(0) * np.float32(self.net.step * 0.75)
        line = np.clip((np.float32(LINE / 2) - gap) / np.float32(edge) + np.float32(0.5), 0, 1) * min(1.0, LINE / edge)
        hu += share * line * np.clip(np.float32(0.55) + score, 0, 1) * (np.float32(self.lines) - hu)
