"""What a store holds, and which store the library uses in this process."""

from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pandas as pd
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from lineup.tracking.names import RUN_ID


def stage(name, *arguments):
    """Run a stage in this process, in the current folder."""
    import_module(f"stages.{name}").main(*arguments)


def use_store(monkeypatch, uri="", registry=""):
    """Let the library in this process use the store that the environment would name."""
    monkeypatch.setattr("lineup.tracking.location._TRACKING_URI", uri or "sqlite:///mlflow.db")
    monkeypatch.setattr("lineup.tracking.location._REGISTRY_URI", registry)


def runs(client, experiment="digits", view=ViewType.ACTIVE_ONLY):
    """Return the runs of an experiment by architecture or, where there is none, by name."""
    found = client.get_experiment_by_name(experiment)
    listed = client.search_runs([found.experiment_id], run_view_type=view) if found else []
    return {run.data.tags.get("architecture", run.info.run_name): run for run in listed}


def points(client, run, name):
    """Return a metric's points: step, time, value."""
    history = client.get_metric_history(run.info.run_id, name)
    return [(point.step, point.timestamp, point.value) for point in history]


def assert_has_every_point(client, run, folder):
    """Hold a run against its training's outputs: every epoch and step is there once."""
    history = pd.read_csv(Path(folder) / "history.csv").set_index("epoch")
    for name in ("train_loss", "learning_rate"):
        found = [(step, value) for step, _, value in points(client, run, name)]
        assert found == list(history[name].items())
    steps = [step for step, *_ in points(client, run, "step_loss")]
    assert steps == sorted(set(steps)) and len(steps) == 2 * len(history)


def assert_complete(client, is_registered=True):
    """Hold the store's only run against models/linear: every epoch and step is there once."""
    (run,) = runs(client).values()
    assert run.info.status == "FINISHED" and "lineup.restored" not in run.data.tags
    assert_has_every_point(client, run, "models/linear")
    if is_registered:
        aliases = client.get_registered_model("digits").aliases
        assert {name: int(number) for name, number in aliases.items()} == {
            "linear": 1,
            "champion": 1,
        }
        models = client.search_logged_models([run.info.experiment_id])
        assert models and {str(model.status) for model in models} == {"READY"}


def artifacts(client, run_id, folder=None):
    """Yield path and size of every artifact of a run."""
    for item in client.list_artifacts(run_id, folder):
        if item.is_dir:
            yield from artifacts(client, run_id, item.path)
        else:
            yield item.path, item.file_size


def contents(client, experiment="digits"):
    """Return all that a store knows, under names that are the same in every store."""
    found = {"runs": {}, "models": {}, "versions": {}}
    for run in runs(client, experiment, ViewType.ALL).values():
        info = run.info
        found["runs"][run.data.tags[RUN_ID]] = {
            "info": (info.run_name, info.status, info.start_time, info.end_time),
            "stage": info.lifecycle_stage,
            "params": run.data.params,
            "tags": run.data.tags,
            "points": {name: points(client, run, name) for name in run.data.metrics},
            "datasets": {
                item.dataset.name: item.dataset.digest for item in run.inputs.dataset_inputs
            },
            "artifacts": sorted(artifacts(client, info.run_id)),
        }
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    for model in client.search_logged_models([experiment_id]):
        assert model.tags[RUN_ID] not in found["models"], "one model per run"
        metrics = {
            (item.key, item.step, item.value, item.dataset_name) for item in model.metrics or []
        }
        found["models"][model.tags[RUN_ID]] = (model.name, str(model.status), model.tags, metrics)
    for version in client.search_model_versions(f"name = '{experiment}'"):
        text = version.description.replace(f"{experiment}/{version.version}", "itself")
        found["versions"][version.tags[RUN_ID]] = (version.tags, text, sorted(version.aliases))
    with suppress(MlflowException):
        found["registered"] = client.get_registered_model(experiment).tags
    return found


def changes_of(client, experiment="digits"):
    """Return ids and times of change: equal where nothing was made, moved or written again."""
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    models = client.search_logged_models([experiment_id])
    versions = client.search_model_versions(f"name = '{experiment}'")
    return (
        {run.info.run_id for run in runs(client, experiment).values()},
        {(model.model_id, model.last_updated_timestamp) for model in models},
        {(version.version, version.last_updated_timestamp) for version in versions},
        {path: path.stat().st_mtime_ns for path in Path("mlartifacts").rglob("*")},
    )
