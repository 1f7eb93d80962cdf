"""What one training tells the world: progress bar, log file, MLflow, TensorBoard; the result never depends on it."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer
from torch import Tensor

from lineup import tracking
from lineup.cli import duration, progress
from lineup.errors import UserError
from lineup.data.dataset import Dataset
from lineup.files import write_tensors
from lineup.params import Params
from lineup.tracking import lineage
from lineup.tracking.journal import Journal
from lineup.training.checkpoints import Checkpoint
from lineup.training.trainer import Interrupted, Reporter, Training

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SECONDS_TO_ESTIMATE = 3.0  # of a training, before it says how long the rest will take


class Report:
    """Follows a training from its first step to its end: a context around the loop, then `finish`."""

    def __init__(
        self,
        architecture: str,
        params: Params,
        facts: dict[str, Any],
        dataset: Dataset,
        checkpoint: Checkpoint,
        courier: tracking.Courier | None,
    ) -> None:
        self.architecture, self.params, self.facts = architecture, params, facts
        self.dataset, self.checkpoint = dataset, checkpoint
        self.log_file = checkpoint.folder / "train.log"
        self.kept = checkpoint.folder / "epochs"
        self.stopped = False
        self.courier = courier
        self.journal = Journal(checkpoint.training) if courier else None
        self.writer = (
            open_tensorboard(architecture, checkpoint) if facts["recipe"]["tensorboard"] else None
        )

    def reporter(self) -> Reporter:
        """Return what the loop calls."""
        return Reporter(
            self.on_step, self.on_epoch, self.on_progress, self.keep, lambda: self.stopped
        )

    def say(self, line: str) -> None:
        """Print a line and add it to the log file."""
        typer.echo(line)
        with (
            contextlib.suppress(OSError),
            self.log_file.open("a", encoding="utf-8") as file,
        ):  # a full disk
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    # --- around the loop ----------------------------------------------------------------------------------------------

    def open(self, loop: Training, resumed: bool) -> Report:
        """Announce `loop`: what is trained, on what, with how many parameters; return self, a context."""
        recipe = self.facts["recipe"]
        self.loop, self.resumed = loop, resumed
        self.per_epoch = len(loop.train)
        self.done = loop.progress.epoch * self.per_epoch + loop.progress.step * recipe["batch_size"]
        place = f"{recipe['device']}, {recipe['precision']}, {self.facts['threads']} threads"
        self.say(
            f"{self.architecture}: {count(loop.model):,} parameters on {self.per_epoch:,} examples ({place})"
        )
        self.explain_settings()
        if self.checkpoint.warning:
            self.say(f"warning: {self.checkpoint.warning}")
        if warning := ema_warning(loop):
            self.say(f"warning: {warning}")
        if resumed:
            self.say(
                f"{self.architecture}: resumes at epoch {loop.progress.epoch + 1}, step {loop.progress.step}"
            )
        else:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(f"{summarise(loop.model, self.dataset)}\n")
        if self.journal and self.courier:
            if "start" in self.journal.keys:  # killed before, perhaps before its first checkpoint
                self.journal.append(f"resume:{time.time_ns()}", "resume")
            else:
                self.journal.append("start", "start", **self.start_event())
                if (self.checkpoint.folder / "changes.patch").exists():
                    self.attach(self.checkpoint.folder / "changes.patch", "lineage")
            self.courier.follow(self.journal, self.say)
        self.bar = progress(
            "loss {task.fields[loss]}", "{task.fields[accuracy]}", "{task.fields[speed]} images/s"
        )
        return self

    def explain_settings(self) -> None:
        """Say how many epochs there will be and why, and which keys of train have no effect."""
        epochs, reason = self.params.epochs(self.architecture, self.per_epoch)
        self.say(f"{self.architecture}: {epochs} {'epoch' if epochs == 1 else 'epochs'} ({reason})")
        if ignored := self.params.ignored_keys():
            names = ", ".join(f"train.{key}" for key in ignored)
            verb = "has" if len(ignored) == 1 else "have"
            self.say(f"{names} {verb} no effect: every section of models sets its own")

    def __enter__(self) -> Report:
        self.bar.start()
        total = self.loop.recipe.epochs * self.per_epoch
        self.task = self.bar.add_task(
            self.architecture, total=total, completed=self.done, loss="–", accuracy="", speed="–"
        )
        self.measured_since: float | None = None
        self.measured = 0  # examples
        self.is_estimated = False
        self.signals = {s: signal.signal(s, self.stop) for s in (signal.SIGINT, signal.SIGTERM)}
        self.started_at = time.monotonic()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self.started_at
        self.bar.stop()
        for number, handler in self.signals.items():
            signal.signal(number, handler)
        if isinstance(error, Interrupted):
            self.say(f"{self.architecture}: interrupted at {error}; the same command resumes there")
            if self.courier:
                self.courier.finish()
            raise SystemExit(130) from None
        if error is not None and self.journal and self.courier:
            try:
                self.journal.append(
                    f"failed:{time.time_ns()}",
                    "end",
                    status="FAILED",
                    error=str(error) or kind.__name__,
                )
            finally:
                self.courier.finish()

    def stop(self, number: int, frame: Any) -> None:  # noqa: ANN401
        """Ask the loop to save and stop at its next step."""
        self.stopped = True

    def save(self, loop: Training) -> None:
        """Save a checkpoint; what was recorded so far comes to disk before it."""
        if self.journal:
            self.journal.flush()
        self.checkpoint.save(*loop.state())

    # --- what the loop calls ------------------------------------------------------------------------------------------

    def on_progress(self, examples: int) -> None:
        """Move the bar; say once how long the rest will take."""
        self.bar.advance(self.task, examples)
        now = time.monotonic()
        if self.measured_since is None:  # the first step prepares, and is slower
            self.measured_since = now
            return
        self.measured += examples
        elapsed = now - self.measured_since
        if not self.is_estimated and elapsed > SECONDS_TO_ESTIMATE:
            self.is_estimated = True
            self.say_time_left(elapsed / self.measured)

    def say_time_left(self, seconds_per_example: float) -> None:
        """Say how long the examples take that are left, unless none are."""
        if left := self.bar.tasks[self.task].remaining:
            self.say(f"{self.architecture}: about {duration(left * seconds_per_example)} left")

    def on_step(self, step: int, loss: float, accuracy: float | None) -> None:
        """Show and record the mean loss and accuracy of the last steps."""
        values = {"step_loss": loss} | ({} if accuracy is None else {"step_accuracy": accuracy})
        shown = "" if accuracy is None else f"accuracy {accuracy:.2%}"
        speed = self.bar.tasks[self.task].speed or 0
        self.bar.update(self.task, loss=f"{loss:.4f}", accuracy=shown, speed=f"{speed:,.0f}")
        self.record(f"step:{step}", values, step)

    def on_epoch(self, row: dict[str, float]) -> None:
        """Print and record a row of the history."""
        values = {name: value for name, value in row.items() if name != "epoch"}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.say(f"{self.architecture} epoch {row['epoch']}/{self.loop.recipe.epochs}  {shown}")
        self.record(f"epoch:{row['epoch']}", values, row["epoch"])

    def record(self, key: str, values: dict[str, float], step: int) -> None:
        """Add points to the journal and to TensorBoard."""
        if self.journal:
            self.journal.append(key, "metrics", values=values, step=step)
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def keep(self, epoch: int, weights: dict[str, Tensor]) -> None:
        """Keep the weights of an epoch, to be logged beside the run's model."""
        write_tensors(self.kept / f"epoch-{epoch:03d}.safetensors", weights)

    # --- at the end ---------------------------------------------------------------------------------------------------

    def finish(self, folder: Path) -> None:
        """Record outputs and pictures of `folder` (models/<architecture>), register the model, close the run."""
        from lineup.evaluation.plots import draw_learning_curves

        best = self.loop.progress.best_row
        scores = ", ".join(
            f"{name} {value:.4f}" for name, value in best.items() if name.startswith("val_")
        )
        since = " since it resumed" if self.resumed else ""
        self.say(
            f"{self.architecture}: best epoch {best['epoch']}, {scores}, in {self.seconds:.1f} s{since}"
        )
        if self.writer:
            self.writer.close()
        if not (self.journal and self.courier):
            return
        self.journal.append("model", "model", file=self.journal.copy(folder, "model"))
        self.courier.hurry()  # the rest of this costs no time then
        curves = self.checkpoint.folder / "learning_curves.png"
        draw_learning_curves({self.architecture: self.loop.progress.history}, curves)
        for path, place in (
            (curves, "pictures"),
            (self.log_file, "log"),
            (folder / "history.csv", None),
        ):
            self.attach(path, place)
        if self.kept.exists():
            self.attach(self.kept, "epochs")
        if not self.resumed:  # else the time is that of the last part alone
            self.journal.append(
                "seconds", "metrics", values={"training_seconds": self.seconds}, step=0
            )
        self.journal.append(
            f"end:{time.time_ns()}", "end", status="FINISHED", error=""
        )  # closes it after a resume too
        self.journal.flush()
        self.courier.finish()

    def attach(self, path: Path, place: str | None) -> None:
        """Record a file or folder as an artifact of the run, in the folder `place`."""
        self.journal.append(
            f"file:{path.name}", "artifact", file=self.journal.copy(path, path.name), folder=place
        )

    def start_event(self) -> dict[str, Any]:
        """Return what the run carries from the start: name, params, tags, datasets."""
        tags = lineage.tags()
        tags |= {"architecture": self.architecture, "lineup.lock": str(self.checkpoint.lock_file)}
        tags |= {f"sha256.{part}": digest for part, digest in self.dataset.digests.items()}
        tags["sha256.split"] = self.facts["split"]
        patch = lineage.changes()
        tags["git_dirty"] = str(bool(patch)).lower() if patch is not None else lineage.TOO_LARGE
        if patch is None:
            self.say(
                f"warning: what changed since the last commit is {lineage.TOO_LARGE}; commit or ignore it"
            )
        patch_file = self.checkpoint.folder / "changes.patch"
        patch_file.unlink(missing_ok=True)  # of a training before
        if patch:
            patch_file.write_bytes(patch)
        name = " ".join(part for part in (self.architecture, tags["dvc_exp_name"]) if part)
        sections = {"data": self.params.data.model_dump(), "split": self.params.split.model_dump()}
        params = lineage.flattened({"dataset": self.params.dataset, **self.facts, **sections})
        return {
            "experiment": self.dataset.name,
            "name": name,
            "params": params,
            "tags": {key: value for key, value in tags.items() if value},
            "datasets": lineage.dataset_facts(
                self.dataset.name, self.facts["split"], self.dataset.digests["test"]
            ),
        }


def ema_warning(loop: Training) -> str | None:
    """Return what to change where the moving average remembers more steps than the training has."""
    ema, steps = loop.recipe.ema, loop.recipe.epochs * loop.steps_per_epoch
    memory = 1 / (1 - ema)
    if round(memory) <= steps:
        return None
    fitting = 1 - float(f"{10 / steps:.0e}")  # remembers about a tenth of the steps
    advice = f"{fitting:g}, or 0 (off)" if fitting > 0 else "0 (off)"
    return (
        f"ema = {ema} averages the weights of the last {memory:,.0f} steps, but this training "
        f"has {steps:,}: nearly untrained weights would ship; try ema = {advice}"
    )


def open_tensorboard(architecture: str, checkpoint: Checkpoint) -> SummaryWriter:
    """Return a writer of TensorBoard events in runs/<architecture>; UserError if the extra is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("train.tensorboard needs an extra: pip install tensorboard") from None
    folder = Path("runs") / architecture
    if not checkpoint.saved_file:
        shutil.rmtree(folder, ignore_errors=True)
    return SummaryWriter(str(folder))


def count(model: Any) -> int:  # noqa: ANN401
    """Return the number of trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def summarise(model: Any, dataset: Dataset) -> str:  # noqa: ANN401
    """Return torchinfo's table of layers, shapes and parameters."""
    from torchinfo import summary

    return str(
        summary(
            model, input_size=(2, *dataset.shape), verbose=0, device=next(model.parameters()).device
        )
    )
