"""Nothing of ours is unpickled, and no code of a store is run: every test plants a trap."""

import csv
import io

import numpy as np
import pytest
import torch
from helpers.models import write_model
from helpers.traps import plain_pickle, plant, torch_pickle

import lineup
from lineup.architectures import build
from lineup.errors import UserError
from lineup.evaluation.text_tables import as_text
from lineup.files import read_json, sha256, write_json
from lineup.serving.answers import Answer, print_csv
from lineup.serving.classifier import open_classifier
from lineup.serving.deployable import load_deployable
from lineup.tensors import write_tensors
from lineup.training.checkpoints import Checkpoint

FACTS = {"classes": ["a", "b", "c"], "shape": [1, 8, 8]}


@pytest.fixture
def trap(tmp_path):
    """The file that must never appear."""
    path = tmp_path / "sprung"
    yield path
    assert not path.exists()


@pytest.fixture
def model(tmp_path):
    """A folder with a model as export leaves it."""
    torch.manual_seed(0)
    write_model(tmp_path / "model", build("linear", [1, 8, 8], 3, {}), onnx=True, **FACTS)
    return tmp_path / "model"


@pytest.mark.parametrize("write", [plain_pickle, torch_pickle])
def test_a_pickle_in_the_place_of_weights_is_refused(model, trap, write):
    (model / "model.onnx").unlink()
    (model / "model.safetensors").write_bytes(write(trap))
    digest = sha256(model / "model.safetensors")
    write_json(model / "model.json", read_json(model / "model.json") | {"weights_sha256": digest})
    for load in (load_deployable, open_classifier, lineup.load):
        with pytest.raises(UserError, match=r"model\.safetensors is not a safetensors file"):
            load(model if load is load_deployable else str(model))


def test_a_pickle_in_the_place_of_the_onnx_file_is_refused(model, trap):
    (model / "model.onnx").write_bytes(plain_pickle(trap))
    with pytest.raises(UserError, match="is not an ONNX file that can be used"):
        open_classifier(str(model))


def test_other_weights_than_those_described_are_refused(model):
    torch.manual_seed(1)
    write_tensors(model / "model.safetensors", build("linear", [1, 8, 8], 3, {}).state_dict())
    with pytest.raises(UserError, match="is not the file that"):
        load_deployable(model)


def test_a_pickle_in_a_checkpoint_is_not_loaded_and_the_training_starts_again(
    tmp_path, trap, monkeypatch
):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    checkpoint = Checkpoint("0" * 32)
    with checkpoint.lock():
        checkpoint.load()
        checkpoint.save(({"epoch": 1}, {"weight": torch.ones(2)}))
        path = checkpoint.folder / checkpoint.saved_file
        path.write_bytes(plain_pickle(trap))
        progress = read_json(checkpoint.progress_file)
        write_json(checkpoint.progress_file, progress | {"sha256": sha256(path)})
        again = Checkpoint("0" * 32)
        assert again.load() is None
        assert "is damaged" in again.warning


def test_code_and_archives_beside_a_model_are_never_opened(model, trap):
    plant(model, trap)
    for load in (load_deployable, open_classifier, lineup.load):
        load(model if load is load_deployable else str(model))
    for name in ("model.onnx", "model.safetensors", "model.json"):
        (model / name).unlink()
    with pytest.raises(UserError, match="registered by an older version; to renew it: dvc repro"):
        open_classifier(str(model))
    with pytest.raises(UserError, match="holds no trained model"):
        lineup.load(str(model))


@pytest.mark.parametrize("name", ["=1+1", "+cmd|' /C calc'!A0", "-x", "@SUM(A1)", "\t=1"])
def test_cells_that_a_spreadsheet_would_compute_stay_text(name, capsys):
    print_csv([Answer(f"{name}.png", None, [name, "b"], np.array([0.9, 0.1]), None)], 1)
    cells = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert cells["class"] == f"'{name}" and cells["picture"] == f"'{name}.png"
    assert [as_text(cell) for cell in ("-", "-1.5", "+2e3", -1.5, "a=b")] == [
        "-",
        "-1.5",
        "+2e3",
        -1.5,
        "a=b",
    ]
