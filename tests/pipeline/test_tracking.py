"""What MLflow holds of a run, a model and a version, and that `make sync` brings back what it lacks."""

import json
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import yaml
from helpers.project import Project
from helpers.store import artifacts, changes_of, contents, points, runs, stage, use_store
from mlflow.exceptions import MlflowException

from lineup.errors import UserError
from lineup.files import read_json, sha256, write_json
from lineup.params import Train
from lineup.tracking.names import RUN_ID
from lineup.tracking.run_log import RunLog, run_logs
from lineup.tracking.sync import record_evaluations, record_export


@pytest.fixture(scope="module")
def client(finished):
    return finished.client()


@pytest.fixture(scope="module")
def expected(client):
    return contents(client)


@pytest.fixture(scope="module")
def run(client):
    return runs(client)["mlp"]


def run_id(folder="."):
    return read_json(Path(folder) / "models/mlp/run.json")["run_id"]


def purge(project, *options):
    """Run `mlflow gc`, as a person does to have deleted things gone for good."""
    uri = "sqlite:///mlflow.db"
    project.run("mlflow", "gc", "--backend-store-uri", uri, "--tracking-uri", uri, *options)


def remove_store():
    for path in Path().glob("mlflow.db*"):
        path.unlink()
    shutil.rmtree("mlartifacts")


# --- what a run, a model and a version hold -------------------------------------------------------


def test_a_run_holds_every_param_including_defaults(finished, run):
    params, found = yaml.safe_load(finished.read("params.yaml")), run.data.params
    flat = {name.removeprefix("train.").split(".")[0] for name in found if "train." in name}
    assert set(Train.model_fields) - {"passes"} <= flat
    assert found["train.device"] != "auto" and found["train.precision"] != "auto"  # as resolved
    assert found["models.mlp.hidden"] == str(params["models"]["mlp"]["hidden"])
    assert found["split.validation"] == str(params["split"]["validation"])
    assert found["data.size"] == "8" and found["dataset"] == "digits"
    assert found["seed"] == str(params["seed"]) and int(found["train.threads"]) >= 1


def test_a_run_says_where_it_comes_from(finished, client, run):
    tags = run.data.tags
    head = finished.run("git", "rev-parse", "HEAD").stdout.strip()
    assert tags["git_commit"] == head and tags["git_dirty"] == "true"
    assert all(tags[name] for name in ("host", "hardware", "settings", "architecture"))
    own = {name for name in tags if not name.startswith("mlflow.")}
    assert len(own) <= 10  # what people filter by; a page of them tells nobody anything
    path = client.download_artifacts(run.info.run_id, "lineage/lineage.json")
    lineage, dataset = read_json(Path(path)), json.loads(finished.read("data/raw/dataset.json"))
    assert lineage["git_branch"] and lineage["versions"]["torch"] == version("torch")
    assert lineage["data_sha256"]["test"] == dataset["digests"]["test"]
    assert lineage["data_sha256"]["train"] == tags["sha256.train"]
    trainer = "lineup/training/trainer.py"
    assert lineage["code_sha256"][trainer] == sha256(finished.folder / trainer)
    assert len(lineage["dvc_md5"]["data/raw/train.safetensors"]) == 32
    patch = Path(client.download_artifacts(run.info.run_id, "lineage/changes.patch")).read_text()
    assert "+not committed" in patch and "notes.txt" in patch


def test_the_dataset_column_names_all_three_splits(finished, run):
    found = {}
    for item in run.inputs.dataset_inputs:
        (tag,) = (tag.value for tag in item.tags if tag.key == "mlflow.data.context")
        found[tag] = (item.dataset.name, item.dataset.digest)
    digest = json.loads(finished.read("data/raw/dataset.json"))["digests"]["test"][:32]
    split = json.loads(finished.read("data/split/split.json"))["digest"][:32]
    assert found == {
        "training": ("digits-training", split),
        "validation": ("digits-validation", split),
        "test": ("digits-test", digest),
    }


def test_a_run_holds_every_epoch_and_step_once_and_plots_and_log_too(finished, client, run):
    history = pd.read_csv(finished.folder / "models/mlp/history.csv").set_index("epoch")
    for name in ("train_loss", "train_accuracy", "learning_rate"):
        found = [(step, value) for step, _, value in points(client, run, name)]
        assert found == list(history[name].items())
    steps = [step for step, *_ in points(client, run, "step_loss")]
    assert steps == sorted(set(steps)) and len(steps) == 2 * len(history)
    plots = {"plots/learning_curves.png", "plots/confusion.png", "plots/errors.png"}
    names = {name for name, _ in artifacts(client, run.info.run_id)}
    assert plots | {"log/train.log", "history.csv", "evaluation/predictions.csv"} <= names


def test_status_and_end_of_a_run_are_those_of_its_training_not_of_its_evaluation(finished, run):
    lines = finished.read(f".lineup/runs/{run_id(finished.folder)}/status.jsonl").splitlines()
    end = json.loads(lines[-1])
    assert (run.info.status, run.info.end_time) == (end["status"], end["time"])
    assert run.info.status == "FINISHED"
    assert end["time"] < max(time for _, time, _ in points(finished.client(), run, "val_accuracy"))


def test_the_id_in_run_json_finds_run_model_and_version(finished, client, run):
    query = f"tags.`{RUN_ID}` = '{run_id(finished.folder)}'"
    (found,) = client.search_runs([run.info.experiment_id], query)
    (model,) = client.search_logged_models([run.info.experiment_id], query)
    (version,) = client.search_model_versions(query)
    assert version.run_id == found.info.run_id == run.info.run_id == model.source_run_id
    assert version.source == f"models:/{model.model_id}" and model.status == "READY"


def test_models_are_ranked_by_the_scores_of_the_files_that_ship(finished, client, run):
    order = [{"field_name": "metrics.val_accuracy", "ascending": False}]
    ranked = client.search_logged_models([run.info.experiment_id], order_by=order)
    shipped = json.loads(finished.read("evaluation/validation.json"))
    assert [model.name for model in ranked] == sorted(shipped, key=shipped.get, reverse=True)
    scores = json.loads(finished.read("evaluation/mlp/metrics.json"))
    best = ranked[0] if ranked[0].name == "mlp" else ranked[1]
    linked = {}
    for metric in best.metrics:  # the last point counts
        if metric.key not in linked or metric.timestamp >= linked[metric.key].timestamp:
            linked[metric.key] = metric
    for name, value in scores.items():
        if name.startswith(("test_", "val_")):
            split = "test" if name.startswith("test_") else "validation"
            found = linked[name]
            assert (found.value, found.dataset_name) == (value, f"digits-{split}")


# --- what the store lacks is brought --------------------------------------------------------------


def test_syncing_again_changes_nothing_and_is_quick(project):
    stage("sync")
    client = project.client()
    before, changes = contents(client), changes_of(client)
    start = time.monotonic()
    stage("sync")
    assert time.monotonic() - start < 3  # seconds; 0.3 on a quiet machine
    assert contents(client) == before and changes_of(client) == changes


def test_a_store_made_anew_gets_everything_though_it_was_sent_before(project, expected, capsys):
    remove_store()
    stage("sync")
    assert contents(project.client()) == expected
    assert "experiment 'digits' was made" in capsys.readouterr().out


@pytest.mark.parametrize("is_purged", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_deleted_experiment_comes_back_with_all_its_runs_and_says_so(project, capsys, is_purged):
    client = project.client()
    before = contents(client)
    client.delete_experiment(client.get_experiment_by_name("digits").experiment_id)
    if is_purged:
        purge(project)
    stage("sync")
    assert contents(client) == before
    how = "made" if is_purged else "restored"
    assert f"experiment 'digits' was {how}" in capsys.readouterr().out


@pytest.mark.parametrize("is_purged", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_that_was_deleted_alone_stays_deleted(project, is_purged):
    client = project.client()
    deleted = runs(client)["linear"].info.run_id
    client.delete_run(deleted)
    if is_purged:
        purge(project, "--run-ids", deleted)
    before = contents(client)
    stage("sync")
    assert contents(client) == before
    assert set(runs(client)) == {"mlp"}


@pytest.mark.parametrize("what", ["model", "linear", "mlp"])
def test_a_deleted_registered_model_or_version_comes_back_with_tags_and_aliases(project, what):
    client = project.client()
    before = contents(client)
    if what == "model":
        client.delete_registered_model("digits")
    else:
        number = client.get_model_version_by_alias("digits", what).version
        client.delete_model_version("digits", number)
    stage("sync")
    assert contents(client) == before


def test_a_model_that_a_kill_left_pending_is_completed(project):
    client = project.client()
    before = contents(client)
    model = client.search_logged_models([runs(client)["mlp"].info.experiment_id])[0]
    number = client.get_model_version_by_alias("digits", model.name).version
    client.delete_model_version("digits", number)
    client.delete_logged_model(model.model_id)
    started = client.create_logged_model(
        model.experiment_id,
        model.name,
        model.source_run_id,
        model.tags,
        model_type=model.model_type,
    )
    stage("sync")
    assert client.get_logged_model(started.model_id).status == "READY"
    assert contents(client) == before


def test_a_changed_param_is_refused_and_holds_up_no_other_run(project, capsys):
    client = project.client()
    before = contents(client)
    first, last = run_logs()
    write_json(first.start_file, first.start | {"params": first.start["params"] | {"seed": 99}})
    number = client.get_model_version_by_alias("digits", last.start["name"]).version
    client.delete_model_version("digits", number)
    with pytest.raises(UserError, match=r"(?s)seed.*nothing is lost"):
        stage("sync")
    assert contents(client) == before


def test_trainings_that_were_never_evaluated_are_named(project, capsys):
    log = RunLog(run_id())
    shutil.rmtree(log.evaluation)
    shutil.rmtree("evaluation")
    stage("sync")
    assert (
        "1 trainings were never evaluated, so they have no version: mlp" in capsys.readouterr().out
    )


def test_a_newer_training_is_not_mixed_with_the_evaluation_and_export_of_another(project, capsys):
    client = project.client()
    before = contents(client)["versions"]
    info = read_json(Path("models/mlp/model.json"))
    write_json(Path("models/mlp/model.json"), info | {"weights_sha256": "0" * 64})
    write_json(Path("models/mlp/run.json"), {"run_id": "f" * 32})
    stage("sync")
    assert contents(client)["versions"] == before
    assert "1 trainings were never evaluated" in capsys.readouterr().out


# --- other places ---------------------------------------------------------------------------------


def test_a_clone_after_dvc_pull_records_everything_but_the_steps(project, expected):
    remove_store()
    shutil.rmtree(".lineup")
    stage("sync")
    client = project.client()
    found = contents(client)
    assert set(found["runs"]) == set(expected["runs"])
    for name, run in runs(client).items():
        assert run.data.tags["lineup.restored"] == "true" and run.info.status == "FINISHED"
        before = expected["runs"][run.data.tags[RUN_ID]]["points"]
        for metric in ("val_loss", "train_loss", "test_accuracy"):
            values = [(step, value) for step, _, value in before[metric]]
            assert [(step, value) for step, _, value in points(client, run, metric)] == values, name
    aliases = {name: version[2] for name, version in expected["versions"].items()}
    assert {name: version[2] for name, version in found["versions"].items()} == aliases
    stage("sync")
    assert contents(client) == found


@pytest.mark.slow
def test_a_clone_adds_nothing_to_runs_that_their_store_has_already(project, monkeypatch, tmp_path):
    use_store(monkeypatch, f"sqlite:///{tmp_path / 'shared' / 'mlflow.db'}")
    (tmp_path / "shared").mkdir()
    stage("sync")
    shared = Project(tmp_path / "shared").client()
    before, changes = contents(shared), changes_of(shared)
    shutil.rmtree(".lineup")
    stage("sync")
    assert contents(shared) == before and changes_of(shared) == changes


def test_a_clone_that_makes_a_lost_model_anew_adds_no_point_twice(project):
    client = project.client()
    shutil.rmtree(".lineup")  # what stays is as after dvc pull
    model = find_model(client, "linear")
    client.delete_logged_model(model.model_id)
    before = points_of_linear(client)
    stage("sync")
    assert find_model(client, "linear").model_id != model.model_id
    assert points_of_linear(client) == before


def points_of_linear(client):
    run = runs(client)["linear"]
    return {name: points(client, run, name) for name in run.data.metrics}


def find_model(client, name):
    """Return the logged model of an architecture."""
    experiment = client.get_experiment_by_name("digits").experiment_id
    (model,) = client.search_logged_models([experiment], f"name = '{name}'")
    return model


def test_an_owner_adds_no_point_twice_where_a_clone_was_faster(project, monkeypatch, tmp_path):
    (tmp_path / "shared").mkdir()
    use_store(monkeypatch, f"sqlite:///{tmp_path / 'shared' / 'mlflow.db'}")
    own = Path(".lineup").rename(tmp_path / "own")
    stage("sync")  # of a clone, whose runs are made from the outputs
    shutil.rmtree(".lineup")
    own.rename(".lineup")
    stage("sync")
    shared = Project(tmp_path / "shared").client()
    for run in runs(shared).values():
        assert "training_seconds" in run.data.metrics  # what a clone can't know
        for name in ("train_loss", "learning_rate"):
            assert [step for step, *_ in points(shared, run, name)] == [1, 2]


def test_a_training_that_ended_without_tracking_is_recorded_whole(project):
    log = RunLog(read_json(Path("models/linear/run.json"))["run_id"])
    shutil.rmtree(log.outputs)
    log.points_file.write_text("")
    record_evaluations(["linear"])
    steps = {point["step"] for point in log.read_points()[0] if "val_loss" in point["values"]}
    assert steps == {1, 2} and (log.outputs / "model.json").exists()


def test_a_moved_repository_serves_its_models_and_keeps_new_runs_in_its_new_place(
    project, monkeypatch
):
    moved = Project(project.folder.rename(project.folder.with_name("moved")))
    monkeypatch.chdir(moved.folder)
    digits = sorted(Path("data/digits/3").glob("*.png"))[:2]
    result = moved.run("python", "-m", "stages.predict", *map(str, digits))
    assert all(path.name in result.stdout for path in digits)
    client = moved.client()
    places = [client.get_experiment_by_name("digits").artifact_location]
    places += [run.info.artifact_uri for run in runs(client).values()]
    assert all(place.startswith(f"{moved.folder}/mlartifacts") for place in places)


def test_a_registry_of_its_own_is_used(project, monkeypatch, tmp_path):
    registry = f"sqlite:///{tmp_path / 'registry.db'}"
    use_store(monkeypatch, registry=registry)
    project.client().delete_registered_model("digits")
    stage("sync")
    assert not project.client().search_registered_models()
    from mlflow import MlflowClient

    found = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}", registry)
    assert set(found.get_registered_model("digits").aliases) == {"linear", "mlp", "champion"}
    digit = str(next(Path("data/digits/3").glob("*.png")))
    project.run("python", "-m", "stages.predict", digit, MLFLOW_REGISTRY_URI=registry)


def test_turning_tracking_off_changes_no_output_but_run_json(project, monkeypatch):
    def outputs():
        files = Path("models/linear").iterdir()
        return {path.name: path.read_bytes() for path in files if path.name != "run.json"}

    client = project.client()
    expected, before, changes = outputs(), contents(client), changes_of(client)
    known = {log.run_id for log in run_logs()}
    shutil.rmtree("models/linear")
    shutil.rmtree(".lineup/checkpoints")
    monkeypatch.setenv("LINEUP_TRACKING", "off")
    project.run("python", "-m", "stages.train", "linear", LINEUP_TRACKING="off")
    record_evaluations(["linear"])
    assert "tracking is off" in record_export("linear", {})
    assert outputs() == expected
    assert read_json(Path("models/linear/run.json"))["run_id"] not in known
    assert {log.run_id for log in run_logs()} == known
    assert contents(client) == before and changes_of(client) == changes
    with pytest.raises(UserError, match="LINEUP_TRACKING is off"):
        stage("sync")


def test_a_name_that_is_not_registered_is_an_error_that_lists_what_is(project):
    from lineup.tracking.store import download

    with pytest.raises(UserError, match=r"registered: digits"):
        download("models:/flowers@champion")
    project.client().delete_registered_model("digits")
    with pytest.raises(UserError, match=r"none yet: run dvc repro, or make sync after dvc pull"):
        download("models:/digits@champion")
    with pytest.raises(MlflowException):
        project.client().get_registered_model("digits")
