"""Why a scan is unusual, in words and numbers."""

from __future__ import annotations

_SIDES = {"x": "left-right", "y": "front-back", "z": "head-feet"}


def reason(kind: str, value: float, limit: float, axes: str = "") -> str:
    """Why a scan is unusual, in words.

    Args:
        kind: one of `atlasnet.training.typical.KINDS`.
        value: beyond the limit.
        limit: of what is usual.
        axes: along which the scan fits better mirrored.
    """
    if kind == "intensities":
        found, usual = apart(value, limit, ".2f")
        return (
            f"its intensities are {found} standard deviations from those of the training subjects, usual are up to "
            f"{usual} (another unit, modality or part of the body?)"
        )
    if kind == "noise":
        found, usual = apart(value, limit, ".2f")
        return f"neighbouring voxels differ by {found} standard deviations, usual are up to {usual} (noise?)"
    if kind == "orientation":
        sides = " " + " and ".join(_SIDES[axis] for axis in axes) if axes else ""
        found, usual = apart(-value, abs(limit), ".3f")
        return (
            f"mirrored{sides} it fits better, with a correlation higher by {found}, usual are up to {usual} (a wrong "
            "orientation in its header?)"
        )
    if kind == "registration":
        found, usual = apart(-value, abs(limit), ".3f")
        return (
            f"its registrations have a quality lower by {found} than the training subjects', usual are up to {usual} "
            "(another part of the body, modality or a strange anatomy?)"
        )
    found, usual = apart(value, limit, ".0%")
    return f"it shows {found} of the region that has labels, usual are {usual} or more (cropped?)"


def apart(value: float, limit: float, form: str) -> tuple[str, str]:
    """Two numbers as text, with more decimals than ``form`` has where they would read alike."""
    least, kind = int(form[1:-1]), form[-1]
    texts = ((f"{value:.{more}{kind}}", f"{limit:.{more}{kind}}") for more in range(least, least + 6))
    return next((pair for pair in texts if pair[0] != pair[1]), (f"{value:{form}}", f"{limit:{form}}"))
