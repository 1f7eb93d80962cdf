"""Trainings on a Ray cluster give the same bytes as here, whatever happens to nodes and driver."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers.cluster import ADDRESS, HEAD, NODE, RayCluster, is_possible
from helpers.project import ROOT
from helpers.readme import README
from helpers.store import points, runs
from helpers.waiting import wait_for

from lineup.files import sha256

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_possible(), reason="needs Ray, and Linux's networks"),
]
EPOCHS = 8000  # of a linear net: ten seconds and more; a state comes back every three
FILES = ("model.safetensors", "history.csv", "model.json")
TRAIN = ("python", str(ROOT / "tests/programs/train_saving_often.py"))
DIES_SENDING = """
import itertools, os, signal, sys
from lineup.cluster import driver
import stages.train
driver.PIECE = 2**10
count, result = itertools.count(), driver._result
def die_at_the_fifth(ref):
    if next(count) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return result(ref)
driver._result = die_at_the_fifth
sys.argv = ["train", "linear"]
stages.train.run(stages.train.main)
"""
OFF = {"LINEUP_TRACKING": "off"}
SAVING_SOON = {"SECONDS_BETWEEN_SAVES": "0.5"}


@pytest.fixture(scope="module")
def cluster():
    """A cluster with a node of one core."""
    cluster = RayCluster()
    cluster.add_node()
    yield cluster
    cluster.close()


@pytest.fixture
def far(project, cluster):
    """A project whose trainings take a while; `far.train` starts one on the cluster."""
    project.environment |= cluster.environment | SAVING_SOON
    project.set(train__epochs=EPOCHS, architectures=["linear"], model="linear")
    for name in ("models", ".lineup/checkpoints", ".lineup/runs"):
        shutil.rmtree(name)
    for run in runs(project.client()).values():
        project.client().delete_run(run.info.run_id)
    project.train = lambda name="linear", **environment: project.start(
        *cluster.inside(*TRAIN, name), **environment
    )
    return project


@pytest.fixture(scope="module")
def undisturbed():
    """What trainings here gave, by name."""
    return {}


def digests(name="linear"):
    return {file: sha256(Path("models", name, file)) for file in FILES}


def near(project, undisturbed, name="linear"):
    """Return what the training gives here; leaves neither models nor checkpoints."""
    if name not in undisturbed:
        project.run(*TRAIN, name, LINEUP_RAY="", **OFF)
        undisturbed[name] = digests(name)
        shutil.rmtree("models")
        shutil.rmtree(".lineup/checkpoints")
    return undisturbed[name]


def has_saved():
    """Tell whether a state came back from the cluster that is not the first one."""
    return any(
        json.loads(path.read_text()).get("state", {"epoch": 0})["epoch"] > 0
        for path in Path(".lineup/checkpoints").glob("*/progress.json")
    )


def test_two_trainings_at_once_are_as_here_and_so_is_what_mlflow_knows(far, cluster, undisturbed):
    far.set(train__epochs=30, train__keep_every=15, architectures=["linear", "mlp"])
    expected = {name: near(far, {}, name) for name in ("linear", "mlp")}
    output = far.start(*cluster.inside("python", "-m", "stages.train_all", "2")).output()
    assert {name: digests(name) for name in expected} == expected
    assert output.count(f", on {os.uname().nodename})") == 2
    for name in expected:
        assert f"{name}: epoch 30/30" in output
        run = runs(far.client())[name]
        assert run.data.tags["node"] == os.uname().nodename and run.info.status == "FINISHED"
        assert run.data.metrics["val_loss"] > 0
    wait_for(lambda: not cluster.workers())
    assert len(list(cluster.folder.rglob("lineup-data"))) == 1  # on the node, with Ray's copies


def test_a_node_dies_and_another_goes_on_to_the_same_bytes(far, cluster, undisturbed):
    expected = near(far, undisturbed)
    cluster.add_node()
    training = far.train()
    wait_for(has_saved)
    cluster.worker().parent().kill()
    output = training.output()
    assert digests() == expected
    assert output.count("is lost") == 1
    every = list(range(1, EPOCHS + 1))
    told = [line.split()[2] for line in output.splitlines() if line.startswith("linear: epoch ")]
    assert told == [f"{epoch}/{EPOCHS}" for epoch in every]  # each once
    run = runs(far.client())["linear"]
    assert [step for step, *_ in points(far.client(), run, "val_loss")] == every


def test_the_driver_dies_with_what_it_computes_and_the_next_goes_on(far, cluster, undisturbed):
    expected = near(far, undisturbed)
    training = far.train(**OFF)
    wait_for(has_saved)
    training.process.kill()
    training.process.wait()
    wait_for(lambda: not cluster.workers(), 10)
    assert "resumes at epoch" in far.train(**OFF).output()
    assert digests() == expected


def test_the_head_dies_and_what_was_trained_is_kept(far, cluster, undisturbed):
    expected = near(far, undisturbed)
    other = RayCluster()
    try:
        other.add_node()
        quick = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3"}  # 60 otherwise
        training = far.start(*other.inside(*TRAIN, "linear"), **OFF, **quick)
        wait_for(has_saved)
        other.kill_head()
        assert "Failed to connect to GCS" in training.output(1)
    finally:
        other.close()
    assert "resumes at epoch" in far.train(**OFF).output()
    assert digests() == expected


def test_the_driver_dies_while_it_sends_the_data(far, cluster):
    far.set(train__epochs=2, split__seed=4)
    far.run("python", "-m", "stages.split")
    expected = near(far, {})
    killed = far.start(*cluster.inside("python", "-c", DIES_SENDING), **OFF)
    assert killed.process.wait(60) == -signal.SIGKILL
    assert len(list(cluster.folder.rglob("*.partial"))) == 1
    far.train(**OFF).output()
    assert digests() == expected


def test_ctrl_c_ends_it_and_the_next_goes_on(far, cluster, undisturbed):
    expected = near(far, undisturbed)
    training = far.train(**OFF)
    wait_for(has_saved)
    training.process.send_signal(signal.SIGINT)
    assert "interrupted at epoch" in training.output(130)
    wait_for(lambda: not cluster.workers(), 10)
    assert "resumes at epoch" in far.train(**OFF).output()
    assert digests() == expected


def test_it_waits_for_a_node_that_joins_later(far, cluster):
    far.set(train__epochs=2)
    needs = {"LINEUP_RAY_RESOURCES": '{"num_cpus": 2}'}
    training = far.train(**OFF, **needs)
    wait_for(lambda: "waits for a node with" in training.file.read_text())
    node = cluster.add_node(cores=2)
    output = training.output()
    assert '"num_cpus": 2' in output and "1 of 1 CPU free" in output
    assert "2 threads" in output
    node.kill()


def test_a_node_that_computes_otherwise_is_not_taken_for_a_lost_one(far, cluster, undisturbed):
    expected = near(far, undisturbed)
    training = far.train(**OFF)
    wait_for(lambda: ": epoch 1/" in training.file.read_text())
    worker = cluster.worker()
    worker.suspend()  # it would be done before the other node is there
    older = cluster.add_node(ATEN_CPU_CAPABILITY="default")
    worker.resume()
    wait_for(has_saved)
    worker.parent().kill()
    wait_for(lambda: "would compute otherwise" in training.file.read_text())
    cluster.add_node()
    output = training.output()
    older.kill()
    assert digests() == expected
    assert "with DEFAULT instead of" in output


def test_seeds_and_search_train_there_too(far, cluster):
    far.set(train__epochs=4)
    seeds = ("python", "-m", "stages.seeds", "linear", "--seeds", "2")
    there = far.start(*cluster.inside(*seeds)).output()
    assert there.count(f", on {os.uname().nodename})") == 2
    table = Path("seeds/seeds.csv").read_text()
    here = far.run(*seeds, LINEUP_RAY="").stdout
    assert "parameters on" not in here  # they are known by all that shapes them, not by the place
    assert Path("seeds/seeds.csv").read_text() == table
    far.set(search={"linear": {"learning_rate": {"log": [0.001, 0.1]}}})
    search = ("python", "-m", "stages.search", "linear", "--trials", "2")
    assert "trial 1: " in far.start(*cluster.inside(*search)).output()
    client = far.client()
    experiment = client.get_experiment_by_name("digits").experiment_id
    (run,) = client.search_runs([experiment], "attributes.run_name = 'linear trial 1'")
    assert run.data.tags["node"] == os.uname().nodename


def test_what_is_wrong_in_a_training_is_said_as_here(far):
    diverging = {"learning_rate": 1e38, "optimizer": "sgd", "schedule": "constant"}
    far.set(models__linear=diverging, train__epochs=2)
    output = far.train(**OFF).output(2)
    assert "error: the loss is not finite at epoch 1" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"LINEUP_RAY": "127.0.0.1:9"}, "LINEUP_RAY=127.0.0.1:9: [Errno 111] Connection refused"),
        ({"LINEUP_RAY": "nowhere.invalid:9"}, "LINEUP_RAY=nowhere.invalid:9: [Errno -"),
        ({"LINEUP_RAY_RESOURCES": "one"}, "LINEUP_RAY_RESOURCES=one: "),
        ({"LINEUP_RAY_RESOURCES": '{"cpus": 1}'}, "try '{\"num_cpus\": 4}'"),
        ({"LINEUP_RAY_RESOURCES": '{"num_cpus": -1}'}, "try '{\"num_cpus\": 4}'"),
        ({"LINEUP_RAY_RESOURCES": "[1]"}, "try '{\"num_cpus\": 4}'"),
    ],
)
def test_a_cluster_that_is_not_there_or_asked_wrongly(environment, message, far):
    output = far.train(**OFF, **environment).output(2)
    assert message in output
    assert "Traceback" not in output and output.count("error:") == 1


def test_portable_is_portable_there_too(far, cluster):
    far.set(train__epochs=3, train__precision="portable", train__threads=1)
    expected = near(far, {})
    assert "cpu, portable, 1 threads, on" in far.train(**OFF).output()
    assert digests() == expected


def test_a_search_ends_trials_that_lag_there_too(far, cluster):
    far.set(train__epochs=9, search={"linear": {"learning_rate": {"log": [1e-6, 0.1]}}})
    node = cluster.add_node()
    search = ("python", "-m", "stages.search", "linear", "--trials", "10", "--jobs", "2")
    searching = far.start(*cluster.inside(*search))
    wait_for(lambda: len(cluster.workers()) == 2)
    output = searching.output()
    node.kill()
    assert ", ended after " in output
    told = sorted(re.findall(r"^trial (\d+): ", output, re.M), key=int)
    assert told == [str(number) for number in range(10)]  # each once
    table = pd.read_csv("search/linear/trials.csv")
    assert list(table["trial"]) == list(range(10))
    again = far.run(*search[:-2], LINEUP_RAY="").stdout
    assert not re.search(r"^trial \d+: ", again, re.M)  # nothing is left


def test_a_search_hears_ctrl_c_while_a_trial_waits_for_a_node(far, cluster):
    far.set(search={"linear": {"learning_rate": {"log": [1e-6, 0.1]}}})
    search = ("python", "-m", "stages.search", "linear", "--trials", "4", "--jobs", "2")
    searching = far.start(*cluster.inside(*search), **OFF)
    wait_for(has_saved)
    searching.process.send_signal(signal.SIGINT)
    searching.process.wait(60)
    output = searching.output(130)
    assert "interrupted; the same command goes on there" in output and "Traceback" not in output
    wait_for(lambda: not cluster.workers(), 10)


def test_the_readme_starts_such_a_cluster():
    assert HEAD in README and NODE in README
    assert f"LINEUP_RAY={ADDRESS.replace('127.0.0.1', 'HEAD')}\n" in README


def test_without_ray_it_says_how_to_get_it(far):
    script = "import sys; sys.modules['ray'] = None; sys.argv = ['train', 'linear']; import stages.train as s; s.run(s.main)"
    result = far.run(sys.executable, "-c", script, check=False)
    assert "LINEUP_RAY is set, but ray is missing; run: make cluster" in result.stderr
