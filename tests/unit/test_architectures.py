"""Every architecture fits the data it is given, or says in one line why not."""

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.datasets import write_dataset, write_split
from helpers.models import deployable
from helpers.project import ROOT, Project
from torch import nn
from torchvision import models

from lineup import architectures
from lineup.errors import UserError
from lineup.evaluation.activations import record_activations
from lineup.evaluation.flops import count_flops
from lineup.files import sha256
from lineup.model_info import ModelInfo
from lineup.params import available_architectures, load_params
from lineup.serving.deployable import predict_onnx, read_onnx, write_onnx
from lineup.tensors import write_tensors
from lineup.training.checkpoints import fingerprint
from lineup.training.outputs import write_outputs
from lineup.training.pretrained import find_pretrained, load_fitting
from lineup.training.setup import set_up

NAMES = ["alexnet", "cnn", "linear", "mlp", "residual", "resnet", "rnn", "simplenet"]
MIRRORED = ["alexnet", "cnn", "residual", "simplenet"]
SHAPES = [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 9, 20)]
OWN = {
    "mlp": {"hidden": [16]},
    "cnn": {"channels": [4, 8]},
    "rnn": {"hidden": 12, "layers": 2},
    "simplenet": {"channels": [[4, 4], [8], [8, 8]]},
    "residual": {"channels": [[4, 4], [8], [8, 8]]},
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


@pytest.mark.parametrize("name", ["cnn", "rnn", "simplenet", "alexnet", "residual", "resnet"])
def test_rows_of_features_are_refused_by_architectures_for_images(name):
    with pytest.raises(UserError, match=r"takes images .*shape \(3,\)") as error:
        build(name, (3,), 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "size"), [("cnn", 3), ("simplenet", 7), ("alexnet", 7), ("residual", 7)]
)
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
        ("residual", "channels", [[4], []]),
    ],
)
def test_a_hyperparameter_out_of_range_is_named_with_its_value(name, key, value):
    with pytest.raises(UserError, match=rf"models\.{name}\.{key}.* = .*: "):
        build(name, (1, 28, 28), 10, **{key: value})


def test_flops_are_those_of_the_products():
    model = architectures.build("mlp", (1, 28, 28), 10, {"hidden": [256], "batch_norm": False})
    first, second = 2 * 784 * 256, 2 * 256 * 10
    assert count_flops(model, (1, 28, 28)) == 2 * first + 3 * second
    model = architectures.build("cnn", (1, 28, 28), 10, {"channels": [16]})
    first, last = 2 * 28 * 28 * 25 * 16, 2 * 14 * 14 * 16 * 10
    assert count_flops(model, (1, 28, 28)) == 2 * first + 3 * last
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    assert all(map(torch.equal, weights, model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_hyperparameters_left_out_are_completed_so_that_the_record_is_whole():
    completed = architectures.complete("cnn", {"channels": [4]})
    assert completed["channels"] == [4] and {"batch_norm", "dropout"} <= set(completed)


def own(monkeypatch, network, shape=(1, 8, 8), **defaults):
    """Build an architecture of one's own."""

    def builder(shape, outputs, *, activation="relu"):
        return network

    builder.__kwdefaults__ |= defaults
    monkeypatch.setattr(architectures, "_builder", lambda name: builder)
    return architectures.build("tiny", shape, 3, {})


class View(nn.Module):
    """Flattens as tutorials do."""

    def forward(self, images):
        return images.view(images.size(0), -1)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (
            [nn.Flatten(), nn.Linear(64, 10)],
            r"tiny.py makes \(2, 10\) of inputs \(2, 1, 8, 8\), not",
        ),
        ([nn.Flatten(), nn.Linear(63, 3)], "tiny.py can't be tried out on inputs .* mat1 and mat2"),
        ([nn.Conv2d(1, 2, 3), View(), nn.Linear(72, 3)], "channels-last, flatten them by nn.Flat"),
        ([nn.Flatten(), nn.BatchNorm2d(64)], "expected 4D input"),
        ([nn.Flatten(), nn.LSTM(64, 3)], "makes a tuple of inputs"),
    ],
)
def test_what_does_not_fit_is_said_before_a_training_begins(monkeypatch, layers, words):
    with pytest.raises(UserError, match=words):
        own(monkeypatch, nn.Sequential(*layers))


def test_a_view_of_the_colours_themselves_and_no_network_are_named_too(monkeypatch):
    with pytest.raises(UserError, match="channels-last"):
        own(monkeypatch, nn.Sequential(View(), nn.Linear(192, 3)), shape=(3, 8, 8))
    with pytest.raises(UserError, match="build returns None"):
        own(monkeypatch, None)


def test_a_default_that_no_json_can_hold_is_named(monkeypatch):
    with pytest.raises(UserError, match=r"tiny\.py: the default of 'activation' is <class"):
        own(monkeypatch, nn.Flatten(), activation=nn.ReLU)


def test_lazy_layers_have_their_shapes_and_no_layer_learned_from_the_trial(monkeypatch):
    normed = nn.BatchNorm2d(1)
    model = own(monkeypatch, nn.Sequential(normed, nn.Flatten(), nn.LazyLinear(3)))
    assert model[2].weight.shape == (3, 64) and normed.num_batches_tracked == 0
    assert all(layer.training for layer in model.modules())


def test_dropout_silences_activations_in_training_only():
    for name in ("mlp", "cnn", "simplenet", "alexnet", "residual", "rnn"):
        model = build(name, (1, 8, 8), 4, dropout=0.5)
        inputs = torch.randn(4, 1, 8, 8)
        for module in model.modules():  # batch norm would differ between calls too
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = 0.0
        model.train()
        assert not torch.equal(model(inputs), model(inputs)), name
        model.eval()
        assert torch.equal(model(inputs), model(inputs)), name


@pytest.mark.parametrize("name", MIRRORED)
def test_a_mirror_averages_outputs_for_image_and_mirror_image_outside_training(name):
    plain, mirrored = build(name, (3, 8, 8), 4), build(name, (3, 8, 8), 4, mirror=True)
    mirrored.load_state_dict(plain.state_dict())  # under the same names
    images = 1000 * torch.randn(5, 3, 8, 8)  # which tell apart what a new network answers
    plain.eval()
    expected = (plain(images) + plain(images.flip(-1))) / 2
    for model in (mirrored, copy.deepcopy(mirrored)):
        assert torch.allclose(model.eval()(images), expected, atol=1e-4)
    assert not torch.allclose(plain(images), expected, atol=1e-2)
    in_training = []
    for model in (plain, mirrored):
        torch.manual_seed(5)  # of dropout
        in_training.append(model.train()(images))
    assert torch.equal(*in_training)


def test_activations_are_those_of_the_image_not_of_its_mirror():
    plain, mirrored = build("cnn", (1, 8, 8), 4).eval(), build("cnn", (1, 8, 8), 4, mirror=True)
    mirrored.load_state_dict(plain.state_dict())
    image = torch.randn(1, 1, 8, 8)
    recorded, expected = (record_activations(net.eval(), image) for net in (mirrored, plain))
    assert recorded.keys() == expected.keys()
    assert all(torch.equal(recorded[layer], expected[layer]) for layer in expected)


@pytest.mark.parametrize("name", MIRRORED)
def test_the_file_that_ships_has_the_mirror_in_it(name, tmp_path):
    model = deployable(build(name, (3, 8, 8), 10, mirror=True), shape=[3, 8, 8])
    write_onnx(model, tmp_path / "model.onnx")
    session = read_onnx(tmp_path / "model.onnx")
    images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    outputs = predict_onnx(session, images)
    assert torch.allclose(outputs, predict_onnx(session, images.flip(-1)), atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(outputs, model(images), atol=1e-5)


def test_a_mirror_that_training_does_not_show_is_refused(project):
    project.set(models__cnn__mirror=True)
    with pytest.raises(UserError, match=r"models\.cnn\.mirror = true .*flip: true"):
        set_up(load_params(), "cnn")
    project.set(train__augment__flip=True)
    assert set_up(load_params(), "cnn").config["hyperparameters"]["mirror"]


def test_a_residual_block_begins_as_its_shortcut():
    block = build("residual", (1, 8, 8), 4, channels=[[6, 6]])[3]
    images = torch.rand(2, 6, 4, 4)
    assert torch.equal(block(images), images)


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
    _, hyperparameters = load_params().recipe("residual")
    assert size("residual", **hyperparameters) <= 300_000


# --- pretrained -----------------------------------------------------------------------------------


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """torchvision's file of weights as one that is here: its address, with its digest in the name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    torch.manual_seed(0)
    weights = models.resnet18().state_dict()
    torch.save(weights, "weights")
    path = Path(f"resnet18-{sha256(Path('weights'))[:8]}.pth").resolve()
    Path("weights").rename(path)

    def set_address(address):
        found = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=address))
        monkeypatch.setattr(models, "get_model_weights", lambda name: found)

    set_address(path.as_uri())
    return SimpleNamespace(weights=weights, path=path, set_address=set_address)


@pytest.mark.parametrize("channels", [1, 3])
def test_resnet_starts_from_imagenet_but_for_the_last_layer(channels, imagenet):
    given = {"depth": 18}
    for _ in range(2):  # downloaded, and as it was kept
        found = find_pretrained("imagenet", "resnet", (channels, 64, 64), given)
        imagenet.path.unlink(missing_ok=True)
    model = architectures.build("resnet", (channels, 64, 64), 5, given)
    random = load_fitting(model, found)
    assert random == ["fc.weight", "fc.bias"]
    first = imagenet.weights["conv1.weight"]
    expected = first if channels == 3 else first.sum(1, keepdim=True)
    assert torch.equal(model.conv1.weight, expected)
    assert torch.equal(model.layer4[1].conv2.weight, imagenet.weights["layer4.1.conv2.weight"])
    assert [len(values) for values in found.statistics] == [channels, channels]
    images = torch.rand(2, 1, 64, 64)
    if channels == 1:  # a grey picture gives what the same picture in three equal channels gives
        wide = models.resnet18()
        wide.load_state_dict(imagenet.weights)
        wide.fc, grey = model.fc, images.expand(-1, 3, -1, -1)
        assert torch.allclose(model.eval()(images), wide.eval()(grey), atol=1e-4)


def test_what_a_training_starts_from_is_part_of_its_result(imagenet):
    images = torch.randint(256, (40, 3, 64, 64), dtype=torch.uint8)
    part = images, torch.arange(40) % 4
    write_dataset("shades", "classification", list("abcd"), train=part, test=part)
    write_split(40)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    project = Project(Path())
    project.set(dataset="shades", architectures=["resnet"], train__epochs=1, train__device="cpu")
    found = {}
    for weights in ("none", "imagenet"):
        project.set(train__weights=weights, models__resnet__learning_rate=1e-9)
        setup = set_up(load_params(), "resnet")
        for _ in setup.trainer.fit():
            pass
        write_outputs(Path(weights), setup, "id")
        found[weights] = ModelInfo.read(Path(weights)), setup
    project.set(train__freeze_epochs=1)
    with pytest.raises(UserError, match="freeze_epochs = 1 leaves none of 1 epochs"):
        set_up(load_params(), "resnet")
    (random, plain), (started, setup) = found.values()
    assert started.mean == pytest.approx([0.485, 0.456, 0.406])
    assert started.std == pytest.approx([0.229, 0.224, 0.225])
    assert random.mean == pytest.approx(plain.split.mean.tolist())
    digest = sha256(Path(f".lineup/pretrained/{imagenet.path.stem}.safetensors"))
    assert started.recipe["weights"] == "imagenet"
    assert started.recipe["pretrained"] == {"name": imagenet.path.stem, "sha256": digest}
    assert random.recipe["pretrained"] is None
    assert fingerprint(plain.config) != fingerprint(setup.config)
    kept = imagenet.weights["layer1.0.conv1.weight"]
    assert torch.allclose(setup.trainer.best["layer1.0.conv1.weight"], kept, atol=1e-6)


def test_a_small_image_keeps_its_size_and_its_stem_stays_random(imagenet):
    found = find_pretrained("imagenet", "resnet", (3, 32, 32), {})
    model = architectures.build("resnet", (3, 32, 32), 5, {})
    assert load_fitting(model, found) == ["conv1.weight", "fc.weight", "fc.bias"]
    assert model.maxpool(model.conv1(torch.zeros(1, 3, 32, 32))).shape[2:] == (32, 32)


def test_weights_that_cannot_be_had_are_named_with_the_place_to_put_them(imagenet):
    imagenet.set_address("http://127.0.0.1:9/resnet18-12345678.pth")
    message = r"no resnet18-12345678\.pth.*elsewhere and save it as .*checkpoints/resnet18-12345678"
    with pytest.raises(UserError, match=message):
        find_pretrained("imagenet", "resnet", (3, 64, 64), {})
    place = Path(torch.hub.get_dir(), "checkpoints", "resnet18-12345678.pth")
    imagenet.path.rename(place)
    with pytest.raises(UserError, match="is not what its name says; remove it"):
        find_pretrained("imagenet", "resnet", (3, 64, 64), {})
    assert not Path(".lineup").exists()


def test_weights_are_data_never_code(imagenet):
    torch.save({"conv1.weight": Path("anything")}, "weights")
    file = Path(f"resnet18-{sha256(Path('weights'))[:8]}.pth").resolve()
    Path("weights").rename(file)
    imagenet.set_address(file.as_uri())
    with pytest.raises(UserError, match="holds more than tensors"):
        find_pretrained("imagenet", "resnet", (3, 64, 64), {})


def test_what_has_no_published_weights_says_so():
    for name in set(NAMES) - {"resnet"}:
        assert find_pretrained("none", name, (1, 28, 28), {}) is None
        with pytest.raises(UserError, match=f"{name} has no weights of imagenet; resnet has"):
            find_pretrained("imagenet", name, (1, 28, 28), {})


def save_weights(model):
    """Write a model's weights under a name that ends with digits of their own; return the path."""
    write_tensors(Path("weights.safetensors"), model.state_dict())
    path = Path(f"weights-{sha256(Path('weights.safetensors'))[:8]}.safetensors")
    Path("weights.safetensors").rename(path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_any_architecture_starts_from_one_of_its_kind_with_other_classes(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _, hyperparameters = load_params(ROOT / "params.yaml").recipe(name)
    old, new = (architectures.build(name, (1, 28, 28), k, hyperparameters) for k in (10, 4))
    start = find_pretrained(str(save_weights(old)), name, (1, 28, 28), hyperparameters)
    if name == "linear":  # has no other layer than the last
        with pytest.raises(UserError, match="has no layer of this network"):
            load_fitting(new, start)
        return
    random = load_fitting(new, start)
    assert len(random) == 2  # weight and bias of the last layer
    weights, before = new.state_dict(), old.state_dict()
    assert set(weights) == set(before)
    assert all(torch.equal(weights[key], before[key]) for key in set(weights) - set(random))


def test_a_file_of_weights_is_named_by_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def find(path):
        return find_pretrained(str(path), "cnn", (1, 28, 28), {})

    path = save_weights(torch.nn.Linear(2, 2))
    assert find(path).sha256 == sha256(path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # an experiment in a copy of the repository
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    assert find(path).sha256 == sha256(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    plain = path.rename("plain.safetensors")
    advice = (
        rf"does not say what it holds; rename it, and set weights to: plain-{path.stem[-8:]}\.s"
    )
    with pytest.raises(UserError, match=advice):
        find(plain)
    with pytest.raises(UserError, match="there is no file missing-12345678"):
        find("missing-12345678.safetensors")
    plain.write_text("no tensors")
    broken = plain.rename(f"broken-{sha256(plain)[:8]}.safetensors")
    with pytest.raises(UserError, match="is not a safetensors file"):
        find(broken)
