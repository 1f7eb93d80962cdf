"""What all tests share: scratch projects, and stores that no test inherits from another."""

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock
from helpers.project import READING, ROOT, Project, end, make_project
from hypothesis import settings

from lineup.tracking.sqlite_tables import relocate

collect_ignore = [] if find_spec("boto3") else ["services"]  # which have their own environment

settings.register_profile("default", max_examples=300, derandomize=True)
settings.register_profile("long", max_examples=10_000, derandomize=False)
settings.load_profile("default")


def pytest_configure():
    """Give each test process one thread: pytest's workers inherit the environment."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Start with the longest module, so that the processes end together."""
    items.sort(key=lambda item: "pipeline" not in item.nodeid)


def pytest_terminal_summary(terminalreporter, exitstatus):
    """Say so where tests fail that hold the params which ship against the README."""
    command = ["git", "diff", "--quiet", "HEAD", "--", "params.yaml"]
    if exitstatus and subprocess.run(command, cwd=ROOT, check=False).returncode:
        hint = "tests are for the one that ships; try: git stash, make test, git stash pop"
        terminalreporter.write_line(f"params.yaml is changed: {hint}")


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


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The project on which `dvc repro` ran: one for all tests and their processes, left as it is.

    A param was changed, and a file was added, after its commit.
    """
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    folder, done = place / "finished", place / "finished.done"
    with FileLock(place / "finished.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            project = make_project(folder)
            project.set(models__linear__learning_rate=0.02)
            (folder / "notes.txt").write_text("not committed\n")
            project.run("dvc", "repro")
            with closing(sqlite3.connect(folder / "mlflow.db")) as store:
                is_busy, *_ = store.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            assert not is_busy  # all is in this one file now
            done.touch()
    return Project(folder)


@pytest.fixture
def project(finished, tmp_path, monkeypatch):
    """A copy of the finished project with a store of its own, as the current folder.

    What a test that failed left running, or stopped, ends with it.
    """
    shutil.copytree(finished.folder, tmp_path / "project", symlinks=True, ignore=READING)
    monkeypatch.chdir(tmp_path / "project")
    relocate(tmp_path / "project" / "mlflow.db")
    project = Project(tmp_path / "project")
    yield project
    for command in project.started:
        end(command.process)


@pytest.fixture
def unrecorded(project):
    """A project with data, a split and an evaluation of linear, without models, runs and store."""
    shutil.rmtree("models/linear")
    shutil.rmtree(".lineup")
    shutil.rmtree("mlartifacts")
    for path in Path().glob("mlflow.db*"):
        path.unlink()
    project.set(architectures=["linear"], model="linear")
    return project
