"""What evaluate's tests and the report's start from."""

import shutil
from contextlib import redirect_stdout
from io import StringIO

import pytest
from helpers.evaluations import enter, write_digits

from stages import evaluate


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory):
    """One evaluation of both models, never changed: the folder, and what was printed."""
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        enter(folder, patch)
        write_digits()
        evaluate.main()
    return folder, printed.getvalue()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    enter(tmp_path, monkeypatch)


@pytest.fixture
def evaluated(evaluation, here):
    """A folder to work in with both models, evaluated."""
    shutil.copytree(evaluation[0], ".", dirs_exist_ok=True)
