"""A training with all who hear of it: the terminal, the run folder of MLflow, TensorBoard."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from lineup.params import Params
from lineup.tracking.location import enabled
from lineup.training.checkpoints import Checkpoint, fingerprint
from lineup.training.console import Console
from lineup.training.interruption import INTERRUPTED, Interruption
from lineup.training.outputs import LiveHistory, write_outputs
from lineup.training.session import Interrupted, drive
from lineup.training.setup import Setup


def run_training(setup: Setup, params: Params, folder: Path) -> float | None:
    """Write the outputs of a training to `folder`; return its seconds, None where it resumed."""
    checkpoint = Checkpoint(fingerprint(setup.config))

    with ExitStack() as stack:
        stack.enter_context(checkpoint.lock())
        is_resumed = checkpoint.resume(setup.trainer)

        console = Console(setup, checkpoint.log_file, is_resumed)
        console.introduce(params, checkpoint.warning)
        listeners = [console, LiveHistory(folder, setup.trainer.progress.history)]
        if enabled():
            from lineup.tracking.run_recorder import RunRecorder  # matplotlib: a second

            recorder = RunRecorder(setup, params, checkpoint, is_resumed)
            listeners.append(stack.enter_context(recorder))
        if setup.trainer.recipe.tensorboard:
            from lineup.training.tensorboard import TensorBoard  # an extra

            listeners.append(TensorBoard(folder.name, is_resumed))

        interruption = stack.enter_context(Interruption())
        stack.enter_context(console)
        try:
            drive(setup.events, setup.trainer, checkpoint, listeners, interruption)
        except Interrupted:
            console.say(f"interrupted at {console.position()}; the same command resumes there")
            raise SystemExit(INTERRUPTED) from None

        seconds = None if is_resumed else console.seconds
        write_outputs(folder, setup, checkpoint.run_id)
        for listener in listeners:
            listener.finish(folder)
    if interruption.requested:  # after the last step
        print("interrupted, but this training is finished; the same command goes on from here")
        raise SystemExit(INTERRUPTED)
    return seconds
