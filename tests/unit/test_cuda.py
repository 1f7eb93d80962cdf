"""What a GPU must do like a CPU, and what only it can do wrong; skipped where there is none."""

import random
import shutil
import weakref

import pytest
import torch
from helpers.datasets import write_dataset, write_split
from helpers.project import ROOT, Project

from lineup import architectures
from lineup.errors import UserError
from lineup.params import load_params
from lineup.training.batches import Batches
from lineup.training.device import make_deterministic
from lineup.training.session import drive
from lineup.training.setup import set_up
from lineup.training.trainer import Step, Trainer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
PARAMS = load_params(ROOT / "params.yaml")
STATISTICS = torch.tensor([0.13]), torch.tensor([0.31])


@pytest.fixture(autouse=True)
def deterministic():
    make_deterministic()
    yield
    torch.set_deterministic_debug_mode("default")


def digits(count, seed, device="cuda"):
    """Return images of the size of MNIST's, with labels that can be learned, as Batches."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    images = torch.randint(80, (count, 3, 28, 28), dtype=torch.uint8, generator=generator)
    for label in range(10):
        images[labels == label, :, 2 * label : 2 * label + 6] += 120
    return Batches(images.to(device), labels.to(device), *STATISTICS)


def shipped_trainer(name, seed=5, device="cuda", dropout=None, **changes):
    """Return a trainer with the recipe that ships, for seven steps and a rest an epoch."""
    settings, hyperparameters = PARAMS.recipe(name)
    if dropout is not None:
        hyperparameters = hyperparameters | {"dropout": dropout}
    augment = settings.augment.model_copy(
        update={"flip": True, "erase": 0.2, "crop": 0.3, "color": 0.2}
    )
    settings = settings.model_copy(
        update={"epochs": 2, "batch_size": 128, "device": device, "augment": augment} | changes
    )
    torch.manual_seed(seed)
    model = architectures.build(name, (3, 28, 28), 10, hyperparameters)
    return Trainer(model, digits(900, 0, device), digits(300, 1, device), settings, seed)


def finish(trainer):
    """Train to the end; return the best weights, on the CPU."""
    for _ in trainer.fit():
        pass
    return {name: tensor.cpu() for name, tensor in trainer.best.items()}


def are_equal(weights, others):
    return all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", PARAMS.architectures)
def test_one_seed_gives_the_same_weights_also_after_resumes(name, precision):
    assert_resumes_change_nothing(name, precision=precision, ema=0.9)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
def test_every_optimizer_resumes(optimizer):
    assert_resumes_change_nothing("cnn", optimizer=optimizer, clip_norm=1, freeze_epochs=1)


def test_dropout_between_recurrent_layers_follows_the_seed():
    assert_resumes_change_nothing("rnn", dropout=0.3)


def assert_resumes_change_nothing(name, **settings):
    expected = finish(shipped_trainer(name, **settings))
    assert are_equal(expected, finish(shipped_trainer(name, **settings)))
    assert not are_equal(expected, finish(shipped_trainer(name, 6, **settings)))
    trainer = shipped_trainer(name, **settings)
    interruptions = sorted(random.Random(7).sample(range(1, 14), 5))
    steps = 0
    while not trainer.progress.finished:
        for event in trainer.fit():
            steps += isinstance(event, Step)
            if interruptions and steps == interruptions[0]:
                interruptions.pop(0)
                progress, tensors = trainer.state()
                trainer = shipped_trainer(name, **settings)
                trainer.restore(progress, tensors)
                break
    assert not interruptions
    assert are_equal(expected, {name: tensor.cpu() for name, tensor in trainer.best.items()})


@pytest.mark.parametrize("name", PARAMS.architectures)
def test_a_recorded_step_computes_what_a_plain_one_does(name):
    recorded, plain = (shipped_trainer(name, precision="float32", ema=0.9) for _ in range(2))
    plain._replay = plain._update
    assert are_equal(finish(recorded), finish(plain))


def test_a_finished_training_gives_its_memory_back_at_once():
    trainer = shipped_trainer("cnn")
    finish(trainer)
    known = weakref.ref(trainer)
    del trainer  # without the garbage collector, which comes seldom
    assert known() is None


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
@pytest.mark.parametrize("name", PARAMS.architectures)
def test_no_step_waits_for_the_device(name, optimizer):
    settings = {"optimizer": optimizer, "clip_norm": 1, "ema": 0.9, "log_every": 1000}
    settings |= {"class_weights": "balanced", "freeze_epochs": 1}
    events = shipped_trainer(name, **settings).fit()
    next(events)  # the order of the epoch goes to the device before the first step
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            assert isinstance(next(events), Step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", PARAMS.architectures)
def test_a_cpu_computes_with_the_weights_of_a_gpu_what_the_gpu_computes(name):
    trainer = shipped_trainer(name, precision="float32")
    finish(trainer)
    inputs, _ = digits(300, 1).batch(slice(None))
    model = trainer.model.eval()
    with torch.no_grad():
        on_gpu = model(inputs).cpu()
        on_cpu = model.cpu()(inputs.cpu())
    assert torch.allclose(on_gpu, on_cpu, atol=1e-3)


def test_what_does_not_fit_into_the_memory_names_batch_size():
    trainer = shipped_trainer("alexnet", batch_size=900)
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    try:
        with pytest.raises(UserError, match=r"memory is too small.*batch_size.*out of memory"):
            drive(trainer.fit(), trainer, None, [], None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_a_training_is_set_up_on_the_gpu(device, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    part = torch.randint(256, (40, 1, 28, 28), dtype=torch.uint8), torch.arange(40) % 4
    write_dataset("shades", "classification", list("abcd"), train=part, test=part)
    write_split(40)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    Project(tmp_path).set(dataset="shades", train__device=device, models__mlp__epochs=1)
    trainer = set_up(load_params(), "mlp").trainer
    assert finish(trainer) and trainer.device.type == "cuda"
