"""What a person sees of a training: its first lines, its progress bar, a line per epoch, a log."""

from __future__ import annotations

import copy
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import typer
from torchinfo import summary

from lineup.architectures import count_parameters
from lineup.cli import duration, progress
from lineup.params import Params
from lineup.training.setup import Setup
from lineup.training.trainer import Epoch, Event, Means, Notice, Step, Trainer

SECONDS_TO_ESTIMATE = 3.0  # of a training, before it says how long the rest will take


class Console:
    """The terminal and the log file of one training; its context is the progress bar."""

    def __init__(self, setup: Setup, log_file: Path, is_resumed: bool) -> None:
        self.setup, self.trainer, self.log_file = setup, setup.trainer, log_file
        self.is_resumed = is_resumed
        self.bar = progress(
            "loss {task.fields[loss]}", "{task.fields[accuracy]}", "{task.fields[speed]} images/s"
        )
        self.measured_since: float | None = None
        self.measured = 0  # examples
        self.is_estimated = False

    def say(self, line: str) -> None:
        """Print a line with the architecture's name, and add it to the log file."""
        line = f"{self.setup.architecture}: {line}"
        typer.echo(line)
        with suppress(OSError):  # a full disk
            self._log(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")

    def _log(self, text: str) -> None:
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    # --- the first lines --------------------------------------------------------------------------

    def introduce(self, params: Params, warning: str) -> None:
        """Say what is trained on what, how long and why, and what may be wrong."""
        trainer, config = self.trainer, self.setup.config
        recipe = config["recipe"]
        place = f"{recipe['device']}, {recipe['precision']}, {config['threads']} threads"
        if node := self.setup.machine.node:
            place += f", on {node}"
        parameters = count_parameters(trainer.model)
        self.say(f"{parameters:,} parameters on {len(trainer.train):,} examples ({place})")
        if start := config["pretrained"]:
            random = ", ".join(self.setup.random_weights)
            self.say(f"starts from {start['name']}; at random: {random}")
        epochs, reason = params.epochs(
            self.setup.architecture, len(trainer.train), self.setup.dataset.shape
        )
        self.say(f"{epochs} {'epoch' if epochs == 1 else 'epochs'} ({reason})")
        if ignored := params.ignored_keys():
            names = ", ".join(f"train.{key}" for key in ignored)
            self.say(f"no effect: {names}, since every section of models sets its own")
        for text in (warning, ema_warning(trainer)):
            if text:
                self.say(f"warning: {text}")
        if self.is_resumed:
            self.say(f"resumes at {self.position()}")
        else:
            shape = (2, *self.setup.dataset.shape)
            model = copy.deepcopy(trainer.model)  # whose norms take note of the summary's zeros
            table = summary(model, input_size=shape, verbose=0, device=trainer.device, mode="train")
            self._log(str(table))

    def position(self) -> str:
        """Return where the training stands."""
        progress = self.trainer.progress
        return f"epoch {progress.epoch + 1}, step {progress.step}"

    # --- the bar ----------------------------------------------------------------------------------

    def __enter__(self) -> Console:
        done, total = self.trainer.examples
        self.bar.start()
        self.task = self.bar.add_task(
            self.setup.architecture,
            total=total,
            completed=done,
            loss="–",
            accuracy="",
            speed="–",
        )
        self.started_at = time.monotonic()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    @property
    def seconds(self) -> float:
        """Return how long the loop has run."""
        return time.monotonic() - self.started_at

    def record(self, event: Event) -> None:
        """Show what happened."""
        match event:
            case Step(examples):
                self.bar.advance(self.task, examples)
                self._estimate(examples)
            case Means(_, values):
                self._show_means(values)
            case Epoch(row):
                self._show_epoch(row)
            case Notice(text):
                self.say(text)

    def _show_means(self, values: dict[str, float]) -> None:
        accuracy = values.get("step_accuracy")
        self.bar.update(
            self.task,
            loss=f"{values['step_loss']:.4f}",
            accuracy="" if accuracy is None else f"accuracy {accuracy:.2%}",
            speed=f"{self.bar.tasks[self.task].speed or 0:,.0f}",
        )

    def _show_epoch(self, row: dict[str, float]) -> None:
        values = "  ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "epoch")
        self.say(f"epoch {row['epoch']}/{self.trainer.recipe.epochs}  {values}")

    def _estimate(self, examples: int) -> None:
        """Say once how long the rest will take; the first step prepares, and is slower."""
        now = time.monotonic()
        if self.measured_since is None:
            self.measured_since = now
            return
        self.measured += examples
        elapsed = now - self.measured_since
        if self.is_estimated or elapsed <= SECONDS_TO_ESTIMATE:
            return
        self.is_estimated = True
        if left := self.bar.tasks[self.task].remaining:
            self.say(f"about {duration(left * elapsed / self.measured)} left")

    def flush(self) -> None:
        """Do nothing: every line is written at once."""

    def finish(self, folder: Path) -> None:
        """Say which epoch is the best, with its scores, and how long the loop took."""
        progress = self.trainer.progress
        scores = ", ".join(f"{key} {value:.4g}" for key, value in progress.best_scores.items())
        since = " since it resumed" if self.is_resumed else ""
        self.say(f"best epoch {progress.best_epoch}, {scores}, in {self.seconds:.1f} s{since}")


def ema_warning(trainer: Trainer) -> str:
    """Return what to change where the moving average remembers more steps than there are."""
    ema, steps = trainer.recipe.ema, trainer.recipe.epochs * trainer.steps_per_epoch
    memory = 1 / (1 - ema)
    if round(memory) <= steps:
        return ""
    fitting = 1 - float(f"{10 / steps:.0e}")  # remembers about a tenth of the steps
    advice = f"{fitting:g}, or 0 (off)" if fitting > 0 else "0 (off)"
    return (
        f"ema = {ema} averages the weights of the last {memory:,.0f} steps, but this training "
        f"has {steps:,}: nearly untrained weights would ship; try ema = {advice}"
    )
