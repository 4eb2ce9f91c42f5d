"""The reference anatomies: choosing subjects that span the cohort, finding those that the user names."""

from atlasnet.atlas.choose import CHOICE_REVISION, ChoiceSettings, choose_atlases
from atlasnet.atlas.medoids import k_medoids
from atlasnet.atlas.source import AtlasSource, resolve_atlases, scans_beside

__all__ = [
    "CHOICE_REVISION",
    "AtlasSource",
    "ChoiceSettings",
    "choose_atlases",
    "k_medoids",
    "resolve_atlases",
    "scans_beside",
]
