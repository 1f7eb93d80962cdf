"""The model that ships: raw inputs in, probabilities out; built from trained weights, as ONNX."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

from lineup.architectures import build
from lineup.data.dataset import Dataset, Split
from lineup.errors import UserError, lacks_memory
from lineup.evaluation.inference import evaluation_batch, predict
from lineup.files import replacing, sha256
from lineup.model_info import ModelInfo
from lineup.paths import WEIGHTS
from lineup.task import Task
from lineup.tensors import Rows, read_tensors

OPSET = 20
TOLERANCE = 1e-5  # within which the file equals the trained model
_ROUGH_TOLERANCE = 1e-3  # beyond which it is another one, on whatever machine
_NOISE_SCALES = (255, 25, 5)  # of pixels: strong noise may saturate a softmax
SMALL_BATCHES = {1: 20, 7: 20}  # batch size → how many such batches are verified too


class Deployable(nn.Module):
    """A network with its preprocessing: uint8 (N, C, H, W) → probabilities (N, K).

    Of a regression: float32 (N, F) → float32 (N, T).
    """

    def __init__(self, network: nn.Module, info: ModelInfo) -> None:
        """Wrap a network that takes normalised inputs."""
        super().__init__()
        self.network = network
        self.info = info
        self.is_classification = info.task is Task.CLASSIFICATION
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (info.mean, info.std))
        self.register_buffer("mean", mean * 255)  # as the training normalises
        self.register_buffer("std", std * 255)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map raw inputs to probabilities (N, K), or to regression outputs (N, T)."""
        if not self.is_classification:
            return self.network(inputs)
        normalised = (inputs.float() - self.mean) / self.std
        return torch.softmax(self.network(normalised), dim=1)

    def example(self, batch_size: int) -> Tensor:
        """Return raw inputs of the right shape and dtype, all zero."""
        dtype = getattr(torch, self.info.task.input_dtype)
        return torch.zeros(batch_size, *self.info.shape, dtype=dtype)


def load_deployable(folder: Path) -> Deployable:
    """Rebuild the model of a folder with weights and model.json, on the CPU; UserError if not."""
    info = ModelInfo.read(folder)
    weights = _read_weights(folder / WEIGHTS, info.weights_sha256)
    network = build(info.architecture, info.shape, len(info.classes), info.hyperparameters)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        message = f"{folder}: the weights do not fit the architecture ({error}); run: dvc repro"
        raise UserError(message) from None
    return Deployable(network, info).eval()


def check_data(info: ModelInfo, folder: Path) -> None:
    """Raise UserError where the model in `folder` was trained on other data than data/ holds."""
    dataset, split = Dataset.read(), Split.read()
    present = dataset.classes, dataset.shape, dataset.digests, split.digest
    if (info.classes, info.shape, info.data, info.split) != present:
        other = f"{folder} was trained on other data, or another split, than data/ holds"
        raise UserError(f"{other}; run: dvc repro")


def _read_weights(path: Path, digest: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is missing; run: dvc repro")
    weights = read_tensors(path)
    if sha256(path) != digest:
        raise UserError(
            f"{path} is not the file that model.json describes (its SHA-256 differs); "
            "run: dvc repro"
        )
    return weights


# --- ONNX -----------------------------------------------------------------------------------------


def write_onnx(model: Deployable, path: Path) -> None:
    """Write one checked ONNX file for any batch size; its metadata tell what a consumer needs."""
    task = model.info.task
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), replacing(path) as temporary:
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                model,
                (model.example(2),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[task.inputs],
                output_names=[task.outputs],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
            )
        except Exception as error:  # of somebody's code, whatever it does
            if lacks_memory(error):
                raise
            raise UserError(_explain_export(error, model.info.architecture)) from None
        proto = program.model_proto
        for node in proto.graph.node:
            del node.metadata_props[:]  # hold the paths of this machine
        onnx.helper.set_model_props(proto, onnx_metadata(model.info))
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, temporary)


def _explain_export(error: Exception, architecture: str) -> str:
    reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
    hint = "write its forward without what depends on values, or leave it out of architectures"
    return f"'{architecture}' can't be written as ONNX: {reason[0]}; {hint}"


def onnx_metadata(info: ModelInfo) -> dict[str, str]:
    """Return the metadata of an ONNX file: names as they are, everything else as JSON."""
    content: dict[str, Any] = {
        "architecture": info.architecture,
        "dataset": info.dataset,
        "task": str(info.task),
        "classes": info.classes,
        "shape": info.shape,
        "preprocessing": info.preprocessing,
        "weights_sha256": info.weights_sha256,
        "split": info.split,
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__, "opset": OPSET},
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in content.items()
    }


def read_onnx(path: Path, threads: int = 0) -> InferenceSession:
    """Open an ONNX file on the CPU with so many threads (0: all cores); UserError if it is none."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        if lacks_memory(error):
            raise
        raise UserError(f"{path} is not an ONNX file that can be used: {error}") from None


def predict_onnx(
    session: InferenceSession, inputs: Tensor | Rows, batch_size: int | None = None
) -> Tensor:
    """Return an ONNX session's outputs, float32 (N, K), computed batch by batch."""
    name = session.get_inputs()[0].name
    batches = inputs.split(batch_size or evaluation_batch(inputs.shape[1:]))
    outputs = [session.run(None, {name: batch.numpy()})[0] for batch in batches]
    return torch.cat([torch.from_numpy(batch) for batch in outputs])


def verify(session: InferenceSession, model: Deployable, inputs: Tensor, outputs: Tensor) -> None:
    """Hold a file's `outputs` for `inputs`, and small batches of it, against the trained model.

    Raises UserError that names the worst input: such a file must not ship.
    """
    expected = predict(model, inputs)
    allowed = allowed_difference(expected)
    differences = {"": difference(outputs, expected, allowed)}
    for batch_size, count in SMALL_BATCHES.items():
        some = inputs[: batch_size * count]
        small = predict_onnx(session, some, batch_size)
        text = difference(small, expected[: len(some)], allowed)
        differences[f" in batches of {batch_size}"] = text
    for where, text in differences.items():
        if text:
            name = model.info.architecture
            raise UserError(f"the ONNX file of {name}{where} is not the trained model: {text}")


def check_same_outputs(model: Deployable, path: Path) -> None:
    """Raise UserError where today's code makes another network of the weights than a file has."""
    noise = torch.rand(8, *model.info.shape, generator=torch.Generator().manual_seed(0))
    dtype = model.example(1).dtype
    inputs = torch.cat([(scale * noise).to(dtype) for scale in _NOISE_SCALES])
    outputs, expected = predict_onnx(read_onnx(path), inputs), predict(model, inputs)
    if difference(outputs, expected, allowed_difference(expected, _ROUGH_TOLERANCE)):
        raise UserError(
            f"the code has changed since this model ({model.info.architecture}) was trained, and "
            "gives other outputs now; go to the commit that its version in MLflow names"
        )


def allowed_difference(expected: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Return how far outputs may be from those expected, (N, K): float32 (K,).

    The tolerance is relative to a target's largest value where that is above 1.
    """
    return tolerance * expected.abs().amax(dim=0).clamp_min(1)


def difference(outputs: Tensor, expected: Tensor, allowed: Tensor) -> str:
    """Return the worst input if outputs (N, K) differ by more than `allowed` (K,), else ""."""
    if outputs.shape != expected.shape or not torch.isfinite(outputs).all():
        wanted = tuple(expected.shape)
        return f"outputs of shape {tuple(outputs.shape)}; all finite and of shape {wanted} expected"
    gaps = (outputs - expected).abs()
    worst, output = divmod(int((gaps / allowed).argmax()), gaps.shape[1])
    gap, most = gaps[worst, output], allowed[output]
    if gap <= most:
        return ""
    return f"test input {worst} is off by {gap:.2g}, and {most:.2g} is allowed"
