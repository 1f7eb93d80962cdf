"""What all tests share: scratch projects, and stores that no test inherits from another."""

import pytest
from helpers.project import make_project


def pytest_collection_modifyitems(items):
    """Start with the longest module, so that the processes end together."""
    items.sort(key=lambda item: "pipeline" not in item.nodeid)


@pytest.fixture(autouse=True)
def no_store_of_another_test(monkeypatch):
    """Forget the stores that a test chose: MLflow notes them in the environment."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def project_factory(tmp_path_factory):
    """Return a function that makes scratch projects."""
    return lambda name, **options: make_project(
        tmp_path_factory.mktemp(name) / "project", **options
    )
