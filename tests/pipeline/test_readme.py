"""What the README tells a person to do works as it stands there."""

import re
import shutil

import pandas as pd
import pytest
from helpers.project import ROOT, Project
from helpers.readme import code_block

from lineup.files import sha256
from lineup.model_info import ModelInfo


@pytest.mark.slow
def test_the_walk_through_with_images_of_your_own(project_factory):
    project = project_factory("readme", images=0)
    project.run("bash", "-euc", code_block("## Your own images", "bash"))
    assert set(project.client().get_registered_model("digits").aliases) == {
        "linear",
        "mlp",
        "champion",
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)  # four minutes alone, many more beside other trainings
def test_the_walk_through_with_photographs(project_factory):
    project = project_factory("photographs", images=0)
    shutil.copy(ROOT / "params.yaml", project.folder)
    project.commit()
    project.environment.pop("OMP_NUM_THREADS")
    done = project.run("bash", "-euc", code_block("### Photographs", "bash"))
    table = pd.read_csv(project.folder / "evaluation/leaderboard.csv").set_index("architecture")
    assert table["test_accuracy"].min() > 0.6  # a tenth by chance
    correct = re.search(r"(\d+) of 250 .*right", done.stdout)
    assert int(correct[1]) == round(250 * table["test_accuracy"].iloc[0])


@pytest.mark.slow
def test_a_registered_model_starts_the_training_of_another_set(project):
    project.run("dvc", "exp", "run", "-S", "architectures=[cnn]", "-S", "model=cnn")
    shutil.copytree(project.folder / "data/digits", project.folder / "data/others")
    block = code_block("here the registered CNN of MNIST", "bash")
    block = block.replace("models:/mnist", "models:/digits").replace("NAME", "others")
    project.run("bash", "-euc", block)
    info = ModelInfo.read(project.folder / "models/cnn")
    (file,) = (project.folder / "pretrained").glob("cnn-*.safetensors")
    assert info.recipe["pretrained"] == {"name": file.stem, "sha256": sha256(file)}
    client = project.client()
    start = client.get_model_version_by_alias("digits", "cnn")
    training = client.get_run(client.get_model_version_by_alias("others", "cnn").run_id)
    sources = [f"models:/{model.model_id}" for model in training.inputs.model_inputs]
    assert sources == [start.source]


@pytest.mark.slow
def test_models_travel_to_another_clone_which_records_them(project, tmp_path):
    block = code_block("Models travel by DVC", "bash").replace("/mnt/team", str(tmp_path))
    here, there = block.split("dvc pull && make sync")[0], "dvc pull && python -m stages.sync"
    project.run("bash", "-euc", here)
    clone = Project(tmp_path / "clone")
    project.run("git", "clone", "--quiet", ".", str(clone.folder))
    clone.run("bash", "-euc", there)
    aliases = clone.client().get_registered_model("digits").aliases
    assert set(aliases) == {"linear", "mlp", "champion"}
    clone.run("git", "config", "user.email", "tests@example.org")
    clone.run("git", "config", "user.name", "Tests")
    clone.run("bash", "-euc", code_block("then it has a name", "bash"))
    assert sha256(clone.folder / "model.onnx") == sha256(project.folder / "export/model.onnx")


@pytest.mark.slow
def test_an_architecture_of_your_own_is_one_file_and_one_section(project_factory):
    project = project_factory("tiny")
    path = project.folder / "lineup" / "architectures" / "tiny.py"
    path.write_text(code_block("## An architecture of your own", "python"))
    project.set(architectures=["tiny"], model="tiny", models__tiny={"hidden": 64})
    project.run("dvc", "repro")
    assert set(project.client().get_registered_model("digits").aliases) == {"tiny", "champion"}
