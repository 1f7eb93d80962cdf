"""Numbers about predictions; those that training reports too are in scores.py."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.stats import binned_statistic, binomtest
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support
from torch import Tensor
from torch.nn.functional import nll_loss

from lineup.evaluation.scores import regression_scores, top_accuracy

BINS = 15  # of the expected calibration error (Guo et al., 2017)


def classification(
    probabilities: Tensor, labels: Tensor, top_k: int, confidence: float
) -> dict[str, float]:
    """Return the scores of probabilities (N, K); accuracy comes with its exact interval."""
    predicted = probabilities.argmax(1)
    correct = int((predicted == labels).sum())
    low, high = interval(correct, len(labels), confidence)
    scores = {
        "loss": cross_entropy(probabilities, labels),
        "accuracy": correct / len(labels),
        "accuracy_low": low,
        "accuracy_high": high,
        f"top{top_k}_accuracy": top_accuracy(probabilities, labels, top_k),
        "macro_f1": f1_score(labels, predicted, average="macro", zero_division=0),
        "ece": calibration_error(calibration(probabilities, labels)),
    }
    return {key: significant(value) for key, value in scores.items()}


def regression(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the scores of outputs (N, T) for targets (N, T); a single row has no R²."""
    scores = regression_scores(outputs, targets)
    if len(targets) == 1:  # R² needs a variance
        del scores["r2"]
    return {key: significant(value) for key, value in scores.items()}


def cross_entropy(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean negative log-likelihood; a probability of zero counts as a tiny one."""
    tiny = torch.finfo(torch.float32).tiny
    return nll_loss(probabilities.double().clamp_min(tiny).log(), labels).item()


def per_class(
    probabilities: Tensor, labels: Tensor, classes: Sequence[str], confidence: float
) -> pd.DataFrame:
    """Return a row per class: precision, recall with its exact interval, F1, number of images."""
    precision, recall, f1, images = precision_recall_fscore_support(
        labels, probabilities.argmax(1), labels=range(len(classes)), zero_division=0
    )
    correct = (recall * images).round().astype(int)
    ends = [
        interval(int(right), int(count), confidence)
        for right, count in zip(correct, images, strict=True)
    ]
    low, high = zip(*ends, strict=True)
    columns = {"precision": precision, "recall": recall, "low": low, "high": high, "f1": f1}
    rounded = {key: [significant(value) for value in values] for key, values in columns.items()}
    return pd.DataFrame({"class": list(classes), **rounded, "images": images})


def confusion(probabilities: Tensor, labels: Tensor) -> np.ndarray:
    """Return counts int64 (K, K), actual by predicted class."""
    classes = range(probabilities.shape[1])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A single label")  # said although the labels are given
        return confusion_matrix(labels, probabilities.argmax(1), labels=classes)


def calibration(probabilities: Tensor, labels: Tensor) -> pd.DataFrame:
    """Return equal bins of confidence: low, high, images, mean confidence, accuracy (or NaN)."""
    confidences, predicted = probabilities.double().max(1)
    values = [confidences.numpy(), (predicted == labels).double().numpy()]
    means = binned_statistic(values[0], values, "mean", bins=BINS, range=(0, 1))
    counts = binned_statistic(values[0], None, "count", bins=BINS, range=(0, 1))
    return pd.DataFrame(
        {
            "low": means.bin_edges[:-1],
            "high": means.bin_edges[1:],
            "images": counts.statistic.astype(int),
            "confidence": means.statistic[0],
            "accuracy": means.statistic[1],
        }
    )


def calibration_error(bins: pd.DataFrame) -> float:
    """Return the expected calibration error: the mean gap of confidence and accuracy."""
    gaps = (bins["confidence"] - bins["accuracy"]).abs().fillna(0)
    return float((gaps * bins["images"]).sum() / bins["images"].sum())


def interval(correct: int, count: int, confidence: float) -> tuple[float, float]:
    """Return the exact (Clopper-Pearson) interval of a proportion; (0, 1) of nothing."""
    if count == 0:
        return 0.0, 1.0
    ends = binomtest(correct, count).proportion_ci(confidence, method="exact")
    return float(ends.low), float(ends.high)


def significant(value: float) -> float:
    """Return a number in six significant digits: what the order of summation can't change."""
    return float(f"{value:.6g}")
