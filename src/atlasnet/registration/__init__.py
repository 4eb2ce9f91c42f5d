"""Registration: the operator protocol, affine alignment, and the multi-metric discrete deformable registration."""

from atlasnet.registration.affine import AffineSettings, prealign
from atlasnet.registration.context import TissueClass
from atlasnet.registration.intensity import in_hounsfield_units
from atlasnet.registration.linear import AffineOperator, CentreOperator, IdentityOperator
from atlasnet.registration.local_fit import (
    CORRELATION_BYTES,
    SMALLEST_DISTANCE,
    fit_around,
    local_correlation,
    local_weight,
)
from atlasnet.registration.memory import FIXED_BYTES, SCAN_BYTES, registration_bytes, work_bytes
from atlasnet.registration.metric_weights import MetricWeights
from atlasnet.registration.mirrors import mirror_correlations, orientation_margin
from atlasnet.registration.mrf import MRFOperator
from atlasnet.registration.operator import Operator, Registration, contextual, labelled
from atlasnet.registration.pyramid import LevelSettings
from atlasnet.registration.quality import regional_quality, require_quality, shortcoming
from atlasnet.registration.register import WITHOUT_SETTINGS, WITHOUT_SPACING, make_operator, register_images
from atlasnet.registration.settings import MRFSettings, preset
from atlasnet.registration.several import Target, at_a_time, register_each

__all__ = [
    "CORRELATION_BYTES",
    "FIXED_BYTES",
    "SCAN_BYTES",
    "SMALLEST_DISTANCE",
    "WITHOUT_SETTINGS",
    "WITHOUT_SPACING",
    "AffineOperator",
    "AffineSettings",
    "CentreOperator",
    "IdentityOperator",
    "LevelSettings",
    "MRFOperator",
    "MRFSettings",
    "MetricWeights",
    "Operator",
    "Registration",
    "Target",
    "TissueClass",
    "at_a_time",
    "contextual",
    "fit_around",
    "in_hounsfield_units",
    "labelled",
    "local_correlation",
    "local_weight",
    "make_operator",
    "mirror_correlations",
    "orientation_margin",
    "prealign",
    "preset",
    "regional_quality",
    "register_each",
    "register_images",
    "registration_bytes",
    "require_quality",
    "shortcoming",
    "work_bytes",
]
