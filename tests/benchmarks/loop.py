"""Training loops side by side: images per second, and ratios of medians of rounds that alternate.

python tests/benchmarks/loop.py speed                            # of each architecture, as it ships
python tests/benchmarks/loop.py speed --workers 8 --augmented    # beside the loop of most programs
python tests/benchmarks/loop.py profile cnn                      # what takes the device's time

All use data/raw and data/split as `dvc repro split` made them. The DataLoader's loop is that of
tutorials: the same net, optimizer and batch size, images that pass through PIL one at a time,
float32, no augmentation, `item()` at every step; with workers, and augmented by torchvision, it is
that of most programs. The ready batch is the limit: forward, backward and step, no data to prepare.
"""

import platform
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import typer
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.torchvision_images import Pictures, affine  # noqa: E402

from lineup.params import load_params  # noqa: E402
from lineup.training.device import resolve_device  # noqa: E402
from lineup.training.optimizers import make_optimizers  # noqa: E402
from lineup.training.setup import set_up  # noqa: E402
from lineup.training.trainer import Step, Trainer  # noqa: E402

WARM_STEPS = 20

app = typer.Typer(add_completion=False)


def prepare(architecture: str) -> Trainer:
    """Return the trainer that `dvc repro` would use, which logs nothing meanwhile."""
    params = load_params()
    section = params.models[architecture] | {"log_every": 10**6}
    params = params.model_copy(update={"models": {architecture: section}})
    return set_up(params, architecture).trainer


def synchronize(trainer: Trainer) -> None:
    """Wait for the device."""
    if trainer.device.type != "cpu":
        torch.accelerator.synchronize()


def rate(trainer: Trainer, seconds: float) -> float:
    """Return images per second of steps, none of which is among the first."""
    steps = (event.examples for event in trainer.fit() if isinstance(event, Step))
    return timed(trainer, steps, seconds)


def timed(trainer: Trainer, steps: Iterator[int], seconds: float) -> float:
    """Return images per second over `seconds`; `steps` yields the images of each step."""
    for _ in islice(steps, WARM_STEPS):
        pass
    synchronize(trainer)
    start, images = time.perf_counter(), 0
    for count in steps:
        images += count
        if time.perf_counter() - start > seconds:
            break
    synchronize(trainer)
    return images / (time.perf_counter() - start)


def plain_rate(trainer: Trainer, seconds: float) -> float:
    """Return the same for steps that are launched kernel by kernel."""
    trainer._replay = trainer._update
    return rate(trainer, seconds)


def ready_rate(trainer: Trainer, seconds: float) -> float:
    """Return the same for forward, backward and step on one batch that is ready."""
    index = torch.arange(trainer.recipe.batch_size, device=trainer.device)
    inputs, targets = trainer.train.batch(index)
    step = trainer._replay if trainer.device.type == "cuda" else trainer._update
    trainer.train.batch = lambda index, changes=None: (inputs, targets)
    trainer.model.train()

    def steps() -> Iterator[int]:
        while True:
            step(index)
            yield len(index)

    return timed(trainer, steps(), seconds)


def loader_rate(trainer: Trainer, seconds: float, workers: int, is_augmented: bool) -> float:
    """Return the same for a DataLoader."""
    recipe, mean, std = trainer.recipe, trainer.train.mean / 255, trainer.train.std / 255
    is_cuda = trainer.device.type == "cuda"
    changes = [affine(recipe.augment)] if is_augmented else []
    normalize = transforms.Normalize(mean.flatten().tolist(), std.flatten().tolist())
    change = transforms.Compose(
        [transforms.ToPILImage(), *changes, transforms.ToTensor(), normalize]
    )
    loader = DataLoader(
        Pictures(trainer.train.inputs[:].cpu(), trainer.train.targets.cpu(), change),
        recipe.batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=is_cuda,
        persistent_workers=workers > 0,
    )
    model, optimizers = trainer.model, make_optimizers(trainer.model, recipe)
    model.train()
    has_autocast = is_cuda and recipe.precision == "bfloat16"

    def steps() -> Iterator[int]:
        while True:
            for images, labels in loader:
                inputs = images.to(trainer.device, non_blocking=True)
                targets = labels.to(trainer.device, non_blocking=True)
                with torch.autocast(trainer.device.type, torch.bfloat16, enabled=has_autocast):
                    loss = functional.cross_entropy(model(inputs).float(), targets)
                model.zero_grad()
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
                loss.item()
                yield len(inputs)

    return timed(trainer, steps(), seconds)


@app.command()
def speed(
    rounds: int = 5,
    seconds: float = 4,
    architectures: str = "",
    workers: int = 0,
    augmented: bool = False,
) -> None:
    """Print images per second of each architecture, and the ratios."""
    names = architectures.split(",") if architectures else load_params().architectures
    is_cuda = resolve_device(load_params().train.device).type == "cuda"
    processor = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    device = torch.cuda.get_device_name() if is_cuda else processor
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"DataLoader: {workers} workers, {'augmented' if augmented else 'not augmented'}\n")
    print("| | precision | images/s | ÷ DataLoader | ÷ one ready batch | ÷ no graph |")
    print("|---|---|---:|---:|---:|---:|")
    contenders = {
        "ours": rate,
        "loader": lambda trainer, limit: loader_rate(trainer, limit, workers, augmented),
        "ready": ready_rate,
        **({"plain": plain_rate} if is_cuda else {}),
    }
    for name in names:
        found: dict[str, list[float]] = {key: [] for key in contenders}
        for _ in range(rounds):
            for key, measure in contenders.items():
                trainer = prepare(name)
                found[key].append(measure(trainer, seconds))
        medians = {key: statistics.median(values) for key, values in found.items()}
        ours, precision = medians.pop("ours"), trainer.recipe.precision
        ratios = [f"{ours / other:.2f}" for other in medians.values()] + ["–"] * (not is_cuda)
        print(f"| {name} | {precision} | {ours:,.0f} | {' | '.join(ratios)} |", flush=True)


@app.command()
def profile(architecture: str, steps: int = 50) -> None:
    """Print the operators that take most of the time, and what a step takes."""
    trainer = prepare(architecture)
    events = (event for event in trainer.fit() if isinstance(event, Step))
    list(islice(events, WARM_STEPS))
    synchronize(trainer)
    with torch.profiler.profile() as profiler:
        start = time.perf_counter()
        list(islice(events, steps))
        synchronize(trainer)
        print(f"{(time.perf_counter() - start) / steps * 1000:.2f} ms a step, profiled")
    averages = profiler.key_averages()
    if trainer.device.type == "cuda":
        print(averages.table(sort_by="self_device_time_total", row_limit=10))
    print(averages.table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=60))


if __name__ == "__main__":
    app()
