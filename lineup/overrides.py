"""params.yaml as `dvc exp run -S KEY=VALUE` would change it, without a change of the file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dvc.exceptions import InvalidArgumentError
from dvc.utils.hydra import apply_overrides
from ruamel.yaml.error import YAMLError

from lineup.errors import UserError
from lineup.params import Params, load_params
from lineup.paths import PARAMS


def load_changed(changes: Sequence[str]) -> Params:
    """Return params.yaml with `changes`, each KEY=VALUE; UserError for what does not fit."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(PARAMS, folder)
        try:
            apply_overrides(copy, list(changes))
        except (InvalidArgumentError, YAMLError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0].rstrip(".")
            hint = "write KEY=VALUE, as for -S, with one value"
            raise UserError(f"{' '.join(changes)}: {reason}; {hint}") from None
        return load_params(Path(copy))
