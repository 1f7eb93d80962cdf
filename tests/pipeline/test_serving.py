"""Our own commands on registered models: light, equal to what was scored, and deaf to code."""

import json
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from helpers.project import ROOT
from helpers.store import stage, use_store
from helpers.traps import plain_pickle, plant

import lineup
from lineup.architectures import linear
from lineup.errors import UserError
from lineup.evaluation.inference import predict
from lineup.paths import raw
from lineup.serving.classifier import open_classifier
from lineup.serving.deployable import load_deployable
from lineup.tensors import read_tensors
from lineup.tracking.catalog import registered_architectures
from lineup.tracking.sqlite_tables import find_model_locally
from lineup.tracking.sync import record_export

GATE = {"promote": "gate", "level": 0.05, "margin": 0.002}


@pytest.fixture
def champion(project):
    """The folder of the registered champion."""
    return find_model_locally("models:/digits@champion")[0]


@pytest.fixture
def trap(tmp_path):
    """The file that must never appear."""
    path = tmp_path / "sprung"
    yield path
    assert not path.exists()


def test_predict_answers_from_the_local_registry_without_torch_or_mlflow(project):
    tested = pd.read_csv("evaluation/mlp/predictions.csv", dtype={"prediction": str}).iloc[0]
    program = str(ROOT / "tests/programs/predict_lightly.py")
    path = str(project.folder)
    done = project.run("python", program, tested["file"], "--json", PYTHONPATH=path)
    (answer,) = json.loads(done.stdout)
    assert answer["class"] == tested["prediction"]
    assert answer["probabilities"][answer["class"]] == pytest.approx(tested["confidence"], abs=1e-5)


@pytest.mark.parametrize("command", [("predict", "../docs/demo.png"), ("demo",)])
def test_a_command_in_another_folder_says_so_and_leaves_nothing_there(project, command):
    name, *arguments = command
    folder = project.folder / "elsewhere"
    folder.mkdir()
    words = ("python", "-m", f"stages.{name}", *arguments)
    done = project.run(*words, cwd=folder, check=False, PYTHONPATH=str(project.folder))
    assert done.returncode == 2 and "run this in the project's root folder" in done.stderr
    assert not list(folder.iterdir())


def test_a_registered_model_is_rebuilt_to_be_trained_on(project):
    images = read_tensors(raw("test"))["images"]
    model = lineup.load("models:/digits@mlp")
    outputs = predict(model, images)
    assert torch.equal(outputs, predict(load_deployable(Path("models/mlp")), images))
    scored = read_tensors(Path("evaluation/mlp/predictions.safetensors"))["probabilities"]
    torch.testing.assert_close(outputs, scored, atol=1e-5, rtol=0)
    model.train()(images).sum().backward()
    assert all(weight.grad is not None for weight in model.network.parameters())


def test_a_model_of_other_code_than_todays_is_not_rebuilt(project, monkeypatch):
    builder = linear.build

    def build(*arguments, **settings):
        return torch.nn.Sequential(*builder(*arguments, **settings), torch.nn.Tanh())

    lineup.load("models:/digits@linear")
    monkeypatch.setattr(linear, "build", build)
    with pytest.raises(UserError, match=r"the code has changed since this model \(linear\) was"):
        lineup.load("models:/digits@linear")


def test_registered_models_are_found_by_every_name_from_any_folder(project, tmp_path, monkeypatch):
    found = project.client().get_model_version_by_alias("digits", "champion")
    images = read_tensors(raw("test"))["images"].numpy()
    use_store(monkeypatch, f"sqlite:///{project.folder / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    names = [
        "models:/digits@champion",
        f"models:/digits/{found.version}",
        f"runs:/{found.run_id}/mlp",
        found.source,
        None,
    ]
    classifiers = [open_classifier(name) for name in names]
    expected, *others = [one.classify(images) for one in classifiers]
    assert all((outputs == expected).all() for outputs in others)
    number = str(found.version)
    assert [one.version for one in classifiers] == [number, number, "", "", number]
    with pytest.raises(UserError, match=r"models:/digits@nobody .* registered: digits"):
        open_classifier("models:/digits@nobody")


def test_code_in_a_store_is_run_by_none_of_our_commands(project, champion, trap, capsys):
    plant(champion, trap)
    stage("predict", ["data/digits"])
    assert capsys.readouterr().out.endswith("of 300 right\n")
    for uri in registered_architectures("digits").values():  # as demo does
        open_classifier(uri)
    lineup.load("models:/digits@champion")
    assert "validation examples only it gets" in record_export("linear", GATE)
    stage("sync")


def test_pickles_in_the_place_of_a_stores_files_are_refused(project, champion, trap):
    names = ("model.onnx", "extra_files/model.safetensors", "extra_files/validation.safetensors")
    for name in names:
        (champion / name).write_bytes(plain_pickle(trap))
    with pytest.raises(UserError, match="is not an ONNX file that can be used"):
        stage("predict", ["data/digits/3"])
    with pytest.raises(UserError, match="is not a safetensors file"):
        lineup.load("models:/digits@champion")
    decision = record_export("linear", GATE)
    assert "has a damaged file of its validation answers, so they can't be compared" in decision


def test_what_is_planted_here_would_be_run_by_mlflow(champion, tmp_path, monkeypatch):
    plant(champion, tmp_path / "sprung")
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(AttributeError):  # trap.py is run, and then lacks a function
        mlflow.pyfunc.load_model(str(champion))
    assert (tmp_path / "sprung").exists()
