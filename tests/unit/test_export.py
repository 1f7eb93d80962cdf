"""export ships the very file that evaluate verified, with all that a consumer needs."""

import ast
import html
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from helpers.evaluations import CLASSES, digits, enter, write_digits, write_regression
from helpers.models import model_info
from helpers.project import ROOT, Project
from markdown_it import MarkdownIt

from lineup.errors import UserError
from lineup.files import read_json, sha256, write_json
from lineup.paths import raw
from lineup.serving.deployable import load_deployable
from lineup.serving.model_card import model_card
from lineup.tensors import read_tensors
from stages import evaluate, export

SHAPE = [1, 8, 8]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder in which `export` has shipped an MLP."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        write_digits()
        evaluate.main()
        export.main()
        yield folder


def choose(model="linear", **settings):
    path = Path("params.yaml")
    params = yaml.safe_load(path.read_text())
    params["export"] |= settings
    path.write_text(yaml.safe_dump(params | {"model": model}))


def test_export_holds_the_file_that_was_scored_the_card_and_the_example(exported):
    folder = exported / "export"
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.onnx", "model.safetensors", "model.json", "README.md", "example.py"}
    assert sha256(folder / "model.onnx") == sha256(exported / "evaluation/mlp/model.onnx")
    assert not list(exported.glob(".export-*"))


def test_the_onnx_file_is_one_checked_file_that_says_what_it_is(exported):
    model = onnx.load(exported / "export/model.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["classes"]) == CLASSES
    assert json.loads(facts["shape"]) == SHAPE
    assert (facts["dataset"], facts["architecture"]) == ("digits", "mlp")
    assert facts["weights_sha256"] == sha256(exported / "models/mlp/model.safetensors")
    assert json.loads(facts["versions"])["opset"] == model.opset_import[0].version


def test_no_file_tells_where_it_was_made(exported):
    for path in (exported / "export").iterdir():
        for folder in (ROOT, exported):
            assert str(folder).encode() not in path.read_bytes(), path.name


def test_the_example_runs_without_torch(exported):
    images = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), dtype=np.uint8)
    np.save(exported / "images.npy", images)
    program = ROOT / "tests/programs/run_example.py"
    done = subprocess.run([sys.executable, program], cwd=exported, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    with torch.inference_mode():
        expected = load_deployable(exported / "models/mlp")(torch.from_numpy(images))
    for line, probabilities in zip(lines, expected, strict=True):
        found = ast.literal_eval(line)
        assert list(found) == CLASSES
        assert list(found.values()) == pytest.approx(probabilities.tolist(), abs=1e-4)


def test_the_example_tells_who_gives_it_a_picture_what_takes_pictures(exported):
    (exported / "digit.png").write_bytes(b"\x89PNG")
    command = [sys.executable, "export/example.py", "digit.png"]
    done = subprocess.run(command, cwd=exported, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "digit.png is no .npy file; a picture: python -m stages.predict" in done.stderr


def test_the_one_metrics_file_is_short_and_agrees_with_evaluate(exported):
    found = read_json(exported / "metrics.json")
    scores = read_json(exported / "evaluation/mlp/metrics.json")
    assert found == {key: scores[key] for key in ("test_accuracy", "val_accuracy", "parameters")}


def test_model_json_lists_the_digest_of_every_file_and_the_card_its_scores(exported):
    folder = exported / "export"
    content = read_json(folder / "model.json")
    assert set(content["files"]) == {"model.onnx", "model.safetensors", "example.py"}
    assert all(sha256(folder / name) == digest for name, digest in content["files"].items())
    assert 0 < content["speed"]["latency_ms_p50"] <= content["speed"]["latency_ms_p99"]
    card = (folder / "README.md").read_text()
    assert f"| test_accuracy | {content['scores']['test_accuracy']:.6g} (" in card
    assert "五" in card


def test_names_of_classes_are_shown_by_the_card_and_never_obeyed():
    names = ["<script>alert(1)</script>", "[prize](javascript:alert(1))", "a | b", "cat_*1*"]
    card = model_card(model_info(classes=names), {}, {}, size_bytes=1, int8=None)
    page = MarkdownIt().render(card)
    assert "<script" not in page and "<a " not in page and "<em>" not in page
    assert html.unescape(page).count(", ".join(names)) == 1


def test_the_card_says_so_where_test_pictures_are_in_train_too():
    card = model_card(model_info(), {}, {}, size_bytes=1, int8=None, shared_files=30)
    assert "30 test pictures are also in training or validation" in card
    assert "also in training" not in model_card(model_info(), {}, {}, 1, None)


def test_the_card_says_so_where_outputs_are_means_with_the_mirror_image():
    cards = [
        model_card(model_info(hyperparameters=own), {}, {}, size_bytes=1, int8=None)
        for own in ({"mirror": True}, {"mirror": False}, {})
    ]
    assert ["mirror image" in card for card in cards] == [True, False, False]


def test_an_evaluation_that_is_missing_or_of_another_training_is_named(evaluated):
    weights = Path("models/mlp/model.safetensors")
    weights.write_bytes(Path("models/linear/model.safetensors").read_bytes())
    with pytest.raises(UserError, match="evaluation/mlp is of another training; run: dvc repro"):
        export.main()
    Path("evaluation/mlp/model.onnx").unlink()
    with pytest.raises(UserError, match=r"model\.onnx is missing; run: dvc repro evaluate"):
        export.main()
    assert not Path("export").exists() and not Path("metrics.json").exists()


def test_an_evaluation_of_equal_weights_that_answer_otherwise_is_of_another_training(evaluated):
    path = Path("models/mlp/model.json")
    classes = read_json(path)["classes"][::-1]
    write_json(path, read_json(path) | {"classes": classes})
    with pytest.raises(UserError, match="evaluation/mlp is of another training; run: dvc repro"):
        export.main()


def test_auto_ships_the_first_of_the_leaderboard(evaluated):
    choose("auto")
    export.main()
    assert read_json(Path("export/model.json"))["architecture"] == "linear"
    choose("mlp")
    export.main()
    assert read_json(Path("export/model.json"))["architecture"] == "mlp"


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_int8_is_of_8_bits_and_reported_beside_the_float_file(evaluated, method):
    choose("mlp", quantize=method, max_drop=0.5)
    export.main()
    int8 = read_json(Path("export/model.json"))["int8"]
    path = Path("export/model.int8.onnx")
    assert int8["size_bytes"] == path.stat().st_size
    weights = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.INT8 in weights
    session = onnxruntime.InferenceSession(path)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == CLASSES
    images, labels = digits()
    batches = images.split(500)  # dynamic scales depend on the batch
    outputs = np.concatenate([session.run(None, {"images": batch.numpy()})[0] for batch in batches])
    accuracy = (outputs.argmax(axis=1) == labels.numpy()).mean()
    assert int8["test_accuracy"] == pytest.approx(accuracy)
    assert "| test_accuracy of model.int8.onnx |" in Path("export/README.md").read_text()


def test_int8_that_costs_too_much_accuracy_is_refused_with_figures(evaluated):
    choose("linear", quantize="dynamic", max_drop=0)
    labels = read_tensors(raw("test"))["labels"]
    predicted = read_tensors(Path("evaluation/linear/predictions.safetensors"))[
        "probabilities"
    ].argmax(1)
    from lineup.tensors import write_tensors

    images, _ = digits()
    write_tensors(
        raw("test"), {"images": images, "labels": predicted}
    )  # all that float32 says is right
    assert (labels == predicted).any()
    with pytest.raises(
        UserError, match=r"accuracy of 0\.9\d+, float32 1\.0000: it drops by 0\.0\d+"
    ):
        export.main()
    assert not Path("export").exists()


def test_a_regression_is_exported_with_numbers_in_and_out(here):
    write_regression()
    evaluate.main()
    export.main()
    session = onnxruntime.InferenceSession("export/model.onnx")
    tensors = read_tensors(raw("test"))
    outputs = session.run(None, {"inputs": tensors["inputs"].numpy()})[0]
    assert np.abs(outputs - tensors["targets"].numpy()).max() < 1.5
    assert set(read_json(Path("metrics.json"))) == {"test_loss", "val_loss", "parameters"}
    card = Path("export/README.md").read_text()
    assert "Regression model" in card and "nothing about other rows" in card
    assert "test split" not in card
    choose("linear", quantize="static")
    with pytest.raises(UserError, match="quantize is for classifiers"):
        export.main()


def test_a_run_in_the_wrong_folder_ends_with_exit_code_2_and_one_line(tmp_path):
    done = Project(tmp_path).run("python", "-m", "stages.export", check=False, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: params.yaml is not here")
