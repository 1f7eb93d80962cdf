"""Train one architecture and write its weights, its history, and all that rebuilds it."""

from contextlib import ExitStack
from typing import Annotated

import typer

from lineup.cli import run
from lineup.paths import MODELS
from lineup.process import end_with_parent
from lineup.tracking.location import enabled
from lineup.training.interruption import Interruption
from lineup.training.portable import limit_instructions

INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended


def main(
    architecture: Annotated[str, typer.Argument(help="One of params.yaml's architectures.")],
) -> None:
    """Train ARCHITECTURE with the recipe of params.yaml; a killed training resumes where it was."""
    from lineup.params import load_params

    params = load_params()
    recipe, _ = params.recipe(architecture)

    if recipe.precision == "portable":
        limit_instructions()

    from lineup.training.checkpoints import Checkpoint, fingerprint
    from lineup.training.console import Console
    from lineup.training.outputs import write_outputs
    from lineup.training.session import Interrupted, drive
    from lineup.training.setup import set_up

    end_with_parent()
    setup = set_up(params, architecture)
    checkpoint = Checkpoint(fingerprint(setup.config))
    folder = MODELS / architecture

    with ExitStack() as stack:
        stack.enter_context(checkpoint.lock())
        is_resumed = checkpoint.resume(setup.trainer)

        console = Console(setup, checkpoint.log_file, is_resumed)
        console.introduce(params, checkpoint.warning)
        listeners = [console]
        if enabled():
            from lineup.tracking.run_recorder import RunRecorder

            recorder = RunRecorder(setup, params, checkpoint, is_resumed)
            listeners.append(stack.enter_context(recorder))
        if recipe.tensorboard:
            from lineup.training.tensorboard import TensorBoard

            listeners.append(TensorBoard(architecture, is_resumed))

        interruption = stack.enter_context(Interruption())
        stack.enter_context(console)
        try:
            drive(setup.trainer, checkpoint, listeners, interruption)
        except Interrupted:
            console.say(f"interrupted at {console.position()}; the same command resumes there")
            raise SystemExit(INTERRUPTED) from None

        write_outputs(folder, setup, checkpoint.run_id)
        for listener in listeners:
            listener.finish(folder)


if __name__ == "__main__":
    run(main)
