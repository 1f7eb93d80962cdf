"""params.yaml: what is wrong in it is said in one readable message, and nothing is written."""

import copy
import math
import re

import pytest
import yaml
from helpers.project import ROOT, Project, copy_sources

from lineup import params as params_module
from lineup.errors import UserError
from lineup.params import BEST, known_hyperparameters, load_params
from lineup.yaml_file import read_yaml

MNIST_SHAPE = [1, 28, 28]
GOOD = yaml.safe_load((ROOT / "params.yaml").read_text())


@pytest.fixture
def changed(tmp_path):
    """Return a function that writes params.yaml with some values changed: keys with dots."""

    def write(changes):
        params = copy.deepcopy(GOOD)
        for key, value in changes.items():
            *parents, last = key.split(".")
            section = params
            for parent in parents:
                section = section[parent]
            section[last] = value
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(params))
        return path

    return write


def test_the_params_that_ship_are_valid_and_no_key_of_train_is_without_effect():
    params = load_params(ROOT / "params.yaml")
    assert params.model == BEST
    assert params.ignored_keys() == []


A_NUMBER = "a whole number, or auto"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "train.learning_rat",
            1,
            "unknown key 'train.learning_rat'; did you mean 'learning_rate'?",
        ),
        ("train.augment.rotat", 1, "unknown key 'train.augment.rotat'; did you mean 'rotate'?"),
        ("trian", {}, "unknown key 'trian'; did you mean 'train'?"),
        ("data.size", 4, "data.size = 4: must be a number of pixels from 8 to 512, or auto"),
        ("data.size", "big", "data.size = 'big': must be a number of pixels .*, or auto"),
        ("data.channels", 2, "data.channels = 2: input should be 1, 3 or 'auto'"),
        ("data.group", "(", "data.group = '(': .*missing )"),
        ("train.threads", 0, "train.threads = 0: must be a whole number from 1 to 1024, or auto"),
        ("train.threads", 10**10, "must be a whole number from 1 to 1024"),
        ("train.precision", "portable", "precision = 'portable' needs a number of threads"),
        ("train.weights", "best.pth", "train.weights = 'best.pth': must be none, imagenet"),
        (
            "models.cnn.weights",
            "models:/mnist@cnn",
            "mlflow artifacts download -u models:/mnist@cnn",
        ),
        ("train.augment.flip", "perhaps", "train.augment.flip = 'perhaps': must be true, false"),
        ("train.epochs", "ten", f"train.epochs = 'ten': must be {A_NUMBER}"),
        ("train.epochs", 0, f"train.epochs = 0: must be {A_NUMBER}; 1 is the smallest"),
        ("train.epochs", 2.5, f"train.epochs = 2.5: must be {A_NUMBER}"),
        ("train.epochs", True, f"train.epochs = True: must be {A_NUMBER}"),
        ("models.cnn.epochs", "many", f"models.cnn.epochs = 'many': must be {A_NUMBER}"),
        ("train.passes", "auto", "train.passes = 'auto': .*integer"),
        ("train.schedule", "step", "schedule = 'step' needs a number of epochs.*train.epochs"),
        ("train.learning_rate", -1, "train.learning_rate = -1: .*greater than 0"),
        ("train.learning_rate", float("nan"), "train.learning_rate"),
        ("train.optimizer", "adamm", "train.optimizer = 'adamm'.*'sgd', 'adam', 'adamw' or 'muon'"),
        ("train.device", "gpu", "train.device = 'gpu'"),
        ("split.validation", 1.0, "split.validation = 1.0.*less than 1"),
        ("seed", -1, "seed = -1"),
        ("model", "cnnn", "unknown architecture 'cnnn'; did you mean 'cnn'?"),
        ("architectures", ["mlp", "vgg"], "unknown architecture 'vgg'; valid: .*simplenet"),
        ("model", "vgg", "unknown architecture 'vgg'; valid: .*simplenet"),
        ("architectures", [], "architectures = []"),
        ("architectures", ["mlp", "mlp"], "names one architecture twice"),
        ("models.mlp.epochs", 0, "models.mlp.epochs = 0"),
        ("models.mlp.augment", {"flip": "perhaps"}, "models.mlp.augment.flip"),
        ("models.mlp.hiden", [3], "unknown key 'models.mlp.hiden'; did you mean 'hidden'?"),
        ("models.cnn.learning_rat", 1, "'models.cnn.learning_rat'; did you mean 'learning_rate'?"),
        ("models.linear.bias", False, "unknown key 'models.linear.bias'; valid: .*weight_decay"),
        ("dataset", "a/b", "dataset = 'a/b'"),
        ("export.promote", "sometimes", "export.promote.*'gate', 'always' or 'never'"),
    ],
)
def test_a_mistake_is_named_with_what_would_be_right(changed, key, value, words):
    path = changed({key: value})
    pattern = re.escape(words).replace(r"\.\*", ".*")
    with pytest.raises(UserError, match=pattern):
        load_params(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seed: 3 ", "seed: 3\nseed: 4 "), "'seed' stands twice"),
        (("batch_size: 256", "batch_size: 1:30"), "train.batch_size = '1:30'"),
        (("batch_size: 256", "batch_size: 0100"), "train.batch_size = 100.0"),
        (("learning_rate: 0.015", "learning_rate: true"), "learning_rate = True: .* valid number"),
        (("learning_rate: 0.015", "learning_rate: '1'"), "learning_rate = '1': .* valid number"),
        (("dataset: mnist", "dataset: 2024"), "dataset = 2024: .*; put it in quotes"),
        (("seed: 3 ", f"seed: {'9' * 5000} "), "Exceeds the limit"),
        (("seed: 3 ", f"x: {'[' * 5000}{']' * 5000}\nseed: 3 "), "nested too deeply"),
        (("seed: 3 ", "seed: !!python/name:os.system "), "could not determine a constructor"),
        (("seed: 3 ", "seed: 3 # \udcff"), "is not UTF-8, from byte"),
    ],
    ids=lambda value: value[1][:20] if isinstance(value, tuple) else "",
)
def test_what_yaml_allows_and_a_person_does_not_mean_is_refused(change, words, tmp_path):
    text = (ROOT / "params.yaml").read_text()
    assert change[0] in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(*change, 1), errors="surrogateescape")
    with pytest.raises(UserError, match=words):
        load_params(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="can't be read: Is a directory"):
        load_params(path)


def test_numbers_and_words_are_those_of_yaml_1_2(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("[1e-3, .5, -2, 1.0, no, yes, true, ~, null, 2020-01-01, 1_000, 0x1f, .inf]")
    words = ["2020-01-01", "1_000", "0x1f"]
    assert read_yaml(path) == [1e-3, 0.5, -2, 1.0, "no", "yes", True, None, None, *words, math.inf]
    path.write_text("base: &base {a: 1}\nown: {<<: *base, b: 2}\n")
    assert read_yaml(path)["own"] == {"a": 1, "b": 2}
    path.write_text("base: &b {a: 1}\ntop: {x: &o {<<: *b, a: 2}}\nother: {<<: *o, c: 3}\n")
    assert read_yaml(path)["other"] == {"a": 2, "c": 3}


@pytest.fixture
def own_architectures(tmp_path, monkeypatch):
    for file in params_module.ARCHITECTURES.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    monkeypatch.setattr(params_module, "ARCHITECTURES", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["size", "nfiles"])
def test_a_hyperparameter_that_dvcs_cache_of_runs_overlooks_is_refused(name, own_architectures):
    (own_architectures / "cnn.py").write_text(f"def build(shape, outputs, *, {name}=3): ...")
    with pytest.raises(UserError, match=f"cnn.py: DVC's cache of runs overlooks '{name}'"):
        load_params(ROOT / "params.yaml")


def test_a_hyperparameter_with_the_name_of_a_setting_is_refused(own_architectures):
    (own_architectures / "cnn.py").write_text("def build(shape, outputs, *, momentum=0.1): ...")
    with pytest.raises(UserError, match=r"cnn\.py: 'momentum' is a key of train already"):
        load_params()


@pytest.mark.parametrize("name", ["v2", "latest", "Champion", "challenger", "my net"])
def test_an_architecture_whose_name_is_no_alias_of_its_own_is_refused(name, own_architectures):
    (own_architectures / f"{name}.py").write_text("def build(shape, outputs): ...")
    with pytest.raises(UserError, match=f"cannot be named '{name}'"):
        load_params()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def build(", "cnn.py, line 1"),
        ("x = 1", "defines no function build"),
        ("def build(shape, outputs, hidden=3): ...", "hyperparameters come after a .; write build"),
        ("from lineup.architectures.mlp import build", "imports from mlp.py, whose changes DVC"),
        ("from lineup.architectures import mlp", "imports from mlp.py"),
        ("import lineup.architectures.mlp", "imports from mlp.py"),
        ("from .mlp import build", "imports from mlp.py"),
        ("from ..architectures import mlp", "imports from mlp.py"),
        ("from ._blocks import Block", "imports from _blocks.py"),
        ("def build(shape, outputs):\n    from . import mlp", "imports from mlp.py"),
    ],
)
def test_an_architecture_that_cannot_be_read_is_named(code, words, own_architectures):
    (own_architectures / "_blocks.py").touch()
    (own_architectures / "cnn.py").write_text(code)
    with pytest.raises(UserError, match=words):
        load_params(ROOT / "params.yaml")


def test_an_architecture_is_read_as_python_reads_it(own_architectures):
    file = own_architectures / "cnn.py"
    file.write_text("\ufeffdef build(shape, outputs, *, width): ...", encoding="utf-8")
    assert known_hyperparameters("cnn") == ["width"]
    file.write_text("# coding: latin-1\ndef build(shape, outputs, *, größe): ...", "latin-1")
    assert known_hyperparameters("cnn") == ["größe"]
    file.write_bytes(b"# caf\xe9")
    with pytest.raises(UserError, match="cnn"):
        known_hyperparameters("cnn")


def test_all_mistakes_are_reported_together(changed):
    path = changed({"train.epochs": 0, "nonsense": 1})
    with pytest.raises(UserError, match=r"(?s)(train.epochs.*nonsense|nonsense.*train.epochs)"):
        load_params(path)


def test_overrides_of_one_architecture_leave_the_others_alone(changed):
    section = {"channels": [8], "epochs": 77, "augment": {"flip": True}}
    params = load_params(changed({"models.cnn": section}))
    recipe, hyperparameters = params.recipe("cnn")
    assert recipe.epochs == 77 and recipe.augment.flip and hyperparameters == {"channels": [8]}
    assert recipe.augment.rotate == params.train.augment.rotate
    assert params.recipe("linear")[0].epochs != 77


MNIST = yaml.safe_load(  # the resolved recipes of the six on MNIST, 48,000 training images
    """
    {batch_size: 256, optimizer: adamw, momentum: 0.9, nesterov: true, weight_decay: 0.01,
    schedule: one_cycle, warmup: 0.2, step_epochs: 5, step_factor: 0.1, clip_norm: 0,
    label_smoothing: 0.05, class_weights: none, weights: none, freeze_epochs: 0, backbone_lr_factor: 1, ema: 0, monitor: auto, patience: 0, keep_every: 0,
    top_k: 3, log_every: 100, tensorboard: false, device: auto, precision: auto, threads: auto,
    augment: {rotate: 7, shift: 0.05, scale: 0.07, shear: 0.07, flip: auto,
    vertical_flip: false, crop: 0, color: 0, erase: 0}}
    """
)
MNIST_LINEAR = {"epochs": 12, "batch_size": 512, "learning_rate": 0.01} | {
    "weight_decay": 0,
    "label_smoothing": 0,
    "augment": MNIST["augment"] | {"rotate": 3, "shift": 0.03, "scale": 0, "shear": 0},
}


@pytest.mark.parametrize(
    ("architecture", "own"),
    [
        ("linear", MNIST_LINEAR),
        ("mlp", {"epochs": 30, "learning_rate": 0.015}),
        ("cnn", {"epochs": 11, "learning_rate": 0.015}),
        ("rnn", {"epochs": 8, "learning_rate": 0.002, "clip_norm": 1}),
        ("simplenet", {"epochs": 7, "learning_rate": 0.03, "optimizer": "muon"}),
        ("alexnet", {"epochs": 6, "learning_rate": 0.006}),
    ],
)
def test_the_shipped_recipes_on_mnist_are_those_of_the_published_table(architecture, own):
    params = load_params(ROOT / "params.yaml")
    recipe, _ = params.recipe(architecture)
    epochs, _ = params.epochs(architecture, 48_000, MNIST_SHAPE)
    resolved = recipe.model_copy(update={"epochs": epochs}).model_dump(exclude={"passes"})
    assert resolved == MNIST | own


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"train": 3}, {"linear": 3, "mlp": 3, "cnn": 3, "rnn": 3, "simplenet": 3, "alexnet": 3}),
        ({"models.cnn": 3}, {"cnn": 3, "mlp": 30, "linear": 12}),
        ({"train": 5, "models.cnn": 3}, {"cnn": 3, "mlp": 5, "linear": 5}),
    ],
)
def test_a_number_of_epochs_in_train_rules_all_and_a_nearer_one_wins(changed, numbers, expected):
    params = load_params(changed({f"{place}.epochs": number for place, number in numbers.items()}))
    assert {name: params.epochs(name, 48_000, MNIST_SHAPE)[0] for name in expected} == expected


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        (60_000, 11),
        (48_000, 11),
        (47_999, 12),
        (24_000, 22),
        (4_800, 110),
        (2_000, 200),
        (64, 200),  # data/noise
        (5, 200),  # data/yields
    ],
)
def test_a_small_set_is_seen_as_often_as_mnist_in_at_most_200_epochs(examples, expected):
    params = load_params(ROOT / "params.yaml")
    assert params.epochs("cnn", examples, MNIST_SHAPE)[0] == expected


def test_a_model_that_is_not_trained_is_refused_with_one_that_is(changed):
    path = changed({"architectures": ["linear"], "model": "mlp"})
    message = "model 'mlp' is not one of architectures.*-S model=linear"
    with pytest.raises(UserError, match=message):
        load_params(path)


@pytest.mark.parametrize(
    ("shape", "expected"), [([3, 28, 28], 110), ([3, 56, 56], 28), ([3, 512, 512], 11)]
)
def test_larger_images_are_seen_less_often_so_that_a_training_takes_as_long(shape, expected):
    params = load_params(ROOT / "params.yaml")
    assert params.epochs("cnn", 4_800, shape)[0] == expected


def test_more_passes_than_200_are_never_cut(changed):
    params = load_params(changed({"models.cnn.passes": 300}))
    assert [params.epochs("cnn", examples, MNIST_SHAPE)[0] for examples in (48_000, 480)] == [
        300,
        300,
    ]


def test_a_section_without_epochs_and_passes_goes_by_those_of_train(changed):
    params = load_params(changed({"models.cnn": {"channels": [8]}}))
    assert params.epochs("cnn", 48_000, MNIST_SHAPE) == (12, "auto: train.passes")
    assert params.epochs("cnn", 4_800, MNIST_SHAPE)[0] == 120


def test_the_step_schedule_is_taken_with_a_number_of_epochs(changed):
    path = changed({"train.schedule": "step", "train.epochs": 10})
    assert load_params(path).epochs("cnn", 100, MNIST_SHAPE) == (10, "train.epochs")


def test_a_key_of_train_that_all_chosen_architectures_override_is_found(changed):
    overrides = {"learning_rate": 0.1, "augment": {"rotate": 5, "flip": True}}
    section = GOOD["models"]["cnn"] | overrides
    chosen = {"architectures": ["linear", "cnn"], "model": "cnn"}
    path = changed(chosen | {"models.cnn": section})
    assert load_params(path).ignored_keys() == ["augment.rotate", "learning_rate"]


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        load_params(ROOT / "params.yaml").train.epochs = 3


@pytest.mark.parametrize("content", ["a: [", "just text", ""])
def test_what_is_not_yaml_with_sections_is_refused(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"params\.yaml"):
        load_params(path)


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(UserError, match="root folder"):
        load_params(tmp_path / "params.yaml")


@pytest.fixture(scope="module")
def misspelt(tmp_path_factory):
    """A project with a mistake in params.yaml."""
    folder = tmp_path_factory.mktemp("misspelt")
    copy_sources(folder)
    project = Project(folder)
    project.set(train__learning_rat=0.1)
    return project


@pytest.mark.parametrize("stage", ["fetch", "split", "train mlp", "evaluate", "export"])
def test_every_stage_stops_with_exit_code_2_without_a_traceback_and_writes_nothing(stage, misspelt):
    before = sorted(misspelt.folder.rglob("*"))
    result = misspelt.run("python", "-B", "-m", *f"stages.{stage}".split(), check=False)
    assert result.returncode == 2
    assert "learning_rate" in result.stderr and "Traceback" not in result.stderr
    assert sorted(misspelt.folder.rglob("*")) == before


def test_an_unknown_architecture_on_the_command_line_is_named():
    result = Project(ROOT).run("python", "-m", "stages.train", "cnnn", check=False)
    assert result.returncode == 2 and "did you mean 'cnn'?" in result.stderr


@pytest.mark.parametrize("stage", sorted(path.stem for path in (ROOT / "stages").glob("[!_]*.py")))
def test_help_comes_without_the_heavy_imports(stage):
    program = str(ROOT / "tests" / "programs" / "help_lightly.py")
    result = Project(ROOT).run("python", program, f"stages.{stage}", PYTHONPATH=str(ROOT))
    assert "Usage" in result.stdout
