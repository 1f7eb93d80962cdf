"""What a training leaves in models/<architecture>/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lineup.architectures import count_parameters
from lineup.files import append_row, sha256, write_json, write_rows
from lineup.model_info import ModelInfo
from lineup.paths import HISTORY, RUN_JSON, WEIGHTS
from lineup.tensors import write_tensors
from lineup.training.setup import Setup
from lineup.training.trainer import Epoch, Event


class LiveHistory:
    """A listener that lets history.csv grow epoch by epoch: `dvc plots show` draws it meanwhile."""

    def __init__(self, folder: Path, known: list[dict[str, Any]]) -> None:
        """Begin with the `known` epochs of a training that resumes."""
        self.path = folder / HISTORY
        for path in (folder / RUN_JSON, self.path):  # which may be links into DVC's cache
            path.unlink(missing_ok=True)
        if known:
            write_rows(self.path, known)

    def record(self, event: Event) -> None:
        """Append an epoch."""
        if isinstance(event, Epoch):
            append_row(self.path, event.row)

    def flush(self) -> None:
        """Do nothing: write_outputs writes the history anew, safely to disk."""

    def finish(self, folder: Path) -> None:
        """Do nothing: the history is whole."""


def write_outputs(folder: Path, setup: Setup, run_id: str) -> None:
    """Write the best epoch's weights, every epoch's metrics, model.json, and the run's id.

    That comes last, as LiveHistory removes it first: a folder with run.json holds one training.
    """
    (folder / RUN_JSON).unlink(missing_ok=True)
    trainer, config = setup.trainer, setup.config
    write_tensors(folder / WEIGHTS, trainer.best)
    write_rows(folder / HISTORY, trainer.progress.history)
    info = ModelInfo(
        architecture=setup.architecture,
        hyperparameters=config["hyperparameters"],
        task=setup.dataset.task,
        dataset=setup.dataset.name,
        classes=setup.dataset.classes,
        shape=setup.dataset.shape,
        mean=setup.mean.tolist(),
        std=setup.std.tolist(),
        preprocessing=setup.dataset.preprocessing,
        parameters=count_parameters(trainer.model),
        epoch=trainer.progress.best_epoch,
        validation=trainer.progress.best_scores,
        recipe=config["recipe"] | {key: config[key] for key in ("threads", "torch", "pretrained")},
        seed=config["seed"],
        weights_sha256=sha256(folder / WEIGHTS),
        data=setup.dataset.digests,
        split=setup.split.digest,
    )
    info.write(folder)
    write_json(folder / RUN_JSON, {"run_id": run_id})
