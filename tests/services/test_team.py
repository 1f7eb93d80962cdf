"""Two clones that train at once, a stranger who pulls, clones that restore without training."""

import re

import numpy as np
import pytest
from helpers.project import ROOT, Project, make_project
from helpers.readme import code_block
from helpers.services import README_PROXY
from helpers.store import assert_has_every_point
from safetensors.numpy import load_file

from lineup.files import read_json, sha256
from lineup.tracking.names import RUN_ID

pytestmark = pytest.mark.services
ARCHITECTURES = ("linear", "mlp")


def clone(team, source, folder):
    """Return a member's clone, which has no data yet."""
    source.run("git", "clone", "--quiet", ".", str(folder))
    made = Project(folder)
    made.environment |= team.bucket.environment
    made.run("git", "config", "user.email", "tests@example.org")
    made.run("git", "config", "user.name", "Tests")
    return made


@pytest.fixture(scope="module")
def origin(team, tmp_path_factory):
    """The team's repository: data and remote, nothing trained."""
    project = make_project(tmp_path_factory.mktemp("origin") / "project")
    project.environment |= team.bucket.environment
    project.run("dvc", "add", "data/digits")
    project.commit()
    project.run("bash", "-euc", code_block("One of them, once", "bash"))
    project.run("dvc", "push")
    return project


@pytest.fixture(scope="module")
def members(team, origin, tmp_path_factory):
    """The clones of ann and bob, in which the pipeline ran at the same time."""
    found = {
        name: clone(team, origin, tmp_path_factory.mktemp("at") / name) for name in ["ann", "bob"]
    }
    block = code_block("Everyone, after", "bash").replace(README_PROXY, team.server.address)
    for project in found.values():
        project.run("dvc", "pull", "data/digits")
        project.environment["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "60"  # seconds, on a busy machine
    found["bob"].set(seed=4)
    running = [
        project.start("bash", "-euc", block.replace("ann", name)) for name, project in found.items()
    ]
    for command in running:
        printed = command.output()
        assert "make sync" not in printed and "fails" not in printed
    return found


def recorded(client):
    """Return what a second recording would add or change."""
    experiments = [client.get_experiment_by_name("digits").experiment_id]
    models = client.search_logged_models(experiments)
    versions = client.search_model_versions("name = 'digits'")
    return (
        sorted(run.info.run_id for run in client.search_runs(experiments)),
        sorted((model.model_id, model.last_updated_timestamp) for model in models),
        sorted((version.version, version.last_updated_timestamp) for version in versions),
        client.get_registered_model("digits").aliases,
    )


def run_id(project, architecture):
    return read_json(project.folder / "models" / architecture / "run.json")["run_id"]


def test_clones_that_train_at_once_record_all_of_it_once(team, members):
    client = team.client()
    experiment = client.get_experiment_by_name("digits")
    runs = {run.data.tags[RUN_ID]: run for run in client.search_runs([experiment.experiment_id])}
    versions = client.search_model_versions("name = 'digits'")
    assert len(runs) == len(versions) == 4
    assert {version.tags[RUN_ID] for version in versions} == set(runs)
    assert len(client.search_logged_models([experiment.experiment_id])) == 4
    for project in members.values():
        for architecture in ARCHITECTURES:
            run = runs[run_id(project, architecture)]
            assert run.info.status == "FINISHED"
            assert_has_every_point(client, run, project.folder / "models" / architecture)


def test_the_second_export_was_compared_with_the_first(team, members):
    client = team.client()
    aliases = client.get_registered_model("digits").aliases
    assert set(ARCHITECTURES) < set(aliases)
    exported = [v for v in client.search_model_versions("name = 'digits'") if "gate" in v.tags]
    assert {version.tags["architecture"] for version in exported} == {"mlp"}
    first, second = sorted(
        exported, key=lambda v: v.tags["gate"] != "champion: there was no champion"
    )
    assert re.search(rf"version {first.version}\b", second.tags["gate"])
    alias, _, _ = second.tags["gate"].partition(":")
    assert aliases[alias] == second.version and aliases["champion"] in (
        first.version,
        second.version,
    )


def test_a_stranger_pulls_the_champion_with_address_user_and_password(team, members, tmp_path):
    champion = team.client().get_model_version_by_alias("digits", "champion")
    (owner,) = (m for m in members.values() if run_id(m, "mlp") == champion.tags[RUN_ID])
    np.save(
        tmp_path / "images.npy", load_file(owner.folder / "data/raw/test.safetensors")["images"]
    )
    program = str(ROOT / "tests/programs/pull_champion.py")
    Project(tmp_path).run("python", "-I", program, **team.account("eve"))
    expected = load_file(owner.folder / "evaluation/mlp/predictions.safetensors")["probabilities"]
    np.testing.assert_allclose(np.load(tmp_path / "answer.npy"), expected, atol=1e-5)


def test_a_clone_restores_models_which_sync_records_where_they_are_missing(team, members, tmp_path):
    restored = clone(team, members["ann"], tmp_path / "restored")
    restored.run("dvc", "pull")
    for architecture in ARCHITECTURES:
        name = f"models/{architecture}/model.safetensors"
        assert sha256(restored.folder / name) == sha256(members["ann"].folder / name)
    before = recorded(team.client())
    restored.run("python", "-m", "stages.sync", **team.account("bob"))
    assert recorded(team.client()) == before
    restored.run("python", "-m", "stages.sync")  # into a store of its own
    aliases = restored.client().get_registered_model("digits").aliases
    assert set(aliases) == {*ARCHITECTURES, "champion"}


def test_the_cache_of_runs_spares_a_clone_the_training(team, origin, members, tmp_path):
    fresh = clone(team, origin, tmp_path / "fresh")
    fresh.run("dvc", "pull", "data/digits")
    printed = fresh.run("dvc", "repro", "--pull", LINEUP_TRACKING="off").stdout
    assert "python -m stages.export" in printed and "stages.train" not in printed
    for architecture in ARCHITECTURES:
        name = f"models/{architecture}/model.safetensors"
        assert sha256(fresh.folder / name) == sha256(members["ann"].folder / name)


def test_a_search_is_kept_in_postgresql_and_goes_on(team, members):
    search = ("python", "-m", "stages.search", "mlp", "--storage", team.postgres.create("studies"))
    for trial in (0, 1):
        command = (*search, "--trials", str(trial + 1))
        printed = members["ann"].run(*command, LINEUP_TRACKING="off").stdout
        assert re.findall(r"^trial (\d+):", printed, re.M) == [str(trial)]
