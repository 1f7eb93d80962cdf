"""Train one architecture and write its weights, its history, and all that rebuilds it."""

from typing import Annotated

import typer

from lineup.cli import run
from lineup.params import load_params
from lineup.paths import MODELS
from lineup.process import end_with_parent
from lineup.training.portable import limit_instructions


def main(
    architecture: Annotated[str, typer.Argument(help="One of params.yaml's architectures.")],
) -> None:
    """Train ARCHITECTURE with the recipe of params.yaml; a killed training resumes where it was."""
    params = load_params()
    recipe, _ = params.recipe(architecture)

    end_with_parent()
    if recipe.precision == "portable":
        limit_instructions()

    from lineup.training.run import run_training
    from lineup.training.setup import set_up

    setup = set_up(params, architecture)
    run_training(setup, params, MODELS / architecture)


if __name__ == "__main__":
    run(main)
