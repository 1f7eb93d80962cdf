"""The registry: a version per training, aliases that move only after a proof, and a gate before the champion."""

import json
import shutil
import subprocess
import sys
import uuid
from importlib import import_module
from pathlib import Path

import pytest
import torch
from lineup.tracking.journal import trainings

from lineup import tracking
from lineup.data import dataset as datasets
from lineup.errors import UserError
from lineup.files import read_json, read_tensors, sha256, write_json, write_tensors
from lineup.serving import deployable

GATE = {"promote": "gate", "level": 0.05, "margin": 0.002}
FOLDER = Path("models/linear")


@pytest.fixture(autouse=True)
def default_store(monkeypatch):
    monkeypatch.setattr(tracking.store, "SERVER", "")
    monkeypatch.setattr(tracking.delivery.Outage, "seconds", 0.0)
    monkeypatch.delenv("LINEUP_TRACKING", raising=False)


@pytest.fixture(scope="module")
def finished(project_factory):
    """A project whose pipeline ran up to its evaluation; nothing was exported yet."""
    project = project_factory("registry")
    project.set(architectures=["linear"], model="linear")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking.store, "SERVER", "")
        patch.chdir(project.folder)
        for name in ("fetch", "split", "train", "evaluate"):
            if name == "evaluate":
                patch.setenv("DVC_STAGE", name)  # under DVC it removes checkpoints
            import_module(f"stages.{name}").main(*(["linear"] if name == "train" else []))
    return project.folder


@pytest.fixture
def project(finished, tmp_path, monkeypatch):
    """A copy of the project as the current folder."""
    shutil.copytree(finished, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    return Path.cwd()


def validation():
    inputs, labels = datasets.load("train")
    part = datasets.load_split().validation
    return inputs[part], labels[part]


def good_weights():
    """Return weights fitted to all training images, validation included, by least squares: hard to beat."""
    inputs, labels = datasets.load("train")
    split = datasets.load_split()
    pixels = ((inputs / 255 - split.mean[:, None, None]) / split.std[:, None, None]).flatten(1)
    rows = torch.cat([pixels, torch.ones(len(pixels), 1)], 1).double()
    target = torch.nn.functional.one_hot(labels, 10).double()
    solution = (
        torch.linalg.solve(rows.T @ rows + torch.eye(rows.shape[1]), rows.T @ target).float().T
    )
    names = {
        tensor.ndim: name for name, tensor in read_tensors(FOLDER / "model.safetensors").items()
    }
    return {names[2]: solution[:, :-1] * 10, names[1]: solution[:, -1] * 10}


def train(weights, split=None):
    """Pretend that a training ended with these weights: a new id, and scores as the model really has them."""
    description = read_json(FOLDER / "model.json")
    write_tensors(FOLDER / "model.safetensors", weights)
    description["weights_sha256"] = sha256(FOLDER / "model.safetensors")
    description["split"] = split or description["split"]
    write_json(FOLDER / "model.json", description)
    write_json(FOLDER / "run.json", {"training": uuid.uuid4().hex})
    images, labels = validation()
    hits = (
        (deployable.predict(deployable.load_deployable(FOLDER), images, 100).argmax(1) == labels)
        .sum()
        .item()
    )
    description["validation"]["val_accuracy"] = hits / len(labels)
    write_json(FOLDER / "model.json", description)
    return hits


def worsened(weights, hits):
    """Return weights that get about `hits` validation images right: one class is favoured more and more."""
    bias = next(name for name, tensor in weights.items() if tensor.ndim == 1)
    for step in range(1, 400):
        found = weights | {bias: weights[bias] + step * 0.02 * torch.eye(10)[1]}
        if train(found) <= hits:
            return found
    raise AssertionError("it does not get worse")


def constant(weights):
    return {name: torch.zeros_like(tensor) for name, tensor in weights.items()}


def export(**settings):
    return tracking.record_export("linear", GATE | settings)


def alias(name):
    """Return the number of the version that an alias points to."""
    found = tracking.connect().get_registered_model("digits").aliases.get(name)
    return int(found) if found else None


def version(number):
    return tracking.connect().get_model_version("digits", str(number))


def test_every_training_is_a_version_and_its_architectures_alias_moves_after_the_proof(project):
    assert alias("linear") == 1 and alias("champion") is None
    tags = version(1).tags
    assert tags["proven"].startswith("equal to the trained model within")
    scores = read_json(Path("evaluation/linear/metrics.json"))
    assert {key: tags[key] for key in ("test_accuracy", "val_loss")} == {
        key: str(scores[key]) for key in ("test_accuracy", "val_loss")
    }
    assert tags["architecture"] == "linear" and int(tags["parameters"]) == scores["parameters"]


def test_an_alias_stays_where_it_is_if_the_registered_model_is_not_the_evaluated_one(project):
    train(good_weights())
    description = read_json(FOLDER / "model.json")
    scores = read_json(Path("evaluation/linear/metrics.json"))
    write_json(Path("evaluation/linear/metrics.json"), scores | description["validation"])
    path = Path("evaluation/linear/predictions.safetensors")
    (name, predictions), *_ = read_tensors(path).items()
    write_tensors(path, {name: predictions.flip(0)})
    with pytest.raises(UserError, match="not the trained model"):
        tracking.record_evaluations(["linear"])
    assert alias("linear") == 1
    assert version(2).tags.get("proven") is None
    assert not [
        name for name in version(2).tags if name.startswith("test_")
    ]  # scores come after the proof


def test_sync_does_not_mix_a_new_training_with_the_evaluation_and_the_export_of_another(
    project, capsys
):
    import_module("stages.export").main()
    train(good_weights())
    import_module("stages.sync").main()
    printed = capsys.readouterr().out
    assert "evaluation/linear is of another training; run: dvc repro evaluate" in printed
    assert "export/ is of another training; run: dvc repro" in printed
    assert alias("linear") == alias("champion") == 1


def test_an_alias_never_moves_back_to_an_older_training(project):
    older = tracking.connect().get_registered_model("digits").aliases["linear"]
    shutil.copytree("models", "older")
    shutil.copytree("evaluation", "older-evaluation")
    import_module("stages.export").main()  # champion
    shutil.rmtree(".lineup/checkpoints", ignore_errors=True)
    train(good_weights())
    import_module("stages.evaluate").main()
    assert alias("linear") == 2
    for name, copy in (("models", "older"), ("evaluation", "older-evaluation")):
        shutil.rmtree(name)
        Path(copy).rename(name)
    client = tracking.connect()
    (run,) = client.search_runs(
        ["1"], f"tags.`{tracking.runs.TRAINING}` = '{version(older).tags['lineup.training']}'"
    )
    client.delete_tag(
        run.info.run_id, "lineup.evaluation"
    )  # as if its evaluation had waited for the store
    tracking.record_evaluations(["linear"])
    assert alias("linear") == 2


def test_the_first_export_is_the_champion_and_says_so(project):
    assert "version 1 is the champion: there was no champion" in export()
    assert alias("champion") == 1 and alias("challenger") is None


def test_a_significantly_worse_model_becomes_challenger_with_numbers(project):
    good = good_weights()
    train(good)
    export()
    train(constant(good))
    decision = export()
    assert "challenger" in decision and "significantly worse" in decision and "p = " in decision
    assert alias("champion") == 2 and alias("challenger") == 3
    assert version(3).tags["gate"] in decision
    assert version(3).tags["gate"] in version(3).description
    assert export(promote="always").endswith("is the champion: export.promote is 'always'")
    assert alias("champion") == 3 and alias("challenger") is None


def test_a_better_and_an_equal_model_move_the_champion(project):
    export()
    good = good_weights()
    train(good)
    assert "version 2 is the champion: better" in export()
    train(good)
    assert "version 3 is the champion: not significantly worse" in export()
    assert "it was the champion already" in export()
    assert "not significantly worse" in version(3).tags["gate"]  # the reason stays
    assert alias("champion") == 3 and alias("challenger") is None


def test_never_promotes_nothing_and_takes_nothing_from_the_champion(project):
    assert "challenger" in export(promote="never")
    assert alias("champion") is None and alias("challenger") == 1
    export()
    export(promote="never")
    assert alias("champion") == 1 and alias("challenger") is None


def test_champions_cannot_sink_step_by_step(project):
    good = good_weights()
    best = train(good)
    export()
    count = len(validation()[1])
    margin = 1.5 / count  # allows one image less than the best, not two
    step = worsened(good, best - 1)
    train(step)
    assert "champion: not significantly worse" in export(margin=margin)
    train(worsened(step, best - 2))
    decision = export(margin=margin)
    assert "challenger" in decision and f"below the best champion's {best / count:.4f}" in decision
    assert alias("champion") == 3


def test_a_model_of_another_split_cannot_be_compared_and_becomes_challenger(project):
    export()
    train(good_weights(), split="f" * 64)
    decision = export()
    assert "challenger" in decision and "another split" in decision
    assert alias("champion") == 1


def test_sync_decides_nothing_twice(project):
    export()
    train(good_weights())
    export()
    shutil.copytree(project, project.with_name("older"), symlinks=True)
    train(good_weights())
    export()
    assert alias("champion") == 3
    shutil.rmtree("models")
    shutil.copytree(
        project.with_name("older") / "models", "models"
    )  # an older training is checked out
    assert "decided about before" in tracking.record_export("linear", GATE, once=True)
    assert alias("champion") == 3


def test_a_pending_gate_waits_for_its_own_split_and_holds_nobody_up(project, monkeypatch, capsys):
    export()
    train(good_weights())
    monkeypatch.setattr(tracking.store, "SERVER", "http://127.0.0.1:9")  # nobody is there
    assert "can't be reached" in export()
    monkeypatch.setattr(tracking.store, "SERVER", "")
    split = json.loads(Path("data/split/split.json").read_text())
    tensors = read_tensors(Path("data/split/indices.safetensors"))
    shutil.copytree("data/split", "data/kept")
    write_tensors(
        Path("data/split/indices.safetensors"),
        tensors | {"validation": tensors["validation"].flip(0)},
    )
    write_json(
        Path("data/split/split.json"),
        split | {"digest": sha256(Path("data/split/indices.safetensors"))},
    )
    assert tracking.sync() == 1
    assert "not the split of this training" in capsys.readouterr().out
    assert alias("champion") == 1
    shutil.rmtree("data/split")
    Path("data/kept").rename("data/split")
    assert tracking.sync() == 0
    assert alias("champion") == 2
    assert trainings() == []


def test_a_version_says_what_it_is_and_how_to_get_and_reproduce_it(project):
    export()
    text = version(1).description
    for words in (
        "**linear** trained on **digits**",
        "| test_accuracy |",
        'mlflow.pyfunc.load_model("models:/digits/1")',
        "git checkout",
        "dvc repro train@linear",
        "there was no champion",
    ):
        assert words in text
    run = tracking.connect().get_run(version(1).run_id)
    assert run.data.tags["git_commit"] in text


def test_a_registered_model_answers_raw_pixels_with_probabilities(project):
    import mlflow

    images, _ = datasets.load("test")
    tracking.connect()
    model = mlflow.pyfunc.load_model("models:/digits@linear")
    answers = torch.tensor(model.predict(images.numpy()))
    (expected,) = read_tensors(Path("evaluation/linear/predictions.safetensors")).values()
    assert torch.allclose(answers, expected, atol=1e-5)
    with pytest.raises(mlflow.exceptions.MlflowException, match=r"uint8|shape"):
        model.predict(images.float().numpy())


def test_a_name_that_is_not_registered_is_an_error_that_lists_what_is(project):
    with pytest.raises(UserError, match="registered: digits"):
        tracking.download("models:/flowers@champion")


def test_a_registered_model_of_the_own_store_is_found_without_mlflow_also_after_a_move(
    project, finished
):
    code = """if True:
        import sys
        from lineup import tracking
        found = {tracking.download("models:/digits@linear"), tracking.download("models:/digits/1")}
        print(*found, "mlflow" in sys.modules, sep="\\n")
    """

    def download(folder):
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stdout.split("\n")[:-1]

    folder, with_mlflow = download(finished)
    assert (Path(folder) / "model.onnx").is_file() and Path(folder).is_relative_to(finished)
    assert with_mlflow == "False"
    moved, with_mlflow = download(
        project
    )  # its store still names the other place: MLflow is asked, and told
    assert (Path(moved) / "model.onnx").read_bytes() == (Path(folder) / "model.onnx").read_bytes()
    assert not Path(moved).is_relative_to(finished) and with_mlflow == "True"
    assert Path(download(project)[0]).is_relative_to(project)
