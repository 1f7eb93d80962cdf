"""The registered version of a model: the very files that evaluate verified and scored."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from lineup.files import read_json
from lineup.model_info import ModelInfo
from lineup.paths import EXAMPLE, MODEL_JSON, ONNX, SCORES, VALIDATION, WEIGHTS
from lineup.task import Task
from lineup.templating import render
from lineup.tracking.lineage import TOO_LARGE
from lineup.tracking.mirror import Mirror
from lineup.tracking.names import MODEL_TAG, RUN_ID, WEIGHTS_TAG, registered_name
from lineup.tracking.points import log_metrics, to_metrics
from lineup.tracking.run_log import RunLog
from lineup.tracking.store import registry_lock

MAX_MACHINES = 20  # that register versions of one architecture at the same moment
MAX_ROUNDS = 10  # of moving an alias that other machines move meanwhile
TRAINED_AT = "lineup.trained_at"  # milliseconds
READY = "READY"
LOGGED = "models:/"  # the source of a version: its LoggedModel


def register(mirror: Mirror) -> ModelVersion | None:
    """Return the version of a run's evaluated model, made where the registry lacks it.

    What is done is asked of model and version themselves, so that deleted ones come back whole.
    A model that is registered already, scored on the same data, gets no second version. None where
    the run was deleted.
    """
    if mirror.run is None:
        return None
    log, client = mirror.log, mirror.client
    info = ModelInfo.read(log.outputs)
    name = registered_name(info.dataset)
    with mirror.lock:
        model = mirror.find_model()
        if model is None or model.status != READY:
            model = _log_model(mirror, info, model)
        version = find_version(client, name, info)
        if version is None or is_model_deleted(client, version):
            version = _create_version(mirror, info, name, model, version)
        _update_tags(mirror, version, info)
        _point_alias(client, version, info.architecture)
        describe_version(client, version, mirror.log)
    return version


def find_version(client: MlflowClient, name: str, info: ModelInfo) -> ModelVersion | None:
    """Return the newest version of this very model, scored on the same data."""
    query = f"name = '{name}' and tags.`{WEIGHTS_TAG}` = '{info.weights_sha256}'"
    found = [
        version
        for version in client.search_model_versions(query)
        if (version.tags.get("split"), version.tags.get("test")) == (info.split, info.data["test"])
        and _model_digest(version) == info.digest
    ]
    return max(found, key=lambda version: int(version.version), default=None)


def _model_digest(version: ModelVersion) -> str:
    """Return the digest of a version's model; those of an older Lineup have no tag of it."""
    if MODEL_TAG in version.tags:
        return version.tags[MODEL_TAG]
    source = f"models:/{version.name}/{version.version}/extra_files/{MODEL_JSON}"
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(mlflow.artifacts.download_artifacts(source, dst_path=temporary))
        return ModelInfo.from_json(read_json(path)).digest


def _create_version(
    mirror: Mirror, info: ModelInfo, name: str, model: LoggedModel, lost: ModelVersion | None
) -> ModelVersion:
    """Make a version of a run's model, as new as the one it replaces."""
    client, log, lineage = mirror.client, mirror.log, mirror.run.data.tags
    is_regression = info.task is Task.REGRESSION
    relative = " (of a target's largest value, where that is above 1)" if is_regression else ""
    with suppress(MlflowException):  # it exists
        text = f"Models that Lineup trained on {info.dataset}."
        client.create_registered_model(name, description=text)
    return client.create_model_version(
        name,
        source=f"{LOGGED}{model.model_id}",
        run_id=mirror.run.info.run_id,
        model_id=model.model_id,
        tags={
            RUN_ID: log.run_id,
            WEIGHTS_TAG: info.weights_sha256,
            **{key: lineage[key] for key in ("git_commit", "git_dirty") if key in lineage},
            "verified": f"equal to the trained model on every test input, within 1e-5{relative}",
            **_tags(mirror, info),
            TRAINED_AT: str(max(_order(mirror), _trained_at(lost) if lost else 0)),
        },
    )


def _log_model(mirror: Mirror, info: ModelInfo, started: LoggedModel | None) -> LoggedModel:
    """Make the run's LoggedModel: files first, then its points, then READY."""
    client, log, run_id = mirror.client, mirror.log, mirror.run.info.run_id
    tags = {RUN_ID: log.run_id, WEIGHTS_TAG: info.weights_sha256}
    model = started or client.create_logged_model(
        mirror.experiment_id, info.architecture, run_id, tags, model_type=info.task
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        _save_model(folder, log, info, Model(run_id=run_id, model_id=model.model_id))
        client.log_model_artifacts(model.model_id, str(folder))
    _log_model_points(mirror, info, model.model_id)
    return client.finalize_logged_model(model.model_id, READY)


def _save_model(folder: Path, log: RunLog, info: ModelInfo, model: Model) -> None:
    """Write MLflow's ONNX flavor around the very file that was scored."""
    extra_files = [log.outputs / WEIGHTS, log.outputs / MODEL_JSON, log.evaluation / VALIDATION]
    mlflow.onnx.save_model(
        onnx.load(log.evaluation / ONNX),
        str(folder),
        mlflow_model=model,
        signature=signature(info),
        input_example={info.task.inputs: np.load(log.evaluation / EXAMPLE)},
        pip_requirements=[_pin(name) for name in ("mlflow", "onnx", "onnxruntime", "numpy")],
        extra_files=[str(path) for path in extra_files],
        onnx_execution_providers=["CPUExecutionProvider"],  # as it was scored
        save_as_external_data=False,
    )
    data = folder / "model.onnx"
    data.write_bytes((log.evaluation / ONNX).read_bytes())


def _pin(package: str) -> str:
    return f"{package}=={package_version(package)}"


def signature(info: ModelInfo) -> ModelSignature:
    """Return named tensors: raw inputs in, probabilities or outputs out, any batch size.

    Pixels are uint8: MLflow's server reads fractions of whole-number inputs as 0 without an error.
    """
    inputs = TensorSpec(np.dtype(info.task.input_dtype), (-1, *info.shape), info.task.inputs)
    shape = (-1, len(info.classes))
    outputs = TensorSpec(np.dtype("float32"), shape, info.task.outputs)
    return ModelSignature(Schema([inputs]), Schema([outputs]))


def _log_model_points(mirror: Mirror, info: ModelInfo, model_id: str) -> None:
    """Give the model its run's points, and last the scores of the file that ships.

    MLflow ranks models by their last point, and writes them to the run too. It is one point there
    if it has the same time, so that a clone takes the times which the run has.
    """
    log = mirror.log
    validation, test = (_dataset(mirror, split) for split in ("validation", "test"))
    points, _ = log.read_points()
    epochs = [point for point in points if "train_loss" in point["values"]]
    scores = read_json(log.evaluation / SCORES)
    times = mirror.find_times() if mirror.cursor["is_guest"] else {}
    evaluated_at = read_json(log.evaluation_note)["time"]
    tested_at = [time for (name, _), time in times.items() if name.startswith("test_")]
    last = max((point["time"] for point in epochs), default=0)  # later where the clock was set back
    time = max(tested_at, default=max(evaluated_at, last + 1, *times.values()))
    own = {"time": time, "step": max(len(epochs), 1)}
    shipped = {name: value for name, value in scores.items() if name.startswith("val_")}
    tested = {name: value for name, value in scores.items() if name.startswith("test_")}
    metrics = to_metrics(epochs, times, model_id=model_id, **validation)
    metrics += to_metrics([own | {"values": shipped}], model_id=model_id, **validation)
    metrics += to_metrics([own | {"values": tested}], model_id=model_id, **test)
    log_metrics(mirror.client, mirror.run.info.run_id, metrics)


def _dataset(mirror: Mirror, split: str) -> dict[str, str]:
    facts = mirror.log.start["datasets"][split]
    return {"dataset_name": facts["name"], "dataset_digest": facts["digest"]}


def _tags(mirror: Mirror, info: ModelInfo) -> dict[str, str]:
    """Return what a version says of itself."""
    tags: dict[str, Any] = {
        "architecture": info.architecture,
        "parameters": info.parameters,
        "split": info.split,
        "test": info.data["test"],
        MODEL_TAG: info.digest,
        TRAINED_AT: _order(mirror),
    }
    scores = read_json(mirror.log.evaluation / SCORES)
    judged = "val_accuracy" if info.task is Task.CLASSIFICATION else "val_loss"
    if judged in scores:  # all others are metrics of its model
        tags[judged] = scores[judged]
    return {key: str(value) for key, value in tags.items()}


def _order(mirror: Mirror) -> int:
    """Return when a run began; later than those before it, though the clock was set back."""
    began = mirror.run.info.start_time
    return began if mirror.cursor["is_guest"] else mirror.log.start.get("order", began)


def _update_tags(mirror: Mirror, version: ModelVersion, info: ModelInfo) -> None:
    """Set the tags that are not as they should be; another run's version is only trained later."""
    tags, trained_at = _tags(mirror, info), _trained_at(version)
    if version.tags.get(RUN_ID) != mirror.log.run_id:
        tags = {TRAINED_AT: tags[TRAINED_AT]}
    tags[TRAINED_AT] = str(max(int(tags[TRAINED_AT]), trained_at))
    for key, value in tags.items():
        if version.tags.get(key) != value:
            mirror.client.set_model_version_tag(version.name, version.version, key, value)
            version.tags[key] = value


def _point_alias(client: MlflowClient, version: ModelVersion, alias: str) -> None:
    """Let @<architecture> point to its newest version; it moves only where that is another one.

    Other machines move it too, so that both are read again once it was moved.
    """
    with registry_lock():
        for _ in range(MAX_ROUNDS):
            holder = aliased(client, version.name, alias)
            known = [version, *_recent_versions(client, version.name, alias)]
            newest = max([*filter(None, [holder]), *known], key=_trained_at_and_number)
            if holder and holder.version == newest.version:
                break
            set_alias(client, newest, alias)


def set_alias(client: MlflowClient, version: ModelVersion, alias: str) -> None:
    """Let an alias point to a version; a database refuses one that is made twice at a moment."""
    try:
        client.set_registered_model_alias(version.name, alias, version.version)
    except MlflowException:
        client.set_registered_model_alias(version.name, alias, version.version)


def _recent_versions(client: MlflowClient, name: str, architecture: str) -> list[ModelVersion]:
    """Return those of an architecture that machines may be registering at this moment."""
    query = f"name = '{name}' and tags.architecture = '{architecture}'"
    return client.search_model_versions(query, MAX_MACHINES, ["version_number DESC"])


def _trained_at(version: ModelVersion) -> int:
    return int(version.tags.get(TRAINED_AT, 0))


def _trained_at_and_number(version: ModelVersion) -> tuple[int, int]:
    return _trained_at(version), int(version.version)


def is_model_deleted(client: MlflowClient, version: ModelVersion) -> bool:
    """Tell whether a version points to files of a model that somebody deleted."""
    if not version.source.startswith(LOGGED):  # registered by hand, from elsewhere
        return False
    try:
        client.get_logged_model(version.source.removeprefix(LOGGED))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return True
        raise
    return False


def aliased(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """Return the version that an alias points to, if there is one."""
    try:  # the registered model itself brings all of its versions
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            return None
        raise


def describe_version(client: MlflowClient, version: ModelVersion, log: RunLog) -> None:
    """Write on the version, in Markdown, what it is, how good, how to get and to reproduce it.

    `log` is of a run with its weights, scored on its data.
    """
    tags, is_score = version.tags, ("val_", "test_")
    found = read_json(log.evaluation / SCORES)
    scores = {key: value for key, value in found.items() if key.startswith(is_score)}
    text = render(
        "version.md.jinja",
        name=version.name,
        number=version.version,
        architecture=tags["architecture"],
        parameters=int(tags["parameters"]),
        scores=dict(sorted(scores.items())),
        gate=tags.get("gate", "Not exported yet."),
        commit=tags.get("git_commit", "<commit unknown>"),
        has_patch=tags.get("git_dirty") == "true",
        patch_is_lost=tags.get("git_dirty") == TOO_LARGE,
        classifies=ModelInfo.read(log.outputs).task is Task.CLASSIFICATION,
    )
    if text != version.description:
        client.update_model_version(version.name, version.version, text)
