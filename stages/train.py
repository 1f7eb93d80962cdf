"""Train one architecture and write its weights, its history, and all that rebuilds it."""

from contextlib import ExitStack
from typing import Annotated

import typer

from lineup.cli import run

INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended


def main(
    architecture: Annotated[str, typer.Argument(help="One of params.yaml's architectures.")],
) -> None:
    """Train ARCHITECTURE with the recipe of params.yaml; a killed training resumes where it was."""
    from lineup.params import load_params

    params = load_params()
    recipe, _ = params.recipe(architecture)

    from lineup.paths import MODELS
    from lineup.process import end_with_parent
    from lineup.tracking.location import enabled
    from lineup.training.checkpoints import Checkpoint, fingerprint
    from lineup.training.console import Console
    from lineup.training.interruption import Interruption
    from lineup.training.outputs import write_outputs
    from lineup.training.setup import set_up

    end_with_parent()
    setup = set_up(params, architecture)
    trainer = setup.trainer
    checkpoint = Checkpoint(fingerprint(setup.config))
    wait = f"{architecture}: another process trains just this; waiting"

    with ExitStack() as stack:
        stack.enter_context(checkpoint.lock(on_wait=lambda: typer.echo(wait)))
        saved = checkpoint.load()
        is_resumed = saved is not None
        if is_resumed:
            trainer.restore(*saved)

        # Who hears of the training; its result never depends on them.
        console = Console(setup, checkpoint.folder / "train.log", is_resumed)
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

        def save() -> None:
            for listener in listeners:
                listener.flush()
            checkpoint.save(trainer.state())

        for event in trainer.fit():
            for listener in listeners:
                listener.record(event)
            if checkpoint.should_save() or interruption.requested:
                save()
            if interruption.requested and not trainer.progress.finished:
                console.say(f"interrupted at {console.position()}; the same command resumes there")
                raise SystemExit(INTERRUPTED)

        save()
        write_outputs(MODELS / architecture, setup, checkpoint.run_id)
        for listener in listeners:
            listener.finish(MODELS / architecture)


if __name__ == "__main__":
    run(main)
