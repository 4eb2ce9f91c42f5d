"""How a study was done: what a reader must know to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atlasnet.cohort import Plan
from atlasnet.errors import InputError
from atlasnet.network import NetworkSpec
from atlasnet.study.request import StudyRequest
from atlasnet.study.software import today, versions
from atlasnet.training.recipe import Recipe


def how(request: StudyRequest, settings: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """What was compared, JSON-able.

    Args:
        request: a call of the study.
        settings: what it keeps in `atlasnet.study.request.SETTINGS`.
        plan: of all its networks.

    Returns:
        ``preset`` and whether it was ``changed`` in more than its ``epochs``, ``network`` and ``width``, ``spacing_mm``
        (x, y, z) of its voxels, ``registration`` with its own ``registration_settings``, ``fusion``, ``sharing``, the
        numbers of ``training_subjects`` and ``test_subjects``, ``annotated_in`` (by structure in how many training
        subjects; empty where all were in all), ``channels``, ``begun`` and ``written`` (dates in UTC; None where that
        was not recorded) and ``written_by``, the versions that summed it up.
    """
    options, recipe = request.options, request.recipe
    return {
        "preset": recipe.name,
        "changed": _changed(recipe),
        "epochs": recipe.epochs,
        "network": options.network or NetworkSpec.name,
        "width": NetworkSpec.width if options.width is None else options.width,
        "spacing_mm": list(plan.spacing),
        "registration": options.operator,
        "registration_settings": dict(options.operator_settings),
        "fusion": options.fusion,
        "sharing": request.sharing.kind,
        "training_subjects": len(request.cohort),
        "test_subjects": len(request.tests),
        "annotated_in": request.cohort.annotated_in() if request.cohort.hidden else {},
        "channels": list(request.cohort.channels),
        "begun": settings["begun"],
        "written": today(),
        "written_by": versions(),
    }


def _changed(recipe: Recipe) -> bool:
    try:
        return recipe != Recipe.preset(recipe.name, epochs=recipe.epochs)
    except InputError:  # a name of one's own
        return False
