"""Record in MLflow what it lacks: after an outage, on a new server, in a clone after `dvc pull`."""

import os
import sys
from typing import Annotated

import typer

from lineup.cli import run
from lineup.errors import UserError
from lineup.params import load_params
from lineup.tracking.location import enabled


def main(
    follow: Annotated[
        str | None, typer.Option(hidden=True, help="Mirror this run until standard input closes.")
    ] = None,
) -> None:
    """Mirror every run of this repository, register what was evaluated, ask the gate."""
    if not enabled():
        raise UserError("LINEUP_TRACKING is off; unset it to sync")
    if follow:
        from lineup.tracking.follower_process import follow_run

        sys.exit(follow_run(follow))

    params = load_params()
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # somebody waits: slow is not dead

    from lineup.tracking.sync import adopt_outputs, sync

    adopt_outputs(params)
    sync()


if __name__ == "__main__":
    run(main)
