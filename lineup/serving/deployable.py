"""Weights → the module that ships: raw pixels in, probabilities out; as pt2 and ONNX, read back without unpickling."""

from __future__ import annotations

import io
import json
import logging
import pickletools
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lineup.architectures import build
from lineup.errors import UserError
from lineup.data.dataset import evaluation_batch
from lineup.files import read_json, replacing, sha256

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OPSET = 20
TOLERANCE = 1e-5  # within which every form of a model equals the trained one
VERSION_RECORDS = {
    "archive_format",
    "archive_version",
    "byteorder",
    ".data/version",
    ".data/serialization_id",
}
EVALUATED = {  # what torch.export.load evaluates, calls or compiles as Python, and how it looks in a file of ours
    "expr_str": re.compile(
        r"(Symbol|Integer|Add|Mul|Max|Min|positive=True|integer=True|'[su]\d+'|-?\d+|[(), ])*"
    ),
    "target": re.compile(r"torch\.ops\.aten\.\w+\.\w+"),
    "guards_code": re.compile(r"\[\]"),
}
TENSOR_PARTS = {
    "torch._utils _rebuild_tensor_v2",
    "torch ByteStorage",
    "torch FloatStorage",
    "collections OrderedDict",
}
IMPORTING = {
    "STACK_GLOBAL",
    "INST",
    "EXT1",
    "EXT2",
    "EXT4",
}  # a pickle's other ways to name a function


class Deployed(nn.Module):
    """A network with its preprocessing: uint8 (N, C, H, W) → probabilities (N, K); regression: float32 → float32."""

    def __init__(self, network: nn.Module, description: dict[str, Any]) -> None:
        """Wrap a network that takes normalised images; `description` is the content of its model.json."""
        super().__init__()
        self.network = network
        self.description = description
        self.classifies = description["task"] == "classification"
        mean, std = (
            torch.tensor(description[key], dtype=torch.float32).view(-1, 1, 1)
            for key in ("mean", "std")
        )
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("offset", -mean / std)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map raw inputs to probabilities (N, K), or to regression outputs (N, T)."""
        if not self.classifies:
            return self.network(inputs)
        return torch.softmax(self.network(inputs.float() * self.scale + self.offset), dim=1)

    def example(self, batch_size: int) -> Tensor:
        """Return raw inputs of the right shape and type, all zero."""
        dtype = torch.uint8 if self.classifies else torch.float32
        return torch.zeros(batch_size, *self.description["shape"], dtype=dtype)


def load(folder: Path) -> Deployed:
    """Build the module of a models/<architecture> folder, on the CPU, in eval mode; UserError on misfits."""
    try:
        description = read_json(folder / "model.json")
    except FileNotFoundError:
        raise UserError(f"{folder} holds no trained model; run: dvc repro") from None
    weights = read_weights(folder / "model.safetensors", description["weights_sha256"])
    hyperparameters = description["hyperparameters"]
    network = build(
        description["architecture"],
        description["shape"],
        len(description["classes"]),
        hyperparameters,
    )
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"{folder}: the weights do not fit the architecture ({error}); run: dvc repro"
        ) from None
    return Deployed(network, description).eval()


def read_weights(path: Path, digest: str) -> dict[str, Tensor]:
    """Read a state dict; UserError where the file is missing, no safetensors file, or not the one with this SHA-256."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path} is missing; run: dvc repro")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a safetensors file ({error}): nothing else is read; run: dvc repro"
        ) from None
    if sha256(path) != digest:
        raise UserError(
            f"{path} is not the file that model.json describes (its SHA-256 differs); run: dvc repro"
        )
    return weights


def predict(
    module: Callable[[Tensor], Tensor], inputs: Tensor, batch_size: int | None = None
) -> Tensor:
    """Return the module's outputs, float32 (N, K), computed batch by batch without gradients."""
    batch_size = batch_size or evaluation_batch(inputs.shape[1:])
    outputs = torch.empty(0)
    with torch.inference_mode():
        for start in range(0, len(inputs), batch_size):
            batch = module(inputs[start : start + batch_size])
            if (
                start == 0
            ):  # one block for all: small results kept between large temporaries would fragment the heap
                outputs = batch.new_empty(len(inputs), *batch.shape[1:])
            outputs[start : start + batch_size] = batch
    return outputs


def write_pt2(module: Deployed, path: Path) -> None:
    """Write a torch.export archive with a free batch dimension and no pickled record in it."""
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The tensor attributes")  # an RNN's flat weights
        program = torch.export.export(module, (module.example(2),), dynamic_shapes=({0: batch},))
    program.example_inputs = None  # the only record that torch would pickle
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # holds the paths of this machine
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file)


def read_pt2(path: Path) -> nn.Module:
    """Load a torch.export archive; UserError before anything is loaded that would unpickle or run code."""
    refuse_code(path)
    with path.open("rb") as file:
        return torch.export.load(file).module()


def refuse_code(path: Path) -> None:
    """Raise UserError unless a pt2 archive holds nothing but plain tensors and a graph of torch operators."""
    from torch.export.pt2_archive._package import PT2ArchiveReader

    try:
        with PT2ArchiveReader(
            str(path)
        ) as archive:  # the reader that loads it: what is checked is what is loaded
            records = {name: archive.read_bytes(name) for name in archive.get_file_names()}
        harmless = VERSION_RECORDS | raw_tensors(records)
        for name, content in records.items():
            if (
                content
                and name not in harmless
                and not (is_harmless_graph(name, content) or is_example(name, content))
            ):
                raise UserError(
                    f"{path}: loading '{name}' could run code, so the file is refused; run: dvc repro"
                )
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is no pt2 archive as we write them, so it is refused; run: dvc repro"
        ) from None


def raw_tensors(records: dict[str, bytes]) -> set[str]:
    """Return the names of the records that the archive's two indexes declare as raw tensor bytes, and only as that."""
    raw, other = set(), set()
    for name, content in records.items():
        if name.startswith(("data/weights/", "data/constants/")) and name.endswith(".json"):
            for entry in json.loads(content)["config"].values():
                plain = entry["use_pickle"] is False and entry["path_name"].startswith(
                    ("weight_", "tensor_")
                )
                (raw if plain else other).add(f"{name.rpartition('/')[0]}/{entry['path_name']}")
    return raw - other


def is_harmless_graph(name: str, content: bytes) -> bool:
    """Tell whether a record is JSON and holds none of the strings that torch would evaluate or call as Python."""
    if not name.endswith(".json"):
        return False
    objects: list[dict] = []
    json.loads(content, object_hook=lambda item: objects.append(item) or item)
    return all(
        EVALUATED[key].fullmatch(str(item[key]))
        for item in objects
        for key in EVALUATED.keys() & item.keys()
    )


def is_example(name: str, content: bytes) -> bool:
    """Tell whether a record is MLflow's example input: a pickle, here only looked at, that can build only tensors."""
    if not name.startswith("data/sample_inputs/"):
        return False
    pickled = torch._C.PyTorchFileReader(io.BytesIO(content)).get_record("data.pkl")
    return all(
        argument in TENSOR_PARTS if opcode.name == "GLOBAL" else opcode.name not in IMPORTING
        for opcode, argument, _ in pickletools.genops(pickled)
    )


def write_onnx(module: Deployed, path: Path) -> None:
    """Write one checked ONNX file with a free batch dimension and what a consumer must know in its metadata."""
    import onnx

    names = ("images", "probabilities") if module.classifies else ("inputs", "outputs")
    with warnings.catch_warnings(), replacing(path) as temporary:
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            (module.example(2),),
            dynamo=True,
            opset_version=OPSET,
            input_names=names[:1],
            output_names=names[1:],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
        model = program.model_proto
        for node in model.graph.node:
            del node.metadata_props[:]  # hold the paths of this machine
        onnx.helper.set_model_props(model, onnx_metadata(module.description))
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, temporary)


def onnx_metadata(description: dict[str, Any]) -> dict[str, str]:
    """Return the metadata of an ONNX file: names as they are, everything else as JSON."""
    import onnx

    keys = (
        "architecture",
        "dataset",
        "task",
        "classes",
        "shape",
        "preprocessing",
        "weights_sha256",
    )
    facts = {key: description.get(key) for key in keys}
    facts["versions"] = {"torch": torch.__version__, "onnx": onnx.__version__, "opset": OPSET}
    return {key: fact if isinstance(fact, str) else json.dumps(fact) for key, fact in facts.items()}


def read_onnx(path: Path, threads: int = 0) -> InferenceSession:
    """Open an ONNX file on the CPU with so many threads (0: all cores)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def predict_onnx(
    session: InferenceSession, inputs: Tensor, batch_size: int | None = None
) -> Tensor:
    """Return an ONNX session's outputs, float32 (N, K), computed batch by batch."""
    batch_size = batch_size or evaluation_batch(inputs.shape[1:])
    name = session.get_inputs()[0].name
    return torch.cat(
        [
            torch.from_numpy(session.run(None, {name: b.numpy()})[0])
            for b in inputs.split(batch_size)
        ]
    )


def difference(outputs: Tensor, reference: Tensor) -> str | None:
    """Return the worst input if outputs (N, K) are not within tolerance, so that only a tie could change its class."""
    if outputs.shape != reference.shape or not torch.isfinite(outputs).all():
        return f"outputs of shape {tuple(outputs.shape)}; all finite and of shape {tuple(reference.shape)} expected"
    gaps = ((outputs - reference).abs() / reference.abs().clamp_min(1)).amax(dim=1)
    worst = int(gaps.argmax())
    if gaps[worst] <= TOLERANCE:
        return None
    return f"test input {worst} is off by {gaps[worst]:.2g}, and {TOLERANCE:g} is allowed"


def write_int8(source: Path, path: Path, method: str, images: Tensor) -> None:
    """Quantize an ONNX file to 8 bits; "static" fixes the ranges of activations as `images` uint8 show them."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

    model = onnx.load(source)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    del model.graph.value_info[
        :
    ]  # the quantizer transposes weights and trips over their former shapes
    settings: dict[str, Any] = {
        "op_types_to_quantize": ["Conv", "Gemm", "MatMul"],
        "weight_type": QuantType.QInt8,
    }
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends a preparation that these models do not need
    try:
        with replacing(path) as temporary:
            if method == "dynamic":
                quantize_dynamic(model, temporary, **settings)
            else:
                quantize_static(model, temporary, ImageReader(images), per_channel=True, **settings)
            quantized = onnx.load(temporary)
            onnx.helper.set_model_props(quantized, metadata)
            onnx.checker.check_model(quantized)
            onnx.save(quantized, temporary)
    finally:
        root.setLevel(level)


class ImageReader:
    """What ONNX Runtime's calibration reads: images uint8 (N, C, H, W), 100 at a time."""

    def __init__(self, images: Tensor) -> None:
        """Take the images to calibrate on."""
        self.batches = iter(images.split(100))

    def get_next(self) -> dict[str, Any] | None:
        """Return the next inputs, or None at the end."""
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch.numpy()}
