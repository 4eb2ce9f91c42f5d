"""Train nnU-Net v2 for as many epochs as fit into a time: a worker of `nnunet.py`, run by nnU-Net's own Python.

    python benchmarks/nnunet_training.py DATASET CONFIGURATION SECONDS THREADS SEED OUT

DATASET is planned and preprocessed; the variables nnUNet_raw, nnUNet_preprocessed and nnUNet_results name its folders.
The learning rate's schedule ends with the last epoch, so the number of epochs is set before: from the time of a few
iterations. Writes OUT, a JSON file with what was done.
"""

from __future__ import annotations

import json
import random
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.run.run_training import get_trainer_from_args

ITERATIONS, VALIDATED = 50, 1  # of an epoch; with 250, a training of minutes would be an epoch or two
TIMED = 6


def trainer_of(dataset: str, configuration: str, epochs: int, iterations: int) -> Any:
    """On all subjects: nnU-Net's own folds would train on fewer."""
    trainer = get_trainer_from_args(dataset, configuration, "all", device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = epochs, iterations
    trainer.num_val_iterations_per_epoch = VALIDATED
    return trainer


def main() -> None:
    dataset, configuration, budget, threads, seed, out = sys.argv[1:]
    torch.set_num_threads(int(threads))
    random.seed(int(seed))
    np.random.seed(int(seed))  # noqa: NPY002 - nnU-Net draws from the global generator
    torch.manual_seed(int(seed))
    trial = trainer_of(dataset, configuration, 2, TIMED)
    ends: list[float] = []
    step = trial.train_step

    def timed_step(batch: Any) -> Any:
        result = step(batch)
        ends.append(time.perf_counter())
        return result

    trial.train_step = timed_step
    trial.run_training()
    iteration = float(np.median(np.diff(ends[TIMED:])))  # of the second epoch: the first loads code and data
    torch.manual_seed(int(seed))
    epochs = max(1, round(float(budget) / (iteration * (ITERATIONS + VALIDATED))))
    trainer = trainer_of(dataset, configuration, epochs, ITERATIONS)
    start = time.perf_counter()
    trainer.run_training()
    found = {
        "version": version("nnunetv2"),
        "torch": torch.__version__,
        "epochs": epochs,
        "iterations_an_epoch": ITERATIONS,
        "batch": trainer.batch_size,
        "seconds_of_an_iteration": round(iteration, 3),
        "seconds": round(time.perf_counter() - start, 1),
    }
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
