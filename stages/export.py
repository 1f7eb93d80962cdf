"""The architecture that ships: the very file that evaluate verified and scored, with its card."""

from lineup.cli import run
from lineup.files import write_json
from lineup.params import load_params
from lineup.paths import EVALUATION, EXPORT, METRICS_JSON, MODELS
from lineup.process import end_with_parent
from lineup.tracking.location import enabled


def main() -> None:
    """Write export/ and metrics.json for params.yaml's model, and let the gate decide on it."""
    params = load_params()
    end_with_parent()

    from lineup.serving.exporter import choose_architecture, export_model

    name = choose_architecture(params)
    scores = export_model(MODELS / name, EVALUATION / name, params.export)
    write_json(METRICS_JSON, scores)
    print(f"{EXPORT}/ holds {name}, equal to the trained model on every test input")
    if enabled():
        from lineup.tracking.sync import record_export

        print(record_export(name, params.export.model_dump()))
    print(f"Next: python {EXPORT}/example.py · python -m stages.predict --model {EXPORT} PICTURE")


if __name__ == "__main__":
    run(main)
