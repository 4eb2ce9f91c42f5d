"""What became of a scan, on one page: warnings, labels over its slices, agreement, every registration, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from atlasnet.execution import Reporter, read_json, reading_back
from atlasnet.prediction import Batch, Predictor, write_label_tables
from atlasnet.prediction.ensemble import Ensemble
from atlasnet.prediction.output import RECORD, REPORT, output_path
from atlasnet.prediction.prediction import Prediction
from atlasnet.report.display import opening_point, window
from atlasnet.report.page import NO_DEVICE, Cell, Page, number
from atlasnet.report.pair import add_panels, add_scale, pair_panels
from atlasnet.report.quality import REGISTRATION_HEAD, registration_cells
from atlasnet.report.stack import add_stacks, agreement_layer, image_layer, label_layer, stacks
from atlasnet.report.viewer import Shown, add_viewer
from atlasnet.volume import Volume, canonical
from atlasnet.wording import MANY_LABELS, counted

LABELS = "labels"  # in a folder, the stem of the files that name and colour its labels
_ALONE = "range over single atlases, ml"  # heading of volumes


class PredictionReport:
    """Writes the page of one case after the other.

    Args:
        predictor: what segments them.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.ensemble = predictor, predictor.ensemble

    def __call__(self, name: str, image: Volume, prediction: Prediction, path: Path, record: Mapping[str, Any]) -> None:
        """Write the page of a case.

        Args:
            name: of the case, as the user calls it.
            image: the scan, (c, z, y, x).
            prediction: with its agreement map.
            path: of the page.
            record: the run record, as far as it is known by now.
        """
        page = Page(f"Prediction: {name}")
        self._found(page, record, image.grid.voxels)
        self._slices(page, name, image, prediction)
        self._registrations(page, name, image, prediction, record)
        _time(page, record)
        _origin(page, record)
        page.write(path)

    def _found(self, page: Page, record: Mapping[str, Any], voxels: int) -> None:
        """Warnings, volumes, and how far the atlases agreed."""
        page.warnings(record["warnings"], "No warnings; this says nothing of how good the result is.")
        if record.get("verdict"):
            _verdict(page, record["verdict"])
        asked = [atlas for atlas in record["atlases"] if atlas["used"]]
        agreement = record["agreement"]
        share, listed = number(agreement["foreground"]), ", ".join(self.ensemble.names)
        page.text(
            (f"{len(self.ensemble)} models segmented the scan together, {listed}. " if len(self.ensemble) > 1 else "")
            + f"{len(asked)} of {counted(len(record['atlases']), 'atlas')} used; fusion: {record['fusion']}. "
            + (
                f"In the labelled voxels, the share of the atlases that chose the result is {share} on average."
                if share
                else "Nothing was found."
            )
            + (f" Within an organ mask of {record['organ_mask_ml']:.4g} ml." if record.get("organ_mask_ml") else "")
            + _unreached(record["uncovered_voxels"], voxels)
        )
        colours = {segment.name: segment.colour for segment in self.ensemble.segments}
        spread, estimate = record.get("volumes_of_atlases_ml"), record.get("estimated_dice")
        head = ["label", "volume, ml", *([_ALONE] if spread else []), *(["estimated Dice"] if estimate else [])]
        head += ["Dice between atlases", *(f"Dice, {atlas['name']}" for atlas in asked)]
        rows: list[list[str | Cell]] = []
        for label, volume in record["volumes_ml"].items():
            row: list[str | Cell] = [Cell(label, colours.get(label, "")), number(volume, ".4g")]
            if spread:
                row.append(f"{spread[label]['minimum']:.4g} to {spread[label]['maximum']:.4g}")
            if estimate:
                found = estimate["labels"][label]
                row.append("" if found is None else f"{found['value']:.3f} ± {found['error']:.3f}")
            row.append(number(agreement["pairwise_dice"].get(label)))
            row += [number(dice[label]) for dice in agreement["dice_with_result"]]
            rows.append(row)
        page.table(head, rows)
        page.text(
            "Dice of an atlas: of its own choice with the fused result."
            + (
                f" {_ALONE.capitalize()}: from the atlas that gives the least volume to the one that gives the most."
                if spread
                else ""
            ),
            small=True,
        )

    def _slices(self, page: Page, name: str, image: Volume, prediction: Prediction) -> None:
        grey = window(image, self.ensemble.channels[0])
        colours = {segment.value: segment.colour for segment in self.ensemble.segments}
        page.heading("Slices")
        layers = [image_layer(image, grey, caption="scan"), label_layer(prediction.labels, colours)]
        if prediction.agreement is not None:
            layers.append(agreement_layer(prediction.agreement, prediction.labels))
        add_stacks(page, stacks(image.grid, layers, labels=prediction.labels), layers, name)
        page.heading("Volume")
        named = {segment.value: (segment.name, segment.colour) for segment in self.ensemble.segments}
        shown = [Shown("scan", image, window=grey), Shown("labels", prediction.labels, labels=named)]
        voxel = opening_point(prediction.labels)
        add_viewer(page, shown, at=canonical(image.grid)[0].to_world(voxel[::-1]).tolist())

    def _registrations(
        self, page: Page, name: str, image: Volume, prediction: Prediction, record: Mapping[str, Any]
    ) -> None:
        page.heading("Registrations")
        page.text("The scan was mapped onto every atlas. The atlas with the lowest quality comes first.")
        atlases = sorted(record["atlases"], key=lambda atlas: atlas["quality"])
        page.table(
            ["atlas", *REGISTRATION_HEAD, "used"],
            [[atlas["name"], *registration_cells(atlas), "yes" if atlas["used"] else "no"] for atlas in atlases],
            words=["used"],
        )
        add_scale(page)
        images = self.predictor.atlases
        for place, atlas in enumerate(atlases):
            transform = prediction.to_atlases.get(atlas["name"])
            if transform is None:
                continue
            with page.fold(f"{atlas['name']}: quality {number(atlas['quality'])}", shown=place == 0):
                panels = pair_panels(
                    images[atlas["name"]],
                    image,
                    transform.inverse,
                    modality=self.ensemble.channels[0],
                    names=(f"atlas {atlas['name']}", name),
                )
                add_panels(page, panels)


def _unreached(uncovered: int, voxels: int) -> str:
    """What share of the scan no atlas reaches, if some of it."""
    if not uncovered:
        return ""
    return f" No atlas reached {100 * uncovered / voxels:.3g} % of the scan; it is background in the result."


def _verdict(page: Page, verdict: Mapping[str, Any]) -> None:
    """Whether the scan is like the training subjects, and what that rests on."""
    reasons = "; ".join(verdict["reasons"])
    page.text(
        f"Compared with the training subjects the scan is {verdict['result']}" + (f": {reasons}." if reasons else ".")
    )
    rows = [
        [name.replace("_", " "), *(number(found[key], ".4g") for key in ("value", "limit", "score"))]
        for name, found in verdict["evidence"].items()
    ]
    if rows:
        with page.fold("What the verdict rests on"):
            page.table(["evidence", "value", "limit", "score"], rows)
            page.text("Score: 0 in the middle of the training subjects, 1 at the limit.", small=True)


def _time(page: Page, record: Mapping[str, Any]) -> None:
    page.heading("Time and memory")
    seconds, peaks = record["seconds"], record["peak_memory_mib"]
    head, memory = ["stage", "seconds", "memory by its end, MiB"], [peaks]
    if "peak_gpu_memory_mib" in record:
        head.append("GPU memory by its end, MiB")
        memory.append(record["peak_gpu_memory_mib"])
    rows = [
        [stage, number(value, ".2f"), *(number(peak.get(stage), ".0f") for peak in memory)]
        for stage, value in seconds.items()
    ]
    page.table(head, rows)
    if "report" not in seconds:
        page.text("The seconds of this page itself stand in the run record.", small=True)


def _origin(page: Page, record: Mapping[str, Any]) -> None:
    origin = record["provenance"]
    names = ("atlasnet", "torch", "numpy", "simpleitk", "python", "device", "threads", "seed", "model", "request")
    rows = [[name, str(origin[name])] for name in names]
    rows += [[f"option {name}", str(value)] for name, value in origin["options"].items()]
    rows += [[f"model {model['name']}", model["checksum"]] for model in origin.get("models", ())]
    rows += [["input, SHA-256", value] for value in origin["input_sha256"]]
    with page.fold("What made it: versions, options, checksums"):
        page.table(["what", "which"], rows, words=["which"])
    page.text(NO_DEVICE, small=True)


_BATCH = "Predictions"


def write_beside_cases(folder: Path, batch: Batch, ensemble: Ensemble, *, report: bool, reporter: Reporter) -> None:
    """Write what goes with the cases in a folder: a page with a row for each, and names and colours of the labels.

    Args:
        folder: of the cases' label maps; gets ``report.html``, ``labels.label`` and ``labels.ctbl``.
        batch: what became of the cases.
        ensemble: whose labels they are.
        report: whether the page is wanted. Where it is not and a case has changed, an earlier one is removed.
        reporter: is told of names that cannot be written.

    Raises:
        InputError: the record of a case cannot be read.
    """
    page = folder / "report.html"
    if report:
        write_batch_report(page, batch, [*ensemble.structures])
    elif batch.written or batch.failed or batch.refused:
        _remove_batch_report(page)
    if batch.written or batch.kept:
        write_label_tables(folder / LABELS, ensemble.segments, reporter=reporter)


def _remove_batch_report(path: Path) -> None:
    """Remove an earlier call's page of many cases: its numbers and links are of results that are no more."""
    with suppress(FileNotFoundError):  # another process, at other cases, was faster
        if path.is_file() and f"<title>{_BATCH}</title>" in path.read_text(encoding="utf-8", errors="replace")[:4096]:
            path.unlink()


def write_batch_report(path: Path, batch: Batch, names: Sequence[str]) -> Path:
    """One page for many cases: a row for each, those that need a look on top, with a link to its own page.

    Args:
        path: of the page, beside the cases'.
        batch: what became of the cases.
        names: of the structures whose volumes are told.

    Raises:
        InputError: the record of a case cannot be read.
    """
    page = Page(_BATCH)
    without = [f"{name}: {error}" for name, error in batch.failed.items()]
    without += [f"{name}: refused: {error}" for name, error in batch.refused.items()]
    page.warnings(without, "Every case was segmented.")
    found: list[tuple[tuple[bool, float], list[str | Cell], str]] = []
    for name, place in {**batch.written, **batch.kept}.items():
        file = output_path(place, RECORD)
        with reading_back(file):
            record = read_json(file)
            agreement, warned = record["agreement"]["foreground"], len(record["warnings"])
            least = min(atlas["quality"] for atlas in record["atlases"])
            row: list[str | Cell] = [
                Cell(name, link=output_path(place, REPORT).name),
                str(warned),
                number(agreement),
                number(least),
                *_volume_cells(record["volumes_ml"], names),
                number(sum(record["seconds"].values()), ".1f"),
            ]
            estimate = (record.get("estimated_dice") or {}).get("mean")
            estimated = "" if estimate is None else f"{estimate['value']:.3f} ± {estimate['error']:.3f}"
            found.append(((not warned, -1.0 if agreement is None else agreement), row, estimated))
    found.sort(key=lambda entry: entry[0])
    told = any(estimated for *_, estimated in found)  # by a model that was cross-validated
    head = [
        "case",
        "warnings",
        "agreement",
        "lowest registration quality",
        *(["labels found"] if len(names) > MANY_LABELS else [f"{name}, ml" for name in names]),
        "seconds",
        *(["estimated Dice, mean"] if told else []),
    ]
    if found:
        page.text("Cases with warnings come first, then those on which the atlases agreed least.")
        page.table(head, [[*row, *([estimated] if told else [])] for _, row, estimated in found])
    page.text(NO_DEVICE, small=True)
    return page.write(path)


def _volume_cells(volumes: Mapping[str, float], names: Sequence[str]) -> list[str]:
    """The volume of every structure, or of many how many were found: each has a row on the page of the case."""
    if len(names) > MANY_LABELS:
        return [f"{sum(volumes.get(name, 0) > 0 for name in names)} of {len(names)}"]
    return [number(volumes.get(name), ".4g") for name in names]
