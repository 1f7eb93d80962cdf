"""Which file and label each picture of a split has, as fetch wrote them."""

from __future__ import annotations

from typing import Literal

import pandas as pd

from lineup.data.dataset import made_by
from lineup.files import explain_damage
from lineup.paths import FILES_CSV


def read_files(split: Literal["train", "test"]) -> pd.DataFrame:
    """Return file and label of each picture of a split, in its order; no rows for packaged sets."""
    path = made_by("fetch", FILES_CSV)
    with explain_damage(path):
        files = pd.read_csv(path, dtype=str, keep_default_na=False)
        return files[files["split"] == split]
