"""Each architecture as it would ship: verified, scored, explained, compared on a leaderboard."""

import os
import shutil

from lineup.cli import progress, run
from lineup.params import BEST, load_params
from lineup.paths import EVALUATION, MODELS
from lineup.process import end_with_parent
from lineup.task import Task
from lineup.tracking.location import enabled


def main() -> None:
    """Write evaluation/ for params.yaml's architectures, and record it in MLflow."""
    params = load_params()
    end_with_parent()

    from lineup.evaluation import leaderboard
    from lineup.evaluation.evaluator import Examples, evaluate_model, load_models
    from lineup.training.checkpoints import remove_finished

    if "DVC_STAGE" in os.environ:  # then DVC has the outputs of the trainings now
        for name in params.architectures:
            remove_finished(MODELS / name)
    examples = Examples.read()
    models = load_models(params.architectures)
    shutil.rmtree(EVALUATION, ignore_errors=True)

    evaluations = []
    with progress(unit="architectures") as bar:
        for name in bar.track(params.architectures, description="Evaluating"):
            evaluations.append(evaluate_model(name, models[name], examples, params.evaluate))

    evaluations.sort(key=leaderboard.rank)
    rows = [evaluation.row for evaluation in evaluations]
    names = [row["architecture"] for row in rows]
    leaderboard.write_learning_curves(names)
    if examples.dataset.task is Task.CLASSIFICATION:
        leaderboard.write_confusion(evaluations)
        leaderboard.compare(evaluations, examples)
    leaderboard.write_leaderboard(rows, params.evaluate.confidence, examples)
    if enabled():
        from lineup.tracking.sync import record_evaluations

        record_evaluations(params.architectures)

    leaderboard.show_leaderboard(rows, params.evaluate.confidence, examples)
    print(f"Next: dvc plots show · make report · {EVALUATION}/")
    if params.model not in (BEST, names[0]):
        print(f"      dvc exp run -S model=auto   ships {names[0]}, not {params.model}")


if __name__ == "__main__":
    run(main)
