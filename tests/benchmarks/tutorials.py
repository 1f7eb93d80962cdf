"""The five tutorials as written, beside the same architectures through our trainer.

python tests/benchmarks/tutorials.py --systems A,E

Prints accuracy, time and their ratio. A: MLP. B: SimpleNet and AlexNet on FashionMNIST, and two
regression nets on noise. C: RNN over rows. D: CNN, batch 1. E: linear regression on yields, softmax
regression on MNIST. Each keeps its own loop, DataLoader, per-image conversion, hyperparameters and
quirks; only the saving of whole pickled models is left out. Ours trains on 48,000 images, chooses
the epoch on the other 12,000, and sees the test images once. Times are of training, evaluations
within it included.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split
from torchvision.transforms.functional import normalize, to_tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from lineup import architectures  # noqa: E402
from lineup.data.sources import Source, read_source  # noqa: E402
from lineup.data.splitting import Draw, channel_statistics, stratified_split  # noqa: E402
from lineup.params import load_params  # noqa: E402
from lineup.task import Task  # noqa: E402
from lineup.training.batches import Batches  # noqa: E402
from lineup.training.device import resolve_precision  # noqa: E402
from lineup.training.trainer import Trainer  # noqa: E402

SEED = 3
# accuracy (of regression: mean squared error), loss on the test images, seconds
Score = tuple[float, float, float]


class Pictures(Dataset):
    """Images as torchvision's MNIST gives them: one by one, through PIL and ToTensor."""

    def __init__(self, images: Tensor, labels: Tensor, normalized: bool = False) -> None:
        self.images, self.labels, self.normalized = images[:, 0], labels, normalized

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = to_tensor(Image.fromarray(self.images[index].numpy()))
        return normalize(image, [0.5], [0.5]) if self.normalized else image, int(self.labels[index])


@cache
def source(name: str) -> Source:
    """Return a dataset's tensors, downloaded if need be."""
    return read_source(name, load_params().data)


@torch.no_grad()
def test(model: nn.Module, loader: DataLoader) -> tuple[float, float]:
    """Return accuracy, and loss as the tutorials report it: a mean of batch means."""
    model.eval()
    loss, correct = 0.0, 0
    for images, labels in loader:
        outputs = model(images)
        loss += functional.cross_entropy(outputs, labels).item()
        correct += int((outputs.argmax(1) == labels).sum())
    model.train()
    return correct / len(loader.dataset), loss / len(loader)


def fit(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader, every: int = 100
) -> None:
    """Train one epoch; like the tutorials, look at the batch's scores every so many steps."""
    for step, (images, labels) in enumerate(loader):
        outputs = model(images)
        loss = functional.cross_entropy(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every == 0:
            accuracy = (outputs.argmax(1) == labels).float().mean().item()
            print(
                f"  step {step:5d}  loss {loss.item():.4f}  accuracy {accuracy:.2%}",
                end="\r",
                file=sys.stderr,
            )


def tell(progress: str) -> None:
    """Print to stderr: stdout is the table, which goes to a file."""
    print(progress, file=sys.stderr)


# --- as written -----------------------------------------------------------------------------------


def write_a() -> Score:
    """Train the sigmoid MLP whose softmax is followed by that of the loss; test every epoch."""
    torch.manual_seed(SEED)
    data = source("mnist")
    layers = nn.Flatten(), nn.Linear(784, 256), nn.Sigmoid(), nn.Linear(256, 10), nn.Softmax(dim=1)
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    train = DataLoader(Pictures(*data.train), batch_size=128, shuffle=True)
    held_out = DataLoader(Pictures(*data.test), batch_size=128)
    started = time.perf_counter()
    for epoch in range(10):
        fit(model, optimizer, train)
        accuracy, loss = test(model, held_out)
        tell(f"  A epoch {epoch + 1}: test loss {loss:.4f}, accuracy {accuracy:.4f}")
    return accuracy, loss, time.perf_counter() - started


def write_b(name: str, epochs: int = 10) -> Score:
    """Train SimpleNet or AlexNet with Adam and a step schedule; what is unstated is ours."""
    torch.manual_seed(1024)
    data = source("fashion-mnist")
    model = architectures.build(name, [1, 28, 28], 10, load_params().recipe(name)[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.1)
    train = DataLoader(Pictures(*data.train, normalized=True), batch_size=128, shuffle=True)
    held_out = DataLoader(Pictures(*data.test, normalized=True), batch_size=128)
    started = time.perf_counter()
    for _ in range(epochs):
        fit(model, optimizer, train)
        schedule.step()
        accuracy, loss = test(model, held_out)
    return accuracy, loss, time.perf_counter() - started


def write_b_regression(optimizer_class: type[torch.optim.Optimizer]) -> Score:
    """Fit two layers to noise in 500 steps of the whole batch; its loss after the last step."""
    torch.manual_seed(SEED)
    inputs, targets = source("noise").train
    model = nn.Sequential(nn.Linear(1000, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = optimizer_class(model.parameters(), lr=1e-4)
    started = time.perf_counter()
    for _ in range(500):
        loss = functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    loss = functional.mse_loss(model(inputs), targets).item()
    return loss, loss, time.perf_counter() - started


class Rows(nn.Module):
    """The tutorial's RNN: 28 rows, three layers of 150, the identity as recurrent weights."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(28, 150, num_layers=3), nn.Linear(150, 10)
        for layer in range(3):
            nn.init.eye_(getattr(self.rnn, f"weight_hh_l{layer}"))

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 1, 28, 28) to logits (N, 10)."""
        rows = images[:, 0].permute(1, 0, 2)  # (steps, N, features)
        states, _ = self.rnn(rows, torch.zeros(3, len(images), 150))
        return self.head(states[-1])


def write_c() -> Score:
    """Train the RNN; its accuracy is counted right, unlike there (a short last batch is not)."""
    torch.manual_seed(SEED)
    data = source("mnist")
    model = Rows()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    train = DataLoader(Pictures(*data.train), batch_size=128, shuffle=True)
    held_out = DataLoader(Pictures(*data.test), batch_size=128)
    started = time.perf_counter()
    for epoch in range(10):
        fit(model, optimizer, train)
        accuracy, loss = test(model, held_out)
        tell(f"  C epoch {epoch + 1}: test loss {loss:.4f}, accuracy {accuracy:.4f}")
    return accuracy, loss, time.perf_counter() - started


def write_d() -> Score:
    """Train the CNN image by image for one epoch."""
    torch.manual_seed(SEED)
    data = source("mnist")
    blocks = [nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    blocks += [nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    started = time.perf_counter()
    fit(model, optimizer, DataLoader(Pictures(*data.train), batch_size=1, shuffle=True), every=1000)
    seconds = time.perf_counter() - started
    return *test(model, DataLoader(Pictures(*data.test), batch_size=128)), seconds


def write_e(epochs: int = 10) -> Score:
    """Train softmax regression with plain SGD, validate every epoch, save without a loss."""
    torch.manual_seed(SEED)
    data = source("mnist")
    part, validation = random_split(Pictures(*data.train), [48_000, 12_000])
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    train, held_out = (
        DataLoader(part, batch_size=100, shuffle=True),
        DataLoader(validation, batch_size=100),
    )
    started = time.perf_counter()
    for epoch in range(epochs):
        fit(model, optimizer, train)
        accuracy, loss = test(model, held_out)
        tell(f"  E epoch {epoch + 1}: validation loss {loss:.4f}, accuracy {accuracy:.4f}")
    seconds = time.perf_counter() - started
    loader = DataLoader(Pictures(*data.test), batch_size=256)
    loaded = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    loaded.load_state_dict(model.state_dict())
    assert test(loaded, loader) == test(model, loader)
    return *test(model, loader), seconds


def write_e_yields(by_hand: bool) -> Score:
    """Fit apples and oranges to the weather in 100 epochs, by autograd alone or torch's parts."""
    torch.manual_seed(SEED)
    inputs, targets = source("yields").train
    layer, started = nn.Linear(3, 2), time.perf_counter()
    if by_hand:
        weight, bias = torch.randn(2, 3, requires_grad=True), torch.randn(2, requires_grad=True)
        for _ in range(100):
            difference = inputs @ weight.t() + bias - targets
            ((difference * difference).sum() / difference.numel()).backward()
            with torch.no_grad():
                for tensor in (weight, bias):
                    tensor -= tensor.grad * 1e-5
                    tensor.grad.zero_()
        loss = functional.mse_loss(inputs @ weight.t() + bias, targets).item()
        return loss, loss, time.perf_counter() - started
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-5)
    for _ in range(100):
        for rows, yields in DataLoader(TensorDataset(inputs, targets), batch_size=5, shuffle=True):
            functional.mse_loss(layer(rows), yields).backward()
            optimizer.step()
            optimizer.zero_grad()
    loss = functional.mse_loss(layer(inputs), targets).item()
    return loss, loss, time.perf_counter() - started


# --- ours -----------------------------------------------------------------------------------------


def train_ours(
    name: str, dataset: str = "mnist", hyperparameters: dict | None = None, **settings: object
) -> Score:
    """Train `name` with the recipe of params.yaml but `settings`; score its best epoch on the test.

    A table has no test: there the score is that of its own rows.
    """
    params = load_params()
    recipe, own = params.recipe(name)
    data = source(dataset)
    inputs, targets = data.train
    if data.task is Task.REGRESSION:
        parts, statistics = [torch.arange(len(inputs))] * 2, (torch.zeros(1), torch.ones(1))
    else:
        draw = Draw("validation", "split.validation", 0.2, SEED)
        parts = stratified_split(targets, draw, data.classes)
        statistics = channel_statistics(inputs[parts[0]])
    epochs, _ = params.epochs(name, len(parts[0]), list(inputs.shape[1:]))
    precision = resolve_precision(recipe.precision, torch.device("cpu"))
    augment = recipe.augment.model_copy(update={"flip": False})  # auto, of grey pictures
    resolved = {"device": "cpu", "precision": precision, "epochs": epochs, "augment": augment}
    recipe = recipe.model_copy(update=resolved | settings)
    torch.manual_seed(SEED)
    hyperparameters = own if hyperparameters is None else hyperparameters
    model = architectures.build(name, inputs.shape[1:], len(data.classes), hyperparameters)
    train, validation = (Batches(inputs[part], targets[part], *statistics) for part in parts)
    trainer = Trainer(model, train, validation, recipe, SEED)
    started = time.perf_counter()
    for _ in trainer.fit():
        pass
    seconds = time.perf_counter() - started
    if data.task is Task.REGRESSION:
        loss = trainer.progress.best_row["val_loss"]
        return loss, loss, seconds
    trainer.model.load_state_dict(trainer.best)
    trainer.validation, trainer.average = Batches(*data.test, *statistics), None
    scores = trainer.validate()
    return scores["val_accuracy"], scores["val_loss"], seconds


def train_garments(name: str) -> Score:
    """Train on FashionMNIST: garments may be mirrored, are never turned, take more epochs."""
    recipe, own = load_params().recipe(name)
    garments = {"rotate": 0, "shift": 0.05, "scale": 0, "shear": 0, "flip": True, "erase": 0}
    augment = recipe.augment.model_copy(update=garments)
    hyperparameters = own | {"dropout": 0.1}
    return train_ours(name, "fashion-mnist", hyperparameters, epochs=16, augment=augment)


def train_plainly(name: str, dataset: str, **settings: object) -> Score:
    """Train a regression net on all rows at once, with a constant learning rate alone."""
    hyperparameters = {"hidden": [100], "batch_norm": False} if name == "mlp" else {}
    plain = {
        "schedule": "constant",
        "weight_decay": 0.0,
        "momentum": 0.0,
        "clip_norm": 0,
        "ema": 0,
        "batch_size": 64,
    }
    return train_ours(name, dataset, hyperparameters, **plain, precision="float32", **settings)


# --- side by side ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contest:
    """A tutorial's system and ours."""

    system: str
    name: str
    published: str
    written: Callable[[], Score]
    ours: Callable[[], Score]


def contests(epochs_b: int) -> list[Contest]:
    """Return all pairs, in the tutorials' order."""
    adam, sgd = torch.optim.Adam, torch.optim.SGD
    return [
        Contest("A", "mlp", "0.9661", write_a, lambda: train_ours("mlp")),
        *[
            Contest(
                "B",
                name,
                "–",
                lambda n=name: write_b(n, epochs_b),
                lambda n=name: train_garments(n),
            )
            for name in ("simplenet", "alexnet")
        ],
        *[
            Contest(
                "B",
                f"mlp on noise, {kind} (MSE)",
                "–",
                lambda o=optimizer: write_b_regression(o),
                lambda k=kind: train_plainly(
                    "mlp", "noise", optimizer=k, learning_rate=1e-4, epochs=500
                ),
            )
            for kind, optimizer in (("adam", adam), ("sgd", sgd))
        ],
        Contest("C", "rnn", "0.9660", write_c, lambda: train_ours("rnn")),
        Contest("D", "cnn", "–", write_d, lambda: train_ours("cnn")),
        *[
            Contest(
                "E",
                f"linear on yields, {kind} (MSE)",
                "–",
                lambda h=by_hand: write_e_yields(h),
                lambda: train_plainly(
                    "linear", "yields", optimizer="sgd", learning_rate=1e-5, epochs=100
                ),
            )
            for kind, by_hand in (("by hand", True), ("nn.Linear", False))
        ],
        Contest("E", "linear", "0.85", write_e, lambda: train_ours("linear")),
    ]


def main(
    systems: Annotated[str, typer.Option(help="Letters, separated by commas.")] = "A,B,C,D,E",
    epochs_b: Annotated[int, typer.Option(help="Epochs of B, which names none.")] = 10,
) -> None:
    """Run the tutorials and ours in turn and print a table."""
    os.chdir(ROOT)
    chosen = systems.upper().split(",")
    rows = []
    for contest in contests(epochs_b):
        if contest.system not in chosen:
            continue
        tell(f"{contest.system} {contest.name}: as written")
        written = contest.written()
        tell(f"{contest.system} {contest.name}: {written[0]:.4f} in {written[2]:.1f} s; ours")
        rows.append((contest, written, contest.ours(), os.getloadavg()[0]))
    print("\n| | | published | as written | loss | s | ours | loss | s | written / ours | load |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for contest, written, ours, load in rows:
        scores = (
            " | ".join((f"{a:.4f}", f"{b:.4f}", f"{seconds:.1f}"))
            for a, b, seconds in (written, ours)
        )
        title = f"| {contest.system} | {contest.name} | {contest.published}"
        print(title, *scores, f"{written[2] / ours[2]:.1f}", f"{load:.1f} |", sep=" | ")
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")


if __name__ == "__main__":
    typer.run(main)
