"""One image, one thread, one process: ONNX Runtime against eager PyTorch for each model of models/."""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from stages.lib import deployment  # noqa: E402
from stages.lib.params import load_params  # noqa: E402


def median_microseconds(
    contenders: dict[str, Callable[[], object]], rounds: int = 40, calls: int = 50
) -> dict[str, float]:
    """Return the median microseconds of a call of each contender; their rounds alternate, so noise meets all alike."""
    calls = 50
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
    weights = [weight.detach().numpy().T.copy() for weight in module.network.parameters() if weight.ndim == 2]
    if module.description["architecture"] not in ("linear", "mlp"):
        return None
    pixels = image.flatten(1).float().numpy()

    def multiply() -> np.ndarray:
        values = pixels
        for weight in weights:
            values = values @ weight
        return values

    return multiply


def measure(module: deployment.Deployed) -> dict[str, float]:
    """Return the median microseconds for one image: eager, onnx and, for an MLP, numpy."""
    image = torch.randint(0, 256, (1, *module.description["shape"]), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        deployment.write_onnx(module, Path(folder) / "model.onnx")
        session = deployment.read_onnx(Path(folder) / "model.onnx", threads=1)
        feed = {session.get_inputs()[0].name: image.numpy()}
        contenders = {"eager": lambda: module(image), "onnx": lambda: session.run(None, feed)}
        if products := bare_products(module, image):
            contenders["numpy"] = products
        return median_microseconds(contenders)


def main() -> None:
    """Print a table for the architectures of params.yaml; run the pipeline first."""
    torch.set_num_threads(1)
    print(f"{'':10} {'eager µs':>9} {'onnx µs':>9} {'eager/onnx':>11} {'onnx/numpy products':>20}")
    for name in load_params().architectures:
        found = measure(deployment.load(Path("models") / name))
        bare = f"{found['onnx'] / found['numpy']:20.2f}" if "numpy" in found else ""
        print(f"{name:10} {found['eager']:9.1f} {found['onnx']:9.1f} {found['eager'] / found['onnx']:11.2f} {bare}")


if __name__ == "__main__":
    main()
