"""Scores that training and evaluation share, so that one output has one score."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def classification_scores(logits: Tensor, labels: Tensor, top_k: int) -> dict[str, float]:
    """Return loss, accuracy and top-k accuracy of logits (N, K): sums, divided once."""
    count = len(labels)
    return {
        "loss": float(cross_entropy(logits, labels, reduction="sum")) / count,
        "accuracy": top_accuracy(logits, labels, 1),
        f"top{top_k}_accuracy": top_accuracy(logits, labels, top_k),
    }


def top_accuracy(outputs: Tensor, labels: Tensor, k: int) -> float:
    """Return how often the label is among the k highest outputs (all, where there are fewer)."""
    if k == 1:
        return float((outputs.argmax(1) == labels).sum()) / len(labels)
    highest = outputs.topk(min(k, outputs.shape[1]), dim=1).indices
    return float((highest == labels[:, None]).any(1).sum()) / len(labels)


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
