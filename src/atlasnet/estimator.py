"""`AtlasNet`: the method as one object, for scripts and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atlasnet.cohort import Cohort
from atlasnet.errors import InputError, ModelError
from atlasnet.execution import Execution
from atlasnet.prediction import Ensemble, Prediction, PredictOptions, Predictor, find_cases
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.training.sharing import Sharing
from atlasnet.volume import Volume, read_labels
from atlasnet.wording import counted


class AtlasNet:
    """Train on a cohort, segment scans, save and load.

        net = AtlasNet(atlases=3).fit("data/", "model/")
        prediction = net.predict("ct.nii.gz")
        write_labels("seg.nii.gz", prediction.labels)

    Args:
        atlases: how many to choose among the subjects (None: 6, or all of fewer), or names of subjects or image files.
            In an update, how many in all, or those to be added.
        network: ``"unet"``, ``"segnet"``, a name given to `atlasnet.network.register_network`, or ``"module:Class"``
            with ``allow_module``; None takes the plan's.
        width: factor on the network's channels; None takes the plan's.
        preset: training recipe, ``"default"`` or ``"publication"``, or a recipe of one's own.
        epochs: of every network that is trained from scratch; None takes the recipe's.
        sharing: ``"independent"``, ``"first"`` or ``"common"``, or a `atlasnet.training.sharing.Sharing` of one's own:
            what the networks of several atlases have in common; None takes the recipe's, in an update ``"model"``.
        registration: ``"mrf"`` (the default), ``"affine"``, ``"identity"``, or ``"ants"``, ``"elastix"``, ``"greedy"``
            with their packages.
        registration_settings: of that operator, over what the plan says; see `atlasnet.registration.MRFSettings`.
        allow_module: whether the code that ``network`` names may be imported.
        execution: device, threads, seed, progress.
    """

    def __init__(
        self,
        *,
        atlases: int | str | Path | Sequence[str | Path] | None = None,
        network: str | None = None,
        width: float | None = None,
        preset: str | Recipe = "default",
        epochs: int | None = None,
        sharing: str | Sharing | None = None,
        registration: str | None = None,
        registration_settings: dict[str, Any] | None = None,
        allow_module: bool = False,
        execution: Execution | None = None,
    ) -> None:
        self.options = FitOptions(
            atlases=_named(atlases),
            network=network,
            allow_module=allow_module,
            width=width,
            preset=preset,
            epochs=epochs,
            sharing=sharing,
            operator=registration,
            operator_settings=registration_settings or {},
        )
        self.execution = execution or Execution()
        self.model: Model | None = None
        self._ensemble: Ensemble | None = None
        self._predictor: Predictor | None = None

    def fit(
        self,
        cohort: Cohort | str | Path,
        folder: str | Path,
        *,
        update: Model | str | Path | None = None,
        work: str | Path | None = None,
    ) -> AtlasNet:
        """Train on every subject of ``cohort`` and write the model into ``folder``; see `atlasnet.training.fit.fit`.

        AtlasNet().fit("data/", "newer/", update="model/")  # data/ has got more subjects
        """
        if not isinstance(cohort, Cohort):
            cohort = Cohort.read(cohort)
        if not (update is None or isinstance(update, Model)):
            update = Model.load(update)
        self.model = fit(cohort, folder, self.options, update=update, work=work, execution=self.execution)
        self._ensemble = self._predictor = None
        return self

    def predict(
        self,
        image: Volume | str | Path,
        *,
        mask: Volume | str | Path | None = None,
        series: str | None = None,
        **options: Any,
    ) -> Prediction:
        """Segment one scan.

        Args:
            image: (c, z, y, x) in any orientation, or a file (of several channels, one of CASE_0000 and so on), or a
                DICOM folder, file or zip.
            mask: (1, z, y, x) on its grid, or a file: the organ, outside of which the result is background.
            series: the number or UID of the series to take out of a DICOM folder or zip.
            options: fields of `atlasnet.prediction.PredictOptions`, ``fusion="vote"`` or ``probabilities=True`` say.

        Raises:
            ModelError: nothing was fitted or loaded, or the model needs a mask.
            VolumeError: the scan or the mask cannot be used.
            InputError: the path is that of no scan or of several, or memory does not suffice; see
                `Execution.check_memory`.
            UnusualInputError: it is not like the training subjects, and ``strict=True`` was given.
            RegistrationError: it cannot be mapped onto any atlas.
        """
        models = self._models()
        chosen = PredictOptions(**options)
        if self._predictor is None:
            self._predictor = Predictor(models, execution=self.execution, allow_module=self.options.allow_module)
        if not isinstance(image, Volume):
            cases = find_cases([image], len(models.channels), series)
            if len(cases) != 1:
                raise InputError("the path is not that of one scan", path=image, found=counted(len(cases), "scan"))
            self._predictor.require_memory(cases[0].read_grid(), chosen, Path(image))
            image = cases[0].read_image()
        else:
            self._predictor.require_memory(image.grid, chosen)
        if not (mask is None or isinstance(mask, Volume)):
            mask = read_labels(mask)
        return self._predictor.predict(image, chosen, mask=mask)

    def save(self, path: str | Path) -> None:
        """Write the model, or several with which scans are segmented, to a zip (by its suffix) or a new folder.

        Only what prediction needs is written, and the logs.

        Raises:
            InputError: the folder exists.
            ModelError: nothing was fitted or loaded.
        """
        models, path = self._models(), Path(path)
        (models.export if path.suffix == ".zip" else models.copy)(path)

    @classmethod
    def load(
        cls, path: str | Path, *more: str | Path, allow_module: bool = False, execution: Execution | None = None
    ) -> AtlasNet:
        """Read folders and zips of models; several segment together, see `atlasnet.prediction.Ensemble`.

        Raises:
            ModelError: one is not there, not finished, or damaged, or they do not fit each other.
        """
        net = cls(allow_module=allow_module, execution=execution)
        net._ensemble = Ensemble.load([path, *more])
        if len(net._ensemble) == 1:
            net.model = net._ensemble.models[0]
        return net

    def _models(self) -> Ensemble:
        if self._ensemble is not None:
            return self._ensemble
        if self.model is None:
            raise ModelError("there is no model yet", remedy="call fit, or AtlasNet.load")
        return Ensemble.of(self.model)


def _named(atlases: int | str | Path | Sequence[str | Path] | None) -> int | tuple[str, ...] | None:
    """Atlases as `FitOptions` takes them; one name alone is that of one atlas."""
    if atlases is None or isinstance(atlases, int):
        return atlases
    return (str(atlases),) if isinstance(atlases, (str, Path)) else tuple(str(atlas) for atlas in atlases)
