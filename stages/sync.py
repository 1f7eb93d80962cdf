"""Record in MLflow what it lacks: after an outage, on a new server, in a new clone after `dvc pull`."""

import sys
from pathlib import Path

import typer

if not __package__:  # run as a script: its own root comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from stages.lib.terminal import run


def main() -> None:
    """Deliver what is kept in .lineup/journal, then record every training of models/ that the store does not know."""
    from stages.lib import tracking
    from stages.lib.params import load_params
    from stages.lib.terminal import UserError

    params = load_params()
    if not tracking.enabled():
        raise UserError("LINEUP_TRACKING is off; unset it to sync")
    pending = tracking.sync()
    evaluated = [name for name in params.architectures if (Path("evaluation") / name / "metrics.json").exists()]
    tracking.record_evaluations(evaluated)
    if Path("export/model.json").exists():
        typer.echo(tracking.record_export(params.model, params.export.model_dump(), once=True))
    if pending:
        raise UserError(f"{pending} events are still kept: {tracking.store_uri()} can't be reached")


if __name__ == "__main__":
    run(main)
