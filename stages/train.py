"""Train one architecture and write its weights, its history and all that is needed to rebuild it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if not __package__:  # run as a script: its own root comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from lineup.cli import run

if TYPE_CHECKING:
    from lineup.data.dataset import Dataset, Split
    from lineup.training.trainer import Training


def main(
    architecture: Annotated[str, typer.Argument(help="One of params.yaml's architectures.")],
) -> None:
    """Train ARCHITECTURE with the recipe of params.yaml; a training that was killed resumes where it stood."""
    from lineup.params import load_params

    params = load_params()
    recipe, hyperparameters = params.recipe(architecture)

    import torch
    import torch._dynamo  # optimizers do; the courier is a copy of this process and has it, too

    from lineup import tracking

    courier = tracking.Courier() if tracking.enabled() else None

    from lineup import architectures
    from lineup.data import dataset as datasets
    from lineup.training import trainer as training
    from lineup.training.batches import Batches, Purpose, draw_seed
    from lineup.training.checkpoints import Checkpoint, code_digests, end_with_parent, fingerprint
    from lineup.training.reporting import Report

    end_with_parent()
    training.make_deterministic()
    device = training.resolve_device(recipe.device)
    precision = training.resolve_precision(recipe.precision, device)

    dataset, split = datasets.describe(), datasets.load_split()
    epochs, _ = params.epochs(architecture, len(split.train))
    resolved = {"device": device.type, "precision": precision, "epochs": epochs}
    recipe = recipe.model_copy(update=resolved)

    inputs, targets = datasets.load("train")
    parts = [
        Batches(inputs[part].to(device), targets[part].to(device), split.mean, split.std)
        for part in (split.train, split.validation)
    ]

    torch.manual_seed(draw_seed(params.seed, Purpose.WEIGHTS, 0))
    hyperparameters = architectures.complete(architecture, hyperparameters)
    model = architectures.build(architecture, dataset.shape, len(dataset.classes), hyperparameters)
    loop = training.Training(model, *parts, recipe, params.seed)

    facts = {
        "architecture": architecture,
        "hyperparameters": hyperparameters,
        "recipe": recipe.model_dump(exclude={"passes"}),  # has done its work: epochs is a number
        "seed": params.seed,
        "data": dataset.digests["train"],
        "split": split.digest,
        "code": code_digests("train", architecture),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    checkpoint = Checkpoint(fingerprint(facts))
    with checkpoint.lock(
        on_wait=lambda: typer.echo(f"{architecture}: another process trains just this; waiting")
    ):
        saved = checkpoint.load()
        if saved:
            loop.restore(*saved)
        report = Report(architecture, params, facts, dataset, checkpoint, courier)
        with report.open(loop, resumed=saved is not None):
            loop.run(report.reporter(), save=report.save, due=checkpoint.due)
            folder = Path("models") / architecture
            write_outputs(folder, facts, dataset, split, loop, checkpoint.training)
        report.finish(folder)


def write_outputs(
    folder: Path,
    facts: dict[str, Any],
    dataset: "Dataset",
    split: "Split",
    loop: "Training",
    training: str,
) -> None:
    """Write the best epoch's weights, all that rebuilds the model, every epoch's metrics, and the training's id."""
    from lineup.files import sha256, write_json, write_rows, write_tensors

    progress = loop.progress
    best = progress.best_row
    write_tensors(folder / "model.safetensors", loop.best)
    write_rows(folder / "history.csv", progress.history)
    write_json(folder / "run.json", {"training": training})
    write_json(
        folder / "model.json",
        {
            "architecture": facts["architecture"],
            "hyperparameters": facts["hyperparameters"],
            "task": dataset.task,
            "dataset": dataset.name,
            "classes": dataset.classes,
            "shape": dataset.shape,
            "mean": split.mean.tolist(),
            "std": split.std.tolist(),
            "preprocessing": dataset.preprocessing,
            "parameters": sum(parameter.numel() for parameter in loop.model.parameters()),
            "epoch": progress.best_epoch,
            "validation": {name: value for name, value in best.items() if name.startswith("val_")},
            "recipe": facts["recipe"] | {"threads": facts["threads"], "torch": facts["torch"]},
            "seed": facts["seed"],
            "weights_sha256": sha256(folder / "model.safetensors"),
            "data": dataset.digests,
            "split": split.digest,
        },
    )


if __name__ == "__main__":
    run(main)
