"""What makes one phantom subject differ from the next: a handful of measures and a smooth random deformation."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort.phantom.lattice import Lattice

# Streams of random numbers; each property has its own, so that switching one off leaves the others as they are.
BUILD, DEFORMATION, TEXTURE, TREES, DISEASE, NOISE = range(6)

REACH = 255.0  # mm from the origin within which random fields are defined


def stream(seed: int, *which: int) -> np.random.Generator:
    """The generator of one property of subject ``seed``."""
    return np.random.default_rng([seed, *which])


@dataclass(frozen=True)
class Build:
    """The measures of one subject. Lengths in mm, densities in HU; the defaults are an average adult.

    Args:
        seed: the subject's own seed.
        scale: size of the thorax relative to the average, along (x, y, z).
        heart: size of the heart relative to the average.
        dome: how much higher (+) the diaphragm stands; right and left.
        fat: thickness of the subcutaneous fat.
        breast: radius of the breasts; 0 for none.
        kyphosis: extra backward bow of the thoracic spine.
        scoliosis: sideways amplitude of the spine.
        vertebra: distance from one vertebra to the next.
        rib_phase: where along the spine the ribs start, in vertebrae.
        air: HU of healthy lung near the sternum.
        gradient: how much denser the lung is at the back, HU.
        blood: HU of blood and heart.
        extent: how far interstitial disease has spread; 0 is moderate, 0.5 severe.
        arms_down: arms beside the body rather than over the head.
        deformation: smooth displacement that is added on top, mm.
    """

    seed: int
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    heart: float = 1.0
    dome: tuple[float, float] = (0.0, 0.0)
    fat: float = 14.0
    breast: float = 0.0
    kyphosis: float = 0.0
    scoliosis: float = 0.0
    vertebra: float = 24.0
    rib_phase: float = 0.0
    air: float = -870.0
    gradient: float = 70.0
    blood: float = 45.0
    extent: float = 0.0
    arms_down: bool = False
    deformation: Lattice = field(default_factory=lambda: Lattice(np.zeros((3, 9, 9, 9), np.float32), 90.0), repr=False)

    @classmethod
    def draw(cls, seed: int, *, arms_down: bool = False) -> Build:
        """Draw the measures of subject ``seed`` from the spread seen in adults."""
        rng = stream(seed, BUILD)
        size = rng.normal(1.0, 0.045)
        height = rng.normal(0.0, 9.0)
        return cls(
            seed=seed,
            scale=(
                float(np.clip(size * rng.normal(1.0, 0.04), 0.86, 1.14)),
                float(np.clip(size * rng.normal(1.0, 0.06), 0.84, 1.16)),
                float(np.clip(size * rng.normal(1.0, 0.05), 0.86, 1.14)),
            ),
            heart=float(np.clip(rng.normal(1.0, 0.08), 0.84, 1.2)),
            dome=(
                float(np.clip(height + rng.normal(0, 4), -20, 20)),
                float(np.clip(height + rng.normal(0, 6), -22, 22)),
            ),
            fat=float(rng.uniform(7, 24)),
            breast=float(rng.uniform(38, 58)) if rng.random() < 0.5 else 0.0,
            kyphosis=float(rng.normal(0, 5)),
            scoliosis=float(rng.normal(0, 3.5)),
            vertebra=float(rng.uniform(22.5, 25.5)),
            rib_phase=float(rng.uniform(0, 1)),
            air=float(rng.uniform(-895, -830)),
            gradient=float(rng.uniform(35, 100)),
            blood=float(rng.uniform(36, 52)),
            extent=float(rng.uniform(-0.15, 0.45)),
            arms_down=arms_down,
            deformation=Lattice.random(stream(seed, DEFORMATION), 85.0, REACH, fields=3).scaled(5.5),
        )

    def to_anatomy(
        self, z: NDArray[np.floating], y: NDArray[np.floating], x: NDArray[np.floating]
    ) -> tuple[NDArray[np.float32], ...]:
        """Anatomical coordinates (x, y, z), each (len(z), len(y), len(x)), of the points on three world axes, mm."""
        shift = self.deformation.on_axes(z, y, x)
        axes = (x[None, None, :], y[None, :, None], z[:, None, None])
        return tuple(
            (shift[i] + np.float32(1 / self.scale[i]) * axes[i].astype(np.float32)).astype(np.float32, copy=False)
            for i in range(3)
        )

    def to_world(self, anatomical: NDArray[np.floating]) -> NDArray[np.float64]:
        """World points (n, 3) whose anatomical coordinates are the given ones, by fixed-point iteration."""
        anatomical = np.asarray(anatomical, np.float64)
        scale = np.array(self.scale)
        world = anatomical * scale
        # The deformation's gradient stays well below one, so six rounds leave a few hundredths of a millimetre.
        for _ in range(6):
            world = (anatomical - self.deformation.at(world)) * scale
        return np.asarray(world)
