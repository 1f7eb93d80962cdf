"""Train MNIST by another tool: peer_trainings.py lightning|keras|sklearn ARCHITECTURE FOLDER

The architecture, batch size, epochs, optimizer, schedule and augmentation are those of params.yaml
(muon excepted, which they lack: adamw); the tool does all else as its guide has it, and keeps the
best epoch by validation. Prints when the model was saved, and its accuracy on the test images.
"""

import sys
import time
from pathlib import Path

import joblib
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.torchvision_images import Pictures, affine  # noqa: E402

from lineup import architectures  # noqa: E402
from lineup.data.dataset import Split, load  # noqa: E402
from lineup.params import Train, load_params  # noqa: E402
from lineup.task import Task  # noqa: E402
from lineup.training.device import resolve_precision  # noqa: E402

WORKERS = 2
SHAPE = (1, 28, 28)
CLASSES = 10


class Mixed(nn.Module):
    """A network that computes in bfloat16 where that is fast, as torch's autocast does."""

    def __init__(self, network: nn.Module, is_half: bool) -> None:
        super().__init__()
        self.network, self.is_half = network, is_half

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_half):
            return self.network(images).float()


def read() -> dict[str, tuple[Tensor, Tensor]]:
    """Return images and labels of the splits that the pipeline made."""
    images, labels = load("train", Task.CLASSIFICATION)
    split = Split.read()
    return {
        "train": (images[split.train], labels[split.train]),
        "validation": (images[split.validation], labels[split.validation]),
        "test": load("test", Task.CLASSIFICATION),
    }


def recipe_of(name: str) -> tuple[Train, nn.Module, bool]:
    """Return the recipe with its number of epochs, the network, and if it computes in bfloat16."""
    params = load_params()
    recipe, hyperparameters = params.recipe(name)
    epochs, _ = params.epochs(name, 48_000, list(SHAPE))
    network = architectures.build(
        name, SHAPE, CLASSES, architectures.complete(name, hyperparameters)
    )
    is_half = resolve_precision(recipe.precision, torch.device("cpu")) == "bfloat16"
    return recipe.model_copy(update={"epochs": epochs}), network, is_half


def train_lightning(name: str, folder: Path) -> float:
    """Train with Lightning's Trainer and DataLoaders with workers."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    recipe, network, is_half = recipe_of(name)
    data, split = read(), Split.read()
    plain = [transforms.ToTensor(), transforms.Normalize(split.mean.tolist(), split.std.tolist())]

    def loader(part: str, changes: list[nn.Module]) -> DataLoader:
        all_ = transforms.Compose([transforms.ToPILImage(), *changes, *plain])
        is_train = part == "train"
        return DataLoader(
            Pictures(*data[part], all_),
            recipe.batch_size,
            shuffle=is_train,
            num_workers=WORKERS,
            persistent_workers=True,
        )

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            images, labels = batch
            return functional.cross_entropy(
                self.network(images), labels, label_smoothing=recipe.label_smoothing
            )

        def validation_step(self, batch: list[Tensor], _: int) -> None:
            images, labels = batch
            right = (self.network(images).argmax(1) == labels).float().mean()
            self.log("val_accuracy", right, prog_bar=True)

        def configure_optimizers(self) -> dict[str, object]:
            optimizer = torch.optim.AdamW(
                self.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
            )
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer,
                recipe.learning_rate,
                total_steps=self.trainer.estimated_stepping_batches,
                pct_start=recipe.warmup,
            )
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }

    best = ModelCheckpoint(dirpath=folder, monitor="val_accuracy", mode="max")
    trainer = lightning.Trainer(
        max_epochs=recipe.epochs,
        accelerator="cpu",
        precision="bf16-mixed" if is_half else "32-true",
        gradient_clip_val=recipe.clip_norm or None,
        default_root_dir=folder,
        callbacks=[best],
    )
    trainer.fit(Classifier(), loader("train", [affine(recipe.augment)]), loader("validation", []))
    say_saved()
    weights = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    model = Classifier()
    model.load_state_dict(weights)
    model.eval()
    with torch.inference_mode():
        right = [
            (model.network(images).argmax(1) == labels).float().sum()
            for images, labels in loader("test", [])
        ]
    return float(sum(right)) / len(data["test"][1])


def train_keras(name: str, folder: Path) -> float:
    """Train with Keras' fit on torch; its layers augment."""
    import keras

    recipe, network, is_half = recipe_of(name)
    data, augment, split = read(), recipe.augment, Split.read()
    inputs, targets = (
        {part: tensors[number].numpy() for part, tensors in data.items()} for number in (0, 1)
    )
    options = {"fill_mode": "nearest", "data_format": "channels_first"}
    changes = [
        keras.layers.RandomRotation(augment.rotate / 360, **options),
        keras.layers.RandomTranslation(augment.shift, augment.shift, **options),
        *([keras.layers.RandomZoom(augment.scale, augment.scale, **options)] * (augment.scale > 0)),
    ]
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            *changes,
            keras.layers.Rescaling(1 / (255 * float(split.std)), -float(split.mean / split.std)),
            keras.layers.TorchModuleWrapper(Mixed(network, is_half)),
        ]
    )
    steps = recipe.epochs * -(-len(targets["train"]) // recipe.batch_size)
    peak = round(recipe.warmup * steps)
    rate = keras.optimizers.schedules.CosineDecay(
        recipe.learning_rate / 25,
        steps - peak,
        warmup_target=recipe.learning_rate,
        warmup_steps=peak,
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(
            rate, weight_decay=recipe.weight_decay, clipnorm=recipe.clip_norm or None
        ),
        loss=keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=recipe.label_smoothing
        ),
        metrics=["accuracy"],
    )
    path = folder / "best.weights.h5"
    best = keras.callbacks.ModelCheckpoint(
        path, monitor="val_accuracy", save_best_only=True, save_weights_only=True
    )
    one_hot = {part: np.eye(CLASSES, dtype=np.float32)[labels] for part, labels in targets.items()}
    model.fit(
        inputs["train"],
        one_hot["train"],
        recipe.batch_size,
        recipe.epochs,
        validation_data=(inputs["validation"], one_hot["validation"]),
        callbacks=[best],
        verbose=2,
    )
    say_saved()
    model.load_weights(path)
    return float(model.evaluate(inputs["test"], one_hot["test"], verbose=0)[1])


def train_sklearn(name: str, folder: Path) -> float:
    """Train scikit-learn's counterpart: softmax regression, or its MLP, without augmentation."""
    recipe, _, _ = recipe_of(name)
    data = read()
    inputs = {part: images.flatten(1).numpy() / 255 for part, (images, _) in data.items()}
    if name == "linear":
        model = LogisticRegression()
    else:
        hidden = load_params().recipe(name)[1]["hidden"]
        model = MLPClassifier(hidden, batch_size=recipe.batch_size, max_iter=recipe.epochs)
    model.fit(inputs["train"], data["train"][1])
    joblib.dump(model, folder / "model.joblib")
    say_saved()
    return model.score(inputs["test"], data["test"][1])


def say_saved() -> None:
    """Print the time: all that follows is no part of the training."""
    print(f"saved {time.time()}", flush=True)


if __name__ == "__main__":
    tool, architecture, place = sys.argv[1:]
    torch.manual_seed(3)
    accuracy = globals()[f"train_{tool}"](architecture, Path(place))
    print(f"accuracy {accuracy}")
