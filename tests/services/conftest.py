"""The servers of the tests in this folder: one team for each of its modules."""

import os
import tempfile
from pathlib import Path

import pytest
from helpers.services import ADMIN, started_team


@pytest.fixture(scope="module")
def team():
    """A team's servers; this process is their administrator."""
    names = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another user
        for name, value in zip(names, ADMIN, strict=True):
            patch.setenv(name, value)
        with started_team(Path(folder)) as started:
            yield started


@pytest.fixture
def client(team):
    """A client of a server that knows no run and no model of `digits`."""
    connected = team.client()
    yield connected
    if found := connected.get_experiment_by_name("digits"):
        connected.rename_experiment(found.experiment_id, f"digits before {os.urandom(4).hex()}")
    for model in connected.search_registered_models():
        connected.delete_registered_model(model.name)
