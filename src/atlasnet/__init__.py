"""AtlasNet: segment medical volumes from a handful of annotated scans.

`AtlasNet` trains and predicts, `register` maps one image onto another, `evaluate` scores label maps, `Volume` and
`Cohort` are what they work on. Each is imported when it is first used: ``import atlasnet`` alone loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from atlasnet.cohort import Cohort
    from atlasnet.estimator import AtlasNet
    from atlasnet.evaluation import evaluate_folder as evaluate
    from atlasnet.execution import Execution
    from atlasnet.registration import register_images as register
    from atlasnet.volume import Volume, read_volume, write_labels, write_volume

__all__ = [
    "AtlasNet",
    "Cohort",
    "Execution",
    "Volume",
    "__version__",
    "evaluate",
    "read_volume",
    "register",
    "write_labels",
    "write_volume",
]

_HOMES = {
    "AtlasNet": ("atlasnet.estimator", "AtlasNet"),
    "Cohort": ("atlasnet.cohort", "Cohort"),
    "Execution": ("atlasnet.execution", "Execution"),
    "Volume": ("atlasnet.volume", "Volume"),
    "evaluate": ("atlasnet.evaluation", "evaluate_folder"),
    "read_volume": ("atlasnet.volume", "read_volume"),
    "register": ("atlasnet.registration", "register_images"),
    "write_labels": ("atlasnet.volume", "write_labels"),
    "write_volume": ("atlasnet.volume", "write_volume"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'atlasnet' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
