"""A training's model and registered version: made once, scored, proven, described."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineup.errors import UserError
from lineup.files import read_json, read_tensors
from lineup.tracking.journal import Event
from lineup.tracking.lineage import TOO_LARGE
from lineup.tracking.runs import TRAINING, Context
from lineup.training.checkpoints import private_folder

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

TRAINED_AT = "lineup.trained_at"  # the tag with the time, in milliseconds, at which a version's training began


def handle_model(context: Context, events: list[Event]) -> None:
    """Log the model as pt2 and register it as a version, unless a former try did."""
    from mlflow.exceptions import MlflowException

    description = read_json(context.file(events[0]["file"]) / "model.json")
    model_id = context.model_id or log_model(context, context.file(events[0]["file"]), description)
    if context.version is None:
        bind_to_cpu(context.client, model_id)
        with contextlib.suppress(MlflowException):  # it exists
            context.client.create_registered_model(
                context.registered,
                description=f"Models that Lineup trained on {context.registered}.",
            )
        context.client.create_model_version(
            context.registered,
            source=f"models:/{model_id}",
            run_id=context.run.info.run_id,
            model_id=model_id,
            tags={
                TRAINING: context.journal.training,
                TRAINED_AT: str(context.start["time"]),
                **version_tags(description),
            },
        )


def version_tags(description: dict[str, Any]) -> dict[str, str]:
    """Return what a version says of itself."""
    facts = {
        "architecture": description["architecture"],
        "parameters": description["parameters"],
        "split": description["split"],
        **description["validation"],
    }
    return {key: str(value) for key, value in facts.items()}


def log_model(context: Context, folder: Path, description: dict[str, Any]) -> str:
    """Log a models/<architecture> folder as a LoggedModel: pt2, signature, input example, pinned requirements."""
    import mlflow
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from lineup.serving import deployable as deployment

    module = deployment.load(folder)
    example = module.example(2).numpy()
    answer = np.dtype("float32"), (-1, len(description["classes"]))
    signature = ModelSignature(
        Schema([TensorSpec(example.dtype, (-1, *description["shape"]))]),
        Schema([TensorSpec(*answer)]),
    )
    mlflow.set_experiment(experiment_id=context.experiment)
    with warnings.catch_warnings(), mlflow.start_run(run_id=context.run.info.run_id):
        warnings.filterwarnings("ignore", "The tensor attributes")  # an RNN's flat weights
        return mlflow.pytorch.log_model(
            module,
            name=description["architecture"],
            serialization_format="pt2",
            signature=signature,
            input_example=example,
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"torch=={torch.__version__.partition('+')[0]}",
                f"numpy=={np.__version__}",
            ],
            extra_files=[str(folder / "model.json")],
            tags={TRAINING: context.journal.training, **version_tags(description)},
        ).model_id


def bind_to_cpu(client: MlflowClient, model_id: str) -> None:
    """Have MLflow load the model on the CPU, for which it was exported; where there is CUDA it would insist on that."""
    from mlflow.models import Model

    model = Model.load(f"models:/{model_id}")
    model.flavors["python_function"]["config"]["device"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/MLmodel")
        client.log_model_artifact(model_id, f"{folder}/MLmodel")


def handle_evaluation(context: Context, events: list[Event]) -> None:
    """Prove the registered version, add metrics and pictures to the run, let @<architecture> point to the newest."""
    from mlflow.entities import Metric

    event, client, run = events[0], context.client, context.run
    folder, version, model_id = context.file(event["folder"]), context.version, context.model_id
    if run.data.tags.get("lineup.evaluation") != event["digest"]:
        log_onnx(context)
        prove(context, version, event)
        scores = read_json(folder / "metrics.json")
        test = {
            "model_id": model_id,
            "dataset_name": event["test_name"],
            "dataset_digest": event["test_digest"],
        }
        points = [
            Metric(name, float(value), event["time"], 0, **test)
            for name, value in scores.items()
            if "test_" in name
        ]
        client.log_batch(run.info.run_id, metrics=points)
        client.log_artifacts(run.info.run_id, str(folder), "evaluation")
        client.log_artifacts(run.info.run_id, str(context.file(event["pictures"])), "pictures")
        tags = {name: str(value) for name, value in scores.items()}
        client.set_logged_model_tags(model_id, tags)
        for name, value in tags.items():
            client.set_model_version_tag(version.name, version.version, name, value)
        client.set_tag(run.info.run_id, "lineup.evaluation", event["digest"])
    with registry_lock():
        holder = aliased(client, version.name, event["architecture"])
        if holder is None or int(holder.tags.get(TRAINED_AT, 0)) <= int(
            version.tags.get(TRAINED_AT, 0)
        ):
            client.set_registered_model_alias(version.name, event["architecture"], version.version)
    describe_version(context)


def log_onnx(context: Context) -> None:
    """Add model.onnx to the registered model, for consumers without torch."""
    from lineup.serving import deployable as deployment

    with tempfile.TemporaryDirectory() as folder:
        deployment.write_onnx(deployment.load(context.file("model")), Path(folder) / "model.onnx")
        context.client.log_model_artifacts(context.model_id, folder)


def prove(context: Context, version: ModelVersion, event: Event) -> None:
    """Load the registered version as a consumer would and hold its answers on the test images against the evaluation.

    Where data/raw holds other data by now, the trained model's own answers on an example stand in.
    """
    import mlflow

    from lineup.data import dataset as datasets
    from lineup.serving import deployable as deployment

    if datasets.RAW.exists() and datasets.describe().digests["test"][:32] == event["test_digest"]:
        (expected,) = read_tensors(
            context.file(event["folder"]) / "predictions.safetensors"
        ).values()
        inputs, _ = datasets.load("test")
    else:
        trained = deployment.load(context.file("model"))
        inputs = trained.example(256)
        expected = deployment.predict(trained, inputs)
    path = mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}")
    reloaded = deployment.read_pt2(Path(path) / "data" / "model.pt2")
    session = deployment.read_onnx(Path(path) / "model.onnx")
    answers = {
        "model.pt2": deployment.predict(reloaded, inputs),
        "model.onnx": deployment.predict_onnx(session, inputs),
    }
    for name, outputs in answers.items():
        if mistake := deployment.difference(outputs, expected):
            raise UserError(
                f"{name} of version {version.version} is not the trained model: {mistake}"
            )
    proof = f"equal to the trained model within {deployment.TOLERANCE:g}"
    context.client.set_model_version_tag(version.name, version.version, "proven", proof)


def describe_version(context: Context) -> None:
    """Write on the version, in Markdown, what it is, how good, and how to get and to reproduce it."""
    client, version, run = context.client, context.version, context.run
    tags, lineage = version.tags, run.data.tags
    scores = {
        name: float(value) for name, value in tags.items() if name.startswith(("val_", "test_"))
    }
    table = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(scores.items()))
    patch = {
        "true": "git apply changes.patch  # lineage/changes.patch of the run\n    ",
        TOO_LARGE: "# uncommitted changes were too large to be kept: this gives other results than they did\n    ",
    }.get(lineage.get("git_dirty"), "")
    number = version.version
    text = f"""**{tags["architecture"]}** trained on **{version.name}**, {int(tags["parameters"]):,} parameters.

| metric | value |
|---|---|
{table}

{tags.get("gate", "Not exported yet.")}

Takes raw inputs as the signature says (images: uint8 pixels) and answers for those like the training data; on anything
else it is as sure and wrong as any network. To load it:

    mlflow.pyfunc.load_model("models:/{version.name}/{number}").predict(inputs)

To reproduce it:

    git checkout {lineage.get("git_commit", "<commit unknown>")}
    {patch}dvc repro train@{tags["architecture"]}
"""
    client.update_model_version(version.name, number, text)


def aliased(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """Return the version that an alias points to, if there is one."""
    number = client.get_registered_model(name).aliases.get(alias)
    return client.get_model_version(name, str(number)) if number else None


def registry_lock() -> FileLock:
    """Return the lock under which processes of this repository move aliases."""
    from filelock import FileLock

    return FileLock(private_folder() / "registry.lock")
