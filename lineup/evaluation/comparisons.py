"""Is one model better than another? On the same examples, by a test that counts."""

from __future__ import annotations

from scipy.stats import binomtest
from torch import Tensor


def mcnemar(correct_a: Tensor, correct_b: Tensor) -> dict[str, float]:
    """Compare two models on the same examples, bool (N,) each, by the exact McNemar test.

    only_a and only_b count the examples that one model alone gets right; p_one_sided is for "a is
    worse than b".
    """
    only_a = int((correct_a & ~correct_b).sum())
    only_b = int((correct_b & ~correct_a).sum())
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
