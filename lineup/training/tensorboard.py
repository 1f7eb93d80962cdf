"""Mirrors a training's metrics to TensorBoard: runs/<architecture>.

An experiment that DVC runs in a copy of the repository has a folder there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lineup.errors import UserError
from lineup.paths import repository
from lineup.training.trainer import Epoch, Event, Means

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:
    SummaryWriter = None


class TensorBoard:
    """A listener of a training's events."""

    def __init__(self, architecture: str, is_resumed: bool) -> None:
        """Open the writer; UserError if the extra is not installed."""
        if SummaryWriter is None:
            raise UserError("train.tensorboard needs an extra: pip install tensorboard")
        is_copy = repository() != Path.cwd()  # of the repository, for an experiment
        name = os.environ.get("DVC_EXP_NAME", "") if is_copy else ""
        folder = repository() / "runs" / name / architecture
        if not is_resumed:
            shutil.rmtree(folder, ignore_errors=True)
        self.writer = SummaryWriter(str(folder))

    def record(self, event: Event) -> None:
        """Write the points of an event."""
        match event:
            case Means(step, values):
                self._add(step, values)
            case Epoch(row):
                self._add(int(row["epoch"]), row)

    def _add(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write what is buffered."""
        self.writer.flush()

    def finish(self, folder: Path) -> None:
        """Close the writer."""
        self.writer.close()
