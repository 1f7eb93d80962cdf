"""The pipeline end to end: real dvc, real MLflow, a small dataset."""

import csv
import json
import time

import pytest


@pytest.fixture(scope="module")
def project(project_factory):
    """A project on which `dvc repro` ran once and was committed."""
    project = project_factory("pipeline")
    project.run("dvc", "repro")
    project.commit()
    return project


def aliases(project) -> dict[str, str]:
    return project.client().get_registered_model("digits").aliases


def architecture_of(project, alias: str) -> str:
    return project.client().get_model_version_by_alias("digits", alias).tags["architecture"]


def weights(project, architecture: str) -> bytes:
    return (project.folder / "models" / architecture / "model.safetensors").read_bytes()


def test_repro_leaves_models_evaluation_export_and_a_registered_champion(project):
    for name in (
        "model.onnx",
        "model.safetensors",
        "model.json",
        "README.md",
        "example.py",
    ):
        assert (project.folder / "export" / name).stat().st_size
    leaderboard = list(csv.DictReader(project.read("evaluation/leaderboard.csv").splitlines()))
    assert {row["architecture"] for row in leaderboard} == {"linear", "mlp"}
    assert json.loads(project.read("metrics.json"))["parameters"] > 1000
    assert set(aliases(project)) == {"linear", "mlp", "champion"}
    assert architecture_of(project, "champion") == "mlp"


def test_nothing_that_repro_made_is_left_for_git_but_its_lock_and_metrics(project):
    tracked = project.run("git", "ls-files").stdout.split()
    assert "dvc.lock" in tracked and "metrics.json" in tracked
    assert not [
        name
        for name in tracked
        if name.startswith(("models/", "data/digits", "export/", "evaluation/", "ml"))
    ]


def test_a_second_repro_has_nothing_to_do_and_is_quick(project):
    start = time.monotonic()
    result = project.run("dvc", "repro")
    assert "Running stage" not in result.stdout
    assert "up to date" in result.stdout
    assert time.monotonic() - start < 20  # seconds; about 2 on a quiet machine


def test_a_stranger_process_loads_a_registered_model_and_gets_probabilities(project, tmp_path):
    code = (
        "import mlflow, numpy as np; model = mlflow.pyfunc.load_model('models:/digits@mlp');"
        "answer = model.predict(np.zeros((3, 1, 8, 8), dtype='uint8'))['probabilities'];"
        "assert answer.shape == (3, 10) and abs(answer.sum() - 3) < 1e-4; print('fine')"
    )
    uri = f"sqlite:///{project.folder / 'mlflow.db'}"
    settings = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    assert "fine" in project.run("python", "-c", code, cwd=tmp_path, **settings).stdout


def test_an_experiment_with_another_model_ships_it_without_retraining_and_back_again(project):
    result = project.run("dvc", "exp", "run", "-S", "model=linear")
    assert "Running stage 'export'" in result.stdout
    assert "Running stage 'train@" not in result.stdout
    assert json.loads(project.read("export/model.json"))["architecture"] == "linear"
    decided = project.client().get_model_version_by_alias("digits", "linear").tags["gate"]
    assert decided.startswith(("champion", "challenger"))

    result = project.run("dvc", "exp", "run", "-S", "model=mlp")
    assert (
        "python -m stages.export" in result.stdout
    )  # not restored from the run cache: the registry needs it
    assert json.loads(project.read("export/model.json"))["architecture"] == "mlp"
    assert architecture_of(project, "champion") == "mlp"


def test_changing_one_architecture_retrains_it_alone_also_in_a_temporary_workspace(project):
    before = project.client().search_registered_models()[0].latest_versions[0].version
    result = project.run(
        "dvc", "exp", "run", "--temp", "-C", "data/digits", "-S", "models.linear.learning_rate=0.02"
    )
    assert "Running stage 'train@linear'" in result.stdout
    assert "Running stage 'train@mlp'" not in result.stdout
    client = project.client()
    newest = client.search_model_versions("name = 'digits'", order_by=["version_number DESC"])[0]
    assert int(newest.version) == int(before) + 1
    run = client.get_run(newest.run_id)
    assert run.data.params["recipe.learning_rate"] == "0.02"
    assert run.data.tags["dvc_exp_name"] in run.info.run_name
    assert run.info.status == "FINISHED"


def test_experiments_are_compared_by_one_metrics_file_with_few_keys(project):
    table = list(
        csv.DictReader(
            project.run("dvc", "exp", "show", "--only-changed", "--csv").stdout.splitlines()
        )
    )
    metrics = set(json.loads(project.read("metrics.json")))
    assert len(metrics) <= 9 and metrics <= set(table[0])
    assert {row["model"] for row in table} == {"linear", "mlp"}
    assert not [
        name for name in table[0] if name.startswith(("train.", "augment", "data.", "evaluate."))
    ]


def test_plots_show_every_architecture_without_warnings(project):
    result = project.run("dvc", "plots", "show", "--json")
    plots = json.loads(result.stdout)
    curves = next(content for name, content in plots["data"].items() if "learning_curves" in name)
    shown = json.dumps(curves)
    assert '"linear"' in shown and '"mlp"' in shown
    assert any("confusion" in name for name in plots["data"])
    assert "WARNING" not in result.stderr


@pytest.mark.slow
def test_a_clone_without_a_cache_reproduces_the_same_weights(project, tmp_path):
    project.run("git", "stash")
    try:
        project.run("dvc", "repro")
        expected = weights(project, "linear")
        clone = type(project)(tmp_path / "clone")
        project.run("git", "clone", "--quiet", str(project.folder), str(clone.folder))
        (clone.folder / "data" / "digits").symlink_to(project.folder / "data" / "digits")
        clone.run("dvc", "repro", "train@linear")
        assert weights(clone, "linear") == expected
    finally:
        project.run("git", "stash", "pop", check=False)


@pytest.mark.slow
def test_queued_experiments_record_in_a_store_that_does_not_exist_yet(project_factory):
    project = project_factory("queue")
    for rate in ("0.01", "0.02", "0.03"):
        project.run(
            "dvc",
            "exp",
            "run",
            "--queue",
            "-S",
            f"models.linear.learning_rate={rate}",
            "-S",
            "architectures=[linear]",
            "-S",
            "model=linear",
            "-C",
            "data/digits",
        )
    project.run("dvc", "queue", "start", "-j", "3")
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        status = project.run("dvc", "queue", "status").stdout
        if "Queued" not in status.split("Worker")[0] and "Running" not in status.split("Worker")[0]:
            break
        time.sleep(3)
    client = project.client()
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    rates = {
        run.data.params["recipe.learning_rate"] for run in runs if run.info.status == "FINISHED"
    }
    assert rates == {"0.01", "0.02", "0.03"}
