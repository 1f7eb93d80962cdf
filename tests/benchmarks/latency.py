"""One image, one thread, one process: ONNX Runtime against eager PyTorch for each model of models/."""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from onnxruntime import InferenceSession, OrtValue

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from lineup.params import load_params  # noqa: E402
from lineup.serving import deployable as deployment  # noqa: E402


def median_microseconds(
    contenders: dict[str, Callable[[], object]], rounds: int = 40, calls: int = 50
) -> dict[str, float]:
    """Return the median microseconds of a call of each contender; their rounds alternate, so noise meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            for _ in range(calls):
                call()
            times[name].append(1e6 * (time.perf_counter() - start) / calls)
    return {name: float(np.median(values)) for name, values in times.items()}


def bare_products(module: deployment.Deployed, image: torch.Tensor) -> Callable[[], object] | None:
    """Return the matrix products of an MLP in numpy, without normalisation, activation and softmax."""
    if module.description["architecture"] not in ("linear", "mlp"):
        return None
    weights = [
        weight.detach().numpy().T.copy()
        for weight in module.network.parameters()
        if weight.ndim == 2
    ]
    pixels = image.flatten(1).float().numpy()

    def multiply() -> np.ndarray:
        values = pixels
        for weight in weights:
            values = values @ weight
        return values

    return multiply


def measure(module: deployment.Deployed) -> dict[str, float]:
    """Return the median microseconds for one image: eager, onnx, onnx with bound buffers and, for an MLP, numpy."""
    image = torch.randint(0, 256, (1, *module.description["shape"]), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        deployment.write_onnx(module, Path(folder) / "model.onnx")
        session = deployment.read_onnx(Path(folder) / "model.onnx", threads=1)
        pixels = image.numpy()
        (source,), (target,) = session.get_inputs(), session.get_outputs()
        contenders = {
            "eager": lambda: module(image),
            "onnx": lambda: session.run([target.name], {source.name: pixels}),
            "bound": bind(
                session, source.name, pixels, target.name, len(module.description["classes"])
            ),
        }
        if products := bare_products(module, image):
            contenders["numpy"] = products
        return median_microseconds(contenders)


def bind(
    session: InferenceSession, source: str, image: np.ndarray, target: str, outputs: int
) -> Callable[[], object]:
    """Return a call of the session that reads and writes the same buffers each time, as a server would."""
    binding = session.io_binding()
    binding.bind_ortvalue_input(source, OrtValue.ortvalue_from_numpy(image))
    binding.bind_ortvalue_output(
        target, OrtValue.ortvalue_from_numpy(np.empty((1, outputs), np.float32))
    )
    return lambda: session.run_with_iobinding(binding)


def main() -> None:
    """Print a table for the architectures of params.yaml; run the pipeline first."""
    torch.set_num_threads(1)
    print(
        "one image, one thread; medians in µs; onnx: session.run, bound: the same with fixed buffers (IOBinding);"
    )
    print(
        "products: the bare matrix products of linear and mlp in numpy, without normalisation, activation, softmax"
    )
    ratios = ("eager/onnx", "eager/bound", "onnx/products", "bound/products")
    print(
        f"{'':10}{'eager':>8}{'onnx':>8}{'bound':>8}{'products':>10}"
        + "".join(f"{name:>16}" for name in ratios)
    )
    for name in load_params().architectures:
        found = measure(deployment.load(Path("models") / name))
        eager, onnx, bound, products = (
            found.get(key) for key in ("eager", "onnx", "bound", "numpy")
        )
        row = f"{name:10}{eager:8.1f}{onnx:8.1f}{bound:8.1f}{f'{products:.1f}' if products else '':>10}"
        row += f"{eager / onnx:16.2f}{eager / bound:16.2f}"
        print(row + (f"{onnx / products:16.2f}{bound / products:16.2f}" if products else ""))


if __name__ == "__main__":
    main()
