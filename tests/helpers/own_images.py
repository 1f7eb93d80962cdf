"""A set of one's own in the current folder: chosen, fetched, or refused."""

import shutil
from pathlib import Path

import pytest

from helpers.project import ROOT, Project
from lineup.errors import UserError
from stages import fetch

FLOWERS = Path("data/flowers")
FIXED = {"size": 16, "channels": 1, "group": None, "test": 0.2, "allow_duplicates": False}


def choose(name="flowers", **data):
    """Write params.yaml for a set of pictures."""
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    Project(Path()).set(dataset=name, data=FIXED | data)


def refusal():
    """Return why fetch refuses the set."""
    with pytest.raises(UserError) as error:
        fetch.main()
    assert not Path("data/raw").exists()
    return str(error.value)
