"""Points of a run log as MLflow's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric

MAX_METRICS = 1000  # of MLflow, per request


def to_metrics(
    points: list[dict[str, Any]], times: Mapping[tuple[str, int], int] | None = None, **model: str
) -> list[Metric]:
    """Return MLflow's metrics for points of a run log, linked to a model where one is given.

    `times` by name and step (milliseconds) count instead of the points' own.
    """
    times = times or {}
    return [
        Metric(
            name,
            float(value),
            times.get((name, point["step"]), point["time"]),
            point["step"],
            **model,
        )
        for point in points
        for name, value in point["values"].items()
    ]


def log_metrics(client: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
    """Log any number of metrics; a point that is there already stays one point."""
    for first in range(0, len(metrics), MAX_METRICS):
        client.log_batch(run_id, metrics=metrics[first : first + MAX_METRICS])
