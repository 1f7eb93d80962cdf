"""Scores of a regression: training and evaluation share them, so that one output has one R²."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def regression_scores(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the mean squared (loss) and absolute error and R² of outputs and targets (N, T)."""
    outputs, targets = outputs.cpu(), targets.cpu()  # Apple's GPUs have no float64
    outputs, targets = outputs.double(), targets.double()
    error = outputs - targets
    return {
        "loss": float(error.square().mean()),
        "mae": float(error.abs().mean()),
        "r2": r_squared(outputs, targets),
    }


def r_squared(outputs: Tensor, targets: Tensor) -> float:
    """Return the mean R² of the targets; a constant one counts 1 if it is met exactly, else 0."""
    residual = (targets - outputs).square().sum(0)  # (T,)
    total = (targets - targets.mean(0)).square().sum(0)
    constant = (targets == targets[0]).all(0)  # its total may be other than 0: the mean is rounded
    inexact = (residual > 0).double()
    return 1 - float((residual / total).where(~constant, inexact).mean())


def classification_scores(outputs, targets, top_k):
    from torch.nn import functional

    k = min(top_k, outputs.shape[1])
    hits = outputs.topk(k, 1).indices == targets[:, None]
    return {
        "loss": float(functional.cross_entropy(outputs, targets, reduction="sum")) / len(targets),
        "accuracy": float((outputs.argmax(1) == targets).sum()) / len(targets),
        f"top{top_k}_accuracy": float(hits.any(1).sum()) / len(targets),
    }
