"""What MLflow is told of a training, and that nothing of it is lost, whatever happens to the store or the process."""

import csv
import json
import math
import os
import resource
import shutil
import signal
import socket
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from itertools import chain, count
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock
from lineup.tracking.journal import Journal, trainings

from lineup import tracking
from lineup.errors import UserError
from lineup.params import Train
from lineup.training import reporting

ODD = "Blümchen \"rot\" & 'blau', [x] {y};z"


def stage(name, *arguments):
    """Run a stage in this process, in the current folder; evaluate as under DVC, where it removes checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        if name == "evaluate":
            patch.setenv("DVC_STAGE", name)
        import_module(f"stages.{name}").main(*arguments)


def sync():
    """Run `make sync` in this process and return whether it succeeded."""
    tracking.delivery.Outage.seconds, tracking.delivery.Outage.told = (
        0.0,
        set(),
    )  # a process of its own would start so
    try:
        stage("sync")
    except UserError:
        return False
    return True


@pytest.fixture(autouse=True)
def default_store(monkeypatch):
    monkeypatch.setattr(tracking.store, "SERVER", "")
    monkeypatch.setattr(tracking.delivery.Outage, "seconds", 0.0)
    monkeypatch.setattr(tracking.delivery.Outage, "told", set())
    monkeypatch.delenv("LINEUP_TRACKING", raising=False)


@pytest.fixture(scope="module")
def finished(project_factory):
    """A project in which the whole pipeline ran once, with a changed and a new file since the last commit."""
    project = project_factory("tracked", images=240)
    project.set(architectures=["linear"], model="linear")
    (project.folder / "notes.txt").write_text("not committed\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking.store, "SERVER", "")
        patch.chdir(project.folder)
        for name in ("fetch", "split", ("train", "linear"), "evaluate", "export"):
            stage(*([name] if isinstance(name, str) else name))
    return project.folder


@pytest.fixture
def project(finished, tmp_path, monkeypatch):
    """A copy of the finished project, in another place, as the current folder."""
    shutil.copytree(finished, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    return Path.cwd()


@pytest.fixture
def untrained(project):
    """A project with data and split, and nothing recorded."""
    for name in ("models", "evaluation", "export", "mlartifacts", ".lineup"):
        shutil.rmtree(name, ignore_errors=True)
    for path in Path().glob("mlflow.db*"):
        path.unlink()
    return project


def the_run(client=None, dataset="digits"):
    client = client or tracking.connect()
    (run,) = client.search_runs([client.get_experiment_by_name(dataset).experiment_id])
    return run


def history():
    return list(csv.DictReader(Path("models/linear/history.csv").read_text().splitlines()))


def training():
    return json.loads(Path("models/linear/run.json").read_text())["training"]


def artifacts(client, run_id, folder=None):
    for item in client.list_artifacts(run_id, folder):
        if item.is_dir:
            yield from artifacts(client, run_id, item.path)
        else:
            yield item.path


def snapshot(client):
    """Return all that the store knows of digits: runs, points, artifacts, models, versions, aliases."""
    found = {}
    experiment = client.get_experiment_by_name("digits").experiment_id
    for run in client.search_runs([experiment]):
        points = {
            key: [
                (p.step, p.timestamp, p.value)
                for p in client.get_metric_history(run.info.run_id, key)
            ]
            for key in run.data.metrics
        }
        info = (run.info.status, run.info.start_time, run.info.end_time)
        found[run.info.run_id] = (
            info,
            run.data.params,
            run.data.tags,
            points,
            sorted(artifacts(client, run.info.run_id)),
        )
    for model in client.search_logged_models([experiment]):
        found[model.model_id] = (model.tags, str(model.status), model.last_updated_timestamp)
    for version in client.search_model_versions("name = 'digits'"):
        version.tags.pop(tracking.gate.PROMOTED_AT, None)  # each export of a champion moves it
        found[version.version] = (
            version.tags,
            version.description,
            version.run_id,
            version.model_id,
        )
    return found | {"aliases": client.get_registered_model("digits").aliases}


def assert_complete(client=None):
    """The run in the store has every epoch and step of models/linear exactly once, and its model is registered."""
    client = client or tracking.connect()
    run = the_run(client)
    assert run.info.status == "FINISHED"
    assert run.data.tags[tracking.runs.TRAINING] == training()
    for column in ("train_loss", "val_loss", "val_accuracy", "learning_rate"):
        points = client.get_metric_history(run.info.run_id, column)
        assert [(p.step, p.value) for p in points] == [
            (int(row["epoch"]), float(row[column])) for row in history()
        ]
    steps = [p.step for p in client.get_metric_history(run.info.run_id, "step_loss")]
    assert steps == sorted(set(steps)) and len(steps) == 2 * len(history())
    (version,) = client.search_model_versions("name = 'digits'")
    assert version.tags[tracking.runs.TRAINING] == training()
    assert version.run_id == run.info.run_id
    return run


# --- what a run holds -------------------------------------------------------------------------------------------------


def test_a_run_holds_every_param_including_defaults(project):
    params = yaml.safe_load(Path("params.yaml").read_text())
    found = the_run().data.params
    for key in Train.model_fields:
        assert f"recipe.{key}" in found or any(
            name.startswith(f"recipe.{key}.") for name in found
        ), key
    assert found["recipe.device"] != "auto" and found["recipe.precision"] != "auto"  # as resolved
    assert found["split.validation"] == str(params["split"]["validation"])
    assert found["data.size"] == "8" and found["dataset"] == "digits"
    assert found["seed"] == str(params["seed"]) and int(found["threads"]) >= 1


def test_a_run_says_where_it_comes_from(project):
    client = tracking.connect()
    run = the_run(client)
    tags = run.data.tags
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert tags["git_commit"] == head
    assert tags["git_dirty"] == "true"
    for name in (
        "git_branch",
        "python",
        "torch",
        "dvc",
        "mlflow",
        "host",
        "hardware",
        "sha256.train",
        "sha256.split",
    ):
        assert tags[name], name
    patch = Path(client.download_artifacts(run.info.run_id, "lineage/changes.patch")).read_text()
    assert "+not committed" in patch and "notes.txt" in patch


def set_epochs(epochs, **train):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["train"] |= {"epochs": epochs, "log_every": 100} | train
    Path("params.yaml").write_text(yaml.safe_dump(params))


def test_the_first_lines_of_a_training_tell_its_epochs_and_why(untrained, capsys):
    set_epochs("auto")
    stage("train", "linear")
    lines = capsys.readouterr().out.splitlines()
    length = next(line for line in lines if " epochs (" in line)
    assert length.startswith("linear: 200 epochs (auto: train.passes = 12 is for 48,000 examples")
    first_epoch = next(line for line in lines if "epoch 1/200" in line)
    assert lines.index(length) < lines.index(first_epoch)


def test_the_time_left_is_estimated_without_the_first_step(untrained, capsys, monkeypatch):
    seconds = chain([0, 1000], count(1001))  # start, a slow first step, a second for each other
    clock = SimpleNamespace(**vars(time) | {"monotonic": partial(next, seconds)})
    monkeypatch.setattr(reporting, "time", clock)
    monkeypatch.setattr(reporting, "SECONDS_TO_ESTIMATE", 1.5)
    stage("train", "linear")  # two epochs of three steps: after the third, three are left
    lines = capsys.readouterr().out.splitlines()
    estimates = [number for number, line in enumerate(lines) if line.endswith(" left")]
    assert [lines[number] for number in estimates] == ["linear: about 3 s left"]
    assert "epoch 1/2" in lines[estimates[0] + 1]


def test_a_key_of_train_without_effect_is_named_by_the_training(untrained, capsys):
    stage("train", "linear")
    said = capsys.readouterr().out
    assert "train.learning_rate, train.weight_decay have no effect: every section of" in said
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["models"]["linear"] = {"label_smoothing": 0}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    stage("train", "linear")
    said = capsys.readouterr().out
    message = "train.label_smoothing has no effect: every section of models sets its own"
    assert message in said


def test_auto_and_the_number_it_resolves_to_are_one_training(untrained):
    set_epochs("auto")
    stage("train", "linear")
    first = training()
    recorded = json.loads(Path("models/linear/model.json").read_text())["recipe"]
    assert recorded["epochs"] == 200 and "passes" not in recorded
    assert the_run().data.params["recipe.epochs"] == "200"
    set_epochs(200, passes=7)
    stage("train", "linear")
    assert training() == first


def test_the_dataset_column_names_all_three_parts(project):
    found = {}
    for item in the_run().inputs.dataset_inputs:
        (tag,) = (tag.value for tag in item.tags if tag.key == "mlflow.data.context")
        found[tag] = item.dataset
    assert set(found) == {"training", "validation", "test"}
    assert found["test"].name == "digits-test"
    digests = json.loads(Path("data/raw/dataset.json").read_text())["digests"]
    assert found["test"].digest == digests["test"][:32]
    split = json.loads(Path("data/split/split.json").read_text())["digest"]
    assert found["training"].digest == found["validation"].digest == split[:32]


def test_every_epoch_and_step_is_there_once_and_pictures_and_log_too(project):
    client = tracking.connect()
    run = assert_complete(client)
    names = set(artifacts(client, run.info.run_id))
    assert {
        "pictures/learning_curves.png",
        "pictures/confusion.png",
        "log/train.log",
        "history.csv",
    } <= names


def test_the_id_in_run_json_finds_run_model_and_version(project):
    client = tracking.connect()
    experiment = client.get_experiment_by_name("digits").experiment_id
    query = f"tags.`{tracking.runs.TRAINING}` = '{training()}'"
    (run,) = client.search_runs([experiment], query)
    (model,) = client.search_logged_models([experiment], query)
    (version,) = client.search_model_versions(query)
    assert version.run_id == run.info.run_id == model.source_run_id
    assert version.source == f"models:/{model.model_id}"


def test_test_metrics_are_linked_to_the_model_and_the_test_data(project):
    client = tracking.connect()
    (model,) = client.search_logged_models([client.get_experiment_by_name("digits").experiment_id])
    scores = json.loads(Path("evaluation/linear/metrics.json").read_text())
    linked = {metric.key: metric for metric in model.metrics}
    assert linked["test_accuracy"].value == scores["test_accuracy"]
    assert linked["test_accuracy"].dataset_name == "digits-test"
    assert {key for key in scores if key.startswith("test_")} <= set(linked)
    assert model.tags["test_accuracy"] == str(scores["test_accuracy"])


def test_recording_again_changes_nothing(project):
    before = snapshot(tracking.connect())
    tracking.record_evaluations(["linear"])
    assert sync() and sync()
    assert snapshot(tracking.connect()) == before
    assert trainings() == []  # nothing is left behind


# --- what the store lacks is restored ---------------------------------------------------------------------------------


def test_a_deleted_store_is_restored_from_the_files_and_marked_so(project):
    for path in Path().glob("mlflow.db*"):
        path.unlink()
    shutil.rmtree("mlartifacts")
    assert sync()
    client = tracking.connect()
    run = the_run(client)
    assert run.data.tags["lineup.restored"] == "true"
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "val_loss")
    assert [p.value for p in points] == [float(row["val_loss"]) for row in history()]
    assert (
        run.data.metrics["test_accuracy"]
        == json.loads(Path("metrics.json").read_text())["test_accuracy"]
    )
    assert set(client.get_registered_model("digits").aliases) == {"linear", "champion"}
    before = snapshot(client)
    assert sync()
    assert snapshot(client) == before


def test_a_run_deleted_in_the_ui_comes_back_with_the_next_evaluation(project):
    client = tracking.connect()
    client.delete_run(the_run(client).info.run_id)
    tracking.record_evaluations(["linear"])
    assert the_run(client).data.tags["lineup.restored"] == "true"
    assert "test_accuracy" in the_run(client).data.metrics
    assert len(client.search_model_versions("name = 'digits'")) == 1


def test_a_deleted_experiment_comes_back_with_the_next_evaluation(project):
    client = tracking.connect()
    client.delete_experiment(client.get_experiment_by_name("digits").experiment_id)
    tracking.record_evaluations(["linear"])
    assert the_run(client).data.metrics["test_accuracy"] >= 0


def test_a_moved_repository_serves_its_models_and_keeps_new_ones_in_its_new_place(
    project, finished
):
    hidden = finished.with_name("gone")
    finished.rename(hidden)
    try:
        folder = tracking.download("models:/digits@champion")
        assert (folder / "data" / "model.pt2").exists()
        client = tracking.connect()
        assert str(project) in the_run(client).info.artifact_uri
        assert client.get_experiment_by_name("digits").artifact_location == str(
            project / "mlartifacts"
        )
        assert "history.csv" in set(artifacts(client, the_run(client).info.run_id))
    finally:
        hidden.rename(finished)


def test_a_store_whose_artifacts_are_elsewhere_on_purpose_is_left_as_it_is(project, finished):
    with sqlite3.connect("mlflow.db") as database:
        before = database.execute("SELECT artifact_location FROM experiments").fetchall()
    shutil.rmtree("mlartifacts")
    tracking.connect()
    with sqlite3.connect("mlflow.db") as database:
        assert database.execute("SELECT artifact_location FROM experiments").fetchall() == before
    assert str(finished) in before[0][0]


def test_a_store_of_an_older_mlflow_says_how_to_upgrade_it_and_costs_nothing(project, capsys):
    with sqlite3.connect("mlflow.db") as database:
        (present,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
        database.execute("UPDATE alembic_version SET version_num = '0584bdc529eb'")
    shutil.rmtree("models")
    stage("train", "linear")
    assert f"mlflow db upgrade sqlite:///{project / 'mlflow.db'}" in capsys.readouterr().out
    assert tracking.sync()
    with sqlite3.connect("mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = ?", [present])
    assert not tracking.sync()
    assert len(tracking.connect().search_model_versions("name = 'digits'")) == 2


# --- outages ----------------------------------------------------------------------------------------------------------


class Broken(socketserver.ThreadingTCPServer):
    """A server on the loopback that answers 500 to everything, or never answers."""

    daemon_threads = True

    def __init__(self, answer):
        self.answer, self.released = answer, threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        if self.server.answer:
            self.request.recv(65536)
            self.request.sendall(
                b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops"
            )
        else:
            self.server.released.wait()


@contextmanager
def broken_server(kind):
    if kind == "refuses":
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        yield f"http://127.0.0.1:{port}"
        return
    with Broken(answer=kind == "answers 500") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.released.set()
            server.shutdown()


@pytest.mark.parametrize(
    "kind",
    [
        "refuses",
        pytest.param("hangs", marks=pytest.mark.slow),
        pytest.param("answers 500", marks=pytest.mark.slow),
    ],
)
def test_a_training_outlives_a_server_that(kind, untrained, monkeypatch, capsys):
    with broken_server(kind) as address:
        monkeypatch.setattr(tracking.store, "SERVER", address)
        start = time.monotonic()
        stage("train", "linear")
        assert time.monotonic() - start < 40  # seconds; MLflow alone would try for four minutes
        printed = capsys.readouterr().out
        assert printed.count("fails (") == 1, printed
        assert "make sync" in printed
        assert not sync()
    monkeypatch.setattr(
        tracking.store, "SERVER", ""
    )  # another store takes what the first one missed
    assert sync()
    assert "lineup.restored" not in assert_complete().data.tags


def test_an_evaluation_outlives_a_hanging_server_without_waiting_for_each_model(
    project, monkeypatch, capsys
):
    monkeypatch.setattr(tracking.store, "SECONDS_TO_ANSWER", 1.0)
    monkeypatch.setattr(tracking.delivery, "SECONDS_FOR_FAILURES", 0.5)
    before = snapshot(tracking.connect())
    with broken_server("hangs") as address:
        monkeypatch.setattr(tracking.store, "SERVER", address)
        start = time.monotonic()
        tracking.record_evaluations(["linear"] * 5)
        assert "can't be reached" in tracking.record_export(
            "linear", {"promote": "gate", "level": 0.05, "margin": 0}
        )
        assert time.monotonic() - start < 8
    printed = capsys.readouterr().out
    assert printed.count("fails (") == 1 and "make sync" in printed
    monkeypatch.setattr(tracking.store, "SERVER", "")
    assert sync()
    assert snapshot(tracking.connect()) == before


def test_a_full_disk_of_the_store_is_a_warning_and_later_nothing_is_missing(
    untrained, monkeypatch, capsys
):
    monkeypatch.setattr(tracking.store, "SERVER", "http://127.0.0.1:9")
    stage("train", "linear")
    monkeypatch.setattr(tracking.store, "SERVER", "")
    tracking.connect()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (6000, limits[1])
    )  # no file may grow beyond: the model does not fit
    try:
        assert tracking.sync()
        assert "fails (" in capsys.readouterr().out
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sync()
    assert_complete()


@pytest.mark.parametrize("room", [1000, 16_000])  # bytes, which the first event or the last needs
def test_a_full_disk_stops_a_training_with_one_line_and_the_next_one_completes_it(untrained, room):
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    command = [sys.executable, "-m", "stages.train", "linear"]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        command, preexec_fn=limit, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "make room there and run the same command again" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    stage("train", "linear")
    assert_complete()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody without rights")
def test_a_store_that_cannot_be_written_is_a_warning_and_everything_is_kept(project, capsys):
    tracking.connect().delete_run(the_run().info.run_id)
    for path in (project, *project.parents):
        if path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o555)
    for path in (Path(".lineup"), *Path(".lineup").rglob("*")):
        os.chown(path, 65534, 65534)
    os.seteuid(65534)
    try:
        tracking.record_evaluations(["linear"])
    finally:
        os.seteuid(0)
    assert "fails (" in capsys.readouterr().out
    with Journal(training()) as journal:
        assert journal.pending == len(journal.events)


# --- trainings that do not end well -----------------------------------------------------------------------------------


def test_a_training_whose_loss_is_not_finite_is_failed_and_says_why(untrained):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["models"]["linear"] = {"learning_rate": 1e38, "optimizer": "sgd", "schedule": "constant"}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(UserError, match="not finite"):
        stage("train", "linear")
    run = the_run()
    assert run.info.status == "FAILED"
    assert "not finite at epoch 1" in run.data.tags["lineup.error"]
    assert not tracking.connect().search_registered_models()


def test_runs_of_dead_trainings_are_marked_killed_and_others_left_alone(project):
    client = tracking.connect()
    experiment = client.get_experiment_by_name("digits").experiment_id
    folder = Path(".lineup/checkpoints").resolve()
    alive = FileLock(folder / "alive.lock")

    def run(host, lock):
        return client.create_run(
            experiment, tags={"host": host, "lineup.lock": str(lock)}
        ).info.run_id

    host = socket.gethostname()
    dead, living, foreign = (
        run(host, folder / "dead.lock"),
        run(host, folder / "alive.lock"),
        run("else", folder / "x"),
    )
    strange = client.create_run(experiment).info.run_id  # not made by Lineup
    with alive:
        tracking.runs.end_abandoned_runs(client)
    status = {run: client.get_run(run).info.status for run in (dead, living, foreign, strange)}
    assert status == {dead: "KILLED", living: "RUNNING", foreign: "RUNNING", strange: "RUNNING"}


# --- odd values -------------------------------------------------------------------------------------------------------


def test_numbers_that_are_none_and_values_beyond_mlflows_limits_are_recorded(untrained):
    journal = Journal(uuid.uuid4().hex)
    params = {
        "long": "x" * 20_000,
        "list": list(range(5000)),
        "empty": "",
        "none": None,
        "ünï code/key": "ä",
    }
    journal.append(
        "start", "start", experiment="odd", name="odd", params=params, tags={}, datasets={}
    )
    values = {"nan": math.nan, "inf": math.inf, "minus": -math.inf, "small": 5e-324}
    journal.append("step:1", "metrics", values=values, step=1)
    journal.append("end", "end", status="FAILED", error="é" * 20_000)
    journal.close()
    with Journal(journal.training) as journal:  # as another process reads it
        tracking.delivery.deliver(journal, tracking.connect())
        assert not journal.pending
    run = the_run(dataset="odd")
    assert run.info.status == "FAILED"
    assert run.data.params["long"].startswith("xxx") and len(run.data.params["long"]) == 6000
    assert (
        math.isnan(run.data.metrics["nan"])
        and run.data.metrics["inf"] > 1e300
        and run.data.metrics["minus"] < -1e300
    )


def test_a_dataset_with_an_odd_name_and_odd_classes_goes_all_the_way(untrained):
    source = Path("data") / ODD
    Path("data/digits").rename(source)
    for number, name in enumerate(
        ("no?", "o'clock", 'a "b" c', "naïve — 日本", "x;y,z", "100 %", "#7", "[8]", "{9}", "&")
    ):
        (source / str(number)).rename(source / name)
    params = yaml.safe_load(Path("params.yaml").read_text()) | {"dataset": ODD}
    Path("params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True))
    for command in (["fetch"], ["split"], ["train", "linear"], ["evaluate"], ["export"]):
        stage(*command)
    client = tracking.connect()
    (model,) = client.search_registered_models()
    assert set(model.aliases) == {"linear", "champion"}
    assert the_run(client, ODD).info.status == "FINISHED"
    assert (tracking.download(f"models:/{model.name}@champion") / "data" / "model.pt2").exists()
    assert len(the_run(client, ODD).inputs.dataset_inputs) == 3


KILLED_WRITER = """
import os, signal
from lineup import tracking

client = tracking.connect()
for number in range(20):
    client.create_experiment(f"old {number}")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_new_store_takes_nothing_from_the_log_of_a_deleted_one(untrained):
    subprocess.run([sys.executable, "-c", KILLED_WRITER], check=False)
    assert Path("mlflow.db-wal").stat().st_size
    Path("mlflow.db").unlink()

    names = [experiment.name for experiment in tracking.connect().search_experiments()]
    assert names == ["Default"]
    with sqlite3.connect("mlflow.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_store_named_by_a_relative_address_is_the_repositorys_own(project, monkeypatch, tmp_path):
    expected = snapshot(tracking.connect())
    monkeypatch.setattr(tracking.store, "SERVER", "sqlite:///mlflow.db")
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.chdir(tmp_path)  # as in the temporary workspace of an experiment
    assert snapshot(tracking.connect()) == expected


def test_turning_tracking_off_changes_no_output_but_run_json(project, monkeypatch):
    def outputs():
        return {
            path.name: path.read_bytes()
            for path in Path("models/linear").iterdir()
            if path.name != "run.json"
        }

    expected, id_before, before = outputs(), training(), snapshot(tracking.connect())
    shutil.rmtree("models")
    monkeypatch.setenv("LINEUP_TRACKING", "off")
    stage("train", "linear")
    tracking.record_evaluations(["linear"])
    assert "off" in tracking.record_export("linear", {})
    assert outputs() == expected
    assert training() != id_before
    assert trainings() == []
    assert snapshot(tracking.connect()) == before
    with pytest.raises(UserError, match="LINEUP_TRACKING"):
        stage("sync")


def test_a_journal_torn_by_a_kill_loses_nothing_but_its_torn_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Journal("a" * 32) as journal:
        journal.append("one", "metrics", values={"loss": 1.0}, step=1)
        journal.append("one", "metrics", values={"loss": 1.0}, step=1)
    with journal.path.open("ab") as file:
        file.write(b'{"key": "two", "do": "met')
    with Journal("a" * 32) as journal:
        journal.append("two", "metrics", values={"loss": 0.5}, step=2)
    with Journal("a" * 32) as journal:
        assert [event["key"] for event in journal.events] == ["one", "two"]
        assert journal.pending == 2


# --- real servers, real kills, many processes -------------------------------------------------------------------------


class Server:
    """A real `mlflow server` on the loopback."""

    def __init__(self, folder):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = taken.getsockname()[1]
        self.address, self.folder = f"http://127.0.0.1:{self.port}", folder
        self.folder.mkdir(exist_ok=True)

    def start(self):
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        store = ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        store += ["--artifacts-destination", str(self.folder / "artifacts"), "--workers", "1"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *store], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with (
                suppress(OSError),
                urllib.request.urlopen(f"{self.address}/health", timeout=5) as answer,
            ):
                if answer.status == 200:
                    return
            time.sleep(0.3)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self):
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def environment(**changes):
    """Return the environment of a new process: MLflow has put the store of an earlier test into ours."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return kept | {"OMP_NUM_THREADS": "1"} | changes


def start_training(**changes):
    """Start a training whose output goes to a file: nobody reads a pipe meanwhile, and a full one would stop it."""
    command = [sys.executable, "-m", "stages.train", "linear"]
    with Path("output").open("wb") as output:
        return subprocess.Popen(command, env=environment(**changes), stdout=output, stderr=output)


def output_of(training):
    """Wait for the end of a training and return its output; it must have succeeded."""
    training.wait(timeout=400)
    output = Path("output").read_text()
    assert training.returncode == 0, output[-3000:]
    return output


def lengthen(epochs):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["train"]["epochs"] = epochs
    Path("params.yaml").write_text(yaml.safe_dump(params))


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(Exception):
            if found := condition():
                return found
        time.sleep(0.2)
    raise AssertionError("waited in vain")


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_and_comes_back_gets_every_point_once_and_in_order(
    untrained, tmp_path
):
    from mlflow import MlflowClient

    lengthen(1500)
    server = Server(tmp_path / "server")
    server.start()
    training = start_training(MLFLOW_TRACKING_URI=server.address)
    try:
        client = MlflowClient(server.address, server.address)
        wait_for(lambda: "val_loss" in the_run(client).data.metrics)
        server.stop()
        output = output_of(training)
        assert output.count("fails (") == 1 and "make sync" in output
        server.start()
        command = [sys.executable, "-m", "stages.sync"]
        subprocess.run(command, env=environment(MLFLOW_TRACKING_URI=server.address), check=True)
        assert_complete(client)
        assert "lineup.restored" not in the_run(client).data.tags
    finally:
        server.stop()
        training.kill()


@pytest.mark.slow
def test_a_killed_training_continues_in_its_run(untrained):
    lengthen(4000)
    training = start_training()
    client = wait_for(lambda: Path("mlflow.db").exists() and tracking.connect())
    wait_for(lambda: list(Path(".lineup/checkpoints").glob("*/state-*")) and the_run(client))
    training.kill()
    training.wait()
    assert the_run(client).info.status == "RUNNING"
    tracking.runs.end_abandoned_runs(client)
    assert the_run(client).info.status == "KILLED"
    training = start_training()
    assert "resumes at epoch" in output_of(training)
    assert_complete(client)


def in_parallel(count, command):
    """Run `count` processes that start their work at the same instant; return their outputs."""
    go = Path.cwd() / "go"
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import sys; number = {number}\nimport mlflow, torch\n{wait}{command}",
            ],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(count)
    ]
    time.sleep(10)
    go.touch()
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    return outputs


WRITE = """
import uuid
from lineup.training import reporting
from lineup import tracking
from lineup.tracking.journal import Journal
with Journal(f"{number:032}") as journal:
    journal.append("start", "start", experiment="load", name=str(number), params={"n": number}, tags={}, datasets={})
    for step in range(200):
        journal.append(f"step:{step}", "metrics", values={"loss": step / 7, "accuracy": number}, step=step)
        if step % 10 == 9:
            tracking.delivery.deliver(journal, tracking.connect())
    assert not journal.pending
"""


@pytest.mark.slow
@pytest.mark.parametrize("writers", [8, 16])
def test_many_processes_on_a_fresh_store_lose_no_point(writers, untrained):
    in_parallel(writers, WRITE)
    client = tracking.connect()
    runs = client.search_runs([client.get_experiment_by_name("load").experiment_id])
    assert len(runs) == writers
    for run in runs:
        points = client.get_metric_history(run.info.run_id, "loss")
        assert [(point.step, point.value) for point in points] == [
            (step, step / 7) for step in range(200)
        ]


@pytest.mark.slow
def test_parallel_evaluations_and_exports_of_one_training_make_one_version_and_one_truth(
    untrained, monkeypatch
):
    monkeypatch.setenv("LINEUP_TRACKING", "off")
    stage("train", "linear")
    stage("evaluate")
    monkeypatch.delenv("LINEUP_TRACKING")
    settings = "{'promote': 'gate', 'level': 0.05, 'margin': 0.002}"
    command = "from stages.lib import tracking\ntracking.record_evaluations(['linear'])\n"
    outputs = in_parallel(6, command + f"print(tracking.record_export('linear', {settings}))")
    assert all("version 1 is the champion" in output for output in outputs), outputs
    client = tracking.connect()
    assert the_run(client).data.tags["lineup.restored"] == "true"
    assert len(client.search_logged_models([the_run(client).info.experiment_id])) == 1
    assert len(client.search_model_versions("name = 'digits'")) == 1
    assert client.get_registered_model("digits").aliases == {"linear": 1, "champion": 1}
    assert trainings() == []
