"""A run leads back to its code: commit, patch and the version's description give its weights."""

import shutil
from pathlib import Path

import pytest
from helpers.project import Project
from helpers.store import runs
from helpers.waiting import wait_for

from lineup.files import read_json, sha256
from lineup.tracking.names import WEIGHTS_TAG

pytestmark = pytest.mark.slow


def all_runs(project):
    client = project.client()
    experiment = client.get_experiment_by_name("digits")
    return client.search_runs([experiment.experiment_id], order_by=["start_time"])


def reproduce(project, run, folder):
    """Do what the version's description says, in a clone with an empty cache; hold the weights."""
    (version,) = project.client().search_model_versions(f"run_id = '{run.info.run_id}'")
    commit = run.data.tags["git_commit"]
    assert f"git checkout {commit}" in version.description
    assert "dvc repro train@linear" in version.description
    clone = Project(folder)
    project.run("git", "clone", "--quiet", str(project.folder), str(folder))
    clone.run("git", "checkout", "--quiet", commit)
    if run.data.tags["git_dirty"] == "true":
        assert "git apply" in version.description
        shutil.copy(f"{run.info.artifact_uri}/lineage/changes.patch", folder)
        clone.run("git", "apply", "changes.patch")
    digits = Path("data/digits")
    shutil.copytree(project.folder / digits, folder / digits, dirs_exist_ok=True)
    clone.run("dvc", "repro", "train@linear")
    assert sha256(folder / "models/linear/model.safetensors") == version.tags[WEIGHTS_TAG]


def test_a_run_of_a_changed_tree_is_reproduced_from_its_commit_and_patch(project, tmp_path):
    run = runs(project.client())["linear"]
    assert run.data.tags["git_dirty"] == "true"
    assert run.data.params["train.learning_rate"] == "0.02"  # set after the commit
    reproduce(project, run, tmp_path / "clone")
    assert (tmp_path / "clone/notes.txt").read_text() == "not committed\n"


def test_temporary_and_queued_experiments_record_in_a_new_store_and_are_reproduced(
    project_factory, tmp_path
):
    project = project_factory("experiments")
    project.set(architectures=["linear"], model="linear")
    project.commit()
    places = {"0.003": "--temp", "0.01": "--queue", "0.03": "--queue"}
    for rate, place in sorted(places.items(), key=lambda item: item[1]):  # the queue first
        options = ["-C", "data/digits", "-S", f"models.linear.learning_rate={rate}"]
        if place == "--temp":
            project.run("dvc", "queue", "start", "-j", "2")
        project.run("dvc", "exp", "run", place, "-n", f"rate-{rate[2:]}", *options)
    wait_for(lambda: len(all_runs(project)) == 3, 400)
    wait_for(lambda: {run.info.status for run in all_runs(project)} == {"FINISHED"}, 400)
    wait_for(lambda: len(project.client().search_model_versions("name = 'digits'")) == 3, 400)
    shown = project.run("dvc", "exp", "list", "--name-only").stdout
    for run in all_runs(project):
        rate = run.data.params["train.learning_rate"]
        name = run.data.tags["dvc_exp_name"]
        assert name == f"rate-{rate[2:]}" and name in shown
        assert run.info.run_name == f"linear {name}"
        origin = read_json(Path(run.info.artifact_uri) / "lineage" / "lineage.json")
        assert origin["dvc_stage"] == "train@linear"
    assert {run.data.params["train.learning_rate"] for run in all_runs(project)} == set(places)
    for run in all_runs(project)[:2]:
        reproduce(project, run, tmp_path / run.info.run_name)
    assert not (project.folder / "mlruns").exists()
