"""`Member`: one model, ready to say what each of its atlases makes of a scan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from atlasnet.errors import InputError, ModelError, RegistrationError
from atlasnet.execution import Execution
from atlasnet.network import load_network, probabilities
from atlasnet.prediction.answers import Answer
from atlasnet.prediction.ensemble import atlas_keys, pair_keys
from atlasnet.prediction.record import brief
from atlasnet.prediction.scan import Scan
from atlasnet.prediction.verdict import Verdict, judge
from atlasnet.registration import (
    Operator,
    Registration,
    Target,
    fit_around,
    local_correlation,
    make_operator,
    shortcoming,
)
from atlasnet.training.mapping import (
    from_slices,
    map_image,
    prepare,
    region_grid,
    slice_order,
    to_slices,
    volume_order,
    working_grid,
)
from atlasnet.training.model import Model
from atlasnet.training.region import Region
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume, canonical

Made = Sequence[Registration | RegistrationError]
Asked = tuple[Answer | None, dict[str, Any]]


def operator_of(model: Model) -> Operator:
    """The operator that registered the training subjects.

    Raises:
        ModelError: there is none of this name and with these settings, or its package is not installed.
    """
    try:
        return make_operator(model.operator, **model.operator_settings)
    except InputError as error:
        raise ModelError(f"the model's registration cannot be used: {error}", path=model.place) from error


@dataclass(frozen=True)
class View:
    """What a scan is mapped to in an atlas's space: the region, and a voxel around it that says that there is no more.

    Args:
        grid: the atlas's working grid.
        part: of it, to which a scan is mapped.
        start: the voxel (z, y, x) of ``grid`` with which ``part`` begins.
        asked: the region, of the slices of ``part``.
    """

    grid: Grid
    part: Grid
    start: tuple[int, int, int]
    asked: Region

    @classmethod
    def of(cls, grid: Grid, region: Region | None, slice_axis: str) -> View:
        """Of an atlas with this working grid and region, None being all of it."""
        shape = slice_order(grid.shape, slice_axis)
        region = region or Region.whole(shape)
        around = region.widened(1, shape)
        part, start = region_grid(grid, around, slice_axis), volume_order(around.start, slice_axis)
        return cls(grid, part, start, region.within(around))


class Member:
    """A model with its networks in memory; see `atlasnet.prediction.Predictor` for the arguments.

    Args:
        model: the trained model.
        number: among those that segment together.
        names: of its atlases, as records call them.
        execution: device, threads and seed.
        allow_module: whether the code that the model's network names may be imported.
        operator: registers instead of the model's own operator.
        epoch: of the training, after which the weights are taken; None: at its end.

    Raises:
        ModelError: the weights are not there, or do not fit the network.
        InputError: the network is code and ``allow_module`` is not set.
    """

    def __init__(
        self,
        model: Model,
        *,
        number: int,
        names: Sequence[str],
        execution: Execution,
        allow_module: bool,
        operator: Operator | None,
        epoch: int | None,
    ) -> None:
        self.model, self.number, self.names = model, number, tuple(names)
        self.device = execution.torch_device()
        self._seen: dict[str, NDArray[Any]] = {}
        self.networks = []
        with model.named():
            self.operator = operator or operator_of(model)
            self.images = [canonical(model.atlas_image(atlas))[0] for atlas in model.atlases]
            self.labels = [model.atlas_labels(atlas) for atlas in model.atlases]
            for atlas in model.atlases:
                weights = model.weights_path(atlas, epoch)
                channels, classes = len(model.channels), len(model.values)
                network = load_network(model.network, channels, classes, weights, allow_module=allow_module)
                self.networks.append(network.to(self.device))
            for atlas, image in zip(model.atlases, self.images, strict=True):
                model.check_region(atlas, image.grid)
            self.views = [
                View.of(working_grid(image.grid, model.plan), atlas.region, model.plan.slice_axis)
                for atlas, image in zip(model.atlases, self.images, strict=True)
            ]
        self._atlas_keys, self._pair_keys = atlas_keys(model), pair_keys(model, operator)

    def register(self, scan: Scan) -> Made:
        """The scan's map onto each atlas, or why there is none."""
        stored = zip(self._pair_keys, self.model.atlases, self.images, self.labels, strict=True)
        atlases = {key: Target(f"atlas {atlas.name}", image, labels) for key, atlas, image, labels in stored}
        with closing(scan.registered(self.operator, atlases)) as made:
            tracked = scan.execution.reporter.track(made, "registering onto the atlases", len(atlases))
            found = dict(zip(atlases, tracked, strict=True))
        return [found[key] for key in self._pair_keys]

    def judge(self, scan: Scan, made: Made) -> Verdict:
        """Whether the scan is like the training subjects.

        Args:
            scan: that was registered.
            made: from `register`.
        """
        prepared = scan.prepared(self.model.plan)
        with scan.stages("verdict"):
            return judge(
                self.model,
                scan.source.grid,
                prepared,
                made,
                lambda index: scan.margin(self._atlas_keys[index], self.images[index]),
            )

    def ask(self, scan: Scan, made: Made, minimum_quality: float, fit: bool) -> list[Asked]:
        """Each atlas's probabilities in its own space, None where it is not asked, and what the record says of it.

        Args:
            scan: that was registered.
            made: from `register`.
            minimum_quality: see `atlasnet.prediction.PredictOptions`.
            fit: whether to keep how well every registration fits at every voxel.
        """
        found: list[Asked] = []
        warn = scan.execution.reporter.warn
        atlases = list(enumerate(zip(self.names, made, strict=True)))
        for index, (name, registration) in scan.execution.reporter.track(atlases, "asking the networks", len(atlases)):
            scan.execution.pause()
            if isinstance(registration, RegistrationError):
                found.append((None, {"name": name, "quality": 0.0, "used": False, "error": str(registration)}))
                warn(f"atlas {name} is not asked: {registration}")
                continue
            quality = float(registration.record["quality"])
            wrong = shortcoming(registration.record, minimum_quality)
            record = {**brief(name, registration.record), "used": wrong is None}
            if wrong is not None:
                found.append((None, record))
                warn(f"atlas {name} is not asked: {wrong}")
                continue
            prepared = scan.prepared(self.model.plan)
            begin = time.perf_counter()
            view = self.views[index]
            with scan.stages("mapping"):
                mapped = map_image(prepared, registration.transform, view.part, device=self.device)
            with scan.stages("network"):
                halves = self._classified(view, self.networks[index], mapped)
            with scan.stages("mapping"):
                correlation = local_correlation(self._as_networks_see(index), mapped.array)
                record["fit"] = fit_around(correlation, halves[0] < halves[1:].max(0))
                kept = torch.from_numpy(correlation.astype(np.float16)) if fit else None
            record["seconds_network"] = round(time.perf_counter() - begin, 3)
            said, to_atlas = torch.from_numpy(halves), registration.transform.inverse
            found.append((Answer(said, view.grid, to_atlas, quality, kept, self.number, view.start), record))
        return found

    def _classified(self, view: View, network: nn.Module, mapped: Volume) -> NDArray[np.float16]:
        """The class probabilities (classes, z, y, x) of the part of an atlas's space that a scan was mapped to."""
        axis = self.model.plan.slice_axis
        slices = to_slices(mapped.array, axis)
        said = probabilities(network, view.asked.crop(slices), device=self.device)
        said = view.asked.paste(said.astype(np.float16), slices.shape[1:])
        return np.ascontiguousarray(from_slices(said, axis), dtype=np.float16)

    def _as_networks_see(self, index: int) -> NDArray[Any]:
        """An atlas's own image (c, z, y, x) as a scan that is the atlas is mapped; kept for the next scan."""
        name = self.model.atlases[index].name
        if name not in self._seen:
            prepared = prepare(self.images[index], self.model.plan)
            self._seen[name] = map_image(
                prepared, Transform.identity(), self.views[index].part, device=self.device
            ).array
        return self._seen[name]
