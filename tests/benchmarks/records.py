"""Test accuracy of long trainings, mean ± standard deviation over seeds.

python tests/benchmarks/records.py --times 5 --seeds 5 --architectures cnn,simplenet

It uses data/raw and data/split as `dvc repro split` made them, trains with so many times the epochs
that the recipe has, chooses the epoch on validation, and looks at the test images once per seed.
"""

import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[2]))

from lineup.data.dataset import load
from lineup.evaluation.inference import predict
from lineup.evaluation.scores import top_accuracy
from lineup.params import load_params
from lineup.training.batches import Batches
from lineup.training.setup import set_up


def record(architecture: str, seed: int, times: int) -> tuple[str, int, float, float, float]:
    """Train once; return architecture, seed, validation and test accuracy, and seconds."""
    torch.set_num_threads(1)
    params = load_params()
    passes = params.recipe(architecture)[0].passes * times
    section = params.models[architecture] | {"passes": passes}
    models = params.models | {architecture: section}
    setup = set_up(params.model_copy(update={"models": models, "seed": seed}), architecture)
    trainer = setup.trainer
    start = time.perf_counter()
    for _ in trainer.fit():
        pass
    seconds = time.perf_counter() - start
    images, labels = load("test", setup.dataset.task)
    test = Batches(images.to(trainer.device), labels.to(trainer.device), setup.mean, setup.std)
    trainer.model.load_state_dict(trainer.best)
    trainer.model.eval()
    inputs, targets = test.batch(slice(None))
    accuracy = top_accuracy(predict(trainer.model, inputs), targets, 1)
    best = trainer.progress.best_row["val_accuracy"]
    return architecture, seed, 100 * best, 100 * accuracy, seconds


def main(
    architectures: str = "cnn,simplenet,alexnet", seeds: int = 5, times: int = 5, jobs: int = 5
) -> None:
    """Print validation and test accuracy, mean ± standard deviation over the seeds."""
    names = architectures.split(",")
    work = [(name, seed, times) for name in names for seed in range(1, seeds + 1)]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        found = []
        for row in pool.map(record, *zip(*work, strict=True)):
            print("{} seed {}: validation {:.2f}, test {:.2f}, {:.0f} s".format(*row), flush=True)
            found.append(row)
    for name in names:
        rows = [row[2:] for row in found if row[0] == name]
        columns = list(zip(*rows, strict=True))
        text = [f"{statistics.mean(c):6.2f} ± {statistics.stdev(c):.2f}" for c in columns]
        print(
            f"{name:10} validation {text[0]}   test {text[1]}   seconds {text[2]}   n={len(rows)}"
        )


if __name__ == "__main__":
    typer.run(main)
