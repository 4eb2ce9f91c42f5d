"""What another package's registration may be told: options by name, each with values of a known form.

Settings travel inside models, and a model from elsewhere must not say which files this machine reads or writes. All
three packages have options that name files, under names that a list of the forbidden ones would miss; so what may be
said is listed instead: no option here names a file, and no value is a path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from atlasnet.errors import InputError

_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_NUMBERS = rf"{_NUMBER}( {_NUMBER})*"
_WHOLE = r"\d+"
_STEPS = r"\d+(x\d+)*"
_FLAG = "True|False"
_SIGMA = rf"{_NUMBER}(vox|mm)"
_WORD = r"[A-Za-z]\w*"

_GREEDY = {
    "-m": rf"SSD|MI|NMI|W?NCC {_STEPS}",
    "-n": _STEPS,
    "-e": rf"{_NUMBER}(x{_NUMBER})*",
    "-s": f"{_SIGMA} {_SIGMA}",
    "-tscale": "CONST|SCALE|SCALEDOWN",
    "-bg": f"{_NUMBER}|NaN",
    "-noise": _NUMBER,
    "-wp": _NUMBER,
    "-exp": _WHOLE,
    "-seed": _WHOLE,
    **dict.fromkeys(("-sv", "-svlb", "-sv-incompr", "-wncc-mask-dilate", "-z"), ""),
}
_ANTS = {
    "type_of_transform": rf"{_WORD}(\[[\w,]+\])?",
    **dict.fromkeys(("syn_metric", "aff_metric"), _WORD),
    **dict.fromkeys(("grad_step", "flow_sigma", "total_sigma", "aff_random_sampling_rate"), _NUMBER),
    **dict.fromkeys(("syn_sampling", "aff_sampling", "random_seed"), _WHOLE),
    **dict.fromkeys(
        ("reg_iterations", "aff_iterations", "aff_shrink_factors", "aff_smoothing_sigmas", "restrict_transformation"),
        _NUMBERS,
    ),
    **dict.fromkeys(("mask_all_stages", "smoothing_in_mm", "singleprecision", "use_legacy_histogram_matching"), _FLAG),
}
# Components are words, everything else is numbers, true or false.
_ELASTIX = dict.fromkeys(
    """ASGDParameterEstimationMethod AutomaticParameterEstimation AutomaticScalesEstimation BSplineInterpolationOrder
    BSplineTransformSplineOrder CheckNumberOfSamples DefaultPixelValue ErodeFixedMask ErodeMask ErodeMovingMask
    FinalBSplineInterpolationOrder FinalGridSpacingInPhysicalUnits FinalGridSpacingInVoxels
    FixedImageBSplineInterpolationOrder FixedImagePyramid FixedImagePyramidSchedule FixedKernelBSplineOrder
    FixedLimitRangeRatio GridSpacingSchedule HowToCombineTransforms ImagePyramidSchedule ImageSampler Interpolator
    MaxBandCovSize MaximumNumberOfIterations MaximumNumberOfSamplingAttempts MaximumStepLength Metric Metric0Weight
    Metric1Weight MovingImagePyramid MovingImagePyramidSchedule MovingKernelBSplineOrder MovingLimitRangeRatio
    NewSamplesEveryIteration NumberOfBandStructureSamples NumberOfFixedHistogramBins NumberOfGradientMeasurements
    NumberOfHistogramBins NumberOfJacobianMeasurements NumberOfMovingHistogramBins NumberOfResolutions
    NumberOfSamplesForExactGradient NumberOfSpatialSamples Optimizer PassiveEdgeWidth RandomSeed Registration
    RequiredRatioOfValidSamples ResampleInterpolator Resampler SP_A SP_a SP_alpha SampleRegionSize SigmoidInitialTime
    SigmoidScaleFactor SubtractMean Transform UseAdaptiveStepSizes UseCyclicTransform UseDirectionCosines
    UseFastAndLowMemoryVersion UseJacobianPreconditioning UseMultiThreadingForMetrics UseNormalization
    UseRandomSampleRegion UseRelativeWeights""".split(),
    f"({_NUMBER}|{_WORD})( ({_NUMBER}|{_WORD}))*",
)
_ALLOWED: Mapping[str, Mapping[str, str]] = {"greedy": _GREEDY, "ants": _ANTS, "elastix": _ELASTIX}


def check_arguments(operator: str, arguments: Mapping[str, object]) -> None:
    """Refuse what an operator of another package may not be told.

    Args:
        operator: ``ants``, ``elastix`` or ``greedy``.
        arguments: by option the value, or a list of values.

    Raises:
        InputError: an option that is not listed, or a value that has not its form.
    """
    allowed = _ALLOWED[operator]
    for name, value in arguments.items():
        text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        if name not in allowed:
            raise InputError(
                f"the operator {operator!r} may not be told {str(name)[:80]!r}",
                expected="options that name no files: " + ", ".join(allowed),
            )
        if not re.fullmatch(allowed[name], text, re.ASCII):
            raise InputError(
                f"the argument {name!r} of the operator {operator!r} cannot be used",
                expected="numbers or the names of what the package offers, in the form that it asks for",
                found=repr(text[:200]),
            )
