"""A search: better settings, found on validation; trials that survive a kill; mistakes in a line."""

import shlex
import signal
from pathlib import Path

import optuna
import pandas as pd
import pytest
from filelock import FileLock
from helpers.waiting import wait_for

from lineup.files import read_json
from lineup.overrides import load_changed
from lineup.params import load_params
from lineup.search.storage import open_storage

SEARCH = ("python", "-m", "stages.search")
RANGES = {"learning_rate": {"log": [0.00001, 0.05]}, "hidden": {"choice": [[4], [32]]}}
STUDIES = "sqlite:///.lineup/search/studies.db"


def runs_of(client):
    """Return all runs by their names."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.run_name: run for run in client.search_runs(experiments)}


def trials():
    """Return the trials of the only study."""
    (study,) = optuna.get_all_study_names(STUDIES)
    return optuna.load_study(study_name=study, storage=STUDIES).trials


def test_a_search_ends_with_the_command_that_trains_its_best(project):
    project.set(search={"mlp": RANGES}, train__epochs=3)
    Path("data/raw/test.safetensors").rename("test.safetensors")  # no search opens it
    printed = project.run(*SEARCH, "mlp", "--trials", "6").stdout
    table = pd.read_csv("search/mlp/trials.csv")
    best = table[table["state"] == "complete"]["score"].max()
    assert list(table["trial"]) == [0, 1, 2, 3, 4, 5] and set(table["hidden"]) <= {"[4]", "[32]"}
    assert f"{best:.2%}" in printed and Path("search/mlp/search.png").exists()

    runs = runs_of(project.client())
    parent = runs["search mlp"]
    for row in table.to_dict("records"):
        run = runs[f"mlp trial {row['trial']}"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        assert float(run.data.params["train.learning_rate"]) == row["learning_rate"]
        points = project.client().get_metric_history(run.info.run_id, "val_accuracy")
        assert max(point.value for point in points) == row["score"]
        assert run.data.metrics["val_accuracy"] == row["score"]  # what MLflow shows and sorts by
    assert parent.data.metrics["val_accuracy"] == best and parent.info.status == "FINISHED"
    assert parent.data.params["search.hidden"] == "choice [4] or [32]"
    assert len(project.client().search_model_versions("name = 'digits'")) == 2  # of dvc repro

    (line,) = [line for line in printed.splitlines() if line.startswith("Next: dvc exp run ")]
    words = shlex.split(line.removeprefix("Next: dvc exp run "))
    assert words[::2] == ["-S"] * len(RANGES)
    project.set(models__mlp=load_changed(words[1::2]).models["mlp"])
    project.run("python", "-m", "stages.train", "mlp", LINEUP_TRACKING="off")
    assert read_json(Path("models/mlp/model.json"))["validation"]["val_accuracy"] == best
    assert not list(Path(".lineup/checkpoints").glob("*/state-*"))[3:]  # of three trainings


def test_the_first_trial_has_the_settings_of_params_yaml_and_no_setting_is_trained_twice(project):
    project.set(search={"mlp": {"batch_size": {"choice": [64, 32]}}}, train__epochs=1)
    printed = project.run(*SEARCH, "mlp", "--trials", "8", LINEUP_TRACKING="off").stdout
    table = pd.read_csv("search/mlp/trials.csv")
    assert table["batch_size"][0] == load_params().recipe("mlp")[0].batch_size == 64
    assert len(table) == 8 and printed.count(": as trial ") == 6
    assert table.groupby("batch_size")["score"].nunique().max() == 1


@pytest.mark.slow
def test_of_a_regression_the_lowest_loss_is_the_best(project):
    project.set(dataset="yields", architectures=["linear"], model="linear", train__epochs=3)
    project.set(search={"linear": {"learning_rate": {"log": [0.0001, 0.1]}}})
    for stage in ("fetch", "split"):
        project.run("python", "-m", f"stages.{stage}")
    printed = project.run(*SEARCH, "linear", "--trials", "5").stdout
    table = pd.read_csv("search/linear/trials.csv")
    best = table.loc[table[table["state"] == "complete"]["score"].idxmin()]
    assert f"Next: dvc exp run -S models.linear.learning_rate={best['learning_rate']}" in printed
    (study,) = optuna.get_all_study_names(STUDIES)
    loaded = optuna.load_study(study_name=study, storage=STUDIES)
    assert loaded.best_value == best["score"] == table["score"].min()


@pytest.mark.slow
def test_a_killed_search_goes_on_with_the_trial_that_it_was_at(project):
    project.set(search={"mlp": RANGES}, train__epochs=100, train__batch_size=2)
    started = project.start(*SEARCH, "mlp", "--trials", "3")
    wait_for(lambda: list(Path(".lineup/search").glob("mlp-*.lock")))  # the storage is made
    wait_for(lambda: len(trials()[0].intermediate_values) > 3)
    started.process.send_signal(signal.SIGKILL)
    started.process.wait()
    killed = trials()[0]
    assert killed.state == optuna.trial.TrialState.RUNNING

    printed = project.run(*SEARCH, "mlp", "--trials", "3").stdout
    assert "goes on, 0 trials are finished" in printed
    found = trials()
    assert len(found) == 3 and all(trial.state.is_finished() for trial in found)
    assert len({str(trial.params) for trial in found}) == 3
    assert found[0].params == killed.params
    kept = {epoch: found[0].intermediate_values[epoch] for epoch in killed.intermediate_values}
    assert kept == killed.intermediate_values
    statuses = {name: run.info.status for name, run in runs_of(project.client()).items()}
    assert statuses["search mlp"] == "FINISHED" and len(statuses) == 6
    assert {statuses[f"mlp trial {number}"] for number in range(3)} == {"FINISHED"}


@pytest.mark.slow
def test_trials_that_lag_end_early_and_time_is_kept(project):
    project.set(search={"mlp": {"learning_rate": {"log": [0.00001, 0.05]}}}, train__epochs=6)
    project.run(*SEARCH, "mlp", "--trials", "20", LINEUP_TRACKING="off")
    table = pd.read_csv("search/mlp/trials.csv")
    whole, ended = (table[table["state"] == state] for state in ("complete", "pruned"))
    assert len(ended) > 2 and (ended["epochs_done"] < 6).all() and (whole["epochs_done"] == 6).all()
    assert ended["score"].mean() < whole["score"].mean()
    printed = project.run(
        *SEARCH, "mlp", "--minutes", "0.01", "--trials", "9999", LINEUP_TRACKING="off"
    ).stdout
    assert len(pd.read_csv("search/mlp/trials.csv")) < 200 and "Next: dvc exp run" in printed


@pytest.mark.parametrize(
    ("ranges", "words", "message"),
    [
        ({}, [], "search has no ranges for 'mlp'; write some below search:, such as mlp: {"),
        ({"learning_rate": [1, 2]}, [], "search.mlp.learning_rate = [1, 2]: must be one of float:"),
        ({"learning_rate": {"log": [0, 1]}}, [], "must be one of float: [low, high], log: ["),
        ({"learning_rate": {"float": [2, 1]}}, [], "must be one of float: [low, high], log: ["),
        ({"batch_size": {"int": [1, 2.5]}}, [], "must be one of float: [low, high], log: ["),
        ({"batch_size": {"choice": [1, 1]}}, [], "must be one of float: [low, high], log: ["),
        ({"lr": {"log": [0.1, 1]}}, [], "unknown key 'models.mlp.lr'"),
        ({"momentum": {"float": [0.5, 1]}}, [], "(search.mlp.momentum of params.yaml has 1)"),
        (RANGES, ["--storage", "nonsense"], "write one such as postgresql://user@host/database"),
        (RANGES, ["--storage", "postgresql://u:pw@h:54x/db"], "postgresql://u:***@h:54x/db is no"),
        (RANGES, ["--storage", "sqlite:////nowhere/x.db"], "unable to open database file"),
        (RANGES, ["--trials", "0"], "Invalid value"),
    ],
)
def test_what_can_not_be_searched_is_said_in_a_line(project, ranges, words, message):
    project.set(search={"mlp": ranges})
    done = project.run(*SEARCH, "mlp", *words, check=False)
    text = " ".join(done.stderr.replace("│", "").split())
    assert done.returncode == 2 and message in text and "Traceback" not in text
    assert not Path("search").exists()


def test_a_search_whose_trials_all_fail_says_so_each_time(project):
    project.set(search={"mlp": {"hidden": {"choice": [8, 16]}}}, train__epochs=1)
    for _ in range(2):
        done = project.run(*SEARCH, "mlp", "--trials", "4", check=False, LINEUP_TRACKING="off")
        assert done.returncode == 2 and "every trial failed" in done.stderr


def test_an_import_that_fails_within_a_search_is_not_taken_for_a_missing_driver(tmp_path):
    with pytest.raises(ImportError, match="no timm"), open_storage(f"sqlite:///{tmp_path}/s.db"):
        raise ImportError("no timm")


def test_two_processes_do_not_search_the_same(project):
    project.set(search={"mlp": RANGES}, train__epochs=1)
    project.run(*SEARCH, "mlp", "--trials", "1", LINEUP_TRACKING="off")
    (lock,) = Path(".lineup/search").glob("mlp-*.lock")
    with FileLock(lock):
        done = project.run(*SEARCH, "mlp", "--trials", "2", check=False, LINEUP_TRACKING="off")
    assert done.returncode == 2 and "another process is at this search already" in done.stderr
