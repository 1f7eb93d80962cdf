import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml

from lineup import files
from lineup.architectures import build
from lineup.errors import UserError
from lineup.evaluation import metrics
from lineup.serving import deployable
from stages import export

ROOT = Path(__file__).parents[2]
SHAPE = [1, 12, 12]
CLASSES = ["cat", "dög", "a bird"]
IMAGES = 1003  # a short last batch
HYPERPARAMETERS = {
    "linear": {},
    "mlp": {"hidden": [16]},
    "cnn": {"channels": [4, 8]},
    "rnn": {"hidden": 8, "layers": 2},
}


@pytest.fixture(scope="module", autouse=True)
def untracked():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEUP_TRACKING", "off")
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder in which `export` has shipped an MLP, and its module."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        module = make_project("mlp")
        export.main()
        yield folder, module


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_project(architecture, **settings):
    """Fill the current folder with all that export reads, for a network with random weights that is always right."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["model"] = architecture
    params["export"] |= settings
    Path("params.yaml").write_text(yaml.safe_dump(params))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, *SHAPE), dtype=torch.uint8, generator=generator)
    module = make_model(
        architecture, {"task": "classification", "classes": CLASSES, "shape": SHAPE}
    )
    labels = deployable.predict(module, images, 100).argmax(dim=1)
    for part in ("train", "test"):
        tensors.write_tensors(
            Path(f"data/raw/{part}.safetensors"), {"images": images, "labels": labels}
        )
    split = {"train": torch.arange(800), "validation": torch.arange(800, IMAGES)}
    split |= {"mean": torch.tensor([0.5]), "std": torch.tensor([0.25])}
    tensors.write_tensors(Path("data/split/indices.safetensors"), split)
    files.write_json(Path("data/split/split.json"), {"digest": "0" * 64})
    scores = metrics.classification(deployable.predict(module, images, 1000), labels, 2, 0.95)
    write_scores(architecture, scores)
    return module


def make_model(architecture, facts):
    """Write models/<architecture> with random weights, and return its module."""
    torch.manual_seed(1)
    network = build(
        architecture, facts["shape"], len(facts["classes"]), HYPERPARAMETERS[architecture]
    )
    for parameter in network.parameters():
        parameter.data.mul_(2)  # clear decisions
    folder = Path("models") / architecture
    tensors.write_tensors(folder / "model.safetensors", network.state_dict())
    description = facts | {
        "architecture": architecture,
        "hyperparameters": HYPERPARAMETERS[architecture],
        "dataset": "pets",
        "mean": [0.5],
        "std": [0.25],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "epoch": 4,
        "validation": {"val_loss": 0.2, "val_accuracy": 0.9},
        "seed": 3,
        "weights_sha256": files.sha256(folder / "model.safetensors"),
    }
    files.write_json(folder / "model.json", description)
    return deployable.load_deployable(folder)


def write_scores(architecture, scores):
    path = Path("evaluation") / architecture / "metrics.json"
    files.write_json(path, {f"test_{name}": value for name, value in scores.items()})


def test_export_holds_every_format_the_card_and_the_example(exported):
    names = {path.name for path in (exported[0] / "export").iterdir()}
    assert names == {
        "model.onnx",
        "model.pt2",
        "model.safetensors",
        "model.json",
        "README.md",
        "example.py",
    }
    assert not list(exported[0].glob(".export-*"))


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt2", "model.onnx"])
def test_every_format_answers_like_the_trained_model_at_any_batch_size(exported, name, batch_size):
    folder, module = exported
    images = torch.randint(0, 256, (2 * batch_size + 1, *SHAPE), dtype=torch.uint8)
    answers = export.formats(folder / "export")[name](images, batch_size)
    assert answers.dtype == torch.float32
    torch.testing.assert_close(answers, deployable.predict(module, images, 1000), atol=1e-5, rtol=0)
    torch.testing.assert_close(answers.sum(dim=1), torch.ones(len(images)))


def test_the_onnx_file_is_one_checked_file_that_says_what_it_is(exported):
    folder, _ = exported
    model = onnx.load(folder / "export/model.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["classes"]) == CLASSES
    assert json.loads(facts["shape"]) == SHAPE
    assert (facts["dataset"], facts["architecture"]) == ("pets", "mlp")
    assert facts["weights_sha256"] == files.sha256(folder / "models/mlp/model.safetensors")
    versions = json.loads(facts["versions"])
    assert versions["opset"] == model.opset_import[0].version
    assert versions["torch"] == torch.__version__


def test_no_file_tells_where_it_was_made(exported):
    for path in (exported[0] / "export").iterdir():
        assert str(ROOT).encode() not in path.read_bytes(), path.name


def test_no_record_of_the_pt2_file_is_a_pickle(exported):
    with zipfile.ZipFile(exported[0] / "export/model.pt2") as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert records["data/sample_inputs/model.pt"] == b""
    assert not [name for name, content in records.items() if content[:2] in (b"\x80\x02", b"PK")]


def test_the_example_runs_without_torch(exported):
    images = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), dtype=np.uint8)
    np.save(exported[0] / "images.npy", images)
    program = (
        "import runpy, sys; sys.argv = ['example.py', 'images.npy']; runpy.run_path('export/example.py');"
        "assert not {'torch', 'stages', 'onnx', 'mlflow'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=exported[0], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line.replace("'", '"')) for line in done.stdout.splitlines()]
    expected = deployable.predict(exported[1], torch.from_numpy(images), 2)
    assert [list(line) for line in lines] == [CLASSES, CLASSES]
    np.testing.assert_allclose([list(line.values()) for line in lines], expected, atol=1e-4)


def test_the_one_metrics_file_is_flat_short_and_agrees_with_evaluate(exported):
    found = files.read_json(exported[0] / "metrics.json")
    evaluated = files.read_json(exported[0] / "evaluation/mlp/metrics.json")
    assert list(found)[:4] == ["test_accuracy", "test_loss", "val_accuracy", "latency_ms_p50"]
    assert set(found) - set(list(found)[:4]) == {
        *(
            "parameters",
            "size_bytes",
            "latency_ms_p99",
            "images_per_second",
            "images_per_second_1thread",
        )
    }
    assert found["test_accuracy"] == evaluated["test_accuracy"] == 1
    assert found["size_bytes"] == (exported[0] / "export/model.onnx").stat().st_size
    assert 0 < found["latency_ms_p50"] <= found["latency_ms_p99"]


def test_model_json_lists_the_digest_of_every_file_and_the_card_its_scores(exported):
    folder = exported[0] / "export"
    description = files.read_json(folder / "model.json")
    assert set(description["files"]) == {
        "model.onnx",
        "model.pt2",
        "model.safetensors",
        "example.py",
    }
    assert all(
        files.sha256(folder / name) == digest for name, digest in description["files"].items()
    )
    card = (folder / "README.md").read_text()
    assert "| test_accuracy | 1 (" in card
    assert "cat, dög, a bird" in card


@pytest.mark.parametrize("broken", ["model.safetensors", "model.pt2", "model.onnx"])
def test_a_format_that_differs_stops_the_export_and_publishes_nothing(project, monkeypatch, broken):
    make_project("linear")
    true_write = export.write_formats

    def write_formats(module, trained, folder):
        """Write the right files, then put one of a slightly different model in the place of `broken`."""
        true_write(module, trained, folder)
        weights = module.network.state_dict()
        next(iter(weights.values()))[0, 0] += 0.01
        if broken == "model.safetensors":
            tensors.write_tensors(folder / broken, weights)
            description = files.read_json(folder / "model.json")
            files.write_json(
                folder / "model.json",
                description | {"weights_sha256": files.sha256(folder / broken)},
            )
        else:
            {"model.pt2": deployable.write_pt2, "model.onnx": deployable.write_onnx}[broken](
                module, folder / broken
            )
        next(iter(weights.values()))[0, 0] -= 0.01

    monkeypatch.setattr(export, "write_formats", write_formats)
    with pytest.raises(SystemExit) as stop:
        export.main()
    assert broken in stop.value.code
    assert "test input" in stop.value.code
    assert {path.name for path in project.iterdir()} == {
        "params.yaml",
        "data",
        "models",
        "evaluation",
    }


def test_the_worst_input_is_named_and_a_tie_is_no_mistake():
    reference = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    tied = reference + torch.tensor([[-2e-6, 2e-6, 0.0], [0, 0, 0], [0, 0, 0]])
    assert tied.argmax(dim=1).tolist() != reference.argmax(dim=1).tolist()
    assert deployable.difference(tied, reference) is None
    assert export.ties(reference) == pytest.approx(1 / 3)
    wrong = reference.clone()
    wrong[1, 0] += 2e-5
    wrong[2, 2] -= 3e-5
    assert "test input 2 is off by 3e-05" in deployable.difference(wrong, reference)
    assert "finite" in deployable.difference(reference * float("nan"), reference)
    assert "shape (2, 3)" in deployable.difference(reference[:2], reference)


def test_scores_other_than_those_of_evaluate_stop_the_export(project):
    make_project("linear")
    scores = files.read_json(Path("evaluation/linear/metrics.json"))
    files.write_json(Path("evaluation/linear/metrics.json"), scores | {"test_accuracy": 0.999})
    with pytest.raises(SystemExit, match=r"test_accuracy is 1\.000000, and 0\.999000 was expected"):
        export.main()
    assert not Path("export").exists()
    assert not Path("metrics.json").exists()


def test_a_missing_training_or_evaluation_is_named(project):
    make_project("linear")
    Path("evaluation/linear/metrics.json").unlink()
    with pytest.raises(UserError, match="dvc repro evaluate"):
        export.main()
    write_scores("linear", {})
    Path("models/linear/model.json").unlink()
    with pytest.raises(UserError, match="models/linear holds no trained model"):
        export.main()


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_int8_is_smaller_and_reported_beside_the_float_file(project, method):
    make_project("mlp", quantize=method, max_drop=0.5)
    export.main()
    int8 = files.read_json(Path("export/model.json"))["int8"]
    path = Path("export/model.int8.onnx")
    assert int8["size_bytes"] == path.stat().st_size < Path("export/model.onnx").stat().st_size
    session = onnxruntime.InferenceSession(path)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == CLASSES
    images, labels = load_test()
    batches = [session.run(None, {"images": batch})[0] for batch in np.split(images, range(500, len(images), 500))]
    answers = np.concatenate(batches)  # dynamic scales depend on the batch
    assert int8["test_accuracy"] == pytest.approx((answers.argmax(axis=1) == labels).mean())
    card = Path("export/README.md").read_text()
    assert "| test_accuracy of model.int8.onnx |" in card


def load_test():
    tensors = tensors.read_tensors(Path("data/raw/test.safetensors"))
    return tensors["images"].numpy(), tensors["labels"].numpy()


def test_int8_that_costs_too_much_accuracy_is_refused_with_figures(project):
    make_project("mlp", quantize="dynamic", max_drop=0)
    with pytest.raises(
        UserError,
        match=r"accuracy of 0\.9\d+, float32 1\.0000: it drops by 0\.0\d+, export\.max_drop",
    ):
        export.main()
    assert not Path("export").exists()


def test_a_regression_is_exported_with_numbers_in_and_out(project):
    inputs = torch.tensor(
        [[73.0, 67, 43], [91, 88, 64], [87, 134, 58], [102, 43, 37], [69, 96, 70]]
    )
    facts = {"task": "regression", "classes": ["apples", "oranges"], "shape": [3]}
    module = make_model("linear", facts | {"mean": [0.0], "std": [1.0]})
    outputs = deployable.predict(module, inputs, 5)
    targets = outputs + 1
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"model": "linear"}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    tensors.write_tensors(Path("data/raw/test.safetensors"), {"inputs": inputs, "targets": targets})
    write_scores("linear", metrics.regression(outputs, targets))
    export.main()
    session = onnxruntime.InferenceSession("export/model.onnx")
    np.testing.assert_allclose(session.run(None, {"inputs": inputs.numpy()})[0], outputs, rtol=1e-5)
    found = files.read_json(Path("metrics.json"))
    assert found["test_loss"] == pytest.approx(1, abs=1e-4)
    assert "test_accuracy" not in found
    assert "Regression model" in Path("export/README.md").read_text()


def test_a_run_by_the_wrong_hand_ends_with_exit_code_2_and_one_line(project):
    done = subprocess.run(
        [sys.executable, ROOT / "stages/export.py"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: params.yaml is not here")
