"""Each architecture as it would ship: verified, scored, explained, compared on a leaderboard."""

import os
import shutil

from lineup.cli import progress, run
from lineup.files import write_text
from lineup.paths import EVALUATION, MODELS, PLOTS
from lineup.task import Task
from lineup.tracking.location import enabled


def main() -> None:
    """Write evaluation/ for params.yaml's architectures, and record it in MLflow."""
    from lineup.params import load_params

    params = load_params()

    import pandas as pd

    from lineup.evaluation import leaderboard
    from lineup.evaluation.evaluator import (
        Examples,
        evaluate_model,
        explain_classes,
        explain_values,
        load_models,
    )
    from lineup.training.checkpoints import remove_finished

    if "DVC_STAGE" in os.environ:  # then DVC has the outputs of the trainings now
        for name in params.architectures:
            remove_finished(MODELS / name)
    examples = Examples.read()
    dataset, (inputs, targets) = examples.dataset, examples.test
    is_classification = dataset.task is Task.CLASSIFICATION
    models = load_models(params.architectures, dataset)
    shutil.rmtree(EVALUATION, ignore_errors=True)

    rows, outputs, confusions = [], {}, []
    with progress(unit="architectures") as bar:
        for name in bar.track(params.architectures, description="Evaluating"):
            evaluated = evaluate_model(name, models[name], examples, params.evaluate)
            rows.append(evaluated.row)
            outputs[name] = evaluated.outputs
            if is_classification:
                table = explain_classes(name, evaluated.outputs, examples, params.evaluate)
                confusions.append(table)
            else:
                explain_values(name, evaluated.outputs, examples)

    rows.sort(key=leaderboard.rank)
    names = [row["architecture"] for row in rows]
    leaderboard.write_learning_curves(names)
    if is_classification:
        predictions = {name: outputs[name].argmax(1) for name in names}
        write_text(PLOTS / "confusion.csv", pd.concat(confusions).to_csv(index=False))
        leaderboard.compare_pairs(rows, predictions, targets)
        leaderboard.draw_disagreements(predictions, inputs, targets, dataset.classes)
    leaderboard.write_leaderboard(rows, params.evaluate.confidence, dataset)
    if enabled():
        from lineup.tracking.recording import record_evaluations

        record_evaluations(params.architectures)

    leaderboard.show_leaderboard(rows, params.evaluate.confidence, dataset)
    print(f"Next: dvc plots show · make report · {EVALUATION}/")
    if names[0] != params.model:
        print(f"      dvc exp run -S model={names[0]}   ships {names[0]}, not {params.model}")


if __name__ == "__main__":
    run(main)
