"""One image, one thread, one process: ONNX Runtime against eager PyTorch, for models/."""

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
from lineup.serving.deployable import (  # noqa: E402
    Deployable,
    load_deployable,
    read_onnx,
    write_onnx,
)


def median_microseconds(
    contenders: dict[str, Callable[[], object]], rounds: int = 40, calls: int = 50
) -> dict[str, float]:
    """Return the median microseconds of a call; rounds alternate, so noise meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            for _ in range(calls):
                call()
            times[name].append(1e6 * (time.perf_counter() - start) / calls)
    return {name: float(np.median(values)) for name, values in times.items()}


def bare_products(module: Deployable, image: torch.Tensor) -> Callable[[], object] | None:
    """Return the matrix products of an MLP in numpy, without all else that it computes."""
    if module.info.architecture not in ("linear", "mlp"):
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


def measure(module: Deployable) -> dict[str, float]:
    """Return the median microseconds for one image, by who computes it."""
    image = torch.randint(0, 256, (1, *module.info.shape), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_onnx(module, Path(folder) / "model.onnx")
        session = read_onnx(Path(folder) / "model.onnx", threads=1)
        pixels = image.numpy()
        (source,), (target,) = session.get_inputs(), session.get_outputs()
        contenders = {
            "eager": lambda: module(image),
            "onnx": lambda: session.run([target.name], {source.name: pixels}),
            "bound": bind(session, source.name, pixels, target.name, len(module.info.classes)),
        }
        if products := bare_products(module, image):
            contenders["products"] = products
        return median_microseconds(contenders)


def bind(
    session: InferenceSession, source: str, image: np.ndarray, target: str, outputs: int
) -> Callable[[], object]:
    """Return a call of the session that always uses the same buffers, as a server would."""
    binding = session.io_binding()
    binding.bind_ortvalue_input(source, OrtValue.ortvalue_from_numpy(image))
    binding.bind_ortvalue_output(
        target, OrtValue.ortvalue_from_numpy(np.empty((1, outputs), np.float32))
    )
    return lambda: session.run_with_iobinding(binding)


def main() -> None:
    """Print a table for the architectures of params.yaml; run the pipeline first."""
    torch.set_num_threads(1)
    print("one image, one thread; medians in µs; onnx: session.run;")
    print("bound: the same with fixed buffers (IOBinding);")
    print("products: the bare matrix products of linear and mlp in numpy, and nothing else of them")
    columns = ("eager", "onnx", "bound", "products")
    ratios = (("eager", "onnx"), ("eager", "bound"), ("onnx", "products"), ("bound", "products"))
    titles = [*columns, *("/".join(pair) for pair in ratios)]
    print(f"{'':10}" + "".join(f"{title:>16}" for title in titles))
    for name in load_params().architectures:
        found = measure(load_deployable(Path("models") / name))
        cells = [f"{found[column]:.1f}" for column in columns if column in found]
        cells += [""] * (len(columns) - len(cells))
        cells += [f"{found[a] / found[b]:.2f}" for a, b in ratios if b in found]
        print(f"{name:10}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
