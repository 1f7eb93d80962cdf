"""Nothing of ours is unpickled: every test plants a file whose loading would create another file."""

import io
import json
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from lineup import files
from lineup.architectures import build
from lineup.errors import UserError
from lineup.serving import deployable
from lineup.serving.classifier import open_classifier
from lineup.training.checkpoints import Checkpoint

ROOT = Path(__file__).parents[2]


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path):
    """The file that must never appear."""
    path = tmp_path / "sprung"
    yield path
    assert not path.exists()


@pytest.fixture
def model(tmp_path):
    """A folder with a model in every format."""
    folder = tmp_path / "model"
    torch.manual_seed(0)
    network = build("linear", [1, 8, 8], 3, {})
    tensors.write_tensors(folder / "model.safetensors", network.state_dict())
    description = {
        "architecture": "linear",
        "hyperparameters": {},
        "task": "classification",
        "dataset": "digits",
        "classes": ["a", "b", "c"],
        "shape": [1, 8, 8],
        "mean": [0.2],
        "std": [0.3],
        "weights_sha256": files.sha256(folder / "model.safetensors"),
    }
    files.write_json(folder / "model.json", description)
    deployable.write_pt2(deployable.load_deployable(folder), folder / "model.pt2")
    return folder


def torch_pickle(content):
    """Return what torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def plant(path, record, change):
    """Rewrite one record of a pt2 archive: `change` maps its content to another."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(records)).partition("/")[0]
    records[f"{root}/{record}"] = change(records.get(f"{root}/{record}", b""))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def in_every(key, value):
    """Return a change of a JSON record that gives every `key` in it this `value`."""

    def change(content):
        def replace(item):
            return item | {key: value} if key in item else item

        return json.dumps(json.loads(content, object_hook=replace)).encode()

    return change


def plants(trap):
    """Return ways to make a pt2 archive run code when it is loaded: record → change."""
    code = f"__import__('pathlib').Path({str(trap)!r}).touch()"
    bomb, raw_bomb = torch_pickle({"x": Bomb(trap)}), pickle.dumps(Bomb(trap), protocol=0)
    graph = "models/model.json"
    return {
        "sample inputs": ("data/sample_inputs/model.pt", lambda _: bomb),
        "sample inputs, as text": ("data/sample_inputs/model.pt", lambda _: raw_bomb),
        "weights marked as pickled": (
            "data/weights/model_weights_config.json",
            in_every("use_pickle", True),
        ),
        "weights in the old format": ("data/weights/model.pt", lambda _: bomb),
        "constants in the old format": ("data/constants/model.pt", lambda _: bomb),
        "a custom object": ("data/constants/custom_obj_0", lambda _: bomb),
        "compiled code": ("data/aotinductor/model/model.so", lambda _: b"\x7fELF"),
        "an expression": (graph, in_every("expr_str", code)),
        "a guard": (graph, in_every("guards_code", [code])),
        "a call": (graph, in_every("target", "torch.os.system")),
    }


@pytest.mark.parametrize("name", plants(Path()))
def test_a_pt2_file_that_could_run_code_is_refused(model, trap, name):
    record, change = plants(trap)[name]
    plant(model / "model.pt2", record, change)
    with pytest.raises(UserError, match=r"so (the file|it) is refused"):
        deployable.read_pt2(model / "model.pt2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample inputs", "an expression"])
def test_torch_itself_would_have_run_it(model, tmp_path, name):
    sprung = tmp_path / "would have sprung"
    record, change = plants(sprung)[name]
    plant(model / "model.pt2", record, change)
    program = f"import torch; torch.export.load({str(model / 'model.pt2')!r})"
    subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert sprung.exists()


def test_a_file_that_is_no_archive_is_refused_as_pt2(model, trap):
    for content in (pickle.dumps(Bomb(trap)), torch_pickle(Bomb(trap)), b"", b"PK\x03\x04"):
        (model / "model.pt2").write_bytes(content)
        with pytest.raises(UserError, match="is refused"):
            deployable.read_pt2(model / "model.pt2")


def test_an_honest_pt2_file_is_loaded(model):
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    expected = deployable.load_deployable(model)(images)
    torch.testing.assert_close(deployable.read_pt2(model / "model.pt2")(images), expected)


@pytest.mark.parametrize("write", [pickle.dumps, torch_pickle])
def test_a_pickle_in_the_place_of_weights_is_refused(model, trap, write):
    (model / "model.safetensors").write_bytes(write({"weight": Bomb(trap)}))
    description = files.read_json(model / "model.json")
    digest = files.sha256(model / "model.safetensors")
    files.write_json(model / "model.json", description | {"weights_sha256": digest})
    with pytest.raises(UserError, match=r"model\.safetensors is not a safetensors file"):
        deployable.load_deployable(model)
    with pytest.raises(UserError, match="is not a safetensors file"):
        open_classifier(str(model))


def test_other_weights_than_those_described_are_refused(model):
    torch.manual_seed(1)
    tensors.write_tensors(model / "model.safetensors", build("linear", [1, 8, 8], 3, {}).state_dict())
    with pytest.raises(UserError, match="is not the file that"):
        deployable.load_deployable(model)


def test_a_pickle_in_a_checkpoint_is_not_loaded_and_the_training_starts_again(
    tmp_path, trap, monkeypatch
):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    checkpoint = Checkpoint("0" * 32)
    with checkpoint.lock():
        checkpoint.load()
        checkpoint.save({"epoch": 1}, {"weight": torch.ones(2)})
        path = checkpoint.folder / checkpoint.saved_file
        path.write_bytes(pickle.dumps(Bomb(trap)))
        progress = files.read_json(checkpoint.folder / "progress.json")
        files.write_json(
            checkpoint.folder / "progress.json", progress | {"sha256": files.sha256(path)}
        )
        again = Checkpoint("0" * 32)
        assert again.load() is None
        assert "is damaged" in again.warning


def test_a_pickle_in_a_registered_version_is_refused(model, trap, tmp_path):
    """In a process of its own, through MLflow's loader as README recommends it, and through ours."""
    register = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import mlflow, numpy as np
from pathlib import Path
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from lineup.serving import deployable
from lineup.serving.classifier import open_classifier
from test_safety import plant, plants
folder = Path({str(model)!r})
module = deployable.load_deployable(folder)
signature = ModelSignature(Schema([TensorSpec(np.dtype("uint8"), (-1, 1, 8, 8))]))
mlflow.set_experiment("digits")
with mlflow.start_run():
    logged = mlflow.pytorch.log_model(module, name="linear", serialization_format="pt2", signature=signature,
        input_example=module.example(2).numpy(), pip_requirements=["torch"], registered_model_name="digits",
        extra_files=[str(folder / "model.json")])
(path,) = Path("mlruns").rglob("model.pt2")
open_classifier("models:/digits/1")
plant(path, *plants(Path({str(trap)!r}))["sample inputs"])
for load in (mlflow.pytorch.load_model, mlflow.pyfunc.load_model, open_classifier):
    try: load("models:/digits/1")
    except Exception as error: print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", register],
        cwd=tmp_path,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    refusals = done.stdout.splitlines()
    assert (
        len(re.findall("MlflowException.*sample_inputs.*not a pickle-free payload", done.stdout))
        == 2
    ), refusals
    assert "UserError" in refusals[-1] and "could run code, so the file is refused" in refusals[-1]
