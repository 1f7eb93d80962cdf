import pytest
import torch
from scipy.stats import beta, binom
from sklearn.metrics import f1_score, log_loss, top_k_accuracy_score

from lineup.evaluation import comparisons, metrics

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def predictions():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.softmax(3 * torch.randn(500, 5, generator=generator), 1)
    return probabilities, probabilities.multinomial(1, generator=generator).flatten()


def test_scores_are_those_of_scikit_learn(predictions):
    probabilities, labels = predictions
    scores = metrics.classification(probabilities, labels, top_k=3, confidence=0.95)
    exact = probabilities.double()
    assert scores["loss"] == pytest.approx(
        log_loss(labels, exact / exact.sum(1, keepdim=True)), rel=1e-5
    )
    assert scores["accuracy"] == (probabilities.argmax(1) == labels).double().mean().item()
    assert scores["top3_accuracy"] == top_k_accuracy_score(labels, probabilities, k=3)
    assert scores["macro_f1"] == pytest.approx(
        f1_score(labels, probabilities.argmax(1), average="macro"), rel=1e-5
    )


def test_order_of_the_examples_changes_no_score(predictions):
    probabilities, labels = predictions
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    assert metrics.classification(probabilities, labels, 3, 0.95) == metrics.classification(
        probabilities[order], labels[order], 3, 0.95
    )


def test_interval_is_that_of_clopper_and_pearson():
    low, high = metrics.interval(97, 100, 0.95)
    assert low == pytest.approx(beta.ppf(0.025, 97, 4))
    assert high == pytest.approx(beta.ppf(0.975, 98, 3))
    assert metrics.interval(5, 5, 0.95)[1] == 1
    assert metrics.interval(0, 0, 0.95) == (0, 1)


def test_mcnemar_is_an_exact_binomial_test_on_the_examples_that_only_one_model_gets_right():
    correct_a = torch.tensor([True] * 50 + [True] * 3 + [False] * 12 + [False] * 7)
    correct_b = torch.tensor([True] * 50 + [False] * 3 + [True] * 12 + [False] * 7)
    test = comparisons.mcnemar(correct_a, correct_b)
    assert (test["only_a"], test["only_b"]) == (3, 12)
    assert test["p_one_sided"] == pytest.approx(binom.cdf(3, 15, 0.5))
    assert test["p_two_sided"] == pytest.approx(2 * binom.cdf(3, 15, 0.5))
    assert comparisons.mcnemar(correct_b, correct_a)["p_one_sided"] == pytest.approx(
        binom.cdf(12, 15, 0.5)
    )


def test_models_that_never_differ_are_not_significantly_different():
    correct = torch.tensor([True, False])
    assert comparisons.mcnemar(correct, correct) == {
        "only_a": 0,
        "only_b": 0,
        "p_one_sided": 1,
        "p_two_sided": 1,
    }


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    probabilities = torch.tensor([[0.8, 0.2]] * 10)
    labels = torch.tensor([0] * 6 + [1] * 4)  # 80 % sure, 60 % right
    bins = metrics.calibration(probabilities, labels)
    assert metrics.calibration_error(bins) == pytest.approx(0.2, abs=1e-6)
    assert bins["images"].sum() == 10


def test_a_confidence_of_exactly_one_is_counted():
    bins = metrics.calibration(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert bins["images"].iloc[-1] == 1


def test_confusion_has_actual_classes_as_rows_and_predicted_ones_as_columns():
    probabilities = torch.eye(3)[[1, 1, 2]]
    assert metrics.confusion(probabilities, torch.tensor([0, 1, 2])).tolist() == [
        [0, 1, 0],
        [0, 1, 0],
        [0, 0, 1],
    ]


def test_a_class_without_test_images_has_a_row_but_no_say_in_macro_f1():
    probabilities, labels = torch.eye(3)[[0, 1]], torch.tensor([0, 1])
    table = metrics.per_class(probabilities, labels, ["a", "b", "none"], 0.95)
    assert table["images"].tolist() == [1, 1, 0]
    assert metrics.classification(probabilities, labels, 3, 0.95)["macro_f1"] == 1


@pytest.mark.parametrize("classes", [1, 2, 100])
def test_any_number_of_classes_has_scores(classes):
    labels = torch.arange(200) % classes
    scores = metrics.classification(torch.eye(classes)[labels], labels, top_k=3, confidence=0.95)
    assert (
        scores["accuracy"],
        scores["top3_accuracy"],
        scores["loss"],
        scores["accuracy_high"],
    ) == (1, 1, 0, 1)
    assert metrics.confusion(torch.eye(classes)[labels], labels).shape == (classes, classes)


def test_a_probability_of_zero_for_the_truth_gives_a_finite_loss():
    scores = metrics.classification(torch.eye(2), torch.tensor([1, 0]), top_k=1, confidence=0.95)
    assert 80 < scores["loss"] < 100


def test_regression_scores_are_means_over_rows_and_targets():
    outputs, targets = (
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        torch.tensor([[1.0, 4.0], [3.0, 0.0]]),
    )
    scores = metrics.regression(outputs, targets)
    assert (scores["loss"], scores["mae"]) == (5, 1.5)
    assert scores["r2"] == pytest.approx((1 + (1 - 20 / 8)) / 2)


def test_a_single_row_has_no_r2():
    assert "r2" not in metrics.regression(torch.ones(1, 2), torch.zeros(1, 2))
