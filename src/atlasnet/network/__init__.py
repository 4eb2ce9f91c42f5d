"""Networks that classify the voxels of mapped slices, and how they are run."""

from atlasnet.network.inference import probabilities
from atlasnet.network.registry import build_network, code_digest, network_names, register_network
from atlasnet.network.segnet import SegNet
from atlasnet.network.spec import NetworkSpec, Traits
from atlasnet.network.unet import UNet, UNet3D
from atlasnet.network.weights import load_network, load_weights

__all__ = [
    "NetworkSpec",
    "SegNet",
    "Traits",
    "UNet",
    "UNet3D",
    "build_network",
    "code_digest",
    "load_network",
    "load_weights",
    "network_names",
    "probabilities",
    "register_network",
]
