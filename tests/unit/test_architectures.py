"""Every architecture fits the data it is given, or says in one line why not."""

import pytest
import torch

from lineup import architectures
from lineup.errors import UserError
from lineup.params import available_architectures, load_params

NAMES = ["alexnet", "cnn", "linear", "mlp", "rnn", "simplenet"]
SHAPES = [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 9, 20)]
OWN = {
    "mlp": {"hidden": [16]},
    "cnn": {"channels": [4, 8]},
    "rnn": {"hidden": 12, "layers": 2},
    "simplenet": {"channels": [[4, 4], [8], [8, 8]]},
    "alexnet": {"channels": [4, 4, 4, 4, 4], "hidden": 8},
}


def build(name, shape, outputs, **hyperparameters):
    return architectures.build(name, shape, outputs, OWN.get(name, {}) | hyperparameters)


def test_each_file_is_an_architecture_and_has_its_section_in_params():
    assert available_architectures() == NAMES
    assert sorted(load_params().models) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("outputs", [2, 37])
def test_each_architecture_maps_images_of_any_shape_to_a_logit_per_class(name, shape, outputs):
    model = build(name, shape, outputs).eval()
    inputs = torch.randn(3, *shape)
    logits = model(inputs)
    assert logits.shape == (3, outputs) and logits.dtype == torch.float32
    alone = model(inputs[:1])
    assert torch.allclose(logits[:1], alone, atol=1e-5)  # no example looks at the others
    assert all(parameter.requires_grad for parameter in model.parameters())
    *_, last = (parameter for parameter in model.parameters() if parameter.ndim > 1)
    assert len(last) == outputs  # muon leaves the last layer out
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_of_params_builds_each_architecture_for_mnist(name):
    _, hyperparameters = load_params().recipe(name)
    model = architectures.build(name, (1, 28, 28), 10, hyperparameters)
    assert model.train()(torch.randn(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_rows_of_features_go_through_linear_and_mlp(name):
    assert build(name, (3,), 2)(torch.randn(5, 3)).shape == (5, 2)


@pytest.mark.parametrize("name", ["cnn", "rnn", "simplenet", "alexnet"])
def test_rows_of_features_are_refused_by_architectures_for_images(name):
    with pytest.raises(UserError, match=r"takes images .*shape \(3,\)") as error:
        build(name, (3,), 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "size"), [("cnn", 3), ("simplenet", 7), ("alexnet", 7)])
def test_images_too_small_to_be_pooled_are_refused_in_one_line(name, size):
    with pytest.raises(UserError, match=f"pixels and more, not 28×{size}") as error:
        build(name, (1, 28, size), 10)
    assert "\n" not in str(error.value)


def test_a_missing_hyperparameter_is_named():
    with pytest.raises(UserError, match=r"key 'models\.rnn\.layers' is missing"):
        architectures.build("rnn", (1, 28, 28), 10, {"hidden": 5})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("mlp", "hidden", [0]),
        ("mlp", "hidden", []),
        ("mlp", "hidden", "wide"),
        ("mlp", "activation", "tan"),
        ("mlp", "dropout", 1.0),
        ("cnn", "channels", []),
        ("rnn", "layers", 0),
        ("alexnet", "channels", [1, 2]),
        ("simplenet", "channels", [[-1]]),
    ],
)
def test_a_hyperparameter_out_of_range_is_named_with_its_value(name, key, value):
    with pytest.raises(UserError, match=rf"models\.{name}\.{key}.* = .*: "):
        build(name, (1, 28, 28), 10, **{key: value})


def test_hyperparameters_left_out_are_completed_so_that_the_record_is_whole():
    completed = architectures.complete("cnn", {"channels": [4]})
    assert completed["channels"] == [4] and {"batch_norm", "dropout"} <= set(completed)


def test_dropout_silences_activations_in_training_only():
    for name in ("mlp", "cnn", "simplenet", "alexnet", "rnn"):
        model = build(name, (1, 8, 8), 4, dropout=0.5)
        inputs = torch.randn(4, 1, 8, 8)
        for module in model.modules():  # batch norm would differ between calls too
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = 0.0
        model.train()
        assert not torch.equal(model(inputs), model(inputs)), name
        model.eval()
        assert torch.equal(model(inputs), model(inputs)), name


def test_the_rnn_reads_row_after_row_and_starts_from_the_identity():
    model = build("rnn", (1, 6, 5), 3)
    for layer in range(2):
        assert torch.equal(getattr(model.rnn, f"weight_hh_l{layer}"), torch.eye(12))
    image = torch.randn(1, 1, 6, 5)
    states, _ = model.rnn(image[:, 0])  # six steps of five features
    assert torch.equal(model(image), model.head(states.flatten(1)))


def test_the_promised_sizes_hold():
    def size(name, **hyperparameters):
        model = architectures.build(name, (1, 28, 28), 10, hyperparameters)
        return sum(parameter.numel() for parameter in model.parameters())

    assert size("linear") == 7850
    assert size("mlp", hidden=[256], batch_norm=False) == 203_530
    assert size("cnn", channels=[16, 32]) <= 30_000
    _, hyperparameters = load_params().recipe("simplenet")
    assert size("simplenet", **hyperparameters) <= 500_000
