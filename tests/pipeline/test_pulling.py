"""A registered and an exported model in the hands of strangers: other processes and tools."""

import json
import shutil
import subprocess
import urllib.error
import urllib.request

import numpy as np
import pytest
from helpers.project import ROOT
from helpers.servers import Server
from safetensors.numpy import load_file

from lineup.files import sha256

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(finished):
    return {"MLFLOW_TRACKING_URI": f"sqlite:///{finished.folder / 'mlflow.db'}"}


@pytest.fixture(scope="module")
def images(finished):
    return load_file(finished.folder / "data/raw/test.safetensors")["images"]


@pytest.fixture(scope="module")
def expected(finished):
    """The probabilities that evaluate found for the champion, float32 (N, K)."""
    return load_file(finished.folder / "evaluation/mlp/predictions.safetensors")["probabilities"]


def test_mlflow_loads_the_champion_without_torch_and_without_this_code(
    finished, settings, images, expected, tmp_path
):
    np.save(tmp_path / "images.npy", images)
    program = str(ROOT / "tests/programs/pull_champion.py")
    done = finished.run("python", "-I", program, cwd=tmp_path, **settings)
    np.testing.assert_allclose(np.load(tmp_path / "answer.npy"), expected, atol=1e-5)
    assert done.stdout.count("refused:") == 2


def test_the_command_line_downloads_and_predicts(finished, settings, images, expected, tmp_path):
    uri = "models:/digits@champion"
    where = ("--artifact-uri", uri, "--dst-path", "got")
    finished.run("mlflow", "artifacts", "download", *where, cwd=tmp_path, **settings)
    (onnx_file,) = tmp_path.glob("got/**/model.onnx")
    assert sha256(onnx_file) == sha256(finished.folder / "evaluation/mlp/model.onnx")
    assert list(tmp_path.glob("got/**/model.safetensors"))
    assert not list(tmp_path.glob("got/**/*.pt2"))
    (tmp_path / "request.json").write_text(json.dumps({"inputs": images[:3].tolist()}))
    options = ("--model-uri", uri, "--env-manager", "local", "--content-type", "json")
    files = ("--input-path", "request.json", "--output-path", "answer.json")
    finished.run("mlflow", "models", "predict", *options, *files, cwd=tmp_path, **settings)
    answer = json.loads((tmp_path / "answer.json").read_text())
    np.testing.assert_allclose(probabilities(answer), expected[:3], atol=1e-5)


@pytest.fixture(scope="module")
def server(finished, settings, tmp_path_factory):
    """The address of a real `mlflow models serve`."""
    command = (
        "models",
        "serve",
        "--env-manager",
        "local",
        "--model-uri",
        "models:/digits@champion",
    )
    server = Server(tmp_path_factory.mktemp("serve"), *command, health="/ping")
    try:
        yield server.start(finished.environment | settings).address
    finally:
        server.stop()


def probabilities(body):
    """Return the probabilities of an answer, which names its outputs or has one row per input."""
    answer = body.get("predictions", body)
    if isinstance(answer, dict):
        return answer["probabilities"]
    return [row["probabilities"] for row in answer] if isinstance(answer[0], dict) else answer


def ask(server, content, kind="application/json"):
    """Return status and parsed body of the answer."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    request = urllib.request.Request(f"{server}/invocations", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("count", [1, 50])
def test_a_served_model_answers_over_http(server, images, expected, count):
    for key in ("inputs", "instances"):
        status, body = ask(server, {key: images[:count].tolist()})
        assert status == 200
        np.testing.assert_allclose(probabilities(body), expected[:count], atol=1e-5)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"inputs": [[1, 2, 3]]}, "application/json"),
        ({"inputs": "a word"}, "application/json"),
        ({"inputs": [[[["a"] * 8] * 8]]}, "application/json"),
        ({"nonsense": 1}, "application/json"),
        (b"{not json", "application/json"),
        (b"\x00\xff" * 100, "application/octet-stream"),
        ({"inputs": [[[[0] * 8] * 8] * 3]}, "application/json"),
    ],
)
def test_a_served_model_refuses_nonsense_with_a_4xx_and_stays_up(server, images, content, kind):
    status, body = ask(server, content, kind)
    assert 400 <= status < 500, body
    assert ask(server, {"inputs": images[:1].tolist()})[0] == 200


def test_a_served_model_survives_a_huge_body(server, images):
    status, _ = ask(server, {"inputs": np.zeros((20_000, 1, 8, 8), dtype="uint8").tolist()})
    assert status == 200 or 400 <= status < 500
    assert ask(server, {"inputs": images[:1].tolist()})[0] == 200


@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
def test_javascript_gives_the_same_classes(finished, images, expected, tmp_path):
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "onnxruntime-web"]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True)
    shutil.copy(finished.folder / "export/model.onnx", tmp_path)
    (tmp_path / "images.bin").write_bytes(images.tobytes())
    shutil.copy(ROOT / "tests/programs/classify.mjs", tmp_path)
    output = subprocess.run(
        ["node", "classify.mjs"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    np.testing.assert_allclose(np.reshape(json.loads(output), expected.shape), expected, atol=1e-5)
