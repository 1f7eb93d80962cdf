"""The only package that knows MLflow: delivers a training's journal to the tracking store and keeps the model registry.

Every handler in it may be called again after a crash: runs, models and versions are looked up by the training's id
before they are made, and points keep the time at which they were measured.
"""

from lineup.tracking.courier import Courier
from lineup.tracking.delivery import sync
from lineup.tracking.recording import record_evaluations, record_export
from lineup.tracking.runs import registered_name
from lineup.tracking.store import connect, download, enabled, reach, store_uri

__all__ = [
    "Courier",
    "connect",
    "download",
    "enabled",
    "reach",
    "record_evaluations",
    "record_export",
    "registered_name",
    "store_uri",
    "sync",
]
