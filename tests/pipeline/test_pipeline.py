"""The pipeline end to end: real dvc, real MLflow, a small dataset."""

import csv
import json
import shutil
import time

import pytest
from helpers.project import READING, Project

from lineup.tracking.sqlite_tables import relocate


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    """A copy of the finished project, committed; the tests of this module change it in order."""
    folder = tmp_path_factory.mktemp("pipeline") / "project"
    shutil.copytree(finished.folder, folder, symlinks=True, ignore=READING)
    relocate(folder / "mlflow.db")
    Project(folder).commit()
    return Project(folder)


def architecture_of(project, alias):
    return project.client().get_model_version_by_alias("digits", alias).tags["architecture"]


def exported(project):
    return json.loads(project.read("export/model.json"))["architecture"]


def weights(project):
    return (project.folder / "models/linear/model.safetensors").read_bytes()


def rows(text):
    return list(csv.DictReader(text.splitlines()))


def test_repro_leaves_models_evaluation_export_and_a_registered_champion(project):
    for name in ["model.onnx", "model.safetensors", "model.json", "README.md", "example.py"]:
        assert (project.folder / "export" / name).stat().st_size
    leaderboard = rows(project.read("evaluation/leaderboard.csv"))
    assert {row["architecture"] for row in leaderboard} == {"linear", "mlp"}
    assert json.loads(project.read("metrics.json"))["parameters"] > 1000
    aliases = project.client().get_registered_model("digits").aliases
    assert set(aliases) == {"linear", "mlp", "champion"}
    assert architecture_of(project, "champion") == exported(project) == "mlp"


def test_what_is_scored_is_what_ships_and_what_is_registered(project):
    evaluated = (project.folder / "evaluation/mlp/model.onnx").read_bytes()
    assert (project.folder / "export/model.onnx").read_bytes() == evaluated
    version = project.client().get_model_version_by_alias("digits", "mlp")
    model = project.client().get_logged_model(version.source.removeprefix("models:/"))
    (registered,) = (project.folder / "mlartifacts").rglob(f"{model.model_id}/**/model.onnx")
    assert registered.read_bytes() == evaluated


def test_nothing_that_repro_made_is_left_for_git_but_its_lock_and_metrics(project):
    tracked = project.run("git", "ls-files").stdout.split()
    assert {"dvc.lock", "metrics.json"} <= set(tracked)
    made = ("models/", "data/digits", "export/", "evaluation/", "ml", ".lineup/")
    assert not [name for name in tracked if name.startswith(made)]


def test_a_second_repro_has_nothing_to_do_and_is_quick(project):
    start = time.monotonic()
    result = project.run("dvc", "repro")
    assert "Running stage" not in result.stdout and "up to date" in result.stdout
    assert time.monotonic() - start < 20  # seconds; about 2 on a quiet machine


@pytest.mark.slow
def test_an_experiment_with_another_model_ships_it_without_retraining_and_back_again(project):
    result = project.run("dvc", "exp", "run", "-S", "model=linear")
    assert "Running stage 'export'" in result.stdout
    assert "Running stage 'train@" not in result.stdout
    assert exported(project) == "linear"
    decided = project.client().get_model_version_by_alias("digits", "linear").tags["gate"]
    assert decided.startswith(("champion", "challenger"))

    result = project.run("dvc", "exp", "run", "-S", "model=mlp")
    assert "python -m stages.export" in result.stdout  # not from the run cache: the gate is asked
    assert exported(project) == architecture_of(project, "champion") == "mlp"


@pytest.mark.slow
def test_changing_one_architecture_retrains_it_alone_also_in_a_temporary_workspace(project):
    client = project.client()
    before = len(client.search_model_versions("name = 'digits'"))
    changed = "models.linear.learning_rate=0.03"
    result = project.run("dvc", "exp", "run", "--temp", "-C", "data/digits", "-S", changed)
    assert "Running stage 'train@linear'" in result.stdout
    assert "Running stage 'train@mlp'" not in result.stdout
    newest = client.search_model_versions("name = 'digits'", order_by=["version_number DESC"])[0]
    assert int(newest.version) == before + 1  # and none for the mlp, whose weights are the same
    run = client.get_run(newest.run_id)
    assert run.data.params["train.learning_rate"] == "0.03"
    assert run.data.tags["dvc_exp_name"] in run.info.run_name
    assert run.info.status == "FINISHED"


@pytest.mark.slow  # looks at the experiments of the two above
def test_experiments_are_compared_by_few_numbers_and_each_architectures_validation_score(project):
    table = rows(project.run("dvc", "exp", "show", "--only-changed", "--csv").stdout)
    metrics = json.loads(project.read("metrics.json"))
    assert set(metrics) == {"test_accuracy", "val_accuracy", "parameters"}
    assert metrics.keys() <= table[0].keys()
    assert {row["model"] for row in table} >= {"linear", "mlp"}
    scores = {row["linear"] for row in table if row["linear"]}
    assert len(scores) > 1  # the changed learning rate shows though another net ships
    sections = ("train.", "augment", "data.", "evaluate.")
    assert not [name for name in table[0] if name.startswith(sections)]


@pytest.mark.slow  # looks at them too
def test_make_experiments_shows_what_differs_and_every_score_within_100_columns(project):
    (project.folder / ".venv").mkdir()
    (project.folder / ".venv/.complete").touch()  # no environment of its own
    printed = project.run("make", "experiments", COLUMNS="100").stdout
    changes, scores = printed.split("Each architecture's validation score:")
    for name in ("test_accuracy", "model", "models.linear.learning_rate"):
        assert f" {name} " in changes
    assert " linear " in scores and "…" not in printed


def test_plots_show_every_architecture_without_warnings(project):
    result = project.run("dvc", "plots", "show", "--json")
    plots = json.loads(result.stdout)["data"]
    curves = json.dumps(next(plots[name] for name in plots if "learning_curves" in name))
    assert '"linear"' in curves and '"mlp"' in curves
    assert {"models/linear/history.csv", "models/mlp/history.csv"} <= plots.keys()
    assert any("confusion" in name for name in plots)
    assert "WARNING" not in result.stderr


@pytest.mark.slow
def test_a_clone_without_a_cache_reproduces_the_same_weights(project, tmp_path):
    clone = Project(tmp_path / "clone")
    project.run("git", "clone", "--quiet", str(project.folder), str(clone.folder))
    project.run("git", "stash")
    project.run("dvc", "checkout")
    (clone.folder / "data/digits").symlink_to(project.folder / "data/digits")
    clone.run("dvc", "repro", "train@linear")
    assert weights(clone) == weights(project)
