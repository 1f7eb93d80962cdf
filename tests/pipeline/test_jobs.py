"""Several trainings at a time on one machine: the same bytes as with the same share one by one."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from helpers.project import ROOT
from helpers.waiting import wait_for

from lineup.files import sha256
from stages import train_all

pytestmark = pytest.mark.slow
SHARE = str(max(1, train_all._cores() // 2))


@pytest.fixture
def jobs(project):
    """A project whose trainings have new params, so that none is done."""
    project.set(seed=7)
    project.environment["OMP_NUM_THREADS"] = SHARE  # of what trains one by one
    project.train_all = ("python", "-m", "stages.train_all", "2")
    return project


def weights(project):
    return {path.parent.name: sha256(path) for path in Path("models").glob("*/model.safetensors")}


@pytest.mark.parametrize(("asked", "given"), [("1", "1"), ("999", SHARE), ("0", "1"), ("", SHARE)])
def test_a_share_of_the_cores_is_at_most_what_was_asked_for(asked, given, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert train_all._shares(2, []) == [{"OMP_NUM_THREADS": given}] * 2


def test_two_at_a_time_are_as_one_by_one_and_dvc_has_nothing_left_to_train(jobs):
    output = jobs.start(*jobs.train_all).output()
    assert "linear: best epoch" in output and "mlp: best epoch" in output
    together = weights(jobs)
    repro = jobs.run("dvc", "repro").stdout
    assert "Running stage 'train@" not in repro and "Running stage 'evaluate'" in repro
    experiment = jobs.run("dvc", "exp", "run").stdout
    assert "Running stage" not in experiment
    jobs.run("dvc", "repro", "--force", "--no-run-cache", "train", LINEUP_TRACKING="off")
    assert weights(jobs) == together


def test_make_repro_takes_the_number_of_jobs():
    lines = {
        jobs: subprocess.run(
            ["make", "--dry-run", "--no-print-directory", "repro", jobs],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"]},  # not that of a make which runs the tests
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        for jobs in ("JOBS=3", "JOBS=1", "JOBS=")
    }
    assert lines["JOBS=3"][-2:] == ["python -m stages.train_all 3", "dvc repro"]
    assert "train_all" not in "".join(lines["JOBS=1"] + lines["JOBS="])


def test_dvcs_cache_of_runs_knows_what_was_trained_together(jobs):
    jobs.start(*jobs.train_all).output()
    together = weights(jobs)
    jobs.set(seed=8)
    jobs.start(*jobs.train_all).output()
    assert weights(jobs) != together
    jobs.set(seed=7)
    output = jobs.start(*jobs.train_all).output()
    assert "is cached - skipping run" in output and "best epoch" not in output
    assert weights(jobs) == together


def test_one_that_fails_does_not_hide_what_the_others_trained(jobs):
    jobs.set(models__linear__learning_rate=1e38, models__linear__optimizer="sgd")
    output = jobs.start(*jobs.train_all).output(2)
    assert "the loss is not finite" in output
    assert "error: linear failed, see above; the others are trained" in output
    before = weights(jobs)["mlp"]
    jobs.set(models__linear__learning_rate=0.01)
    repro = jobs.run("dvc", "repro", "train").stdout
    assert "Stage 'train@mlp' didn't change, skipping" in repro
    assert weights(jobs)["mlp"] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_one_leaves_no_training_behind_and_the_next_goes_on(number, jobs):
    jobs.set(train__epochs=9999, architectures=["linear", "mlp"])
    training = jobs.start(*jobs.train_all)
    wait_for(lambda: training.file.read_text().count(" epoch 2/9999") == 2)
    training.process.send_signal(number)
    training.process.wait(60)
    output = training.file.read_text()
    assert output.count("interrupted at epoch") == 2
    assert "MLflow lacks" not in output  # their mirrors lived to send the end
    again = jobs.start("python", "-m", "stages.train", "linear", LINEUP_TRACKING="off")
    wait_for(lambda: "resumes at epoch" in again.file.read_text())
    again.process.kill()
