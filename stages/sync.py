"""Record in MLflow what it lacks: after an outage, on a new server, in a new clone after `dvc pull`."""

import sys
from pathlib import Path

import typer

if not __package__:  # run as a script: its own root comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from lineup.cli import run

EXPORTED = Path("export/model.json")


def main() -> None:
    """Deliver what is kept in .lineup/journal, then record what the store lacks of trainings and of the export."""
    from lineup import tracking
    from lineup.errors import UserError
    from lineup.files import read_json
    from lineup.params import load_params

    params = load_params()
    if not tracking.enabled():
        raise UserError("LINEUP_TRACKING is off; unset it to sync")
    pending = tracking.sync()
    evaluated = [
        name
        for name in params.architectures
        if (Path("evaluation") / name / "metrics.json").exists()
    ]
    evaluated = [name for name in evaluated if (Path("models") / name / "run.json").exists()]
    tracking.record_evaluations(evaluated)
    if EXPORTED.exists():
        exported = read_json(EXPORTED)
        trained = Path("models") / exported["architecture"] / "model.json"
        if trained.exists() and read_json(trained)["weights_sha256"] == exported["weights_sha256"]:
            typer.echo(
                tracking.record_export(
                    exported["architecture"], params.export.model_dump(), once=True
                )
            )
        else:
            typer.echo("export/ is of another training; run: dvc repro")
    if pending:
        raise UserError(f"{pending} events are still kept; the warnings above say why")


if __name__ == "__main__":
    run(main)
