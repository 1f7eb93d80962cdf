"""The training loop as a generator of events; its whole state can be saved after any of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lineup.errors import UserError
from lineup.evaluation.inference import evaluation_batch
from lineup.evaluation.scores import classification_scores, regression_scores
from lineup.params import Train
from lineup.training.batches import Batches, shuffle
from lineup.training.draws import Purpose, draw_seed
from lineup.training.optimizers import (
    backbone_and_head,
    learning_rate_at,
    make_optimizers,
    set_learning_rate,
)
from lineup.training.step_graph import StepGraph


@dataclass(frozen=True)
class Step:
    """A step was taken on `examples` examples."""

    examples: int


@dataclass(frozen=True)
class Means:
    """Means of loss and accuracy since the last event of this kind, up to a global step."""

    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class Epoch:
    """An epoch ended: its row of the history, and its weights where they are to be kept."""

    row: dict[str, float]
    weights: dict[str, Tensor] | None


@dataclass(frozen=True)
class Notice:
    """Something that a person wants to know."""

    text: str


@dataclass(frozen=True)
class Waiting:
    """Nothing happened for a moment: who drives a training may stop it."""


Event = Step | Means | Epoch | Notice | Waiting


@dataclass
class Progress:
    """Where a training stands, besides its tensors: all of it is JSON."""

    epoch: int = 0
    step: int = 0  # of this epoch
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    finished: bool = False

    @property
    def best_row(self) -> dict[str, float]:
        """Return the history's row of the best epoch."""
        return self.history[self.best_epoch - 1]

    @property
    def best_scores(self) -> dict[str, float]:
        """Return validation's scores of the best epoch."""
        return {name: value for name, value in self.best_row.items() if name.startswith("val_")}


class Trainer:
    """A model, its optimizers and its moving average on their way through the epochs."""

    def __init__(
        self, model: nn.Module, train: Batches, validation: Batches, recipe: Train, seed: int
    ) -> None:
        self.device = train.inputs.device
        self.model = model.to(self.device)
        if train.is_image:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.train, self.validation, self.recipe, self.seed = train, validation, recipe, seed
        self.is_classification = not train.targets.is_floating_point()
        self.class_weights = None
        if self.is_classification and recipe.class_weights == "balanced":
            self.class_weights = _balance(train.targets)
        self.steps_per_epoch = _steps_per_epoch(len(train), recipe.batch_size)
        self.optimizers = make_optimizers(self.model, recipe)
        self.average = copy.deepcopy(self.model) if recipe.ema else None
        self.graph: StepGraph | None = None
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.losses = torch.zeros(self.steps_per_epoch, device=self.device)  # sums over the batch
        self.correct = torch.zeros(self.steps_per_epoch, device=self.device)
        self.columns = ["epoch", *_metric_names(recipe, self.is_classification), "learning_rate"]
        self.monitor = _resolve_monitor(recipe, self.is_classification, self.columns)
        self.highest_is_best = self.monitor in ("val_accuracy", "val_r2")
        if 1 in (recipe.batch_size, len(train)):
            _check_batch_norm(self.model, train)

    @property
    def examples(self) -> tuple[int, int]:
        """Return on how many examples it has trained, and on how many it will have at the end."""
        per_epoch, progress = len(self.train), self.progress
        done = progress.epoch * per_epoch + progress.step * self.recipe.batch_size
        return done, self.recipe.epochs * per_epoch

    # --- the loop ---------------------------------------------------------------------------------

    def fit(self) -> Iterator[Event]:
        """Yield what happens until the recipe ends or stops early."""
        try:
            while not self.progress.finished:
                yield from self._fit_epoch()
        finally:
            self.graph = None  # it and this trainer hold each other, and the GPU's memory

    def _fit_epoch(self) -> Iterator[Event]:
        """Train the rest of the current epoch, validate, and note the best epoch so far."""
        progress, log_every = self.progress, self.recipe.log_every
        order = shuffle(len(self.train), self.seed, progress.epoch).to(self.device)
        logged = progress.step - progress.step % log_every
        self.model.train()
        if self.recipe.freeze_epochs:
            self._freeze(progress.epoch < self.recipe.freeze_epochs)
        while progress.step < self.steps_per_epoch:
            index = order[self._examples(progress.step)]
            self._train_step(index)
            progress.step += 1
            if progress.step % log_every == 0 or progress.step == self.steps_per_epoch:
                yield self._means(logged)
                logged = progress.step
            yield Step(len(index))
        yield self._finish_epoch()

    def _freeze(self, is_frozen: bool) -> None:
        """Keep all but the last layer as it is, or let it learn; after `model.train()`."""
        backbone, _ = backbone_and_head(self.model)
        if backbone and backbone[0].requires_grad == is_frozen:
            self.graph = None  # other weights learn
        for parameter in backbone:
            parameter.requires_grad_(not is_frozen)
        for module in self.model.modules():
            if is_frozen and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()  # its statistics are the backbone's

    def _examples(self, step: int) -> slice:
        """Return which part of the epoch's order a step trains on."""
        start = step * self.recipe.batch_size
        is_last = step + 1 == self.steps_per_epoch
        return slice(start, len(self.train) if is_last else start + self.recipe.batch_size)

    def _train_step(self, index: Tensor) -> None:
        """Train on the examples `index`; all that is random depends on seed and step alone."""
        step = self.progress.epoch * self.steps_per_epoch + self.progress.step
        self._seed_step(step)
        lr = learning_rate_at(self.recipe, step, self.steps_per_epoch)
        set_learning_rate(self.optimizers, lr)
        has_graph = self.device.type == "cuda" and len(index) == self.recipe.batch_size
        loss, correct = self._replay(index) if has_graph else self._update(index)
        if step == 0 and self.average is not None:
            self.average.load_state_dict(self.model.state_dict())
        self.losses[self.progress.step] = loss
        self.correct[self.progress.step] = correct

    def _replay(self, index: Tensor) -> tuple[Tensor, ...]:
        """Do as `_update`, for a whole batch on a GPU."""
        self.graph = self.graph or StepGraph(self._update, self._changing_tensors)
        return self.graph(index)

    def _changing_tensors(self) -> list[Tensor]:
        """Return all tensors that a step changes."""
        models = [self.model] if self.average is None else [self.model, self.average]
        states = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        return [
            *(tensor for model in models for tensor in (*model.parameters(), *model.buffers())),
            *(value for state in states for value in state.values() if value is not None),
        ]

    def _update(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Update the weights; return the batch's sum of losses and number of correct answers."""
        inputs, targets = self.train.batch(index, self.recipe.augment)
        with self._autocast():
            outputs = self.model(inputs)
        loss = self._loss(outputs.float(), targets)
        self.model.zero_grad(set_to_none=True)  # the optimizers' own takes longer
        loss.backward()
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.average is not None:
            self._update_average()
        correct = torch.zeros_like(loss, requires_grad=False)
        if self.is_classification:
            correct = (outputs.detach().argmax(1) == targets).sum()
        return loss.detach() * len(index), correct

    def _seed_step(self, step: int) -> None:
        """Seed the device's generator; torch.manual_seed asks for every device: 1 ms."""
        seed = draw_seed(self.seed, Purpose.STEP, step)
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def _autocast(self) -> torch.autocast:
        enabled = self.recipe.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the average towards the weights (Polyak).

        torch's AveragedModel, which does the same, waits for the device at every step.
        """
        current = self.model.state_dict()
        for name, average in self.average.state_dict().items():
            if average.is_floating_point():  # batch norm's statistics, too; not its counter
                average.lerp_(current[name], 1 - self.recipe.ema)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch: cross-entropy of logits, or the squared error."""
        if self.is_classification:
            smoothing = self.recipe.label_smoothing
            if self.class_weights is None:
                return functional.cross_entropy(outputs, targets, label_smoothing=smoothing)
            losses = functional.cross_entropy(
                outputs, targets, label_smoothing=smoothing, reduction="none"
            )
            return (losses * self.class_weights[targets]).mean()  # torch's would weigh smoothing
        return functional.mse_loss(outputs, targets)

    def _means(self, start: int) -> Means:
        """Return the means since step `start` of this epoch; UserError if a loss is not finite."""
        progress = self.progress
        losses = self.losses[start : progress.step]
        finite = losses.isfinite()
        if not finite.all():
            step = start + int((~finite).nonzero()[0]) + 1
            raise UserError(
                f"the loss is not finite at epoch {progress.epoch + 1}, step {step}; "
                "try a lower learning_rate or clip_norm: 1"
            )
        examples = self._examples(progress.step - 1).stop - self._examples(start).start
        values = {"step_loss": float(losses.cpu().double().sum()) / examples}
        if self.is_classification:
            correct = self.correct[start : progress.step]
            values["step_accuracy"] = float(correct.sum()) / examples
        return Means(progress.epoch * self.steps_per_epoch + progress.step, values)

    def _finish_epoch(self) -> Epoch:
        """Validate, add a row to the history, keep the best weights, decide whether to stop."""
        progress, recipe = self.progress, self.recipe
        progress.epoch, progress.step = progress.epoch + 1, 0
        row = self._history_row()
        if not math.isfinite(row["val_loss"]):
            raise UserError(
                f"val_loss is not finite after epoch {progress.epoch}; try a lower learning_rate"
            )
        progress.history.append(row)
        if min(progress.history, key=self.rank) is row:  # the first of equals
            progress.best_epoch = progress.epoch
            weights = self.weights().items()
            self.best = {name: tensor.detach().clone() for name, tensor in weights}
        waited = progress.epoch - progress.best_epoch
        is_stalled = recipe.patience > 0 and waited >= recipe.patience
        progress.finished = progress.epoch == recipe.epochs or is_stalled
        is_kept = recipe.keep_every > 0 and progress.epoch % recipe.keep_every == 0
        return Epoch(row, self.weights() if is_kept else None)

    def _history_row(self) -> dict[str, float]:
        count = len(self.train)
        last_step = self.progress.epoch * self.steps_per_epoch - 1
        metrics = {
            "epoch": self.progress.epoch,
            "train_loss": float(self.losses.cpu().double().sum()) / count,
            "train_accuracy": float(self.correct.sum()) / count,
            "learning_rate": learning_rate_at(self.recipe, last_step, self.steps_per_epoch),
            **self.validate(),
        }
        return {name: metrics[name] for name in self.columns}

    def rank(self, row: dict[str, float]) -> tuple[float, float]:
        """Return what is lowest for the best epoch: its score, then val_loss among equals."""
        score = row[self.monitor]
        return -score if self.highest_is_best else score, row["val_loss"]

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Return the metrics of the validation split: sums over all examples, divided once."""
        model = self.model if self.average is None else self.average
        model.eval()
        outputs, targets = [], []
        batch_size = evaluation_batch(self.validation.inputs.shape[1:])
        for start in range(0, len(self.validation), batch_size):
            inputs, batch_targets = self.validation.batch(slice(start, start + batch_size))
            with self._autocast():
                outputs.append(model(inputs).float())
            targets.append(batch_targets)
        model.train()
        score = classification_scores if self.is_classification else regression_scores
        extra = [self.recipe.top_k] if self.is_classification else []
        scores = score(torch.cat(outputs), torch.cat(targets), *extra)
        return {f"val_{name}": value for name, value in scores.items()}

    def weights(self) -> dict[str, Tensor]:
        """Return the weights that would ship now: the moving average where there is one."""
        return (self.model if self.average is None else self.average).state_dict()

    # --- the state --------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return all that a resume needs: JSON, and tensors on the CPU."""
        tensors = _prefixed("model", self.model.state_dict())
        for number, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                known = {name: value for name, value in values.items() if value is not None}
                tensors |= _prefixed(f"optimizer.{number}.{index}", known)
        if self.average is not None:
            tensors |= _prefixed("average", self.average.state_dict())
        tensors |= _prefixed("best", self.best)
        tensors |= {"losses": self.losses, "correct": self.correct}
        copies = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
        return asdict(self.progress), copies

    def restore(self, progress: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        tensors = {name: tensor.clone().to(self.device) for name, tensor in tensors.items()}
        self.progress = Progress(**progress)
        self.graph = None
        self.model.load_state_dict(_below("model", tensors))
        for number, optimizer in enumerate(self.optimizers):
            _restore_optimizer(optimizer, _below(f"optimizer.{number}", tensors))
        if self.average is not None:
            self.average.load_state_dict(_below("average", tensors))
        self.best = _below("best", tensors)
        self.losses, self.correct = tensors["losses"], tensors["correct"]


def _balance(labels: Tensor) -> Tensor:
    """Return a weight per class (K,), float32: the mean number of examples ÷ the class's own.

    Over all labels they are 1 in the mean.
    """
    counts = labels.cpu().bincount().clamp_min(1)
    return (len(labels) / (len(counts) * counts)).to(labels.device)


def _steps_per_epoch(examples: int, batch_size: int) -> int:
    """Return the number of steps; a lone last example joins the batch before: norms need two."""
    is_lone = batch_size > 1 and examples % batch_size == 1
    return max(1, math.ceil(examples / batch_size) - is_lone)


def _metric_names(recipe: Train, is_classification: bool) -> list[str]:
    if not is_classification:
        return ["train_loss", "val_loss", "val_mae", "val_r2"]
    top = f"val_top{recipe.top_k}_accuracy"
    return ["train_loss", "train_accuracy", "val_loss", "val_accuracy", top]


def _resolve_monitor(recipe: Train, is_classification: bool, columns: list[str]) -> str:
    """Return the metric that chooses the best epoch.

    `auto` takes accuracy: a loss would favour early epochs, as label smoothing makes later ones
    less sure.
    """
    if recipe.monitor == "auto":
        return "val_accuracy" if is_classification else "val_loss"
    if recipe.monitor not in columns:
        message = f"train.monitor = '{recipe.monitor}' is no metric of this task; try val_loss"
        raise UserError(f"params.yaml: {message}")
    return recipe.monitor


@torch.no_grad()
def _check_batch_norm(model: nn.Module, train: Batches) -> None:
    """Raise UserError where a layer has a single value per channel: it has no deviation."""
    inputs, _ = train.batch(slice(0, 1))
    try:
        copy.deepcopy(model).train()(inputs)
    except ValueError as error:
        message = "params.yaml: train.batch_size = 1 is too small for batch norm; try 2 or more"
        if len(train) == 1:
            message = "one training example is too few for batch norm; set batch_norm: false"
        raise UserError(f"{message} ({error})") from None


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {k.removeprefix(start): tensor for k, tensor in tensors.items() if k.startswith(start)}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimizer the states of its weights, `tensors` by index and name."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        states.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == weight.shape:  # fused steps read memory in the weight's own layout
                state[name] = torch.empty_like(weight).copy_(value)
