"""The training loop: epochs, moving average, early stopping; its whole state can be saved at any step."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lineup.errors import UserError
from lineup.data.dataset import evaluation_batch
from lineup.evaluation.scores import regression_scores
from lineup.params import Train
from lineup.training.batches import Batches, Purpose, draw_seed, shuffled
from lineup.training.optimizers import learning_rate, make_optimizers


class Interrupted(Exception):
    """The training was asked to stop, and has saved where it stands."""


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


@dataclass(frozen=True)
class Reporter:
    """What the loop tells the outside world; the result never depends on it."""

    on_step: Callable[
        [int, float, float | None], None
    ]  # global step, mean loss and accuracy since the last call
    on_epoch: Callable[[dict[str, float]], None]
    on_progress: Callable[[int], None]  # examples of this batch
    keep: Callable[[int, dict[str, Tensor]], None]  # epoch, weights
    stop_requested: Callable[[], bool]


def resolve_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `mps` or `cuda[:N]`; UserError if it is not there."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    device = torch.device(name)
    if device.type != "cpu":
        count = (
            torch.accelerator.device_count()
            if accelerator and accelerator.type == device.type
            else 0
        )
        if (device.index or 0) >= count:
            raise UserError(
                f"params.yaml: train.device = '{name}', but this machine has {count} of them; try auto"
            )
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """Return `float32` or `bfloat16`; `auto` takes bfloat16 where the hardware computes in it."""
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
    else:
        native = False
    return "bfloat16" if native else "float32"


def make_deterministic() -> None:
    """Choose algorithms that give the same bits on every run; must come before the first use of CUDA."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_deterministic_debug_mode(
        "error"
    )  # as torch.use_deterministic_algorithms, which imports a compiler
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    torch.backends.cudnn.benchmark = False


class Training:
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
        lone = recipe.batch_size > 1 and len(train) % recipe.batch_size == 1  # batch norm needs two
        self.steps_per_epoch = max(1, math.ceil(len(train) / recipe.batch_size) - lone)
        self.optimizers = make_optimizers(self.model, recipe)
        self.average = None
        if recipe.ema:
            self.average = AveragedModel(
                self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True
            )
        self.autocast = recipe.precision == "bfloat16"
        on_cpu = (
            self.device.type == "cpu"
        )  # where seeding every device that is not there takes a millisecond
        self.reseed = torch.default_generator.manual_seed if on_cpu else torch.manual_seed
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.losses = torch.zeros(self.steps_per_epoch, device=self.device)  # sums over the batch
        self.correct = torch.zeros(self.steps_per_epoch, device=self.device)
        if recipe.batch_size == 1 and any(
            isinstance(module, nn.BatchNorm1d) for module in model.modules()
        ):
            raise UserError(
                "params.yaml: train.batch_size = 1 is too small for batch norm; try 2 or more"
            )
        self.columns = ["epoch", *self.metric_names(), "learning_rate"]
        self.monitor = recipe.monitor
        if (
            recipe.monitor == "auto"
        ):  # a loss would favour early epochs: label smoothing has later ones less sure
            self.monitor = "val_accuracy" if self.is_classification else "val_loss"
        highest = self.monitor in ("val_accuracy", "val_r2")
        self.highest_is_best = highest if recipe.mode == "auto" else recipe.mode == "max"
        if self.monitor not in self.columns:
            raise UserError(
                f"params.yaml: train.monitor = '{recipe.monitor}' is no metric of this task; try val_loss"
            )

    def metric_names(self) -> list[str]:
        """Return the names of the metrics of every epoch, in their order."""
        if not self.is_classification:
            return ["train_loss", "val_loss", "val_mae", "val_r2"]
        top = f"val_top{self.recipe.top_k}_accuracy"
        return ["train_loss", "train_accuracy", "val_loss", "val_accuracy", top]

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(
        self, reporter: Reporter, save: Callable[[Training], None], due: Callable[[], bool]
    ) -> None:
        """Train to the end of the recipe or an early stop; `save` is called when `due`, and at the end."""
        while not self.progress.finished:
            self.run_epoch(reporter, save, due)
        save(self)

    def run_epoch(
        self, reporter: Reporter, save: Callable[[Training], None], due: Callable[[], bool]
    ) -> None:
        """Train the rest of the current epoch, validate, and note the best epoch so far."""
        progress, recipe = self.progress, self.recipe
        order = shuffled(len(self.train), self.seed, progress.epoch).to(self.device)
        reported = progress.step - progress.step % recipe.log_every
        self.model.train()
        while progress.step < self.steps_per_epoch:
            index = order[self.examples(progress.step)]
            self.take_step(index)
            progress.step += 1
            reporter.on_progress(len(index))
            if progress.step % recipe.log_every == 0 or progress.step == self.steps_per_epoch:
                self.report_steps(reported, reporter)
                reported = progress.step
            if reporter.stop_requested():
                save(self)
                raise Interrupted(f"epoch {progress.epoch + 1}, step {progress.step}")
            if due() and progress.step < self.steps_per_epoch:
                save(self)
        row = self.finish_epoch()
        reporter.on_epoch(row)
        if recipe.keep_every and progress.epoch % recipe.keep_every == 0:
            reporter.keep(progress.epoch, self.weights())
        if due() or reporter.stop_requested():
            save(self)
        if reporter.stop_requested() and not progress.finished:
            raise Interrupted(f"the end of epoch {progress.epoch}")

    def examples(self, step: int) -> slice:
        """Return which part of the epoch's order a step trains on."""
        start = step * self.recipe.batch_size
        return slice(
            start,
            start + self.recipe.batch_size if step + 1 < self.steps_per_epoch else len(self.train),
        )

    def take_step(self, index: Tensor) -> None:
        """Train on the examples `index`; all that is random in it depends on seed and step alone."""
        progress, recipe = self.progress, self.recipe
        step = progress.epoch * self.steps_per_epoch + progress.step
        self.reseed(draw_seed(self.seed, Purpose.STEP, step))
        rate = learning_rate(recipe, step, self.steps_per_epoch)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        inputs, targets = self.train.batch(index, recipe.augment)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            outputs = self.model(inputs)
        loss = self.loss(outputs.float(), targets)
        self.model.zero_grad(set_to_none=True)  # the optimizers' own takes longer
        loss.backward()
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.losses[progress.step] = loss.detach() * len(index)
        if self.is_classification:
            self.correct[progress.step] = (outputs.detach().argmax(1) == targets).sum()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch: cross-entropy of logits, or the squared error."""
        if self.is_classification:
            return functional.cross_entropy(
                outputs, targets, label_smoothing=self.recipe.label_smoothing
            )
        return functional.mse_loss(outputs, targets)

    def report_steps(self, start: int, reporter: Reporter) -> None:
        """Report the steps since `start` of this epoch; stop the training if a loss is not finite."""
        progress = self.progress
        losses = self.losses[start : progress.step]
        finite = losses.isfinite()
        if not finite.all():
            step = start + int((~finite).nonzero()[0]) + 1
            raise UserError(
                f"the loss is not finite at epoch {progress.epoch + 1}, step {step}; "
                "try a lower learning_rate or clip_norm: 1"
            )
        examples = self.examples(progress.step - 1).stop - self.examples(start).start
        accuracy = (
            float(self.correct[start : progress.step].sum()) / examples
            if self.is_classification
            else None
        )
        step = progress.epoch * self.steps_per_epoch + progress.step
        reporter.on_step(step, float(losses.cpu().double().sum()) / examples, accuracy)

    def finish_epoch(self) -> dict[str, float]:
        """Close the epoch: validate, add the row to the history, keep the best weights, decide whether to stop."""
        progress, recipe = self.progress, self.recipe
        progress.epoch, progress.step = progress.epoch + 1, 0
        metrics = {"train_loss": float(self.losses.cpu().double().sum()) / len(self.train)}
        if self.is_classification:
            metrics["train_accuracy"] = float(self.correct.sum()) / len(self.train)
        metrics |= self.validate()
        last_step = progress.epoch * self.steps_per_epoch - 1
        metrics |= {
            "epoch": progress.epoch,
            "learning_rate": learning_rate(recipe, last_step, self.steps_per_epoch),
        }
        row = {name: metrics[name] for name in self.columns}
        if not math.isfinite(metrics["val_loss"]):
            raise UserError(
                f"val_loss is not finite after epoch {progress.epoch}; try a lower learning_rate"
            )
        progress.history.append(row)
        if min(progress.history, key=self.rank) is row:  # the first of equals
            progress.best_epoch = progress.epoch
            self.best = {name: tensor.detach().clone() for name, tensor in self.weights().items()}
        waited = progress.epoch - progress.best_epoch
        progress.finished = (
            progress.epoch == recipe.epochs
            or (recipe.patience and waited >= recipe.patience)
            or False
        )
        return row

    def rank(self, row: dict[str, float]) -> tuple[float, float]:
        """Return what is lowest for the best epoch: its score, then val_loss among equals."""
        score = row[self.monitor]
        return -score if self.highest_is_best else score, row["val_loss"]

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Return the metrics of the validation part: sums over all examples, divided once."""
        model = self.model if self.average is None else self.average.module
        model.eval()
        outputs, targets = [], []
        batch_size = evaluation_batch(self.validation.inputs.shape[1:])
        for start in range(0, len(self.validation), batch_size):
            inputs, truth = self.validation.batch(slice(start, start + batch_size))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                outputs.append(model(inputs).float())
            targets.append(truth)
        model.train()
        return self.score(torch.cat(outputs), torch.cat(targets))

    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the validation metrics of outputs (N, K) and targets (N) or (N, T)."""
        if not self.is_classification:
            scores = regression_scores(outputs, targets)
            return {f"val_{name}": value for name, value in scores.items()}
        top_k = min(self.recipe.top_k, outputs.shape[1])
        hits = outputs.topk(top_k, 1).indices == targets[:, None]
        return {
            "val_loss": float(functional.cross_entropy(outputs, targets, reduction="sum"))
            / len(targets),
            f"val_top{self.recipe.top_k}_accuracy": float(hits.any(1).sum()) / len(targets),
            "val_accuracy": float((outputs.argmax(1) == targets).sum()) / len(targets),
        }

    def weights(self) -> dict[str, Tensor]:
        """Return the weights that would ship now: the moving average where there is one."""
        return (self.model if self.average is None else self.average.module).state_dict()

    # --- the state ----------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return all that a resume needs: JSON and tensors."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                key = f"optimizer.{number}.{index}"
                tensors |= {
                    f"{key}.{name}": value for name, value in values.items() if value is not None
                }
        if self.average is not None:
            tensors |= {
                f"average.{name}": tensor for name, tensor in self.average.state_dict().items()
            }
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {"losses": self.losses, "correct": self.correct}
        return self.progress.__dict__, {
            name: tensor.cpu().clone() for name, tensor in tensors.items()
        }

    def restore(self, progress: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        tensors = {name: tensor.clone().to(self.device) for name, tensor in tensors.items()}

        def below(prefix: str) -> dict[str, Tensor]:
            return {
                name[len(prefix) :]: tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }

        self.progress = Progress(**progress)
        self.model.load_state_dict(below("model."))
        for number, optimizer in enumerate(self.optimizers):
            states: dict[int, dict[str, Tensor]] = {}
            for name, tensor in below(f"optimizer.{number}.").items():
                index, key = name.split(".", 1)
                states.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
            for (
                weight,
                state,
            ) in optimizer.state.items():  # fused steps read memory in the weight's own layout
                state |= {
                    k: torch.empty_like(weight).copy_(v)
                    for k, v in state.items()
                    if v.shape == weight.shape
                }
        if self.average is not None:
            self.average.load_state_dict(below("average."))
        self.best = below("best.")
        self.losses, self.correct = tensors["losses"], tensors["correct"]
