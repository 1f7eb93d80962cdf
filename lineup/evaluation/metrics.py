"""Numbers about predictions; scikit-learn and SciPy compute those of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lineup.evaluation.scores import regression_scores

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

BINS = 15  # of the expected calibration error (Guo et al., 2017)


def classification(
    probabilities: Tensor, labels: Tensor, top_k: int, confidence: float
) -> dict[str, float]:
    """Return the scores of probabilities (N, K) for int64 labels (N); accuracy with its exact interval."""
    from sklearn.metrics import f1_score

    predicted = probabilities.argmax(1)
    correct = predicted == labels
    low, high = interval(int(correct.sum()), len(labels), confidence)
    scores = {
        "loss": cross_entropy(probabilities, labels),
        "accuracy": correct.double().mean().item(),
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
    """Return the mean negative log-likelihood of the labels; a probability of zero counts as the smallest float32."""
    import torch
    from torch.nn.functional import nll_loss

    logs = probabilities.double().clamp_min(torch.finfo(torch.float32).tiny).log()
    return nll_loss(logs, labels).item()


def top_accuracy(probabilities: Tensor, labels: Tensor, k: int) -> float:
    """Return how often the label is among the k most probable classes (all classes where there are fewer)."""
    nearest = probabilities.topk(min(k, probabilities.shape[1]), dim=1).indices
    return (nearest == labels[:, None]).any(1).double().mean().item()


def per_class(
    probabilities: Tensor, labels: Tensor, classes: Sequence[str], confidence: float
) -> pd.DataFrame:
    """Return a row per class: precision, recall with its exact interval, F1, number of images."""
    import pandas as pd
    from sklearn.metrics import precision_recall_fscore_support

    predicted = probabilities.argmax(1)
    precision, recall, f1, images = precision_recall_fscore_support(
        labels, predicted, labels=range(len(classes)), zero_division=0
    )
    hits = (recall * images).round().astype(int)
    ends = [
        interval(int(hit), int(count), confidence) for hit, count in zip(hits, images, strict=True)
    ]
    columns = {"precision": precision, "recall": recall, "low": [low for low, _ in ends]}
    columns |= {"high": [high for _, high in ends], "f1": f1}
    columns = {key: [significant(value) for value in values] for key, values in columns.items()}
    return pd.DataFrame({"class": list(classes), **columns, "images": images})


def confusion(probabilities: Tensor, labels: Tensor) -> np.ndarray:
    """Return counts int64 (K, K), actual by predicted class."""
    import warnings

    from sklearn.metrics import confusion_matrix

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A single label")  # said although the labels are given
        return confusion_matrix(
            labels, probabilities.argmax(1), labels=range(probabilities.shape[1])
        )


def calibration(probabilities: Tensor, labels: Tensor) -> pd.DataFrame:
    """Return equally wide bins of confidence: low, high, images, mean confidence and accuracy (NaN where empty)."""
    import pandas as pd
    from scipy.stats import binned_statistic

    confidences, predicted = probabilities.double().max(1)
    values = [confidences.numpy(), (predicted == labels).double().numpy()]
    (confidence, accuracy), edges, _ = binned_statistic(
        values[0], values, "mean", bins=BINS, range=(0, 1)
    )
    images = binned_statistic(values[0], None, "count", bins=BINS, range=(0, 1)).statistic.astype(
        int
    )
    columns = {
        "low": edges[:-1],
        "high": edges[1:],
        "images": images,
        "confidence": confidence,
        "accuracy": accuracy,
    }
    return pd.DataFrame(columns)


def calibration_error(bins: pd.DataFrame) -> float:
    """Return the expected calibration error: the mean gap of confidence and accuracy, weighted by images."""
    gaps = (bins["confidence"] - bins["accuracy"]).abs().fillna(0)
    return float((gaps * bins["images"]).sum() / bins["images"].sum())


def interval(hits: int, count: int, confidence: float) -> tuple[float, float]:
    """Return the exact (Clopper-Pearson) interval of a proportion; (0, 1) where nothing was counted."""
    from scipy.stats import binomtest

    if count == 0:
        return 0.0, 1.0
    ends = binomtest(hits, count).proportion_ci(confidence, method="exact")
    return float(ends.low), float(ends.high)


def mcnemar(correct_a: Tensor, correct_b: Tensor) -> dict[str, float]:
    """Compare two models on the same examples, bool (N) each, by the exact McNemar test.

    only_a and only_b count the examples that one model alone gets right; p_one_sided is for "a is worse than b".
    """
    from scipy.stats import binomtest

    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    if only_a + only_b == 0:
        return {"only_a": 0, "only_b": 0, "p_one_sided": 1.0, "p_two_sided": 1.0}
    one_sided = binomtest(only_a, only_a + only_b, alternative="less").pvalue
    two_sided = binomtest(only_a, only_a + only_b).pvalue
    return {
        "only_a": only_a,
        "only_b": only_b,
        "p_one_sided": float(one_sided),
        "p_two_sided": float(two_sided),
    }


def significant(value: float) -> float:
    """Return a number in six significant digits: what the order of summation can't change."""
    return float(f"{value:.6g}")
