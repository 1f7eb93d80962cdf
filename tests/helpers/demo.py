"""Models for the demo's page."""

import torch

from helpers.models import deployable
from lineup.architectures import build
from lineup.serving.deployable import write_onnx

FRAMING = {"background": "dark", "content": 20}  # as MNIST declares it
PREPROCESSING = {"size": [28, 28], "channels": 1, "largest": 255}


def write_models(folder, framing):
    """Write ONNX files of an untrained linear model and MLP; return their paths."""
    torch.manual_seed(0)
    paths = []
    for name, hyperparameters in {"linear": {}, "mlp": {"hidden": [8]}}.items():
        network = build(name, [1, 28, 28], 10, hyperparameters)
        facts = {"architecture": name, "preprocessing": PREPROCESSING | {"framing": framing}}
        paths.append(folder / f"{name}.onnx")
        write_onnx(deployable(network, **facts), paths[-1])
    return paths
