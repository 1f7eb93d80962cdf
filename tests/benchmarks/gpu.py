"""Training on a GPU: images per second beside a DataLoader and beside a fixed batch; records.

python tests/benchmarks/gpu.py speed            # of each architecture, with the recipe that ships
python tests/benchmarks/gpu.py profile cnn      # what takes the device's time
python tests/benchmarks/gpu.py records --times 5 --seeds 5 --architectures cnn,simplenet

All use data/raw and data/split as `dvc repro split` made them. `speed` prints medians of rounds that
alternate. The DataLoader's twin is the same net, optimizer and batch size as most programs have it:
torchvision transforms of one image at a time in worker processes, copies to the device, `item()`.
The fixed batch is the limit: no data to prepare. `records` trains with so many times the epochs,
chooses the epoch on validation, and looks at the test images once per seed.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import torch
import typer
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).parents[2]))

from lineup.data.dataset import load
from lineup.evaluation.inference import predict
from lineup.evaluation.scores import top_accuracy
from lineup.params import load_params
from lineup.training.batches import Batches
from lineup.training.optimizers import make_optimizers
from lineup.training.setup import set_up
from lineup.training.trainer import Step, Trainer

app = typer.Typer(add_completion=False)


def prepare(architecture: str, **changes: object) -> Trainer:
    """Return the trainer that `dvc repro` would use, with a recipe of `changes`."""
    params = load_params()
    section = params.models[architecture] | changes
    return set_up(
        params.model_copy(update={"models": {architecture: section}}), architecture
    ).trainer


def rate(trainer: Trainer, count: int) -> float:
    """Return images per second over `count` steps, none of which is the first."""
    steps = (event for event in trainer.fit() if isinstance(event, Step))
    warm = islice(steps, 20)
    for _ in warm:
        pass
    torch.cuda.synchronize()
    start = time.perf_counter()
    images = sum(step.examples for step in islice(steps, count))
    torch.cuda.synchronize()
    return images / (time.perf_counter() - start)


def plain_rate(trainer: Trainer, count: int) -> float:
    """Return the same for steps that are launched kernel by kernel."""
    trainer._replay = trainer._update
    return rate(trainer, count)


def fixed_rate(trainer: Trainer, count: int) -> float:
    """Return the same for steps on one batch that is ready."""
    ready = trainer.train.batch(torch.arange(trainer.recipe.batch_size, device=trainer.device))
    trainer.train.batch = lambda index, changes=None: ready
    return rate(trainer, count)


class Pictures(Dataset):
    """Images as torchvision gives them, one at a time."""

    def __init__(self, batches: Batches, change: Callable) -> None:
        self.images, self.targets = batches.inputs.cpu(), batches.targets.cpu()
        self.change = change

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.change(self.images[index]), int(self.targets[index])


def endless(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def twin_rate(trainer: Trainer, count: int, workers: int) -> float:
    """Return the same for the loop of most programs."""
    recipe, mean, std = trainer.recipe, trainer.train.mean / 255, trainer.train.std / 255
    changes = recipe.augment
    change = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.RandomAffine(
                changes.rotate,
                (changes.shift, changes.shift),
                (1 - changes.scale, 1 + changes.scale),
                57.3 * changes.shear,
            ),
            transforms.ToTensor(),
            transforms.Normalize(mean.flatten().tolist(), std.flatten().tolist()),
        ]
    )
    loader = DataLoader(
        Pictures(trainer.train, change),
        recipe.batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=True,
        persistent_workers=True,
    )
    batches = endless(loader)
    optimizers = make_optimizers(trainer.model, recipe)

    def steps(number: int) -> int:
        images = 0
        for inputs, targets in islice(batches, number):
            inputs, targets = inputs.cuda(non_blocking=True), targets.cuda(non_blocking=True)
            with torch.autocast("cuda", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                loss = functional.cross_entropy(trainer.model(inputs).float(), targets)
            trainer.model.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            loss.item()
            images += len(inputs)
        return images

    trainer.model.train()
    steps(20)
    start = time.perf_counter()
    return steps(count) / (time.perf_counter() - start)


@app.command()
def speed(rounds: int = 3, steps: int = 200, workers: int = 8) -> None:
    """Print images per second of each architecture, and the ratios."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {workers} workers")
    heads = f"{'÷ DataLoader':>13} {'÷ no graph':>11} {'÷ fixed batch':>14}"
    print(f"{'':10} {'precision':>10} {'ours/s':>10} {heads}")
    for name in load_params().architectures:
        for precision in ("float32", "bfloat16"):
            found = {"ours": [], "twin": [], "plain": [], "fixed": []}
            for number in range(rounds):
                options = {"precision": precision, "log_every": 1000}
                found["ours"].append(rate(prepare(name, **options), steps))
                found["plain"].append(plain_rate(prepare(name, **options), steps // 2))
                found["fixed"].append(fixed_rate(prepare(name, **options), steps))
                if number == 0:  # slow, and steady
                    found["twin"].append(twin_rate(prepare(name, **options), steps // 2, workers))
            ours, twin, plain, fixed = (statistics.median(values) for values in found.values())
            ratios = f"{ours / twin:13.1f} {ours / plain:11.1f} {ours / fixed:14.2f}"
            print(f"{name:10} {precision:>10} {ours:10,.0f} {ratios}", flush=True)


@app.command()
def profile(architecture: str, steps: int = 50) -> None:
    """Print the ten operators that take most of the device's time, and what a step takes."""
    trainer = prepare(architecture, log_every=1000)
    events = (event for event in trainer.fit() if isinstance(event, Step))
    list(islice(events, 20))
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profiler:
        start = time.perf_counter()
        list(islice(events, steps))
        torch.cuda.synchronize()
        print(f"{(time.perf_counter() - start) / steps * 1000:.2f} ms a step, profiled")
    averages = profiler.key_averages()
    print(averages.table(sort_by="self_device_time_total", row_limit=10, max_name_column_width=60))
    print(averages.table(sort_by="self_cpu_time_total", row_limit=10, max_name_column_width=60))


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


@app.command()
def records(
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
    app()
