"""Weights that a recipe keeps every N epochs: in MLflow a model each, with its step and scores."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Run

from lineup.paths import WEIGHTS
from lineup.tracking.names import EPOCH_OF
from lineup.tracking.points import log_metrics, to_metrics
from lineup.tracking.run_log import RunLog


def send_epoch(client: MlflowClient, run: Run, log: RunLog, path: Path) -> None:
    """Log an epoch's weights, scores and step as a LoggedModel; safe to repeat."""
    epoch = int(path.stem.removeprefix("epoch-"))
    run_id, experiment = run.info.run_id, run.info.experiment_id
    query = f"tags.`{EPOCH_OF}` = '{log.run_id}' and name = '{path.stem}'"
    found = client.search_logged_models([experiment], query)
    tags = {EPOCH_OF: log.run_id}
    model = found[0] if found else client.create_logged_model(experiment, path.stem, run_id, tags)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(path, Path(folder) / WEIGHTS)
        client.log_model_artifacts(model.model_id, folder)
    points, _ = log.read_points()
    own = [point for point in points if point["step"] == epoch and "train_loss" in point["values"]]
    log_metrics(client, run_id, to_metrics(own, model_id=model.model_id))
    outputs = client.get_run(run_id).outputs.model_outputs
    if model.model_id not in {output.model_id for output in outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, epoch)])
    client.finalize_logged_model(model.model_id, "READY")
